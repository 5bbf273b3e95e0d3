//! Threads of a session.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SessionAgent, SessionStatus, SessionUsage};
use crate::id::SessionId;
use crate::schema::DateTime;

/// A thread of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Thread {
    /// The thread.
    pub id: String,
    /// Always `session_thread`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The session that it belongs to.
    pub session_id: SessionId,
    /// The thread that began it; null for the primary one.
    pub parent_thread_id: Option<String>,
    /// What began it, other than a thread.
    pub workflow_run_id: Option<String>,
    /// The agent as it is in this thread.
    pub agent: SessionAgent,
    /// What it is doing.
    pub status: SessionStatus,
    /// How long it has been at work.
    pub stats: Option<ThreadStats>,
    /// What it has used.
    pub usage: Option<SessionUsage>,
    /// When it was made.
    #[schemars(with = "DateTime")]
    pub created_at: Timestamp,
    /// When its log last grew.
    #[schemars(with = "DateTime")]
    pub updated_at: Timestamp,
    /// When it was archived.
    #[schemars(with = "Option<DateTime>")]
    pub archived_at: Option<Timestamp>,
}

/// How long a thread has been at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThreadStats {
    /// Seconds in which it ran, without those in which it was idle or waited for a client.
    pub active_seconds: Option<f64>,
    /// Seconds since it was made.
    pub duration_seconds: Option<f64>,
    /// Seconds until it ran; null where it is not measured.
    pub startup_seconds: Option<f64>,
}
