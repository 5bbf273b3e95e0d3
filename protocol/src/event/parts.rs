//! What events are made of.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::EventId;
use crate::wire::{CacheCreation, Money, SessionUsage};

/// Which log event stands for which of the model's `tool_use` blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolEvent {
    /// The model's own identifier, `toolu_...`.
    pub model_id: String,
    /// The `agent.tool_use`, `agent.mcp_tool_use` or `agent.custom_tool_use` event.
    pub event_id: EventId,
}

/// A tool of an MCP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct McpTool {
    /// As the server calls it.
    pub name: String,
    /// What it does, in the server's words; they are data, and bounded.
    pub description: String,
    /// JSON schema of its input, whose `type` is `object`.
    pub input_schema: Value,
    /// Whether the server says that a second call does no harm (`readOnlyHint`, `idempotentHint`).
    #[serde(default)]
    pub repeatable: bool,
}

/// Whether a tool call may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// It may.
    Allow,
    /// A person is asked first.
    Ask,
    /// It may not.
    Deny,
}

/// What a person says to a tool use that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may run.
    Allow,
    /// It may not.
    Deny,
}

impl std::str::FromStr for Verdict {
    type Err = NoVerdict;

    fn from_str(text: &str) -> Result<Self, NoVerdict> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(NoVerdict),
        }
    }
}

/// A text that is no [`Verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `allow` or `deny`")]
pub struct NoVerdict;

/// How an outcome is graded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Rubric {
    /// As a text says.
    Text {
        /// The text, which a grader reads.
        content: String,
    },
}

/// Why a session is idle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopReason {
    /// The agent is done, or was interrupted.
    EndTurn,
    /// The client has to answer these events.
    RequiresAction {
        /// Custom tool calls without a result, and tool uses that nobody has confirmed.
        event_ids: Vec<EventId>,
    },
    /// The model could not be reached.
    RetriesExhausted,
    /// The session has spent what it may spend.
    BudgetReached,
    /// The model refused.
    Refusal,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionError {
    /// The class.
    #[serde(rename = "type")]
    pub kind: SessionErrorType,
    /// The server, if the class is about one of MCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp_server_name: Option<String>,
    /// One sentence for a person.
    pub message: String,
    /// What happens now.
    pub retry_status: RetryStatus,
}

/// Classes of session errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The conversation is too long for the model, and cannot be made shorter.
    CompactionLimitReachedError,
    /// An MCP server could not be reached, or did not speak the protocol.
    McpConnectionFailedError,
    /// An MCP server, or the proxy before it, refused the credential.
    McpAuthenticationFailedError,
}

impl SessionErrorType {
    /// Whether the turn goes on, without what failed.
    #[must_use]
    pub const fn is_partial(self) -> bool {
        matches!(self, Self::McpConnectionFailedError | Self::McpAuthenticationFailedError)
    }
}

/// What happens after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RetryStatus {
    /// It is tried again by itself.
    Retrying,
    /// It was tried often enough; the next message tries anew.
    Exhausted,
    /// Trying again would not help.
    Terminal,
}

/// What of a session's log is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Capped {
    /// The number of its events.
    Events,
    /// The bytes that they are stored in.
    Bytes,
}

impl Capped {
    /// As it is on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Bytes => "bytes",
        }
    }
}

impl std::fmt::Display for Capped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Tokens of a session so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// What a session has used so far, in the shape that `session.usage` has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SessionUsage", into = "SessionUsage")]
pub struct Spent {
    /// Tokens.
    pub tokens: Usage,
    /// What they cost at list prices, if the agent knows prices.
    pub list_cost: Option<Money>,
}

impl From<Usage> for Spent {
    fn from(tokens: Usage) -> Self {
        Self { tokens, list_cost: None }
    }
}

impl From<Spent> for SessionUsage {
    fn from(spent: Spent) -> Self {
        Self { list_cost: spent.list_cost, ..spent.tokens.into() }
    }
}

impl From<SessionUsage> for Spent {
    fn from(usage: SessionUsage) -> Self {
        let CacheCreation { ephemeral_5m_input_tokens, ephemeral_1h_input_tokens } = usage.cache_creation;
        let tokens = Usage {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_input_tokens: usage.cache_read_input_tokens,
            cache_creation_input_tokens: ephemeral_5m_input_tokens.saturating_add(ephemeral_1h_input_tokens),
        };
        Self { tokens, list_cost: usage.list_cost }
    }
}

impl JsonSchema for Spent {
    fn schema_name() -> Cow<'static, str> {
        SessionUsage::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        SessionUsage::json_schema(generator)
    }
}
