//! What clients send.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::content::{Block, check_blocks};
use super::{EventBody, NewEvent, Rubric, Verdict};
use crate::fields::{Fields, InvalidField, Result};
use crate::id::{EventId, OutcomeId, ThreadId};

/// The most events of one request.
pub const MOST_EVENTS: usize = 50;
/// The most characters of what an outcome is, and of how it is graded.
const LONGEST_OUTCOME: usize = 262_144;
const MOST_ITERATIONS: i64 = 20;

/// What a client may send to `POST /v1/sessions/{id}/events`. Unknown types and fields are refused.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type")]
pub enum ClientEvent {
    /// See [`EventBody::UserMessage`].
    #[serde(rename = "user.message")]
    UserMessage {
        /// At least one content block.
        content: Vec<Value>,
    },
    /// See [`EventBody::UserInterrupt`].
    #[serde(rename = "user.interrupt")]
    UserInterrupt {
        /// The thread that shall stop; all without.
        #[serde(skip_serializing_if = "Option::is_none")]
        session_thread_id: Option<ThreadId>,
    },
    /// See [`EventBody::UserToolConfirmation`].
    #[serde(rename = "user.tool_confirmation")]
    UserToolConfirmation {
        /// The tool use that waits.
        tool_use_id: EventId,
        /// Whether it may run.
        result: Verdict,
        /// What the agent is told; only with `deny`.
        #[serde(skip_serializing_if = "Option::is_none")]
        deny_message: Option<String>,
    },
    /// See [`EventBody::UserCustomToolResult`].
    #[serde(rename = "user.custom_tool_result")]
    UserCustomToolResult {
        /// The `agent.custom_tool_use` that it answers.
        custom_tool_use_id: EventId,
        /// Content blocks.
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        is_error: Option<bool>,
    },
    /// See [`EventBody::UserToolResult`].
    #[serde(rename = "user.tool_result")]
    UserToolResult {
        /// The `agent.tool_use` that it answers.
        tool_use_id: EventId,
        /// Content blocks.
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        is_error: Option<bool>,
    },
    /// See [`EventBody::UserDefineOutcome`].
    #[serde(rename = "user.define_outcome")]
    UserDefineOutcome {
        /// What the agent shall produce.
        description: String,
        /// How it is graded.
        rubric: Rubric,
        /// The most cycles of grading and revision.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_iterations: Option<u32>,
    },
    /// See [`EventBody::SystemMessage`].
    #[serde(rename = "system.message")]
    SystemMessage {
        /// Text blocks.
        content: Vec<Value>,
    },
}

impl ClientEvent {
    /// Reads the event at `path` of a request.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn read(path: &str, event: Value) -> Result<Self> {
        let mut fields = Fields::of(path, event)?;
        let kind = fields.text("type")?;
        let event = match kind.as_str() {
            "user.message" => Self::UserMessage { content: content(&mut fields, Block::MESSAGE)? },
            "user.interrupt" => Self::UserInterrupt { session_thread_id: fields.optional_parsed("session_thread_id")? },
            "user.tool_confirmation" => confirmation(&mut fields)?,
            "user.custom_tool_result" => Self::UserCustomToolResult {
                custom_tool_use_id: fields.parsed("custom_tool_use_id")?,
                content: optional_content(&mut fields)?,
                is_error: fields.optional_flag("is_error")?,
            },
            "user.tool_result" => Self::UserToolResult {
                tool_use_id: fields.parsed("tool_use_id")?,
                content: optional_content(&mut fields)?,
                is_error: fields.optional_flag("is_error")?,
            },
            "user.define_outcome" => outcome(&mut fields)?,
            "system.message" => Self::SystemMessage { content: content(&mut fields, Block::SYSTEM)? },
            other => return Err(fields.wrong("type", format!("is not an event that clients send: `{other}`"))),
        };
        fields.end()?;
        Ok(event)
    }

    /// Reads the events of a request, which are at `path`.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn read_all(path: &str, events: Value) -> Result<Vec<Self>> {
        let Value::Array(events) = events else { return Err(InvalidField::new(path, "must be a list of events")) };
        if events.len() > MOST_EVENTS {
            let problem = format!("has {} events, and may have {MOST_EVENTS}: send fewer at once", events.len());
            return Err(InvalidField::new(path, problem));
        }
        let read = |(index, event)| Self::read(&format!("{path}[{index}]"), event);
        let events = events.into_iter().enumerate().map(read).collect::<Result<Vec<_>>>()?;
        check_system_message(path, &events)?;
        Ok(events)
    }

    /// The event as it is queued under this identifier.
    #[must_use]
    pub fn into_event(self, id: EventId) -> NewEvent {
        let body = match self {
            Self::UserMessage { content } => EventBody::UserMessage { content },
            Self::UserInterrupt { session_thread_id } => EventBody::UserInterrupt { session_thread_id },
            Self::UserToolConfirmation { tool_use_id, result, deny_message } => {
                EventBody::UserToolConfirmation { tool_use_id, result, deny_message }
            }
            Self::UserCustomToolResult { custom_tool_use_id, content, is_error } => {
                EventBody::UserCustomToolResult { custom_tool_use_id, content, is_error }
            }
            Self::UserToolResult { tool_use_id, content, is_error } => {
                EventBody::UserToolResult { tool_use_id, content, is_error }
            }
            Self::UserDefineOutcome { description, rubric, max_iterations } => {
                EventBody::UserDefineOutcome { outcome_id: OutcomeId::of(&id), description, rubric, max_iterations }
            }
            Self::SystemMessage { content } => EventBody::SystemMessage { content },
        };
        NewEvent { id, body }
    }
}

