//! The client of `sandboxd`, for the session service.
//!
//! Each request has a connection of its own: whether a call can have started is then known from how far the request got,
//! and a sandbox that is gone is noticed by its connection.

mod error;
mod files;
mod port;
mod terminal;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::provision::{ProvisionRequest, Provisioned};
use crate::token::{Scope, Signer};
use crate::wire::{
    Activity, CallId, CancelRequest, CancelResponse, DrainRequest, DrainResponse, EgressBinding, EgressBound,
    ExecuteRequest, ToolOutput,
};
use error::{Failure, error_body, retry_after};

pub use error::{NotStarted, SandboxError};
pub use files::{Download, Reading, Workspace};
pub use terminal::Tunnel;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(5);
const REATTACH_DELAYS: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// Which sandbox a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port` of its `sandboxd`.
    pub address: String,
    /// The UID of its pod. A sandbox that took over the address refuses the token.
    pub pod_uid: String,
}

/// Talks to any sandbox whose tokens it can sign.
#[derive(Clone, Debug)]
pub struct SandboxClient {
    signer: Signer,
}

impl SandboxClient {
    /// A client that signs its tokens with `signer`.
    #[must_use]
    pub fn new(signer: Signer) -> Self {
        Self { signer }
    }

    /// Runs a call and waits for its result, at most `deadline` long.
    ///
    /// A call id runs at most once in a sandbox, so that repeating this is safe as long as the sandbox process lives. When
    /// the connection breaks, the running call is joined again (never restarted) before [`SandboxError::Lost`] is returned.
    pub async fn execute(
        &self,
        target: &Target,
        call: &ExecuteRequest,
        deadline: Duration,
    ) -> Result<ToolOutput, SandboxError> {
        let until = Instant::now() + deadline;
        let run = async {
            match self.post(target, "/v1/execute", call).await {
                Err(Failure::Broken(reason)) => self.reattach(target, call, reason).await,
                other => other.map_err(|failure| failure.of_call(&call.call_id)),
            }
        };
        timeout_at(until, run).await.map_err(|_| SandboxError::Deadline { waited: deadline })?
    }

    /// Joins a call that was started before, and never starts one: [`SandboxError::UnknownCall`] if the process that runs
    /// in the sandbox now does not know it.
    pub async fn attach(
        &self,
        target: &Target,
        call: &ExecuteRequest,
        deadline: Duration,
    ) -> Result<ToolOutput, SandboxError> {
        self.execute(target, &ExecuteRequest { attach_only: true, ..call.clone() }, deadline).await
    }

    /// Interrupts a running call. Its result says so.
    pub async fn cancel(&self, target: &Target, call_id: &CallId) -> Result<CancelResponse, SandboxError> {
        let body = CancelRequest { call_id: call_id.clone() };
        control(self.post(target, "/v1/cancel", &body)).await
    }

    /// What the sandbox is doing.
    pub async fn activity(&self, target: &Target) -> Result<Activity, SandboxError> {
        control(self.request(target, Method::GET, "/v1/activity", Bytes::new())).await
    }

    /// Makes the sandbox refuse new calls until it is resumed, if it has been idle for `idle`, whatever runs in its background.
    pub async fn drain(&self, target: &Target, idle: Duration) -> Result<DrainResponse, SandboxError> {
        self.drain_if(target, &DrainRequest { idle_seconds: idle.as_secs(), background_counts: false }).await
    }

    /// Makes the sandbox refuse new calls until it is resumed, if it has been idle in the sense of `request`.
    pub async fn drain_if(&self, target: &Target, request: &DrainRequest) -> Result<DrainResponse, SandboxError> {
        control(self.post(target, "/v1/drain", request)).await
    }

    /// Makes a drained sandbox take calls again. Repeating it changes nothing.
    pub async fn resume(&self, target: &Target) -> Result<Activity, SandboxError> {
        control(self.request(target, Method::DELETE, "/v1/drain", Bytes::new())).await
    }

    /// Leads what leaves the sandbox to the proxy of its session. Repeating it changes nothing.
    pub async fn bind_egress(&self, target: &Target, binding: &EgressBinding) -> Result<EgressBound, SandboxError> {
        let request = async {
            let body = serde_json::to_vec(binding).map_err(|error| Failure::Request(error.to_string()))?;
            self.request(target, Method::PUT, "/v1/egress", body.into()).await
        };
        control(request).await
    }

