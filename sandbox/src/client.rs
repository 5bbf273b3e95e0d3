//! The client of `sandboxd`, for the session service.
//!
//! Each request has a connection of its own: whether a call can have started is then known from how far the request got,
//! and a sandbox that is gone is noticed by its connection.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::token::{SignError, Signer};
use crate::wire::{
    Activity, CallId, CancelRequest, CancelResponse, DrainRequest, DrainResponse, ErrorBody, ErrorCode, ExecuteRequest,
    ToolOutput,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(5);
const REATTACH_DELAYS: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
const MAX_MESSAGE_CHARS: usize = 500;

/// Which sandbox a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port` of its `sandboxd`.
    pub address: String,
    /// The UID of its pod. A sandbox that took over the address refuses the token.
    pub pod_uid: String,
}

/// Why a call was surely not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    /// No connection could be made.
    #[error("no connection to the sandbox at {address}: {reason}")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What the connection attempt ended with.
        reason: String,
    },
    /// The sandbox is being reclaimed; use another one.
    #[error("the sandbox is being reclaimed")]
    Draining,
    /// `sandboxd` is ending; use another sandbox.
    #[error("the sandbox is ending")]
    Terminating,
    /// Too many calls run; try again later.
    #[error("too many calls run in the sandbox; try again in {} s", retry_after.as_secs())]
    Busy {
        /// How long to wait.
        retry_after: Duration,
    },
    /// The request itself was refused, and will be every time.
    #[error("the sandbox refused the request with {status}: {message}")]
    Rejected {
        /// The HTTP status.
        status: StatusCode,
        /// What the sandbox said.
        message: String,
    },
}

/// What a request to a sandbox can end with, sorted by what it means for the call.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Surely not run.
    #[error("the call was not started: {0}")]
    NotStarted(#[from] NotStarted),
    /// The request was sent, then the connection broke and the call could not be found again: it may have run.
    #[error("the sandbox was lost after the request was sent, so the outcome is unknown: {reason}")]
    Lost {
        /// How the connection ended.
        reason: String,
    },
    /// The sandbox does not take our token; the call was not started.
    #[error("the sandbox refused the token: {message}")]
    Unauthorized {
        /// Which check failed.
        message: String,
    },
    /// The call id belongs to a call with another name or input.
    #[error("call {call_id} is known to the sandbox with another name or input")]
    Mismatch {
        /// The call.
        call_id: CallId,
    },
    /// The call has finished long ago; its result is no longer kept, and it is not run again.
    #[error("call {call_id} has finished, but its result is no longer kept")]
    Evicted {
        /// The call.
        call_id: CallId,
    },
    /// The sandbox process does not know the call that was to be joined.
    #[error("the sandbox does not know call {call_id}")]
    UnknownCall {
        /// The call.
        call_id: CallId,
    },
    /// No answer in time. The call may still run; it can be joined again or cancelled.
    #[error("no answer from the sandbox within {} s", waited.as_secs())]
    Deadline {
        /// How long was waited.
        waited: Duration,
    },
    /// The answer is not what `sandboxd` says; the call may have run.
    #[error("the answer of the sandbox is not understood ({status}): {reason}")]
    Protocol {
        /// The HTTP status.
        status: StatusCode,
        /// What is wrong with it.
        reason: String,
    },
    /// Our own token could not be signed; nothing was sent.
    #[error(transparent)]
    Sign(#[from] SignError),
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

    /// Makes the sandbox refuse new calls for good, if it has been idle for `idle`.
    pub async fn drain(&self, target: &Target, idle: Duration) -> Result<DrainResponse, SandboxError> {
        let body = DrainRequest { idle_seconds: idle.as_secs() };
        control(self.post(target, "/v1/drain", &body)).await
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
                    error @ (SandboxError::Mismatch { .. } | SandboxError::Evicted { .. }) => return Err(error),
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
    let answer = timeout(CONTROL_TIMEOUT, request).await;
    let answer = answer.map_err(|_| SandboxError::Deadline { waited: CONTROL_TIMEOUT })?;
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

fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1).min(60))
}