impl From<ClientEvent> for NewEvent {
    fn from(event: ClientEvent) -> Self {
        event.into_event(EventId::generate())
    }
}

impl<'de> Deserialize<'de> for ClientEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let event = Value::deserialize(deserializer)?;
        Self::read("event", event).map_err(de::Error::custom)
    }
}

/// What the system adds goes with the message or result before it.
fn check_system_message(path: &str, events: &[ClientEvent]) -> Result<()> {
    let Some(at) = events.iter().position(|event| matches!(event, ClientEvent::SystemMessage { .. })) else {
        return Ok(());
    };
    let before = at.checked_sub(1).and_then(|before| events.get(before));
    let accompanies = matches!(
        before,
        Some(
            ClientEvent::UserMessage { .. }
                | ClientEvent::UserCustomToolResult { .. }
                | ClientEvent::UserToolResult { .. }
        )
    );
    if accompanies && at + 1 == events.len() {
        return Ok(());
    }
    let problem = "a system.message must be the last event of its request, right after a user.message, user.tool_result or user.custom_tool_result";
    Err(InvalidField::new(format!("{path}[{at}]"), problem))
}

fn content(fields: &mut Fields, allowed: &[Block]) -> Result<Vec<Value>> {
    let content = fields.required("content")?;
    check_blocks(&fields.path("content"), &content, allowed)?;
    Ok(blocks(content))
}

/// The result of a tool may say nothing.
fn optional_content(fields: &mut Fields) -> Result<Option<Vec<Value>>> {
    let Some(content) = fields.optional("content") else { return Ok(None) };
    if content.as_array().is_none_or(|blocks| !blocks.is_empty()) {
        check_blocks(&fields.path("content"), &content, Block::RESULT)?;
    }
    Ok(Some(blocks(content)))
}

fn blocks(content: Value) -> Vec<Value> {
    match content {
        Value::Array(blocks) => blocks,
        _ => Vec::new(),
    }
}

fn confirmation(fields: &mut Fields) -> Result<ClientEvent> {
    let tool_use_id = fields.parsed("tool_use_id")?;
    let result: Verdict = fields.parsed("result")?;
    let deny_message = fields.optional_text("deny_message")?;
    if deny_message.is_some() && result != Verdict::Deny {
        return Err(fields.wrong("deny_message", "belongs to a `result` that is `deny`"));
    }
    Ok(ClientEvent::UserToolConfirmation { tool_use_id, result, deny_message })
}

