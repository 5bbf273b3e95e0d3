//! Calling a model.

pub mod accumulate;
pub mod anthropic;
pub mod failure;

use std::time::Duration;

use longhand_protocol::event::{SessionErrorType, Usage};
use serde_json::Value;

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// Content blocks as they came.
    pub content: Vec<Value>,
    /// Why it ended.
    pub stop_reason: Option<String>,
    /// Its tokens.
    pub usage: Usage,
    /// The model's identifiers of tool calls whose input is not a JSON object, or was cut off.
    pub incomplete: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The class that clients are shown.
    pub kind: SessionErrorType,
    /// What happened, and what to do.
    pub message: String,
    /// Whether another try may succeed.
    pub retryable: bool,
    /// How long the model API asks to wait.
    pub retry_after: Option<Duration>,
    /// Tokens that were used all the same.
    pub usage: Usage,
}

/// A piece of the text that the model writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextDelta {
    /// Which of the answer's text blocks that have text.
    pub index: u32,
    /// What comes next in it.
    pub text: String,
}
