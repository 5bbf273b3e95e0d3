//! `GET` and `PUT` of `files` and `archive`: what is in between is a stream, so that nothing is too large.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures::stream::{self, TryStreamExt as _};
use http::{HeaderValue, StatusCode, header};
use longhand_process::relay::Progress;
use longhand_sandbox::client::{Reading, SandboxError, Target};
use longhand_sandbox::wire::MODE_HEADER;

use super::sandbox_for;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf};
use crate::api::query::Params;
use crate::app::App;
use crate::streams::Slot;

/// How long a client may send nothing, or a sandbox take nothing.
const STALL: Duration = Duration::from_secs(60);
const PART: &str = "files";
/// What a folder is served as.
pub const ARCHIVE: &str = "application/x-tar";
/// What a file is served as.
pub const FILE: &str = "application/octet-stream";

/// A sandbox that is awake, and a transfer's share of what may be open.
struct Ready {
    target: Target,
    slot: Slot,
}

async fn ready(app: &App, Caller(identity): &Caller, path: &PathOf, verb: &'static str) -> Result<Ready> {
    let key = sandbox_for(app, identity, path, PART, verb).await?;
    let slot = app.streams.open(&key.namespace)?;
    Ok(Ready { target: app.executor.reach(&key).await?, slot })
}

fn path_of(params: &mut Params) -> Result<String> {
    params.one("path")?.ok_or_else(|| ApiError::bad_request("`path` is missing: say which file or folder"))
}

/// `GET files?path=`.
pub async fn download(State(app): State<App>, caller: Caller, path: PathOf, mut params: Params) -> Result<Response> {
    let file = path_of(&mut params)?;
    params.end()?;
    let Ready { target, slot } = ready(&app, &caller, &path, "get").await?;
    let found = app.executor.client().download(&target, &file).await?;
    let mut response = sent(found.content, slot).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(FILE));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(found.size));
    if let Ok(mode) = HeaderValue::from_str(&format!("{:o}", found.mode)) {
        headers.insert(MODE_HEADER, mode);
    }
    Ok(response)
}

/// `GET archive?path=`.
pub async fn download_folder(
    State(app): State<App>,
    caller: Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Response> {
    let folder = path_of(&mut params)?;
    params.end()?;
    let Ready { target, slot } = ready(&app, &caller, &path, "get").await?;
    let content = app.executor.client().download_folder(&target, &folder).await?;
    let mut response = sent(content, slot).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(ARCHIVE));
    Ok(response)
}

/// `PUT files?path=&mode=`.
pub async fn upload(
    State(app): State<App>,
    caller: Caller,
    path: PathOf,
    mut params: Params,
    body: Body,
) -> Result<Response> {
    let file = path_of(&mut params)?;
    let mode = params.one("mode")?.map(|mode| octal(&mode)).transpose()?;
    params.end()?;
    let Ready { target, slot: _slot } = ready(&app, &caller, &path, "create").await?;
    let (body, progress) = watched(body);
    let stored = app.executor.client().upload(&target, &file, mode, body);
    let stored = moving(stored, &progress).await?;
    let status = if stored.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(stored)).into_response())
}

/// `PUT archive?path=`.
pub async fn upload_folder(
    State(app): State<App>,
    caller: Caller,
    path: PathOf,
    mut params: Params,
    body: Body,
) -> Result<Response> {
    let folder = path_of(&mut params)?;
    params.end()?;
    let Ready { target, slot: _slot } = ready(&app, &caller, &path, "create").await?;
    let (body, progress) = watched(body);
    let unpacked = moving(app.executor.client().upload_folder(&target, &folder, body), &progress).await?;
    Ok(Json(unpacked).into_response())
}

fn octal(mode: &str) -> Result<u32> {
    let parsed = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777);
    parsed.ok_or_else(|| ApiError::bad_request("`mode` is not up to three octal digits"))
}

/// The rest of a file. One that breaks off is not ended, so that its reader notices.
fn sent(content: Reading, slot: Slot) -> Body {
    let pieces = stream::try_unfold((content, slot), |(mut content, slot)| async move {
        Ok::<_, SandboxError>(content.next().await?.map(|piece| (piece, (content, slot))))
    });
    Body::from_stream(pieces.inspect_err(|error| tracing::warn!(%error, "a download was broken off")))
}

/// The body, and when the last piece of it was taken.
fn watched(body: Body) -> (Body, Arc<Progress>) {
    let progress = Arc::new(Progress::default());
    let touched = Arc::clone(&progress);
    let pieces = body.into_data_stream().inspect_ok(move |_| touched.touch());
    (Body::from_stream(pieces), progress)
}

/// Waits for the end of an upload as long as it goes on.
async fn moving<T>(upload: impl Future<Output = Result<T, SandboxError>>, progress: &Progress) -> Result<T> {
    tokio::select! {
        done = upload => Ok(done?),
        () = progress.stalled(STALL) => Err(ApiError::slow_body(STALL)),
    }
}
