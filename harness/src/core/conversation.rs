//! The parts of a conversation: what clients said, what the model said, and what became of its calls.

use longhand_protocol::EventId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A part of the conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// What the model wrote of everything before, in place of it.
    Summary(String),
    /// Content blocks of a client.
    User(Vec<Value>),
    /// What the model said.
    Answer(Answer),
}

/// An answer of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Content blocks as they came.
    pub content: Vec<Value>,
    /// The model that gave it, if the log says so.
    pub model: Option<String>,
    /// Why it ended.
    pub stop: Stop,
    /// Its `tool_use` blocks, in order.
    pub calls: Vec<Call>,
}

/// A `tool_use` block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The model's own identifier.
    pub model_id: String,
    /// What became of it.
    pub state: CallState,
    /// The record of its result; 0 while there is none.
    pub seq: u64,
    /// Its result is not sent any more, and so many bytes are saved.
    pub cleared: Option<u64>,
}

/// What became of a tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CallState {
    /// It has no result yet.
    Open {
        /// Its event.
        event: EventId,
        /// What it waits for.
        awaits: Awaits,
    },
    /// The client has stopped the turn before it had a result. One that comes before the model is asked again counts.
    Stopped {
        /// Its event.
        event: EventId,
        /// What it waited for.
        awaits: Awaits,
    },
    /// It is answered.
    Answered {
        /// Content blocks.
        content: Vec<Value>,
        /// Whether it failed.
        is_error: bool,
    },
}

impl CallState {
    /// The event of a call that may still have a result.
    pub(super) const fn waiting(&self) -> Option<&EventId> {
        match self {
            Self::Open { event, .. } | Self::Stopped { event, .. } => Some(event),
            Self::Answered { .. } => None,
        }
    }
}

/// What a tool call without a result waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Awaits {
    /// A sandbox, through the session service.
    Sandbox,
    /// The client's word whether it may run.
    Confirmation,
    /// The client, who runs it.
    Client,
    /// An MCP server.
    Mcp,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// The model is done.
    EndTurn,
    /// It wants tools.
    ToolUse,
    /// It wants to go on.
    PauseTurn,
    /// It reached its limit.
    MaxTokens,
    /// The conversation fills its context window.
    ContextWindowExceeded,
    /// It refused.
    Refusal,
    /// Something that this build does not know.
    Other(String),
}

impl Stop {
    /// Reads `stop_reason` of the model API.
    #[must_use]
    pub fn parse(reason: Option<&str>) -> Self {
        match reason {
            Some("end_turn" | "stop_sequence") => Self::EndTurn,
            Some("tool_use") => Self::ToolUse,
            // After a compaction it waits to be asked again, as after a pause.
            Some("pause_turn" | "compaction") => Self::PauseTurn,
            Some("max_tokens") => Self::MaxTokens,
            Some("model_context_window_exceeded") => Self::ContextWindowExceeded,
            Some("refusal") => Self::Refusal,
            other => Self::Other(other.unwrap_or("none").to_owned()),
        }
    }

    /// Whether tools of such an answer may run.
    #[must_use]
    pub const fn permits_tools(&self) -> bool {
        !matches!(self, Self::Refusal | Self::Other(_))
    }
}

/// What an image weighs: about 1,600 tokens, whatever its bytes are.
const IMAGE: u64 = 6_400;
/// How many characters of an encoded document are as much as one of text.
const DOCUMENT_SHARE: u64 = 16;

/// How much of a context window content blocks take, in bytes of text, of which a token has about four.
pub(super) fn weight(content: &[Value]) -> u64 {
    content.iter().map(block_weight).fold(0, u64::saturating_add)
}

fn block_weight(block: &Value) -> u64 {
    let encoded = block["source"]["type"] == "base64";
    match block["type"].as_str() {
        Some("image") => IMAGE,
        Some("document") if encoded => {
            block["source"]["data"].as_str().map_or(0, |data| length(data.len())) / DOCUMENT_SHARE
        }
        Some("tool_result") => block["content"].as_array().map_or_else(|| json_weight(block), |inner| weight(inner)),
        _ => json_weight(block),
    }
}

/// The bytes of a value as JSON.
pub(super) fn json_weight(value: &Value) -> u64 {
    /// Counts what is written.
    struct Count(u64);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(length(bytes.len()));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Neither a value nor a counter fails.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

pub(super) fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// What an item and a call take besides their content, about.
const ITEM_BYTES: u64 = 64;
const CALL_BYTES: u64 = 160;

/// The bytes of content blocks as JSON.
pub(super) fn json_bytes(content: &[Value]) -> u64 {
    content.iter().map(json_weight).fold(0, u64::saturating_add)
}

impl Item {
    /// How many bytes it takes as JSON, about.
    pub(super) fn bytes(&self) -> u64 {
        let content = match self {
            Self::Summary(text) => length(text.len()),
            Self::User(content) => json_bytes(content),
            Self::Answer(answer) => {
                let results = answer.calls.iter().map(|call| match &call.state {
                    CallState::Answered { content, .. } => json_bytes(content).saturating_add(CALL_BYTES),
                    CallState::Open { .. } | CallState::Stopped { .. } => CALL_BYTES,
                });
                results.fold(json_bytes(&answer.content), u64::saturating_add)
            }
        };
        content.saturating_add(ITEM_BYTES)
    }

    /// How much of a context window it takes, in bytes of text.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Summary(text) => length(text.len()),
            Self::User(content) => weight(content),
            Self::Answer(answer) => {
                let results = answer.calls.iter().map(|call| match &call.state {
                    CallState::Answered { content, .. } => weight(content),
                    CallState::Open { .. } | CallState::Stopped { .. } => 0,
                });
                results.fold(weight(&answer.content), u64::saturating_add)
            }
        }
    }
}
