//! `/v1/files`: files that clients upload, for sessions to find in their workspaces.

mod upload;

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures::future::try_join_all;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, header};
use longhand_protocol::FileId;
use longhand_protocol::wire::files::{FileDeleted, FileMetadata, FilePage};
use longhand_session_log::files::{FilesError, Home, MAX_BYTES, NewFile, Span, StoredFile};
use tokio::time::timeout;

use self::upload::Upload;
use super::namespace_for;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf, shortened};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;

/// How RBAC knows files: no objects of the API server, but asked about like any.
const FILES: &str = "files";
const PAGE: usize = 20;
const LONGEST_PAGE: usize = 1_000;
const PAGE_PREFIX: &str = "page_";
/// Files that are asked for by name at once.
const MOST_IDS: usize = 100;
/// How long all of an upload may take; each piece of it has to come within a minute.
const DEADLINE: Duration = Duration::from_secs(3_600);
/// Who finds as much being done as may be asks again.
const BUSY: Duration = Duration::from_secs(5);

/// A verb on the file of this identifier.
pub(super) const fn access<'a>(verb: &'static str, id: &'a str) -> Access<'a> {
    Access::Object(FILES, verb, id)
}

fn shown(file: StoredFile) -> FileMetadata {
    let StoredFile { id, filename, mime_type, bytes, created_at, expires_at, sha256: _, namespace_uid: _ } = file;
    let kind = "file".to_owned();
    FileMetadata { id, kind, filename, mime_type, size_bytes: bytes, created_at, downloadable: true, expires_at }
}

/// The file that the path names, which the caller may do this with.
async fn named(app: &App, Caller(identity): &Caller, path: &PathOf, verb: &'static str) -> Result<(Home, FileId)> {
    let namespace = namespace_for(identity, path)?;
    let id = path.of("file")?;
    app.auth.require(identity, access(verb, id), namespace).await?;
    let id = id.parse().map_err(|_| missing(id))?;
    Ok((known(namespace, app.homes.of(namespace).await?)?, id))
}

fn known(namespace: &str, home: Option<Home>) -> Result<Home> {
    home.ok_or_else(|| ApiError::not_found(format!("there is no namespace {namespace}")))
}

fn missing(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no file `{}`", shortened(id)))
}

async fn found(app: &App, home: &Home, id: &FileId) -> Result<StoredFile> {
    app.files.get(home, id).await?.ok_or_else(|| missing(id.as_str()))
}

/// `POST files`.
pub async fn upload(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<FileMetadata>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(FILES, "create"), namespace).await?;
    // As it is: what is uploaded to a namespace before goes with it.
    let home = known(namespace, app.homes.now(namespace).await?)?;
    let right = app.files.begin_upload(&home).map_err(|error| refused(error, |never| match never {}))?;
    let _slot = app.streams.open(namespace)?;
    app.quota.check_files(&app.files, namespace).await?;
    let _room = app.quota.reserve(&*app.store, namespace, largest(&headers)).await?;
    let upload = async {
        let Upload { filename, mime_type, expires_in, content } = Upload::begin(&headers, body).await?;
        let new = NewFile { filename, mime_type, expires_in };
        app.files.put(right, new, content).await.map_err(|error| refused(error, |error| error).of_change())
    };
    let stored = timeout(DEADLINE, upload).await.unwrap_or_else(|_| Err(ApiError::slow_body(DEADLINE)))?;
    app.quota.grown(namespace, stored.bytes);
    tracing::info!(namespace, file = %stored.id, bytes = stored.bytes, "file uploaded");
    Ok(Json(shown(stored)))
}

/// How large the file of an upload may be: what is around it is not much.
fn largest(headers: &HeaderMap) -> u64 {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(MAX_BYTES).min(MAX_BYTES)
}

/// Why a file is not kept or given; `broke_off` is said of an upload.
fn refused<E: std::fmt::Display>(error: FilesError<E>, broke_off: impl FnOnce(E) -> ApiError) -> ApiError {
    let message = error.to_string();
    match error {
        FilesError::Store(error) => error.into(),
        FilesError::NoPlace => ApiError::bad_request(message),
        FilesError::Busy { .. } => ApiError::overloaded(message, BUSY),
        FilesError::BusyNamespace { .. } => ApiError::too_many(message, BUSY),
        FilesError::TooLarge { .. } => ApiError::too_large(message),
        FilesError::Late { .. } => ApiError::timeout(message),
        FilesError::Upload(error) => broke_off(error),
    }
}

