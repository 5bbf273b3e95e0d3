//! Objects of the public API other than events.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::ClientEvent;
use crate::id::SessionId;

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    pub created_at: Timestamp,
    /// When its log last grew.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// What it may spend.
    pub budget: Option<Value>,
    /// What it was made from, other than an agent.
    pub deployment_id: Option<String>,
}

/// How long a session has been at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionStats {
    /// Seconds in turns; null where it is not measured.
    pub active_seconds: Option<f64>,
    /// Seconds since it was made.
    pub duration_seconds: f64,
}

/// Tokens in the shape of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionUsage {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCreation {
    /// For five minutes.
    pub ephemeral_5m_input_tokens: u64,
    /// For one hour.
    pub ephemeral_1h_input_tokens: u64,
}

/// `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// Which agent.
    pub agent: AgentChoice,
    /// The `SandboxTemplate` for tool calls.
    #[serde(default)]
    pub environment_id: Option<String>,
    /// At most 50 events that start the first turn; only `user.message` for now.
    #[serde(default)]
    pub initial_events: Vec<ClientEvent>,
    /// At most 16 pairs of strings.
    #[serde(default)]
    pub metadata: Map<String, Value>,
    /// A name for people.
    #[serde(default)]
    pub title: Option<String>,
}

/// Which agent a new session has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AgentChoice {
    /// Its name.
    Name(String),
    /// Its name, spelled out.
    Agent {
        /// Always `agent`.
        #[serde(rename = "type")]
        kind: AgentTag,
        /// The `Agent` resource's name.
        id: String,
    },
}

impl AgentChoice {
    /// The name of the `Agent` resource.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::Agent { id: name, .. } => name,
        }
    }
}

/// The constant `agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentTag {
    /// `agent`
    Agent,
}

/// The answer to `DELETE /v1/sessions/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDeleted {
    /// The session that is gone.
    pub id: SessionId,
    /// Always `session_deleted`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// `POST /v1/sessions/{id}/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendEvents {
    /// Taken all or none, in this order.
    pub events: Vec<ClientEvent>,
}

/// The answer to [`SendEvents`]: the events as they are queued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsSent {
    /// `processed_at` is null.
    pub data: Vec<crate::event::Event>,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub data: Vec<T>,
    /// Give it as `page` to go on; null at the end.
    pub next_page: Option<String>,
}

/// An event with its sequence number (`?include_seq=true`, an extension).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NumberedEvent {
    /// The event.
    #[serde(flatten)]
    pub event: crate::event::Event,
    /// Its sequence number; absent unless asked for, and while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

/// The list order of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Oldest first.
    #[default]
    Asc,
    /// Newest first.
    Desc,
}
