//! What the operator asks of the session service, under `/internal/v1`, and what its replicas tell one another.
//!
//! The operator has no access to session logs: it says which resources there are, and learns what it needs for their status.

use serde::{Deserialize, Serialize};

use crate::event::{Capped, Preview, Usage};
use crate::id::SessionId;
use crate::trace::TraceParent;
use crate::wire::SessionStatus;

/// `PUT /internal/v1/namespaces/{namespace}/sessions/{name}`: the log of this resource exists and holds its `input`,
/// and goes on if a limit that has stopped it was raised.
///
/// The service reads the resource and its agent itself; repeating the call changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnsureSession {
    /// The UID of the `AgentSession` that the operator saw.
    pub uid: String,
}

/// What the operator shows in the status of an `AgentSession` (also `GET` of the same path).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSummary {
    /// The session.
    pub session_id: SessionId,
    /// As the wire API shows it.
    pub status: SessionStatus,
    /// The epoch of the last claim; 0 before the first.
    pub epoch: u64,
    /// The last sequence number of the log.
    pub head: u64,
    /// How many items of `spec.input` the log has taken in.
    pub delivered_inputs: u64,
    /// UID of the pod that owns the session at the moment.
    pub owner_pod_uid: Option<String>,
    /// Whether work is open (a wake key exists).
    pub wake: bool,
    /// Tokens so far.
    pub usage: Usage,
    /// A limit that the session or its namespace comes near to, or has reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitNotice>,
}

/// A limit that is nearly used up, or is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitNotice {
    /// Whose limit it is.
    pub of: LimitOf,
    /// What is limited.
    pub what: Limited,
    /// How many there may be.
    pub limit: u64,
    /// Whether nothing new is taken any more.
    pub reached: bool,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitOf {
    /// The session's.
    Session,
    /// That of all sessions of its namespace together.
    Namespace,
}

impl LimitOf {
    /// As it is on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Namespace => "namespace",
        }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limited {
    /// Events of a log.
    Events,
    /// Bytes of one log, or of all logs of a namespace.
    Bytes,
    /// Sessions of a namespace.
    Sessions,
    /// Files of a namespace.
    Files,
}

impl Limited {
    /// As it is on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Bytes => "bytes",
            Self::Sessions => "sessions",
            Self::Files => "files",
        }
    }
}

impl From<Capped> for Limited {
    fn from(capped: Capped) -> Self {
        match capped {
            Capped::Events => Self::Events,
            Capped::Bytes => Self::Bytes,
        }
    }
}

/// `error.details.error_code` of a request that is refused since a limit is reached.
pub const LIMIT_REACHED: &str = "limit_reached";

/// `GET /internal/v1/sessions?after=&limit=`: the logs that there are, for the sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionList {
    /// In order of their identifiers.
    pub sessions: Vec<SessionRef>,
}

/// Which resource a log belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRef {
    /// The session.
    pub session_id: SessionId,
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's name.
    pub name: String,
    /// The resource's UID.
    pub uid: String,
}

/// `POST /internal/v1/namespaces/{namespace}/sandboxes/{name}/drain`: make an idle sandbox take no more calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DrainSandbox {
    /// UID of the pod that shall be drained.
    pub pod_uid: String,
    /// For how long it must have been idle, in seconds.
    pub idle_seconds: u64,
    /// Whether what tool calls have left running in the background keeps it from being idle.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub background_counts: bool,
    /// Whether the sandbox is to be suspended when it is drained, since its workspace is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// The answer to a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drained {
    /// Whether the sandbox takes no more calls and may be removed.
    pub drained: bool,
    /// For how long no call has run, in seconds; 0 while one does.
    pub idle_seconds: u64,
}

/// `POST /internal/v1/namespaces/{namespace}/sandboxes/{name}/handoff`: do what the session service has to do of a handoff that
/// the sandbox's `spec.handoffTo` asks for. Repeating it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SettleHandoff {
    /// UID of the sandbox that is handed over.
    pub uid: String,
}

/// How far a handoff is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Handoff {
    /// Something still runs in the sandbox, which takes nothing new.
    InUse,
    /// Nothing runs any more, and its workspace is being copied into the other sandbox's pod: its own has to stay.
    Moving,
    /// Nothing runs any more: its pod may go, and its workspace belongs to this sandbox then.
    Settled {
        /// Name of the other `Sandbox`.
        name: String,
        /// UID of the other `Sandbox`.
        uid: String,
    },
    /// It was taken back: the sandbox stays what it was.
    TakenBack {
        /// Why.
        reason: String,
    },
}

/// The value of a wake key: work is open in this session. JSON under `/longhand/wake/{session}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wake {
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's name.
    pub name: String,
    /// The resource's UID.
    pub uid: String,
    /// What the work belongs to, if it is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
}

/// `POST /peer/v1/previews`, on a port that only replicas of the session service reach: shown to those who watch at this
/// replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PeerPreviews {
    /// In the order in which harnesses posted them.
    pub posts: Vec<PeerPost>,
}

/// What a harness posted at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PeerPost {
    /// The session that it serves.
    pub session: SessionId,
    /// The previews, in order.
    pub frames: Vec<Preview>,
}
