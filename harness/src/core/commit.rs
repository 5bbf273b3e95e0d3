//! The events that put the outcome of a model request on record, in one batch.

use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent, RetryStatus, SessionError, SessionErrorType, ToolEvent, Usage};
use longhand_protocol::harness::Model;
use serde_json::{Value, json};

use super::context::MAX_COMPACTIONS;
use super::conversation::length;
use super::tools::ToolSet;
use super::transcript::Stop;
use super::{MAX_ATTEMPTS, MAX_CALLS};
use crate::model::{Failure, Reply};

/// An answer of this model: message, tool calls, of which there may be `calls_left`, the raw answer, the end of the request.
pub(super) fn reply(
    tools: &ToolSet,
    model: Model,
    calls_left: u64,
    span: EventId,
    message: EventId,
    reply: Reply,
) -> Vec<NewEvent> {
    let Model { id: model, max_tokens, .. } = model;
    let Reply { content, stop_reason, usage, incomplete } = reply;
    let stop = Stop::parse(stop_reason.as_deref());
    let mut events = Vec::new();
    if content.iter().any(|block| matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))) {
        events.push(NewEvent::new(EventBody::AgentThinking {}));
    }
    let texts: Vec<Value> = content
        .iter()
        .filter(|block| block["type"] == "text")
        .filter_map(|block| block["text"].as_str().filter(|text| !text.is_empty()))
        .map(|text| json!({"type": "text", "text": text}))
        .collect();
    if !texts.is_empty() {
        events.push(NewEvent { id: message, body: EventBody::AgentMessage { content: texts } });
    }
    let mut tool_events = Vec::new();
    let mut limited = false;
    for block in content.iter().filter(|block| block["type"] == "tool_use" && stop.permits_tools()) {
        let (Some(model_id), Some(name)) = (block["id"].as_str(), block["name"].as_str()) else { continue };
        if incomplete.iter().any(|id| id == model_id) {
            continue;
        }
        if tool_events.len() == MAX_CALLS {
            break;
        }
        let Some(body) = tools.call(name, block["input"].clone()) else { continue };
        if length(tool_events.len()) >= calls_left {
            limited = true;
            break;
        }
        let event = NewEvent::new(body);
        tool_events.push(ToolEvent { model_id: model_id.to_owned(), event_id: event.id.clone() });
        events.push(event);
    }
    let no_calls = !content.iter().any(|block| block["type"] == "tool_use");
    let model = Some(model);
    events.push(NewEvent::new(EventBody::ModelResponse { content, stop_reason, model, tool_events, limited }));
    events.push(span_end(span, false, usage));
    let complaint = match stop {
        Stop::MaxTokens if no_calls => Some(format!(
            "The answer was cut off at {max_tokens} tokens, the agent's `maxTokens`. Send a message to let it go on, or raise the limit."
        )),
        Stop::Other(reason) => {
            Some(format!("The model stopped for a reason that this harness does not know: {reason}."))
        }
        _ => None,
    };
    if let Some(message) = complaint {
        events.push(error(SessionErrorType::ModelRequestFailedError, message, RetryStatus::Terminal));
    }
    events
}

/// A failed request: it is over, why, and what happens now; `next` is the model that is asked when this one is given up, and
/// its position among the agent's.
pub(super) fn failure(span: EventId, failures: u32, failure: Failure, next: Option<(String, u32)>) -> Vec<NewEvent> {
    let Failure { kind, mut message, retryable, usage, .. } = failure;
    let again = retryable && failures + 1 < MAX_ATTEMPTS;
    let next = next.filter(|_| !again);
    if let Some((model, _)) = &next {
        message = format!("{message} (now `{model}` is asked)");
    }
    let retry_status = match (again || next.is_some(), retryable) {
        (true, _) => RetryStatus::Retrying,
        (false, true) => RetryStatus::Exhausted,
        (false, false) => RetryStatus::Terminal,
    };
    let mut events = vec![span_end(span, true, usage), error(kind, message, retry_status)];
    if let Some((model, position)) = next {
        events.push(NewEvent::new(EventBody::ModelFallback { model, position }));
    }
    if retry_status == RetryStatus::Retrying {
        events.push(NewEvent::new(EventBody::SessionStatusRescheduled {}));
    }
    events
}

/// A summary has come; the checkpoint that holds it follows.
pub(super) fn summary(span: EventId, usage: Usage) -> Vec<NewEvent> {
    vec![span_end(span, false, usage)]
}

/// There is no summary. `tries` were made before without an answer of the model in between.
pub(super) fn no_summary(span: EventId, tries: u32, usage: Usage, reason: &str) -> Vec<NewEvent> {
    let exhausted = tries.saturating_add(1) >= MAX_COMPACTIONS;
    let retry_status = if exhausted { RetryStatus::Exhausted } else { RetryStatus::Retrying };
    let message = format!("The conversation is too long, and the model gave no summary of it: {reason}");
    let mut events =
        vec![span_end(span, true, usage), error(SessionErrorType::CompactionLimitReachedError, message, retry_status)];
    if !exhausted {
        events.push(NewEvent::new(EventBody::SessionStatusRescheduled {}));
    }
    events
}

/// The model takes less than it was sent.
pub(super) fn overflow(span: EventId, usage: Usage, tokens: u64) -> Vec<NewEvent> {
    vec![span_end(span, true, usage), NewEvent::new(EventBody::ContextOverflow { tokens })]
}

/// The conversation cannot be made shorter.
pub(super) fn too_long() -> Vec<NewEvent> {
    let message =
        "The conversation is longer than the model's context window, and cannot be made shorter: what is left of \
                   it is too long, or the agent's `context.compaction` is `Off`."
            .to_owned();
    vec![error(SessionErrorType::CompactionLimitReachedError, message, RetryStatus::Terminal)]
}

/// An answer that the log does not take.
pub(super) fn refused(span: EventId, reason: &str) -> Vec<NewEvent> {
    let message = format!("The model's answer cannot be recorded: {reason}");
    vec![span_end(span, true, Usage::default()), error(SessionErrorType::UnknownError, message, RetryStatus::Terminal)]
}

/// A request that the log does not let begin.
pub(super) fn not_begun(reason: &str) -> Vec<NewEvent> {
    let message = format!("The model is not asked any more: {reason}");
    vec![error(SessionErrorType::UnknownError, message, RetryStatus::Terminal)]
}

pub(super) fn span_end(span: EventId, is_error: bool, usage: Usage) -> NewEvent {
    NewEvent::new(EventBody::SpanModelRequestEnd { model_request_start_id: span, is_error, model_usage: usage })
}

fn error(kind: SessionErrorType, message: String, retry_status: RetryStatus) -> NewEvent {
    NewEvent::new(EventBody::SessionError {
        error: SessionError { kind, mcp_server_name: None, message, retry_status },
    })
}
