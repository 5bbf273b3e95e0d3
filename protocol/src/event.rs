//! The events of a session: what the log holds, what clients send, and what is only streamed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::EventId;

/// An event as the public API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Given by whoever made the event; unique in the session.
    pub id: EventId,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
    /// When the event entered the log; null while it is queued.
    pub processed_at: Option<Timestamp>,
}

/// An event that is not in the log yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewEvent {
    /// Under this identifier a retried append finds itself.
    pub id: EventId,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

impl NewEvent {
    /// An event with a fresh identifier.
    #[must_use]
    pub fn new(body: EventBody) -> Self {
        Self { id: EventId::generate(), body }
    }
}

/// An event in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 1 for the first event, without gaps.
    pub seq: u64,
    /// The epoch of the brain that appended it; 0 when the service did.
    pub epoch: u64,
    /// Hex SHA-256 of the stored bytes of the record before; empty for the first.
    pub prev_hash: String,
    /// The event; `processed_at` is set.
    pub event: Event,
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $variant:ident $name:literal $body:tt,)+) => {
        /// What an event says. Types that this build does not know pass through unchanged.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "type")]
        pub enum EventBody {
            $($(#[$doc])* #[serde(rename = $name)] $variant $body,)+
            /// A type that this build does not know.
            #[serde(untagged)]
            Other {
                /// Its type.
                #[serde(rename = "type")]
                kind: String,
                /// Its fields.
                #[serde(flatten)]
                fields: Map<String, Value>,
            },
        }

        impl EventBody {
            /// The value of `type` on the wire.
            #[must_use]
            pub fn kind(&self) -> &str {
                match self {
                    $(Self::$variant { .. } => $name,)+
                    Self::Other { kind, .. } => kind,
                }
            }
        }
    };
}

bodies! {
    /// A person or program speaks to the agent.
    UserMessage "user.message" {
        /// Content blocks: `text`, `image` or `document`.
        content: Vec<Value>,
    },
    /// Stop the turn that is running.
    UserInterrupt "user.interrupt" {},
    /// The result of a custom tool.
    UserCustomToolResult "user.custom_tool_result" {
        /// The `agent.custom_tool_use` that it answers.
        custom_tool_use_id: EventId,
        /// Content blocks.
        #[serde(default)]
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        #[serde(default)]
        is_error: Option<bool>,
    },
    /// The agent speaks.
    AgentMessage "agent.message" {
        /// Content blocks of type `text`.
        content: Vec<Value>,
    },
    /// The agent thinks; what it thinks stays with the model.
    AgentThinking "agent.thinking" {},
    /// The agent wants a tool of its sandbox to run.
    AgentToolUse "agent.tool_use" {
        /// The tool.
        name: String,
        /// The tool's input.
        input: Value,
        /// Whether it may run.
        evaluated_permission: Permission,
        /// The sandbox that it goes to; null for the first of the session.
        #[serde(default, rename = "x_sandbox", skip_serializing_if = "Option::is_none")]
        sandbox: Option<String>,
    },
    /// What the tool answered.
    AgentToolResult "agent.tool_result" {
        /// The `agent.tool_use` that it answers.
        tool_use_id: EventId,
        /// Content blocks.
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        is_error: Option<bool>,
    },
    /// The agent wants a tool that the client runs.
    AgentCustomToolUse "agent.custom_tool_use" {
        /// The tool.
        name: String,
        /// The tool's input.
        input: Value,
    },
    /// A turn began.
    SessionStatusRunning "session.status_running" {},
    /// A turn ended, or waits for the client.
    SessionStatusIdle "session.status_idle" {
        /// Why.
        stop_reason: StopReason,
    },
    /// The turn goes on later or elsewhere.
    SessionStatusRescheduled "session.status_rescheduled" {},
    /// The session has ended for good.
    SessionStatusTerminated "session.status_terminated" {},
    /// Something went wrong.
    SessionError "session.error" {
        /// What, and what happens now.
        error: SessionError,
    },
    /// Tokens so far.
    SessionUsage "session.usage" {
        /// Since the session began.
        usage: Usage,
    },
    /// The model is being called.
    SpanModelRequestStart "span.model_request_start" {},
    /// The model has answered, or failed to.
    SpanModelRequestEnd "span.model_request_end" {
        /// The start that it closes.
        model_request_start_id: EventId,
        /// Whether the request failed.
        is_error: bool,
        /// Tokens of this request.
        model_usage: ModelUsage,
    },
    /// Private: the model's answer as it came, with signatures, which a resumed brain sends back.
    ModelResponse "x.model_response" {
        /// Content blocks, unchanged.
        content: Vec<Value>,
        /// As the model API gave it.
        stop_reason: Option<String>,
        /// For each `tool_use` block in order: the event that stands for it.
        #[serde(default)]
        tool_events: Vec<ToolEvent>,
    },
    /// A harness claimed the session.
    SessionWoken "x.session.woken" {
        /// The epoch of the claim.
        epoch: u64,
        /// The pod's name.
        harness: String,
    },
    /// A sandbox is being made, because a tool call needs it.
    SandboxProvisioning "x.sandbox.provisioning" {
        /// Its name in the session.
        sandbox: String,
        /// The tool call.
        tool_use_id: EventId,
    },
    /// The sandbox takes calls.
    SandboxReady "x.sandbox.ready" {
        /// Its name in the session.
        sandbox: String,
        /// UID of its pod.
        pod_uid: String,
    },
    /// The sandbox was idle and is gone.
    SandboxReclaimed "x.sandbox.reclaimed" {
        /// Its name in the session.
        sandbox: String,
        /// UID of its pod.
        pod_uid: String,
    },
    /// The sandbox died under a tool call.
    SandboxLost "x.sandbox.lost" {
        /// Its name in the session.
        sandbox: String,
        /// Why, as far as it is known.
        cause: String,
    },
    /// A tool call began and nobody knows how it ended.
    ToolOutcomeUnknown "x.tool.outcome_unknown" {
        /// The tool call.
        tool_use_id: EventId,
        /// Why.
        cause: String,
    },
}

impl EventBody {
    /// Whether strict clients must be spared this type unless they ask for it.
    #[must_use]
    pub fn is_extension(&self) -> bool {
        self.kind().starts_with("x.")
    }
}

/// Which log event stands for which of the model's `tool_use` blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolEvent {
    /// The model's own identifier, `toolu_...`.
    pub model_id: String,
    /// The `agent.tool_use` or `agent.custom_tool_use` event.
    pub event_id: EventId,
}

