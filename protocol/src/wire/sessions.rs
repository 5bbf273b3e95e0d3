//! Sessions: how they are shown, made and deleted.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ForkSession;
use super::resources::{SessionResource, WrittenResource};
use super::session_agent::{AgentChoice, SessionAgent, UpdateSessionAgent};
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
    /// The agent as it was when the session was made, or as it was changed for it since.
    pub agent: SessionAgent,
    /// What it is doing.
    pub status: SessionStatus,
    /// The `SandboxTemplate` of the first sandbox.
    pub environment_id: Option<String>,
    /// A name for people.
    pub title: Option<String>,
    /// Pairs that a client keeps with the session.
    pub metadata: Map<String, Value>,
    /// Repositories and files.
    pub resources: Vec<SessionResource>,
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
    pub budget: Option<Budget>,
    /// What it was made from, other than an agent.
    pub deployment_id: Option<String>,
}

/// How long a session has been at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStats {
    /// Seconds in which it ran, without those in which it was idle or waited for a client.
    pub active_seconds: Option<f64>,
    /// Seconds since it was made.
    pub duration_seconds: f64,
}

/// Tokens in the shape of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionUsage {
    /// Seconds in which the session ran; null in an event, where it is not measured.
    pub active_seconds: Option<f64>,
    /// What that costs; null where the prices are not known.
    pub list_cost: Option<Money>,
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
    #[schemars(with = "Vec<WrittenResource>")]
    pub resources: Vec<Map<String, Value>>,
    /// Vaults that it may use, by their identifiers or names.
    #[serde(default)]
    pub vault_ids: Vec<String>,
    /// What it may spend.
    #[serde(default)]
    pub budget: Option<Budget>,
}

/// The body of `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum NewSession {
    /// A session that shares the history of another one (an extension).
    Fork(ForkSession),
    /// A session that begins.
    Session(Box<CreateSession>),
}

/// What a session may spend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Budget {
    /// So much and no more.
    Limit {
        /// At list prices.
        max_list_cost: Money,
    },
}

/// An amount of money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// A decimal number, in the smallest unit of the currency.
    pub amount: String,
    /// `USD`.
    pub currency: String,
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
    pub budget: Option<Budget>,
    /// Other tools and MCP servers, while it rests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UpdateSessionAgent>")]
    pub agent: Option<Map<String, Value>>,
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