// A sandbox runs what a model wrote: what it says is bounded before it goes anywhere.
fn error_body(body: &[u8]) -> (ErrorCode, String) {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => (body.error.code, body.error.message.chars().take(MAX_MESSAGE_CHARS).collect()),
        Err(_) => (ErrorCode::Unknown, String::from_utf8_lossy(body).chars().take(MAX_MESSAGE_CHARS).collect()),
    }
}

/// How one request failed, before it is known what that means for the call.
enum Failure {
    Sign(SignError),
    Request(String),
    Unreachable { address: String, reason: String },
    Broken(String),
    Refused { status: StatusCode, retry_after: Duration, body: (ErrorCode, String) },
    Protocol { status: StatusCode, reason: String },
}

impl Failure {
    fn of_call(self, call_id: &CallId) -> SandboxError {
        self.into_error(Some(call_id))
    }

    fn into_error(self, call_id: Option<&CallId>) -> SandboxError {
        let (status, retry_after, code, message) = match self {
            Self::Sign(error) => return error.into(),
            Self::Request(message) => {
                return NotStarted::Rejected { status: StatusCode::BAD_REQUEST, message }.into();
            }
            Self::Unreachable { address, reason } => return NotStarted::Unreachable { address, reason }.into(),
            Self::Broken(reason) => return SandboxError::Lost { reason },
            Self::Protocol { status, reason } => return SandboxError::Protocol { status, reason },
            Self::Refused { status, retry_after, body: (code, message) } => (status, retry_after, code, message),
        };
        match (code, call_id.cloned()) {
            (ErrorCode::Draining, _) => NotStarted::Draining.into(),
            (ErrorCode::Terminating, _) => NotStarted::Terminating.into(),
            (ErrorCode::TooManyCalls, _) => NotStarted::Busy { retry_after }.into(),
            (ErrorCode::Unauthorized, _) => SandboxError::Unauthorized { message },
            (ErrorCode::CallMismatch, Some(call_id)) => SandboxError::Mismatch { call_id },
            (ErrorCode::ResultEvicted, Some(call_id)) => SandboxError::Evicted { call_id },
            (ErrorCode::UnknownCall, Some(call_id)) => SandboxError::UnknownCall { call_id },
            (ErrorCode::Unknown, _) => SandboxError::Protocol { status, reason: message },
            _ => NotStarted::Rejected { status, message }.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use rstest::rstest;

    use super::{Failure, error_body};
    use crate::wire::{CallId, ErrorCode};

    #[rstest]
    #[case(409, ErrorCode::Draining, "NotStarted(Draining)")]
    #[case(503, ErrorCode::Terminating, "NotStarted(Terminating)")]
    #[case(429, ErrorCode::TooManyCalls, "NotStarted(Busy { retry_after: 3s })")]
    #[case(401, ErrorCode::Unauthorized, "Unauthorized { message: \"m\" }")]
    #[case(409, ErrorCode::CallMismatch, "Mismatch { call_id: CallId(\"c\") }")]
    #[case(410, ErrorCode::ResultEvicted, "Evicted { call_id: CallId(\"c\") }")]
    #[case(404, ErrorCode::UnknownCall, "UnknownCall { call_id: CallId(\"c\") }")]
    #[case(413, ErrorCode::TooLarge, "NotStarted(Rejected { status: 413, message: \"m\" })")]
    #[case(500, ErrorCode::Unknown, "Protocol { status: 500, reason: \"m\" }")]
    fn each_refusal_says_what_it_means_for_the_call(#[case] status: u16, #[case] code: ErrorCode, #[case] error: &str) {
        let failure = Failure::Refused {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: Duration::from_secs(3),
            body: (code, "m".to_owned()),
        };
        assert_eq!(format!("{:?}", failure.of_call(&CallId::new("c").unwrap())), error);
    }

    #[test]
    fn what_a_sandbox_says_is_bounded() {
        let (code, message) = error_body("x".repeat(100_000).as_bytes());
        assert_eq!((code, message.len()), (ErrorCode::Unknown, 500));
    }
}
