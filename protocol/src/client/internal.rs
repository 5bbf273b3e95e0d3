//! What the operator asks of the session service.

use std::time::Duration;

use http::Method;

use super::transport::{Call, Transport};
use super::{Result, Server, TokenSource};
use crate::id::SessionId;
use crate::internal::{
    DrainSandbox, Drained, EnsureSession, Handoff, PeerPreviews, SessionList, SessionSummary, SettleHandoff,
};

/// Nobody waits for previews that come late.
const PREVIEWS_DEADLINE: Duration = Duration::from_secs(2);

/// The operator's API.
#[derive(Clone, Debug)]
pub struct InternalClient {
    transport: Transport,
}

impl InternalClient {
    /// A client of the service at `server`.
    ///
    /// # Errors
    /// When the URL or the authorities of `server` cannot be used.
    pub fn new(server: impl Into<Server>, token: TokenSource) -> Result<Self> {
        Ok(Self { transport: Transport::new(server, token)? })
    }

    /// The log of this resource exists and holds its `input`.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn ensure_session(&self, namespace: &str, name: &str, uid: &str) -> Result<SessionSummary> {
        let path = ["internal", "v1", "namespaces", namespace, "sessions", name];
        self.transport.send_json(Call::new(Method::PUT, &path), &EnsureSession { uid: uid.to_owned() }).await
    }

    /// What is shown in the status of the resource.
    ///
    /// # Errors
    /// 404 when the resource has no log.
    pub async fn session(&self, namespace: &str, name: &str) -> Result<SessionSummary> {
        let path = ["internal", "v1", "namespaces", namespace, "sessions", name];
        self.transport.send(Call::get(&path)).await
    }

    /// At most `limit` logs, those after `after`.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn list_sessions(&self, after: Option<&SessionId>, limit: usize) -> Result<SessionList> {
        let path = ["internal", "v1", "sessions"];
        self.transport.send(Call::get(&path).maybe_query("after", after).query("limit", limit)).await
    }

    /// Deletes a log whose resource is gone.
    ///
    /// # Errors
    /// 409 when the service finds that the resource exists.
    pub async fn delete_session(&self, session: &SessionId) -> Result<()> {
        let path = ["internal", "v1", "sessions", session.as_str()];
        self.transport.post_only(Call::new(Method::DELETE, &path), &serde_json::Map::new()).await
    }

    /// Makes an idle sandbox take no more calls.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn drain_sandbox(&self, namespace: &str, name: &str, request: &DrainSandbox) -> Result<Drained> {
        let path = ["internal", "v1", "namespaces", namespace, "sandboxes", name, "drain"];
        self.transport.send_json(Call::post(&path), request).await
    }

    /// Does the service's part of a handoff.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn settle_handoff(&self, namespace: &str, name: &str, request: &SettleHandoff) -> Result<Handoff> {
        let path = ["internal", "v1", "namespaces", namespace, "sandboxes", name, "handoff"];
        self.transport.send_json(Call::post(&path), request).await
    }
}

/// What the replicas of the session service tell one another.
#[derive(Clone, Debug)]
pub struct PeerClient {
    transport: Transport,
}

impl PeerClient {
    /// A client of the replica at `server`.
    ///
    /// # Errors
    /// When the URL or the authorities of `server` cannot be used.
    pub fn new(server: impl Into<Server>, token: TokenSource) -> Result<Self> {
        Ok(Self { transport: Transport::new(server, token)? })
    }

    /// Shows previews to those who watch at that replica.
    ///
    /// # Errors
    /// See [`super::Error`]; previews are never repeated.
    pub async fn previews(&self, request: &PeerPreviews) -> Result<()> {
        let path = ["peer", "v1", "previews"];
        self.transport.post_only(Call::post(&path).deadline(PREVIEWS_DEADLINE), request).await
    }
}
