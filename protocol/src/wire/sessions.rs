//! Sessions: how they are shown, made and deleted.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::{ClientEvent, Usage};
use crate::id::SessionId;
use crate::schema::DateTime;

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// Nothing to do; no pods needed.
    Idle,
    /// A turn is running, or a message waits for a brain.
    Running,
    /// The turn goes on later or elsewhere.
    Rescheduling,
    /// The session has ended for good.
    Terminated,
}

impl SessionStatus {
    /// The value on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Rescheduling => "rescheduling",
            Self::Terminated => "terminated",
        }
    }
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Session {
    /// The session.
    pub id: SessionId,
    /// Always `session`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The agent as it was when the session was made.
    pub agent: Value,
    /// What it is doing.
    pub status: SessionStatus,
    /// The `SandboxTemplate` of the first sandbox.
    pub environment_id: Option<String>,
    /// A name for people.
    pub title: Option<String>,
    /// Pairs that a client keeps with the session.
    pub metadata: Map<String, Value>,
    /// Repositories and files.
    pub resources: Vec<Value>,
    /// Vaults bound to the session.
    pub vault_ids: Vec<String>,
    /// Evaluations of outcomes.
    pub outcome_evaluations: Vec<Value>,
    /// How long it has been at work.
    pub stats: SessionStats,
    /// What it has used.
    pub usage: SessionUsage,
    /// When it was made.
    #[schemars(with = "DateTime")]
    pub created_at: Timestamp,
    /// When its log last grew.
    #[schemars(with = "DateTime")]
    pub updated_at: Timestamp,
    /// When it was archived.
    #[schemars(with = "Option<DateTime>")]
    pub archived_at: Option<Timestamp>,
    /// What it may spend.
    pub budget: Option<Value>,
    /// What it was made from, other than an agent.
    pub deployment_id: Option<String>,
}

/// How long a session has been at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStats {
    /// Seconds in turns; null where it is not measured.
    pub active_seconds: Option<f64>,
    /// Seconds since it was made.
    pub duration_seconds: f64,
}

/// Tokens in the shape of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionUsage {
    /// Seconds in which the session ran; null where it is not measured.
    pub active_seconds: Option<f64>,
    /// What that costs; null where the prices are not known.
    pub list_cost: Option<Value>,
    /// Read by the model.
    pub input_tokens: u64,
    /// Written by the model.
    pub output_tokens: u64,
    /// Read from a cache.
    pub cache_read_input_tokens: u64,
    /// Written to a cache.
    pub cache_creation: CacheCreation,
}

/// Tokens written to a cache, by how long they stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheCreation {
    /// For five minutes.
    pub ephemeral_5m_input_tokens: u64,
    /// For one hour.
    pub ephemeral_1h_input_tokens: u64,
}

/// `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// Which agent.
    pub agent: AgentChoice,
    /// The environment for tool calls, by its identifier or name.
    #[serde(default)]
    pub environment_id: Option<String>,
    /// At most 50 events that start the first turn: `user.message`, `user.define_outcome` and `system.message`.
    #[serde(default)]
    pub initial_events: Vec<ClientEvent>,
    /// At most 16 pairs of strings.
    #[serde(default)]
    pub metadata: Map<String, Value>,
    /// A name for people.
    #[serde(default)]
    pub title: Option<String>,
    /// Repositories and files that its sandboxes shall find.
    #[serde(default)]
    pub resources: Vec<Map<String, Value>>,
    /// Vaults that it may use, by their identifiers or names.
    #[serde(default)]
    pub vault_ids: Vec<String>,
    /// What it may spend.
    #[serde(default)]
    pub budget: Option<Map<String, Value>>,
}

/// `POST /v1/sessions/{id}`. What is absent stays as it is, and what is null is taken away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSession {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Pairs that are set; null takes one away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// All vaults that it may use from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault_ids: Option<Vec<String>>,
    /// What it may spend, if it was made with a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Map<String, Value>>,
}

/// Which agent a new session has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AgentChoice {
    /// Its identifier or name.
    Name(String),
    /// One of its versions, or the latest.
    Agent {
        /// Always `agent`.
        #[serde(rename = "type")]
        kind: AgentTag,
        /// Its identifier or name.
        id: String,
        /// The version; the latest without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
    },
}

/// The constant `agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentTag {
    /// `agent`
    Agent,
}

/// The answer to `DELETE /v1/sessions/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionDeleted {
    /// The session that is gone.
    pub id: SessionId,
    /// Always `session_deleted`.
    #[serde(rename = "type")]
    pub kind: String,
}

impl From<Usage> for SessionUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_input_tokens: usage.cache_read_input_tokens,
            cache_creation: CacheCreation {
                ephemeral_5m_input_tokens: usage.cache_creation_input_tokens,
                ephemeral_1h_input_tokens: 0,
            },
            ..Self::default()
        }
    }
}