/// Whether a tool call may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// It may.
    Allow,
    /// A person is asked first.
    Ask,
    /// It may not.
    Deny,
}

/// Why a session is idle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopReason {
    /// The agent is done, or was interrupted.
    EndTurn,
    /// The client has to answer these events.
    RequiresAction {
        /// Custom tool calls without a result.
        event_ids: Vec<EventId>,
    },
    /// The model could not be reached.
    RetriesExhausted,
    /// The model refused.
    Refusal,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionError {
    /// The class.
    #[serde(rename = "type")]
    pub kind: SessionErrorType,
    /// One sentence for a person.
    pub message: String,
    /// What happens now.
    pub retry_status: RetryStatus,
}

/// Classes of session errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionErrorType {
    /// None of the others.
    UnknownError,
    /// 529 or 503 from the model API.
    ModelOverloadedError,
    /// 429 from the model API.
    ModelRateLimitedError,
    /// The model API could not be reached, or refused the request.
    ModelRequestFailedError,
    /// The credential's upstream could not be reached.
    CredentialHostUnreachableError,
}

/// What happens after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RetryStatus {
    /// It is tried again by itself.
    Retrying,
    /// It was tried often enough; the next message tries anew.
    Exhausted,
    /// Trying again would not help.
    Terminal,
}

/// Tokens of a session so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read by the model, without those from a cache.
    pub input_tokens: u64,
    /// Written by the model.
    pub output_tokens: u64,
    /// Read from a cache.
    pub cache_read_input_tokens: u64,
    /// Written to a cache.
    pub cache_creation_input_tokens: u64,
}

/// Tokens of one model request.
pub type ModelUsage = Usage;

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cache_read_input_tokens = self.cache_read_input_tokens.saturating_add(other.cache_read_input_tokens);
        self.cache_creation_input_tokens =
            self.cache_creation_input_tokens.saturating_add(other.cache_creation_input_tokens);
    }
}

/// What a client may send to `POST /v1/sessions/{id}/events`. Unknown types and fields are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum ClientEvent {
    /// See [`EventBody::UserMessage`].
    #[serde(rename = "user.message")]
    UserMessage {
        /// At least one content block.
        content: Vec<Value>,
    },
    /// See [`EventBody::UserInterrupt`].
    #[serde(rename = "user.interrupt")]
    UserInterrupt {},
    /// See [`EventBody::UserCustomToolResult`].
    #[serde(rename = "user.custom_tool_result")]
    UserCustomToolResult {
        /// The `agent.custom_tool_use` that it answers.
        custom_tool_use_id: EventId,
        /// Content blocks.
        #[serde(default)]
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        #[serde(default)]
        is_error: Option<bool>,
    },
}

