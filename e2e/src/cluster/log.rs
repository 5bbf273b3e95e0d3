//! What is asserted of every log.

use std::collections::HashSet;

use longhand_protocol::event::EventBody;
use longhand_protocol::wire::NumberedEvent;

/// The types of the events, in order.
pub fn kinds(log: &[NumberedEvent]) -> Vec<&str> {
    log.iter().map(|event| event.event.body.kind()).collect()
}

/// Asserts that the log is dense from 1, that no event stands in it twice, and that every tool call has one result.
///
/// # Panics
/// When it is not so: this is how a test says that it failed.
pub fn assert_sound(log: &[NumberedEvent]) {
    let sequence: Vec<_> = log.iter().filter_map(|event| event.seq).collect();
    let expected: Vec<_> = (1..=log.len() as u64).collect();
    assert_eq!(sequence, expected, "the log has gaps: {:?}", kinds(log));
    let identifiers: HashSet<_> = log.iter().map(|event| &event.event.id).collect();
    assert_eq!(identifiers.len(), log.len(), "an event is in the log twice: {:?}", kinds(log));
    for event in log {
        if matches!(event.event.body, EventBody::AgentToolUse { .. }) {
            assert_eq!(results_of(log, &event.event.id).len(), 1, "results of {}: {:?}", event.event.id, kinds(log));
        }
    }
}

/// The results of a tool call.
pub fn results_of<'a>(log: &'a [NumberedEvent], call: &longhand_protocol::EventId) -> Vec<&'a EventBody> {
    log.iter()
        .map(|event| &event.event.body)
        .filter(|body| matches!(body, EventBody::AgentToolResult { tool_use_id, .. } if tool_use_id == call))
        .collect()
}

/// The text of an event's content.
pub fn text(body: &EventBody) -> String {
    let content = match body {
        EventBody::UserMessage { content } | EventBody::AgentMessage { content } => Some(content),
        EventBody::AgentToolResult { content, .. } => content.as_ref(),
        _ => None,
    };
    content.into_iter().flatten().filter_map(|block| block.get("text")?.as_str()).collect()
}

/// The texts of the agent's messages, in order.
pub fn messages(log: &[NumberedEvent]) -> Vec<String> {
    log.iter()
        .map(|event| &event.event.body)
        .filter(|body| matches!(body, EventBody::AgentMessage { .. }))
        .map(text)
        .collect()
}
