//! `GET /v1/workspace`: all of it, of a sandbox that takes no more calls. `PUT /v1/workspace`: another sandbox's in place of its own.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse as _;

use super::calls::Calls;
use super::error::ApiError;
use super::transfer::{Answer, Pieces, Received, Sending, in_pieces, receive};
use crate::tools::transfer::TransferError;
use crate::tools::workspace::{self, Whole};
use crate::wire::{Unpacked, WORKSPACE_BYTES_HEADER};

/// It is refused before anything is sent if not all of it can be. No call is, and so it is nobody's activity.
pub(super) async fn send(State(calls): State<Arc<Calls>>) -> Answer {
    calls.settle().await?;
    let folder = calls.toolbox().workspace();
    let whole = tokio::task::spawn_blocking(move || Whole::open(&folder)).await.map_err(|_| ApiError::Failed)??;
    let bytes = whole.bytes;
    let send = move |to: &mut Pieces| in_pieces(to, |to| whole.send(to));
    let mut response = Body::new(Sending::start(None, None, send)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    headers.insert(WORKSPACE_BYTES_HEADER, HeaderValue::from(bytes));
    Ok(response)
}

/// A body that breaks off leaves a part, which the next one removes first.
pub(super) async fn fill(State(calls): State<Arc<Calls>>, body: Body) -> Answer {
    let Some(filling) = calls.fill()? else { return Ok(Json(Unpacked::default()).into_response()) };
    let folder = calls.toolbox().workspace();
    let replace = move |from: &mut Received| {
        let unpacked = workspace::replace(&folder, from)?;
        // Only its end says that nothing is missing; what comes before that is padding.
        io::copy(from, &mut io::sink()).map_err(TransferError::Broken)?;
        filling.whole();
        Ok(unpacked)
    };
    let unpacked: Unpacked = receive(None, body, replace).await?;
    Ok(Json(unpacked).into_response())
}
