//! A brain reads and writes the log.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::harness::{
    AppendRequest, AppendResponse, EventsPage, IdleRequest, Inbox, LeaseRequest, PromoteRequest,
};
use longhand_protocol::wire::Order;
use longhand_session_log::store::{Appended, Query};
use serde_json::{Value, json};

use super::access;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf, PathOf};
use crate::api::place::{Names, Place, Span};
use crate::api::query::Params;
use crate::api::wire::times::TimeRange;
use crate::api::wire::{cursor, event_query};
use crate::app::App;
use crate::metrics;

pub(super) const PAGE: usize = 500;
const LONGEST_PAGE: usize = 1_000;
const LONGEST_WAIT: u64 = 30;
/// What events are called that mean something to one harness only.
const NOTES: &str = "x.harness.";
/// The most bytes of such an event. A harness cuts what is longer into several.
const LONGEST_NOTE: usize = 512 * 1024;

/// `POST lease`.
pub async fn lease(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<LeaseRequest>,
) -> Result<Json<Value>> {
    let session = path.session()?;
    access::require(&app, &identity, session, Some(request.epoch)).await?;
    app.store.renew(session, request.epoch).await?;
    Ok(Json(json!({})))
}

/// `GET events`: a slice of the log, see [`EventsPage`].
pub async fn events(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<EventsPage>> {
    let place = Place::parse(&mut params, Names::HARNESS)?;
    let order = cursor::order(params.one("order")?.as_deref(), Order::Asc)?;
    let TimeRange { since, until } = TimeRange::parse(&mut params)?;
    let types = event_query::types(params.list("types"))?;
    let limit = params.limit(PAGE, LONGEST_PAGE)?;
    let wants_inbox = params.flag("inbox")?;
    params.end()?;
    let session = path.session()?;
    access::require(&app, &identity, session, None).await?;
    let Span { after, before } = place.find(&*app.store, session).await?;
    let query = Query { after, before, order, limit, types, since, until };
    let inbox = async { if wants_inbox { app.store.inbox(session).await.map(Some) } else { Ok(None) } };
    let (slice, inbox) = tokio::try_join!(app.store.slice(session, &query), inbox)?;
    Ok(Json(EventsPage { records: slice.records, head: slice.head, next: slice.next, inbox }))
}

/// `GET inbox?wait_seconds=&after_revision=`.
pub async fn inbox(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Inbox>> {
    let wait: u64 = params.number("wait_seconds")?.unwrap_or(0);
    let after: i64 = params.number("after_revision")?.unwrap_or(0);
    params.end()?;
    if wait > LONGEST_WAIT {
        return Err(ApiError::bad_request(format!("`wait_seconds` is {wait}, and must be 0 to {LONGEST_WAIT}")));
    }
    let session = path.session()?;
    access::require(&app, &identity, session, None).await?;
    if wait == 0 {
        return Ok(Json(app.store.inbox(session).await?));
    }
    let waiting = app.store.wait_inbox(session, after, Duration::from_secs(wait));
    match app.stop.run_until_cancelled(waiting).await {
        Some(inbox) => Ok(Json(inbox?)),
        None => Ok(Json(app.store.inbox(session).await?)),
    }
}

/// `POST append`.
pub async fn append(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<AppendRequest>,
) -> Result<Json<AppendResponse>> {
    let session = path.session()?;
    check(&request.events)?;
    if request.events.is_empty() {
        return Err(ApiError::bad_request("`events` is empty: it needs at least one event"));
    }
    access::require(&app, &identity, session, Some(request.epoch)).await?;
    let appended = app.store.append(session, request.epoch, request.expected_head, request.events).await?;
    Ok(answer(appended))
}

/// `POST promote`.
pub async fn promote(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<PromoteRequest>,
) -> Result<Json<AppendResponse>> {
    let session = path.session()?;
    check(&request.then)?;
    if request.inbox.is_empty() {
        return Err(ApiError::bad_request("`inbox` is empty: it needs at least one identifier"));
    }
    access::require(&app, &identity, session, Some(request.epoch)).await?;
    let PromoteRequest { epoch, expected_head, inbox, then } = request;
    let appended = app.store.promote(session, epoch, expected_head, &inbox, then).await?;
    for id in &inbox {
        if let Some(accepted) = app.accepted.remove(id) {
            metrics::promoted(accepted.elapsed());
        }
    }
    Ok(answer(appended))
}

/// `POST idle`.
pub async fn idle(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<IdleRequest>,
) -> Result<Json<AppendResponse>> {
    let session = path.session()?;
    match request.events.split_last() {
        Some((last, rest)) if matches!(last.body, EventBody::SessionStatusIdle { .. }) => check(rest)?,
        _ => return Err(ApiError::bad_request("the last of `events` must be session.status_idle")),
    }
    access::require(&app, &identity, session, Some(request.epoch)).await?;
    let IdleRequest { epoch, expected_head, wake_revision, events } = request;
    let appended = app.store.idle(session, epoch, expected_head, wake_revision, events).await?;
    Ok(answer(appended))
}

fn answer(appended: Appended) -> Json<AppendResponse> {
    Json(AppendResponse { records: appended.records, head: appended.head })
}

/// Refuses what is not a brain's to say: results of sandboxes and their fate are the service's. A brain calls MCP servers
/// itself, and so it is the one that knows how such a call ended.
fn check(events: &[NewEvent]) -> Result<()> {
    let answered = |call: &EventId| {
        let is_result = |body: &EventBody| matches!(body, EventBody::AgentMcpToolResult { mcp_tool_use_id, .. } if mcp_tool_use_id == call);
        events.iter().any(|event| is_result(&event.body))
    };
    let may = |body: &EventBody| match body {
        EventBody::ToolOutcomeUnknown { tool_use_id, .. } => answered(tool_use_id),
        body => is_brains(body),
    };
    for NewEvent { id, body } in events {
        if !may(body) {
            return Err(ApiError::bad_request(format!("a harness may not append `{}` here (event {id})", body.kind())));
        }
        if let EventBody::Other { kind, fields } = body
            && kind.starts_with(NOTES)
        {
            let size = serde_json::to_vec(fields).map_or(usize::MAX, |text| text.len());
            if size > LONGEST_NOTE {
                return Err(ApiError::bad_request(format!(
                    "`{kind}` has {size} bytes, and may have {LONGEST_NOTE} (event {id})"
                )));
            }
        }
    }
    Ok(())
}

fn is_brains(body: &EventBody) -> bool {
    match body {
        EventBody::AgentMessage { .. }
        | EventBody::AgentThinking {}
        | EventBody::AgentThreadContextCompacted {}
        | EventBody::ContextCheckpoint { .. }
        | EventBody::ContextResultsCleared { .. }
        | EventBody::ContextOverflow { .. }
        | EventBody::SessionLimitReached { .. }
        | EventBody::AgentToolUse { .. }
        | EventBody::AgentCustomToolUse { .. }
        | EventBody::AgentMcpToolUse { .. }
        | EventBody::AgentMcpToolResult { .. }
        | EventBody::McpCatalog { .. }
        | EventBody::ToolStarted { .. }
        | EventBody::SessionStatusRunning {}
        | EventBody::SessionStatusRescheduled {}
        | EventBody::SessionError { .. }
        | EventBody::SessionUsage { .. }
        | EventBody::SpanModelRequestStart {}
        | EventBody::SpanModelRequestEnd { .. }
        | EventBody::ModelResponse { .. }
        | EventBody::ModelFallback { .. } => true,
        EventBody::Other { kind, .. } => kind.starts_with("span.") || kind.starts_with(NOTES),
        EventBody::UserMessage { .. }
        | EventBody::UserInterrupt { .. }
        | EventBody::UserToolConfirmation { .. }
        | EventBody::UserCustomToolResult { .. }
        | EventBody::UserToolResult { .. }
        | EventBody::UserDefineOutcome { .. }
        | EventBody::SystemMessage { .. }
        | EventBody::SessionUpdated { .. }
        | EventBody::AgentToolResult { .. }
        | EventBody::SessionStatusIdle { .. }
        | EventBody::SessionStatusTerminated {}
        | EventBody::SessionWoken { .. }
        | EventBody::SessionNearLimit { .. }
        | EventBody::SessionLimitRaised {}
        | EventBody::SandboxProvisioning { .. }
        | EventBody::SandboxReady { .. }
        | EventBody::SandboxReclaimed { .. }
        | EventBody::SandboxHandedOff { .. }
        | EventBody::SandboxReceived { .. }
        | EventBody::SandboxLost { .. }
        | EventBody::CredentialUsed { .. }
        | EventBody::CredentialDenied { .. }
        | EventBody::CredentialRefreshed { .. }
        | EventBody::ToolRetried { .. }
        | EventBody::ToolOutcomeAsked { .. }
        | EventBody::ToolOutcomeUnknown { .. } => false,
    }
}
