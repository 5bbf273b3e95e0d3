//! Connections to servers that listen in a sandbox.

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::error::Failure;
use super::files::refusal;
use super::{CONTROL_TIMEOUT, SandboxClient, SandboxError, Target};
use crate::token::Scope;
use crate::wire::TUNNEL_PROTOCOL;

impl SandboxClient {
    /// Opens a connection to `port` of the sandbox's loopback.
    ///
    /// # Errors
    /// See [`SandboxError`]; a port on which nothing listens is [`super::NotStarted::Rejected`] with status 502, and that of
    /// `sandboxd` with 403.
    pub async fn open_port(&self, target: &Target, port: u16) -> Result<TokioIo<Upgraded>, SandboxError> {
        let opened = timeout(CONTROL_TIMEOUT, self.to_port(target, port)).await;
        let opened = opened.map_err(|_| SandboxError::Deadline { waited: CONTROL_TIMEOUT })?;
        opened.map_err(|failure| match failure {
            Failure::Broken(reason) => SandboxError::Lost { reason },
            other => other.into_error(None),
        })
    }

    async fn to_port(&self, target: &Target, port: u16) -> Result<TokioIo<Upgraded>, Failure> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("/v1/ports/{port}"))
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, TUNNEL_PROTOCOL);
        let response = self.open(target, Scope::Port, request, Empty::<Bytes>::new()).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| Failure::Broken(error.to_string()))?;
        Ok(TokioIo::new(upgraded))
    }
}
