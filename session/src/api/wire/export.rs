//! `GET sessions/{session}/export`: the whole log, as a file that proves itself.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures::stream::{self, BoxStream, StreamExt as _};
use http::{HeaderValue, header};
use longhand_protocol::export::{FORMAT, Header, VERSION, Writer};
use longhand_session_log::store::{Export, Exported};

use super::session_for;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;
use crate::sessions;
use crate::streams::Slot;

/// What an export is served as.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// `GET export`.
pub async fn export(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Response> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::ReadEvents).await?;
    let slot = app.streams.open(&state.meta.namespace)?;
    let resource = sessions::resource_of(&app, &state.meta).await?;
    let Export { meta, end, records } = app.store.export(&state.meta.id).await?;
    let unwritable = |error: serde_json::Error| ApiError::internal(format!("the export cannot be written: {error}"));
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        session: serde_json::to_value(&meta).map_err(unwritable)?,
        epoch: end.epoch,
        head: end.head,
        hash: end.hash,
        archived_at: end.archived_at,
        spec: resource.map(|resource| serde_json::to_value(&resource.spec)).transpose().map_err(unwritable)?,
    };
    let mut writer = Writer::default();
    let first = writer.header(header).map_err(unwritable)?;
    tracing::info!(session = %meta.id, head = end.head, "session exported");
    let rest = stream::unfold(Some(Lines { writer, records, _slot: slot }), Lines::next);
    let mut response = Body::from_stream(stream::iter([Ok(first)]).chain(rest)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    Ok(response)
}

/// The lines of an export after the first. One that breaks off has no last line, so that its reader notices.
struct Lines {
    writer: Writer,
    records: BoxStream<'static, longhand_session_log::store::Result<Exported>>,
    _slot: Slot,
}

impl Lines {
    async fn next(lines: Option<Self>) -> Option<(std::io::Result<Vec<u8>>, Option<Self>)> {
        let mut lines = lines?;
        let line = match lines.records.next().await {
            Some(Ok(Exported { seq, bytes, payloads })) => lines.writer.event(seq, bytes, &payloads),
            Some(Err(error)) => {
                tracing::warn!(%error, "an export was broken off");
                return Some((Err(std::io::Error::other(error)), None));
            }
            None => return Some((lines.writer.end().map_err(std::io::Error::other), None)),
        };
        match line {
            Ok(line) => Some((Ok(line), Some(lines))),
            Err(error) => Some((Err(std::io::Error::other(error)), None)),
        }
    }
}
