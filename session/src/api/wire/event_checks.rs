//! What of a client's events depends on the session: threads that it has, and tool uses that wait for an answer.

use longhand_protocol::event::{ClientEvent, EventBody, Permission};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::store::{Query, SessionState};

use super::threads;
use crate::api::error::{ApiError, Result};
use crate::app::App;

/// Events that are looked through at a time.
const ASKED_AT_ONCE: usize = 100;

/// What an event answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// An `agent.tool_use` or `agent.mcp_tool_use` that waits for a person.
    Confirmation,
    /// An `agent.custom_tool_use`.
    CustomTool,
}

impl Answers {
    const fn field(self) -> &'static str {
        match self {
            Self::Confirmation => "tool_use_id",
            Self::CustomTool => "custom_tool_use_id",
        }
    }

    const fn wanted(self) -> &'static str {
        match self {
            Self::Confirmation => "a tool use that waits for a confirmation",
            Self::CustomTool => "an agent.custom_tool_use",
        }
    }

    fn is_answer_to(self, body: &EventBody) -> bool {
        match (self, body) {
            (
                Self::Confirmation,
                EventBody::AgentToolUse { evaluated_permission, .. }
                | EventBody::AgentMcpToolUse { evaluated_permission, .. },
            ) => *evaluated_permission == Permission::Ask,
            (Self::CustomTool, EventBody::AgentCustomToolUse { .. }) => true,
            _ => false,
        }
    }
}

/// Checks the events of the field `events` of a request.
///
/// # Errors
/// 400 naming the field that is wrong.
pub(super) async fn check(app: &App, state: &SessionState, events: &[ClientEvent]) -> Result<()> {
    if state.archived_at.is_some() {
        let message = format!("session {} is archived and takes no new events", state.meta.id);
        return Err(ApiError::bad_request(message));
    }
    for (index, event) in events.iter().enumerate() {
        let (answers, id) = match event {
            ClientEvent::UserInterrupt { session_thread_id: Some(thread) } => {
                if threads::primary(&state.meta) != thread.as_str() {
                    let message = format!("`events[{index}].session_thread_id`: the session has no thread {thread}");
                    return Err(ApiError::bad_request(message));
                }
                continue;
            }
            ClientEvent::UserToolConfirmation { tool_use_id, .. } => (Answers::Confirmation, tool_use_id),
            ClientEvent::UserCustomToolResult { custom_tool_use_id, .. } => (Answers::CustomTool, custom_tool_use_id),
            // Results of tools that workers run are not queued, and checked where they are taken.
            ClientEvent::UserToolResult { .. }
            | ClientEvent::UserMessage { .. }
            | ClientEvent::UserInterrupt { session_thread_id: None }
            | ClientEvent::UserDefineOutcome { .. }
            | ClientEvent::SystemMessage { .. } => continue,
        };
        let found = find(app, &state.meta.id, id).await?;
        let waits = match &found {
            Some((_, body)) if answers.is_answer_to(body) => true,
            Some((seq, EventBody::AgentToolUse { .. })) if answers == Answers::Confirmation => {
                is_asked_again(app, &state.meta.id, *seq, id).await?
            }
            _ => false,
        };
        if !waits {
            let (field, wanted) = (answers.field(), answers.wanted());
            return Err(ApiError::bad_request(format!("`events[{index}].{field}`: {id} is not {wanted}")));
        }
    }
    Ok(())
}

async fn find(app: &App, session: &SessionId, event: &EventId) -> Result<Option<(u64, EventBody)>> {
    let Some(seq) = app.store.position(session, event).await? else { return Ok(None) };
    let slice = app.store.slice(session, &Query::after(seq.saturating_sub(1), 1)).await?;
    Ok(slice.records.into_iter().next().map(|record| (seq, record.event.body)))
}

/// Whether it is not known how a call ended, and the client was asked what becomes of it. The call is number `seq` of the log.
async fn is_asked_again(app: &App, session: &SessionId, seq: u64, call: &EventId) -> Result<bool> {
    let types = vec!["x.tool.outcome_asked".to_owned()];
    let mut query = Query { types, ..Query::after(seq, ASKED_AT_ONCE) };
    loop {
        let slice = app.store.slice(session, &query).await?;
        let about =
            |body: &EventBody| matches!(body, EventBody::ToolOutcomeAsked { tool_use_id, .. } if tool_use_id == call);
        if slice.records.iter().any(|record| about(&record.event.body)) {
            return Ok(true);
        }
        let Some(next) = slice.next else { return Ok(false) };
        query = query.from(next);
    }
}