fn outcome(fields: &mut Fields) -> Result<ClientEvent> {
    let bounded = |fields: &Fields, key: &str, text: String| {
        if text.chars().count() <= LONGEST_OUTCOME {
            return Ok(text);
        }
        Err(fields.wrong(key, format!("is longer than {LONGEST_OUTCOME} characters")))
    };
    let description = fields.nonempty_text("description")?;
    let description = bounded(fields, "description", description)?;
    let mut rubric = fields.object("rubric")?;
    match rubric.text("type")?.as_str() {
        "text" => {}
        "file" => return Err(rubric.wrong("type", "`file` is not served: there is no files API; send the text itself")),
        other => return Err(rubric.wrong("type", format!("is not a rubric that is known here: `{other}`"))),
    }
    let content = rubric.nonempty_text("content")?;
    let content = bounded(&rubric, "content", content)?;
    rubric.end()?;
    let max_iterations = fields.optional_number("max_iterations", 1..=MOST_ITERATIONS)?;
    let max_iterations = max_iterations.and_then(|most| u32::try_from(most).ok());
    Ok(ClientEvent::UserDefineOutcome { description, rubric: Rubric::Text { content }, max_iterations })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{ClientEvent, MOST_EVENTS, NewEvent};
    use crate::event::EventBody;
    use crate::id::EventId;

    fn say(text: &str) -> Value {
        json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
    }

    fn system() -> Value {
        json!({"type": "system.message", "content": [{"type": "text", "text": "be kind"}]})
    }

    #[rstest]
    #[case(say("hi"))]
    #[case(json!({"type": "user.interrupt"}))]
    #[case(json!({"type": "user.interrupt", "session_thread_id": "sthr_1"}))]
    #[case(json!({"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "allow"}))]
    #[case(json!({"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "deny", "deny_message": "no"}))]
    #[case(json!({"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_1", "content": [], "is_error": null}))]
    #[case(json!({"type": "user.tool_result", "tool_use_id": "sevt_1", "content": null, "is_error": true}))]
    #[case(json!({"type": "user.define_outcome", "description": "a report", "rubric": {"type": "text", "content": "it exists"}, "max_iterations": 3}))]
    #[case(system())]
    fn what_a_client_sends_is_what_is_read(#[case] event: Value) {
        let read: ClientEvent = serde_json::from_value(event.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), event);
        let queued: NewEvent = read.into();
        assert_eq!(queued.body.kind(), event["type"]);
    }

    #[rstest]
    #[case(json!([]), "`events[0]`: must be an object")]
    #[case(json!({"content": []}), "`events[0].type`: is required")]
    #[case(json!({"type": "agent.message", "content": []}), "`events[0].type`: is not an event that clients send: `agent.message`")]
    #[case(json!({"type": "user.message"}), "`events[0].content`: is required")]
    #[case(json!({"type": "user.message", "content": [{"type": "text", "text": "a"}], "extra": 1}), "`events[0].extra`")]
    #[case(json!({"type": "user.message", "content": [{"type": "text", "text": 1}]}), "`events[0].content[0].text`")]
    #[case(json!({"type": "user.interrupt", "session_thread_id": "sevt_1"}), "`events[0].session_thread_id`")]
    #[case(json!({"type": "user.tool_confirmation", "result": "allow"}), "`events[0].tool_use_id`: is required")]
    #[case(json!({"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "maybe"}), "`events[0].result`")]
    #[case(json!({"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "allow", "deny_message": "a"}), "`events[0].deny_message`")]
    #[case(json!({"type": "user.tool_result", "tool_use_id": 1}), "`events[0].tool_use_id`")]
    #[case(json!({"type": "user.tool_result", "tool_use_id": "sevt_1", "content": {}}), "`events[0].content`: must be a list")]
    #[case(json!({"type": "user.define_outcome", "description": "a", "rubric": {"type": "file", "file_id": "f"}}), "`events[0].rubric.type`: `file` is not served")]
    #[case(json!({"type": "user.define_outcome", "description": "a", "rubric": {"type": "text", "content": "b"}, "max_iterations": 21}), "`events[0].max_iterations`")]
    #[case(json!({"type": "system.message", "content": [{"type": "redacted"}]}), "`events[0].content[0].type`")]
    fn what_is_wrong_is_named(#[case] event: Value, #[case] message: &str) {
        let error = ClientEvent::read_all("events", json!([event])).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[rstest]
    #[case(json!([say("a"), system()]), None)]
    #[case(json!([system()]), Some("`events[0]`"))]
    #[case(json!([system(), say("a")]), Some("`events[0]`"))]
    #[case(json!([say("a"), system(), system()]), Some("`events[1]`"))]
    #[case(json!([{"type": "user.interrupt"}, system()]), Some("`events[1]`"))]
    fn a_system_message_goes_with_what_is_before_it(#[case] events: Value, #[case] wrong: Option<&str>) {
        let read = ClientEvent::read_all("events", events);
        assert_eq!(read.as_ref().err().map(|error| format!("`{}`", error.path)).as_deref(), wrong, "{read:?}");
    }

    #[test]
    fn a_request_has_a_bounded_number_of_events() {
        let events = |count| Value::Array(std::iter::repeat_n(say("a"), count).collect());
        assert!(ClientEvent::read_all("events", events(MOST_EVENTS)).is_ok());
        assert_eq!(ClientEvent::read_all("events", events(MOST_EVENTS + 1)).unwrap_err().path, "events");
        assert_eq!(ClientEvent::read_all("initial_events", say("a")).unwrap_err().path, "initial_events");
    }

    #[test]
    fn the_same_event_defines_the_same_outcome() {
        let event =
            json!({"type": "user.define_outcome", "description": "a", "rubric": {"type": "text", "content": "b"}});
        let outcome = |id: &str| {
            let event: ClientEvent = serde_json::from_value(event.clone()).unwrap();
            match event.into_event(id.parse::<EventId>().unwrap()).body {
                EventBody::UserDefineOutcome { outcome_id, .. } => outcome_id,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(outcome("sevt_1"), outcome("sevt_1"));
        assert_ne!(outcome("sevt_1"), outcome("sevt_2"));
    }
}
