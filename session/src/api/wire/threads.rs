//! Threads: a session has one, the primary, whose events are those of the session.

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use jiff::Timestamp;
use longhand_crds::wire_id::{derived_id, prefix};
use longhand_protocol::wire::{NumberedEvent, Page, SessionStatus, Thread};
use longhand_session_log::store::{SessionMeta, SessionState};

use super::event_query::EventQuery;
use super::{events, session_for, stream, view};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf, shortened};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;

const LONGEST_PAGE: usize = 1_000;

/// The primary thread of a session.
pub(super) fn primary(meta: &SessionMeta) -> String {
    meta.thread_id.clone().unwrap_or_else(|| derived_id(prefix::THREAD, meta.id.as_str()))
}

/// An error unless the session has this thread.
pub(super) fn require(meta: &SessionMeta, thread: &str) -> Result<()> {
    if primary(meta) == thread {
        return Ok(());
    }
    Err(ApiError::not_found(format!("session {} has no thread `{}`", meta.id, shortened(thread))))
}

/// `GET threads`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Page<Thread>>> {
    params.limit(LONGEST_PAGE, LONGEST_PAGE)?;
    let statuses = statuses(params.list("statuses"))?;
    // All there is fits on the first page, and nothing comes after it.
    let first = params.one("page")?.is_none();
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::GetSession).await?;
    let wanted = first && (statuses.is_empty() || statuses.contains(&state.status));
    let data = if wanted { vec![view::thread(state, Timestamp::now())] } else { Vec::new() };
    Ok(Json(Page { data, next_page: None }))
}

/// `GET threads/{thread}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Thread>> {
    params.end()?;
    let state = thread_for(&app, &identity, &path, Access::GetSession).await?;
    Ok(Json(view::thread(state, Timestamp::now())))
}

/// `POST threads/{thread}/archive`: the primary thread is archived with its session, and only so.
pub async fn archive(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Thread>> {
    params.end()?;
    let state = thread_for(&app, &identity, &path, Access::UpdateSession).await?;
    if state.archived_at.is_none() {
        let message = "the primary thread cannot be archived by itself: archive the session";
        return Err(ApiError::bad_request(message));
    }
    Ok(Json(view::thread(state, Timestamp::now())))
}

/// `GET threads/{thread}/events`.
pub async fn list_events(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Page<NumberedEvent>>> {
    let query = EventQuery::parse(params)?;
    let state = thread_for(&app, &identity, &path, Access::ReadEvents).await?;
    events::page_of(&app, &state.meta.id, &query).await
}

/// `GET threads/{thread}/stream`.
pub async fn stream_events(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    headers: HeaderMap,
) -> Result<stream::Frames> {
    thread_for(&app, &identity, &path, Access::ReadEvents).await?;
    stream::open(app, identity, &path, params, &headers).await
}

async fn thread_for(
    app: &App,
    identity: &crate::auth::Identity,
    path: &PathOf,
    access: Access<'_>,
) -> Result<SessionState> {
    let state = session_for(app, identity, path, access).await?;
    require(&state.meta, path.of("thread")?)?;
    Ok(state)
}

/// The parameters `statuses[]`.
pub(super) fn statuses(values: Vec<String>) -> Result<Vec<SessionStatus>> {
    let status = |value: String| {
        serde_json::from_value(serde_json::Value::String(value)).map_err(|error| {
            ApiError::bad_request(format!("`statuses[]` must be running, idle, rescheduling or terminated: {error}"))
        })
    };
    values.into_iter().map(status).collect()
}
