//! What the operator asks of the session service.

use std::time::Duration;

use async_trait::async_trait;
use longhand_protocol::SessionId;
use longhand_protocol::client::{Error, InternalClient};
use longhand_protocol::internal::{DrainSandbox, Drained, Handoff, SessionList, SessionSummary, SettleHandoff};

/// The session service, as far as the operator needs it.
#[async_trait]
pub trait LogService: Send + Sync + 'static {
    /// The log of this resource exists and holds its `input`.
    async fn ensure(&self, namespace: &str, name: &str, uid: &str) -> Result<SessionSummary, Error>;
    /// What is shown in the resource's status.
    async fn summary(&self, namespace: &str, name: &str) -> Result<SessionSummary, Error>;
    /// At most `limit` logs, those after `after`.
    async fn list(&self, after: Option<&SessionId>, limit: usize) -> Result<SessionList, Error>;
    /// Deletes a log whose resource is gone.
    async fn delete(&self, session: &SessionId) -> Result<(), Error>;
    /// Makes an idle sandbox take no more calls.
    async fn drain(&self, namespace: &str, name: &str, request: &DrainSandbox) -> Result<Drained, Error>;
    /// Does its part of handing a sandbox to another session.
    async fn settle_handoff(&self, namespace: &str, name: &str, request: &SettleHandoff) -> Result<Handoff, Error>;
}

#[async_trait]
impl LogService for InternalClient {
    async fn ensure(&self, namespace: &str, name: &str, uid: &str) -> Result<SessionSummary, Error> {
        self.ensure_session(namespace, name, uid).await
    }

    async fn summary(&self, namespace: &str, name: &str) -> Result<SessionSummary, Error> {
        self.session(namespace, name).await
    }

    async fn list(&self, after: Option<&SessionId>, limit: usize) -> Result<SessionList, Error> {
        self.list_sessions(after, limit).await
    }

    async fn delete(&self, session: &SessionId) -> Result<(), Error> {
        self.delete_session(session).await
    }

    async fn drain(&self, namespace: &str, name: &str, request: &DrainSandbox) -> Result<Drained, Error> {
        self.drain_sandbox(namespace, name, request).await
    }

    async fn settle_handoff(&self, namespace: &str, name: &str, request: &SettleHandoff) -> Result<Handoff, Error> {
        Self::settle_handoff(self, namespace, name, request).await
    }
}

/// How long to wait before a call that failed is made again.
#[must_use]
pub fn retry_after(error: &Error) -> Duration {
    const SOON: Duration = Duration::from_secs(2);
    const LATER: Duration = Duration::from_secs(30);
    error.retry_after().unwrap_or(if error.is_retryable() { SOON } else { LATER }).clamp(SOON, LATER)
}