    /// Sees to it that the workspace holds what it shall; what it has been given before is not given again. The answer is at most
    /// a little later than the request's own deadline.
    pub async fn provision(&self, target: &Target, request: &ProvisionRequest) -> Result<Provisioned, SandboxError> {
        let deadline = Duration::from_secs(request.deadline_seconds) + CONTROL_TIMEOUT;
        controlled(deadline, self.post(target, "/v1/provision", request)).await
    }

    /// Closes the way out of the sandbox.
    pub async fn unbind_egress(&self, target: &Target) -> Result<EgressBound, SandboxError> {
        control(self.request(target, Method::DELETE, "/v1/egress", Bytes::new())).await
    }

    /// Sends `request` on a connection of its own; the answer's body comes as it is asked for.
    async fn open<B>(
        &self,
        target: &Target,
        scope: Scope,
        request: http::request::Builder,
        body: B,
    ) -> Result<Response<Incoming>, Failure>
    where
        B: hyper::body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let token = self.signer.sign_for(&target.pod_uid, scope).map_err(Failure::Sign)?;
        let request = request
            .header(header::HOST, &target.address)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(body)
            .map_err(|error| Failure::Request(error.to_string()))?;
        let stream = connect(&target.address)
            .await
            .map_err(|error| Failure::Unreachable { address: target.address.clone(), reason: error.to_string() })?;
        let broken = |error: hyper::Error| Failure::Broken(error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the answer's body, or when that is dropped.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(broken)
    }

    async fn reattach(
        &self,
        target: &Target,
        call: &ExecuteRequest,
        broken: String,
    ) -> Result<ToolOutput, SandboxError> {
        let attach = ExecuteRequest { attach_only: true, ..call.clone() };
        let mut reason = broken.clone();
        for delay in REATTACH_DELAYS {
            sleep(delay).await;
            match self.post(target, "/v1/execute", &attach).await {
                Ok(output) => return Ok(output),
                Err(failure) => match failure.of_call(&call.call_id) {
                    error @ (SandboxError::Mismatch { .. }
                    | SandboxError::Evicted { .. }
                    | SandboxError::OutcomeUnknown { .. }) => return Err(error),
                    // The first request may have arrived all the same: nothing that is said now makes it not started.
                    SandboxError::NotStarted(now) => reason = format!("{broken}; then {now}"),
                    error => reason = format!("{broken}; then {error}"),
                },
            }
        }
        Err(SandboxError::Lost { reason })
    }

    async fn post<T: DeserializeOwned>(
        &self,
        target: &Target,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::Request(error.to_string()))?;
        self.request(target, Method::POST, path, body.into()).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        target: &Target,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Failure> {
        let token = self.signer.sign(&target.pod_uid).map_err(Failure::Sign)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &target.address)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::Request(error.to_string()))?;
        let stream = connect(&target.address)
            .await
            .map_err(|error| Failure::Unreachable { address: target.address.clone(), reason: error.to_string() })?;
        let (status, headers, body) = exchange(stream, request).await?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| Failure::Protocol { status, reason: error.to_string() });
        }
        Err(Failure::Refused { status, retry_after: retry_after(&headers), body: error_body(&body) })
    }
}

async fn control<T>(request: impl Future<Output = Result<T, Failure>>) -> Result<T, SandboxError> {
    controlled(CONTROL_TIMEOUT, request).await
}

async fn controlled<T>(
    deadline: Duration,
    request: impl Future<Output = Result<T, Failure>>,
) -> Result<T, SandboxError> {
    let answer = timeout(deadline, request).await;
    let answer = answer.map_err(|_| SandboxError::Deadline { waited: deadline })?;
    answer.map_err(|failure| match failure {
        Failure::Broken(reason) => SandboxError::Lost { reason },
        other => other.into_error(None),
    })
}

async fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()))
    })??;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    // A call may be silent for minutes, and a node that is gone says nothing.
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(4))?;
    socket.set_tcp_user_timeout(Some(KEEPALIVE * 5))?;
    Ok(stream)
}

async fn exchange(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<(StatusCode, HeaderMap, Bytes), Failure> {
    let broken = |error: hyper::Error| Failure::Broken(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        if body.size_hint().lower() > MAX_RESPONSE_BYTES as u64 {
            return Err(Failure::Protocol { status: parts.status, reason: "the answer is too large".to_owned() });
        }
        let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map_err(|error| {
            match error.downcast::<http_body_util::LengthLimitError>() {
                Ok(limit) => Failure::Protocol { status: parts.status, reason: limit.to_string() },
                Err(error) => Failure::Broken(error.to_string()),
            }
        })?;
        Ok((parts.status, parts.headers, body.to_bytes()))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}
