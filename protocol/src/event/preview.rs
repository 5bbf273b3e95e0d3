//! What is streamed but never stored: the message that is being written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::EventId;

/// What is streamed but never stored: the message that is being written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PreviewEvent {
    /// `agent.message`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The identifier that it will have.
    pub id: EventId,
}

/// More of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DeltaContent {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
}
