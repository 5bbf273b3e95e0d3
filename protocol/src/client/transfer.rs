//! Whole sessions, out and in.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use http::header;

use super::transport::{Call, api_error, decode, exchange, parts, transport_error};
use super::{Error, Result, WireClient};
use crate::id::SessionId;
use crate::wire::{ForkSession, Session};

/// The first byte of an export comes within this time, and each part within it after the one before.
const PATIENCE: Duration = Duration::from_secs(60);
/// An import is as long as its file, but not longer than this.
const IMPORT_DEADLINE: Duration = Duration::from_secs(24 * 3_600);

impl WireClient {
    /// Makes a session that begins with the history of another one.
    ///
    /// # Errors
    /// 404 when there is no such session, 400 when it has no such event.
    pub async fn fork_session(&self, request: &ForkSession) -> Result<Session> {
        self.transport.send_json(Call::post(&self.path(&[])), request).await
    }

    /// The file of an export, in parts as they come: see [`crate::export`].
    ///
    /// # Errors
    /// 404 when there is no such session.
    pub async fn export_session(&self, session: &SessionId) -> Result<BoxStream<'static, Result<Bytes>>> {
        let path = self.path(&[session.as_str(), "export"]);
        let call = Call::get(&path);
        let late = |call: String| Error::Timeout { call, after: PATIENCE };
        let response = tokio::time::timeout(PATIENCE, self.transport.request(&call).await?.send())
            .await
            .map_err(|_| late(call.name()))?
            .map_err(|error| transport_error(error, &call))?;
        if !response.status().is_success() {
            return Err(api_error(response, &call).await);
        }
        Ok(parts(response, call.name(), PATIENCE))
    }

    /// Makes a session from the file of an export.
    ///
    /// # Errors
    /// 400 when it is not a whole one, 409 when the session exists.
    pub async fn import_session(
        &self,
        file: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Session> {
        let path = self.path(&["import"]);
        let call = Call::post(&path).deadline(IMPORT_DEADLINE);
        let request = self.transport.request(&call).await?;
        let request =
            request.header(header::CONTENT_TYPE, "application/x-ndjson").body(reqwest::Body::wrap_stream(file));
        let body = exchange(request, &call).await?;
        decode(&body, &call)
    }
}
