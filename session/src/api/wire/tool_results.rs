//! Results of tools that a worker of a self-hosted environment has run: each closes its call in the log, once.

use longhand_protocol::event::{Event, EventBody, NewEvent, Record};
use longhand_protocol::{ClientEvent, EventId, SessionId};
use longhand_session_log::StoreError;
use longhand_session_log::store::{CallState, FinishFrom, Incarnation, SessionState};
use sha2::{Digest as _, Sha256};

use crate::api::error::{ApiError, Result};
use crate::app::App;
use crate::auth::{Identity, Worker};

/// The call moves from open to given while its result comes in.
const ATTEMPTS: usize = 3;

/// Whether these are results of tools that workers run. They are sent by themselves, since each is taken at once and not
/// queued.
///
/// # Errors
/// When some are and others are not, or when a worker sends anything but results.
pub(super) fn are_results(identity: &Identity, events: &[ClientEvent]) -> Result<bool> {
    let is_result = |event: &&ClientEvent| matches!(event, ClientEvent::UserToolResult { .. });
    let results = events.iter().filter(is_result).count();
    let of_custom_tools = |event: &ClientEvent| matches!(event, ClientEvent::UserCustomToolResult { .. });
    if identity.worker.is_some() && results == 0 && !events.iter().all(of_custom_tools) {
        return Err(ApiError::forbidden("a worker sends user.tool_result and user.custom_tool_result only"));
    }
    if results > 0 && results < events.len() {
        return Err(ApiError::bad_request("`events`: user.tool_result is sent by itself, without other events"));
    }
    Ok(results > 0)
}

/// Takes results, in order. What was taken before is found again.
pub(super) async fn take(
    app: &App,
    identity: &Identity,
    state: &SessionState,
    events: Vec<ClientEvent>,
) -> Result<Vec<Event>> {
    let mut taken = Vec::with_capacity(events.len());
    for (index, event) in events.into_iter().enumerate() {
        let ClientEvent::UserToolResult { tool_use_id: call, .. } = &event else { continue };
        let call = call.clone();
        let event = event.into_event(result_id(&state.meta.id, &call));
        let field = format!("`events[{index}].tool_use_id`");
        check_hosted(app, state, &call, &field).await?;
        taken.push(close(app, identity, &state.meta.id, &call, event, &field).await?.event);
    }
    Ok(taken)
}

/// A call has one result, so that a repeated one finds itself.
fn result_id(session: &SessionId, call: &EventId) -> EventId {
    EventId::from_digest(&Sha256::digest(format!("user.tool_result/{session}/{call}")).into())
}

/// Calls of other environments are answered by their sandboxes alone.
async fn check_hosted(app: &App, state: &SessionState, call: &EventId, field: &str) -> Result<()> {
    let id = &state.meta.id;
    let Some(seq) = app.store.position(id, call).await? else {
        return Err(ApiError::bad_request(format!("{field}: there is no tool use {call} in the log")));
    };
    let intent = app.store.read(id, seq.saturating_sub(1), 1).await?.records.into_iter().next();
    let hosted = match intent {
        Some(intent) => app.executor.hosted.queue_of(&state.meta, &intent.event.body).await?.is_some(),
        None => false,
    };
    if hosted {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "{field}: {call} is not a call of a self-hosted environment: its sandbox gives the result"
    )))
}

async fn close(
    app: &App,
    identity: &Identity,
    session: &SessionId,
    call: &EventId,
    event: NewEvent,
    field: &str,
) -> Result<Record> {
    for _ in 0..ATTEMPTS {
        let from = match app.store.call(session, call).await? {
            CallState::Open => FinishFrom::Open,
            CallState::Dispatched { incarnation } => {
                check_worker(identity.worker.as_ref(), &incarnation, field)?;
                FinishFrom::Dispatched(incarnation)
            }
            CallState::Finished { seq } => return known(app, session, seq, &event, field).await,
        };
        match app.store.finish_call(session, call, &from, vec![event.clone()]).await {
            Ok(appended) => {
                let record = appended.records.into_iter().next();
                return record.ok_or_else(|| ApiError::internal("the log lost a result"));
            }
            // It was given to the worker, or answered, in between.
            Err(StoreError::CallState { .. } | StoreError::Duplicate(_)) => {}
            Err(error) => return Err(ApiError::from(error).of_change()),
        }
    }
    Err(ApiError::conflict(format!("{field}: the call changes faster than it can be answered")))
}

/// A worker answers what it was given. Who is no worker, and may send events, answers for whoever has it.
fn check_worker(worker: Option<&Worker>, given: &Incarnation, field: &str) -> Result<()> {
    match worker {
        Some(worker) if given.sandbox != worker.work || given.pod_uid != worker.attempt.to_string() => {
            Err(ApiError::conflict(format!("{field}: the call was given to another worker")))
        }
        _ => Ok(()),
    }
}

/// The same result once more, or one that comes too late.
async fn known(app: &App, session: &SessionId, seq: u64, event: &NewEvent, field: &str) -> Result<Record> {
    let record = app.store.read(session, seq.saturating_sub(1), 1).await?.records.into_iter().next();
    let same = |body: &EventBody| {
        // As it would be after a way through the log.
        serde_json::to_value(body).ok() == serde_json::to_value(&event.body).ok()
    };
    match record {
        Some(record) if record.event.id == event.id && same(&record.event.body) => Ok(record),
        _ => Err(ApiError::conflict(format!("{field}: the call has a result already; a later one is not taken"))),
    }
}