/// `GET files`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<FilePage>> {
    let (page, ids) = (page(&mut params)?, params.list("ids"));
    let span = Span { after: cursor(&mut params, "after_id")?.or(page), before: cursor(&mut params, "before_id")? };
    let limit = params.limit(PAGE, LONGEST_PAGE)?;
    let scope = params.one("scope_id")?;
    params.end()?;
    if ids.len() > MOST_IDS {
        return Err(ApiError::bad_request(format!("`ids` has more than {MOST_IDS} entries")));
    }
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(FILES, "list"), namespace).await?;
    let (files, has_more) = match scope {
        // Files are uploaded by clients, and no session makes one.
        Some(_) => (Vec::new(), false),
        None => {
            let home = known(namespace, app.homes.of(namespace).await?)?;
            if ids.is_empty() {
                app.files.page(&home, &span, limit).await?
            } else {
                (these(&app, &home, ids).await?, false)
            }
        }
    };
    let data: Vec<FileMetadata> = files.into_iter().map(shown).collect();
    let id = |file: Option<&FileMetadata>| file.map(|file| file.id.clone());
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    let next_page = last_id.as_ref().filter(|_| has_more).map(|last| format!("{PAGE_PREFIX}{last}"));
    Ok(Json(FilePage { data, next_page, has_more, first_id, last_id }))
}

/// Those of these files that there are, the newest first.
async fn these(app: &App, home: &Home, ids: Vec<String>) -> Result<Vec<StoredFile>> {
    let ids: BTreeSet<FileId> = ids.into_iter().filter_map(|id| id.parse().ok()).collect();
    let found = try_join_all(ids.iter().rev().map(|id| app.files.get(home, id))).await?;
    Ok(found.into_iter().flatten().collect())
}

/// The file that the page before has ended with.
fn page(params: &mut Params) -> Result<Option<FileId>> {
    let Some(page) = params.one("page")?.filter(|page| !page.is_empty()) else { return Ok(None) };
    let last = page.strip_prefix(PAGE_PREFIX).and_then(|last| last.parse().ok());
    last.map(Some).ok_or_else(|| ApiError::bad_request("`page` is not the `next_page` of a page before"))
}

fn cursor(params: &mut Params, key: &str) -> Result<Option<FileId>> {
    let Some(id) = params.one(key)?.filter(|id| !id.is_empty()) else { return Ok(None) };
    id.parse().map(Some).map_err(|error| ApiError::bad_request(format!("`{key}`: {error}")))
}

/// `GET files/{file}`.
pub async fn retrieve(
    State(app): State<App>,
    caller: Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<FileMetadata>> {
    params.end()?;
    let (home, id) = named(&app, &caller, &path, "get").await?;
    Ok(Json(shown(found(&app, &home, &id).await?)))
}

/// `GET files/{file}/content`.
pub async fn download(State(app): State<App>, caller: Caller, path: PathOf, params: Params) -> Result<Response> {
    params.end()?;
    let (home, id) = named(&app, &caller, &path, "get").await?;
    let file = found(&app, &home, &id).await?;
    let slot = app.streams.open(&home.namespace)?;
    let content = app.files.read(&home.namespace, &file).await;
    let content = content.map_err(|error| refused(error, |never| match never {}))?;
    // It is held until the last piece is taken.
    let content = content.inspect_ok(move |_| _ = &slot);
    let content = content.inspect_err(|error| tracing::warn!(%error, "a download was broken off"));
    let mut response = Body::from_stream(content.boxed()).into_response();
    let headers = response.headers_mut();
    // What a file is said to be is its uploader's word: a browser must not act on it.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(file.bytes));
    Ok(response)
}

/// `DELETE files/{file}`. Workspaces that have it keep it.
pub async fn delete(State(app): State<App>, caller: Caller, path: PathOf, params: Params) -> Result<Json<FileDeleted>> {
    params.end()?;
    let (home, id) = named(&app, &caller, &path, "delete").await?;
    if !app.files.delete(&home, &id).await? {
        return Err(missing(id.as_str()));
    }
    tracing::info!(namespace = home.namespace, file = %id, "file deleted");
    Ok(Json(FileDeleted { id, kind: "file_deleted".to_owned() }))
}
