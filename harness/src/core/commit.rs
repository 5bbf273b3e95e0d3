//! The events that put the outcome of a model request on record, in one batch.

use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent, RetryStatus, SessionError, SessionErrorType, ToolEvent, Usage};
use serde_json::{Value, json};

use super::MAX_ATTEMPTS;
use super::tools::ToolSet;
use super::transcript::Stop;
use crate::model::{Failure, Reply};

/// An answer: message, tool calls, the raw answer, the end of the request.
pub(super) fn reply(tools: &ToolSet, max_tokens: u32, span: EventId, message: EventId, reply: Reply) -> Vec<NewEvent> {
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
    for block in content.iter().filter(|block| block["type"] == "tool_use" && stop.permits_tools()) {
        let (Some(model_id), Some(name)) = (block["id"].as_str(), block["name"].as_str()) else { continue };
        if incomplete.iter().any(|id| id == model_id) {
            continue;
        }
        let Some(body) = tools.call(name, block["input"].clone()) else { continue };
        let event = NewEvent::new(body);
        tool_events.push(ToolEvent { model_id: model_id.to_owned(), event_id: event.id.clone() });
        events.push(event);
    }
    let no_calls = !content.iter().any(|block| block["type"] == "tool_use");
    events.push(NewEvent::new(EventBody::ModelResponse { content, stop_reason, tool_events }));
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

/// A failed request: it is over, why, and what happens now.
pub(super) fn failure(span: EventId, failures: u32, failure: Failure) -> Vec<NewEvent> {
    let Failure { kind, message, retryable, usage, .. } = failure;
    let retry_status = match retryable {
        false => RetryStatus::Terminal,
        true if failures + 1 < MAX_ATTEMPTS => RetryStatus::Retrying,
        true => RetryStatus::Exhausted,
    };
    let mut events = vec![span_end(span, true, usage), error(kind, message, retry_status)];
    if retry_status == RetryStatus::Retrying {
        events.push(NewEvent::new(EventBody::SessionStatusRescheduled {}));
    }
    events
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