/// Why a client's event is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidClientEvent {
    /// No content.
    #[error("`content` is empty: it needs at least one block")]
    NoContent,
    /// A block without a known type.
    #[error("`content[{index}]` is not a content block: `type` must be one of text, image, document")]
    UnknownBlock {
        /// Which block.
        index: usize,
    },
    /// A text block without text.
    #[error("`content[{index}].text` must be a string that is not empty")]
    NoText {
        /// Which block.
        index: usize,
    },
}

impl ClientEvent {
    /// Checks what the type system does not.
    ///
    /// # Errors
    /// Names the block that is wrong.
    pub fn validate(&self) -> Result<(), InvalidClientEvent> {
        match self {
            Self::UserMessage { content } if content.is_empty() => Err(InvalidClientEvent::NoContent),
            Self::UserMessage { content } => validate_blocks(content),
            Self::UserCustomToolResult { content, .. } => content.as_deref().map_or(Ok(()), validate_blocks),
            Self::UserInterrupt {} => Ok(()),
        }
    }
}

fn validate_blocks(content: &[Value]) -> Result<(), InvalidClientEvent> {
    for (index, block) in content.iter().enumerate() {
        match block.get("type").and_then(Value::as_str) {
            Some("text") => {
                if block.get("text").and_then(Value::as_str).is_none_or(str::is_empty) {
                    return Err(InvalidClientEvent::NoText { index });
                }
            }
            Some("image" | "document") => {}
            _ => return Err(InvalidClientEvent::UnknownBlock { index }),
        }
    }
    Ok(())
}

impl From<ClientEvent> for EventBody {
    fn from(event: ClientEvent) -> Self {
        match event {
            ClientEvent::UserMessage { content } => Self::UserMessage { content },
            ClientEvent::UserInterrupt {} => Self::UserInterrupt {},
            ClientEvent::UserCustomToolResult { custom_tool_use_id, content, is_error } => {
                Self::UserCustomToolResult { custom_tool_use_id, content, is_error }
            }
        }
    }
}

/// What is streamed but never stored: the message that is being written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Preview {
    /// A message begins.
    EventStart {
        /// The event that will stand in the log.
        event: PreviewEvent,
    },
    /// More of its text.
    EventDelta {
        /// The event that it belongs to.
        event_id: EventId,
        /// The text.
        delta: Delta,
    },
}

/// The event that a preview announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewEvent {
    /// `agent.message`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The identifier that it will have.
    pub id: EventId,
}

/// More of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Delta {
    /// More of a content block.
    ContentDelta {
        /// Which block of the message.
        index: u32,
        /// What to add to it.
        content: DeltaContent,
    },
}

/// What to add to a content block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DeltaContent {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::{ClientEvent, Event, EventBody};

    #[rstest]
    #[case(json!({"id": "sevt_1", "type": "user.message", "content": [{"type": "text", "text": "hi"}], "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "session.status_running", "processed_at": "2026-01-02T03:04:05Z"}))]
    #[case(json!({"id": "sevt_1", "type": "session.status_idle", "stop_reason": {"type": "end_turn"}, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "agent.tool_result", "tool_use_id": "sevt_2", "content": null, "is_error": null, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "session.of_tomorrow", "field": {"a": [1]}, "processed_at": null}))]
    fn an_event_survives_a_round_trip(#[case] wire: serde_json::Value) {
        let event: Event = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(event.body.kind(), wire["type"]);
        assert_eq!(serde_json::to_value(&event).unwrap(), wire);
    }

    #[test]
    fn an_unknown_type_is_kept() {
        let body: EventBody = serde_json::from_value(json!({"type": "x.new", "a": 1})).unwrap();
        assert!(matches!(&body, EventBody::Other { kind, fields } if kind == "x.new" && fields["a"] == 1));
        assert!(body.is_extension());
    }

    #[rstest]
    #[case(json!({"type": "user.message"}), "missing field `content`")]
    #[case(json!({"type": "user.message", "content": [], "extra": 1}), "unknown field `extra`")]
    #[case(json!({"type": "agent.message", "content": []}), "unknown variant `agent.message`")]
    #[case(json!({"content": []}), "missing field `type`")]
    fn a_malformed_client_event_says_what_is_wrong(#[case] wire: serde_json::Value, #[case] message: &str) {
        let error = serde_json::from_value::<ClientEvent>(wire).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[rstest]
    #[case(json!([]), "`content` is empty")]
    #[case(json!([{"type": "text", "text": ""}]), "`content[0].text`")]
    #[case(json!([{"type": "text", "text": "a"}, {"type": "video"}]), "`content[1]`")]
    #[case(json!(["text"]), "`content[0]`")]
    fn a_message_needs_content(#[case] content: serde_json::Value, #[case] message: &str) {
        let event: ClientEvent = serde_json::from_value(json!({"type": "user.message", "content": content})).unwrap();
        let error = event.validate().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
