//! The work of self-hosted environments, as their workers see it.

use std::collections::BTreeMap;

use crate::schema::DateTime;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a piece of work stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkState {
    /// It waits for a worker, or for the worker that took it to say so.
    Queued,
    /// A worker has said that it begins.
    Starting,
    /// A worker serves it and says so from time to time.
    Active,
    /// Its worker is asked to end.
    Stopping,
    /// It has ended.
    Stopped,
}

/// A piece of work: a session whose tools a worker runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// Its identifier, `work_...`.
    pub id: String,
    /// Always `work`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it stands.
    pub state: WorkState,
    /// What it is.
    pub data: WorkData,
    /// The environment.
    pub environment_id: String,
    /// What the worker authenticates with for this session; only in the answer to a poll.
    pub secret: Option<String>,
    /// Pairs that workers keep with it.
    pub metadata: BTreeMap<String, String>,
    /// When it was queued first.
    #[schemars(with = "DateTime")]
    pub created_at: Timestamp,
    /// When a worker said that it begins.
    #[schemars(with = "Option<DateTime>")]
    pub acknowledged_at: Option<Timestamp>,
    /// When the worker first said that it is at work.
    #[schemars(with = "Option<DateTime>")]
    pub started_at: Option<Timestamp>,
    /// When it last said so.
    #[schemars(with = "Option<DateTime>")]
    pub latest_heartbeat_at: Option<Timestamp>,
    /// When it was asked to end.
    #[schemars(with = "Option<DateTime>")]
    pub stop_requested_at: Option<Timestamp>,
    /// When it ended.
    #[schemars(with = "Option<DateTime>")]
    pub stopped_at: Option<Timestamp>,
}

/// What a piece of work is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkData {
    /// Always `session`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The session.
    pub id: String,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkHeartbeat {
    /// Always `work_heartbeat`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the next heartbeat has to name; empty if there has been none.
    pub last_heartbeat: String,
    /// Whether the worker still has the work.
    pub lease_extended: bool,
    /// Where the work stands.
    pub state: WorkState,
    /// For how long the worker has it.
    pub ttl_seconds: u32,
}

/// What a refused heartbeat is told of the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseState {
    /// The heartbeat that is on record.
    pub last_heartbeat: Option<String>,
    /// Always false.
    pub lease_extended: bool,
    /// Where the work stands.
    pub state: WorkState,
    /// For how long a worker has it.
    pub ttl_seconds: u32,
}

/// How full the queue of an environment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkStats {
    /// Always `work_queue_stats`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many pieces of work wait.
    pub depth: usize,
    /// How many were taken and not acknowledged yet.
    pub pending: usize,
    /// Since when the oldest of both waits.
    #[schemars(with = "Option<DateTime>")]
    pub oldest_queued_at: Option<Timestamp>,
    /// How many workers ask for work; null, since nobody counts them.
    pub workers_polling: Option<usize>,
}

/// `POST .../work/{id}`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWork {
    /// A text sets, null removes.
    pub metadata: BTreeMap<String, Option<String>>,
}

/// `POST .../work/{id}/stop`.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopWork {
    /// Whether it ends now, and not when its worker says so.
    #[serde(default)]
    pub force: bool,
}
