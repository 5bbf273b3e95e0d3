//! What a session store promises.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use longhand_protocol::event::{NewEvent, Record, Usage};
use longhand_protocol::harness::{AgentSnapshot, Inbox, InboxItem};
use longhand_protocol::wire::{Money, SessionStatus};
use longhand_protocol::{EventId, SessionId};
use serde::{Deserialize, Serialize};

pub use longhand_protocol::event::Capped;

pub use crate::active::Active;
pub use crate::caps::Size;
pub use crate::query::{Query, type_matches};

/// Why a store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such session, or it is being deleted.
    #[error("session {0} does not exist")]
    NotFound(SessionId),
    /// The session exists already.
    #[error("session {0} exists already")]
    Exists(SessionId),
    /// A later epoch owns the session, or none yet: epoch 0 is nobody's.
    #[error("epoch {given} is fenced off: the session is at epoch {current}")]
    Fenced {
        /// The epoch of the caller.
        given: u64,
        /// The session's epoch.
        current: u64,
    },
    /// The claim ran out or was given up by `idle`, and nobody has claimed since.
    #[error("the claim of epoch {epoch} has run out or was given up: claim again")]
    ClaimLost {
        /// The epoch of the caller.
        epoch: u64,
    },
    /// Another pod holds the claim and lives.
    #[error("the session is owned by pod {pod_uid}")]
    Owned {
        /// UID of the owner.
        pod_uid: String,
    },
    /// Events were appended since.
    #[error("the log's head is {head}")]
    HeadMoved {
        /// The last sequence number.
        head: u64,
    },
    /// Something came in since the last look at the inbox.
    #[error("the session's wake key has changed")]
    WakeMoved,
    /// A queued event was taken up already.
    #[error("event {0} is not queued")]
    NotQueued(EventId),
    /// An event with this identifier, which is remembered, is in the log already, with another content or in part.
    #[error("event {0} is in the log already")]
    Duplicate(EventId),
    /// There is no such tool call.
    #[error("there is no tool call {0} in the log")]
    UnknownCall(EventId),
    /// The tool call is in a state that does not permit this.
    #[error("tool call {call} is {state:?}")]
    CallState {
        /// The call.
        call: EventId,
        /// Its state.
        state: CallState,
    },
    /// One transaction cannot hold this.
    #[error("the request is too large: {0}")]
    TooLarge(String),
    /// The inbox holds as many events as it may.
    #[error("the session's inbox is full: {limit} events are queued")]
    InboxFull {
        /// The limit.
        limit: usize,
    },
    /// The store has as much to do as it takes on: nothing was done, and it is safe to ask again.
    #[error("the session store is overloaded; try again in {} s", .retry_after.as_secs().max(1))]
    Overloaded {
        /// How long to wait.
        retry_after: Duration,
    },
    /// The store's disk quota is used up: it takes nothing new until an operator makes room.
    #[error(
        "etcd has no space left and takes no new events; reading, trimming and deleting go on: delete or archive \
         sessions, then compact and defragment etcd, or raise its --quota-backend-bytes, and disarm its NOSPACE alarm"
    )]
    NoSpace,
    /// The session's log is as long as it may become.
    #[error("session {session} has reached its limit of {limit} {what}: fork it or start a new one")]
    LimitReached {
        /// The session.
        session: SessionId,
        /// What is limited.
        what: Capped,
        /// How many there may be.
        limit: u64,
    },
    /// Other sessions share the session's history.
    #[error("session {session} has forks, such as {fork}, that share its history: delete them first")]
    HasForks {
        /// The session.
        session: SessionId,
        /// One of them.
        fork: SessionId,
    },
    /// The session is archived or has ended: it takes no new events of clients.
    #[error("session {0} has ended and takes no new events")]
    Ended(SessionId),
    /// A turn of the session is open, or wanted.
    #[error("session {0} is at work: interrupt it, or wait until it is idle")]
    AtWork(SessionId),
    /// The log does not reach so far.
    #[error("session {session} has no event {seq}: its last one is {head}")]
    NoSuchEvent {
        /// The session.
        session: SessionId,
        /// What was asked for.
        seq: u64,
        /// The last sequence number.
        head: u64,
    },
    /// The fork would be in another part of the store than what it forks.
    #[error("{fork} cannot share the history of {session}, which is in another etcd: fork it under another identifier")]
    Elsewhere {
        /// The session that would be made.
        fork: SessionId,
        /// The session that it would share the history of.
        session: SessionId,
    },
    /// What is imported is not a whole log of this session; nothing of it can be seen.
    #[error("nothing was imported: {0}")]
    BadImport(String),
    /// The store cannot be reached, or did not answer in time: whether the change was made could not be looked up either.
    #[error("the session store is not available: {0}")]
    Unavailable(String),
    /// A key holds what this build cannot read.
    #[error("key {key} cannot be read: {reason}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// What a store returns.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Where a session's history comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// The session that it was forked from.
    pub session: SessionId,
    /// The last event that the two have in common.
    pub seq: u64,
}

/// How long a session's events stay where, unless the service says otherwise for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// So long after the session has ended, and its resource is gone, the log is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_after_seconds: Option<u64>,
    /// So long after the last event all events leave etcd for the object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_after_seconds: Option<u64>,
}

/// What is known of a session besides its events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionMeta {
    /// The session.
    pub id: SessionId,
    /// Namespace of its resource.
    pub namespace: String,
    /// Name of its resource.
    pub name: String,
    /// UID of its resource.
    pub uid: String,
    /// The agent as it was when the session was made.
    pub agent: AgentSnapshot,
    /// Names of its sandboxes, the default first.
    pub sandboxes: Vec<String>,
    /// How long a harness without work stays, in seconds.
    pub harness_idle_seconds: u64,
    /// How many items of the resource's `spec.input` are in the inbox or the log.
    pub delivered_inputs: u64,
    /// When the session was made.
    pub created_at: Timestamp,
    /// The identifier of its primary thread; without, it is derived from the session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    /// What it was forked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// How long its events are kept.
    #[serde(default)]
    pub retention: Retention,
}

/// Who claims a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claimant {
    /// UID of the harness pod.
    pub pod_uid: String,
    /// Name of the harness pod.
    pub pod_name: String,
}

/// Who owns a session at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// The pod.
    #[serde(flatten)]
    pub claimant: Claimant,
    /// The epoch of its claim.
    pub epoch: u64,
}

/// Whether a claim takes a session from an owner that seems to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// Only if nobody owns it, or the same pod does.
    IfFree,
    /// In any case: the caller knows that the owner's pod is not the one that shall serve.
    Always,
}

/// The state of a session at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionState {
    /// Its metadata.
    pub meta: SessionMeta,
    /// The epoch of the last claim; 0 before the first.
    pub epoch: u64,
    /// The last sequence number; 0 while the log is empty.
    pub head: u64,
    /// Who owns it.
    pub owner: Option<Owner>,
    /// Revision of the wake key, while work is open.
    pub wake_revision: Option<i64>,
    /// Rescheduling or terminated if the last status event says so; else running while a wake key exists; else as the
    /// last status event says, and idle before the first.
    pub status: SessionStatus,
    /// As the last usage event says.
    pub usage: Usage,
    /// What that costs, as the same event says.
    pub list_cost: Option<Money>,
    /// For how long it ran.
    pub active: Active,
    /// When the log last grew, or the session was made.
    pub updated_at: Timestamp,
    /// What its own log takes.
    pub size: Size,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// One of the sessions that share its history, for which it cannot be deleted.
    pub fork: Option<SessionId>,
}

/// What an append gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Appended {
    /// The records, in order.
    pub records: Vec<Record>,
    /// The last sequence number after them.
    pub head: u64,
}

/// A page of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// In the order that was asked for.
    pub records: Vec<Record>,
    /// The last sequence number of the log at the time.
    pub head: u64,
    /// Where to go on ([`Query::from`]): the slice is full, or ends here because enough was read for it, even if nothing
    /// of that was wanted. `None` when everything up to `head`, or down to the first, was looked at.
    pub next: Option<u64>,
}

/// Where a log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The epoch of the last claim.
    pub epoch: u64,
    /// The last sequence number; 0 for a log without events.
    pub head: u64,
    /// Hex SHA-256 of the last record; empty for a log without events.
    pub hash: String,
    /// When the session was archived.
    pub archived_at: Option<Timestamp>,
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Its sequence number.
    pub seq: u64,
    /// Its bytes, which the next record's hash covers.
    pub bytes: Vec<u8>,
    /// Contents that it names by their SHA-256.
    pub payloads: Vec<Vec<u8>>,
}

/// A log as it is stored.
pub struct Export {
    /// Everything but the events.
    pub meta: SessionMeta,
    /// Where it ends.
    pub end: End,
    /// The records, from the first to the last. They are read as they are taken.
    pub records: BoxStream<'static, Result<Exported>>,
}

/// Which pod of which sandbox runs a tool call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incarnation {
    /// Name of the `Sandbox` resource.
    pub sandbox: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// Which attempt gave the call to it: only who made that attempt can know that the call has not begun.
    pub attempt: String,
}

/// The state of a tool call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CallState {
    /// The intent is in the log, nothing has run.
    Open,
    /// It was given to this sandbox; whether it has begun is known there only.
    Dispatched {
        /// The sandbox.
        incarnation: Incarnation,
    },
    /// Its result is in the log.
    Finished {
        /// Sequence number of the result.
        seq: u64,
    },
}

/// What a tool call's result must find, so that no late result follows an "outcome unknown".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishFrom {
    /// The call was never dispatched.
    Open,
    /// It is dispatched to this incarnation.
    Dispatched(Incarnation),
}

/// What the sessions of a namespace, those that have ended too, and its files hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holdings {
    /// How many there are.
    pub sessions: u64,
    /// The bytes of their logs, each without what it shares with another, and of files.
    pub bytes: u64,
    /// How many files there are.
    #[serde(default)]
    pub files: u64,
    /// When they were counted; `None` if they never were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_at: Option<Timestamp>,
}

impl Holdings {
    /// Together with what another part of the store holds of the same namespace.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            sessions: self.sessions.saturating_add(other.sessions),
            bytes: self.bytes.saturating_add(other.bytes),
            files: self.files.saturating_add(other.files),
            counted_at: self.counted_at.max(other.counted_at),
        }
    }
}

/// How far [`SessionStore::leap`] raises an epoch: more than the claims that can have been made since a backup.
pub const EPOCH_LEAP: u64 = 1_000_000;

/// A durable log of many sessions, safe against any number of concurrent callers.
///
/// What a method acknowledged is durable and never reordered. A method that fails with [`StoreError::Unavailable`] may
/// be repeated as it was: what was appended before is found and returned, not appended again, whatever happened since.
///
/// What a brain appends is found by its place, right after `expected_head`: if anything else is there, it is
/// [`StoreError::HeadMoved`]. Everything else, and tool uses, are found by their identifiers: if only a part of the events
/// is in the log, or they differ, it is [`StoreError::Duplicate`]. So a brain that gives an identifier to a second event
/// is not told, unless it is a tool use.
///
/// When several reasons speak against a change, the first of these is given: `NotFound`, `Fenced`, `Duplicate`,
/// `HeadMoved`, `NotQueued`, `WakeMoved`, and `LimitReached` last; of a fork `NotFound`, `NoSuchEvent`, `Exists`.
///
/// A log is bounded by [`crate::caps::Caps`]: what still enters one that is full is said in [`crate::caps`]. When a log
/// comes near to a limit, the store appends one `x.session.near_limit`.
///
/// One transaction takes [`crate::limits::MAX_WEIGHT`] in weight of events and [`crate::limits::MAX_BYTES`] of their
/// bytes; more is [`StoreError::TooLarge`].
#[async_trait]
pub trait SessionStore: Send + Sync + 'static {
    /// Makes a session whose log is empty.
    async fn create(&self, meta: SessionMeta) -> Result<()>;

    /// Everything but the events, read at one revision.
    async fn state(&self, id: &SessionId) -> Result<SessionState>;

    /// At most `limit` sessions in order of their identifiers, those after `after`; also those whose deletion or import
    /// was begun and not finished, so that a sweep sees them.
    async fn list(&self, after: Option<&SessionId>, limit: usize) -> Result<Vec<SessionMeta>>;

    /// What the sessions of a namespace held when they were last counted.
    async fn holdings(&self, namespace: &str) -> Result<Holdings>;

    /// A new identifier under which this session can be forked: any other may be [`StoreError::Elsewhere`].
    fn fork_id(&self, _of: &SessionId) -> SessionId {
        SessionId::generate()
    }

    /// Makes a session in the same namespace whose history is that of another one up to `from.seq`, by reference: nothing
    /// is copied, and the other session cannot be deleted before this one. What was running there is closed here: a tool
    /// call without a result gets one that says so, and the session is idle. What is queued there stays there.
    /// `meta.parent` becomes `from`.
    async fn fork(&self, meta: SessionMeta, from: &Parent) -> Result<()>;

    /// The whole log as it is stored, up to its head at the time, with what it shares with others.
    async fn export(&self, id: &SessionId) -> Result<Export>;

    /// Makes a session with this log, which is one of its own: it shares nothing. The records are those of an export, from
    /// the first to `end.head`. Nothing of it can be seen before all of it is there; what was running is closed, as in
    /// [`SessionStore::fork`]. The epoch is raised above `end.epoch`. An import that fails or is broken off leaves nothing
    /// but what the next one, or [`SessionStore::delete`], takes away. Of two at the same time the later one wins.
    async fn import(&self, meta: SessionMeta, end: &End, records: BoxStream<'_, Result<Exported>>) -> Result<()>;

    /// Ends the session for good: fences its brain off, appends `session.status_terminated`, unless that is in the log,
    /// and clears the wake key and the owner, in one transaction. From then on it takes no events of clients and no claims
    /// ([`StoreError::Ended`]). Returns when that was; does nothing when it is archived already.
    async fn archive(&self, id: &SessionId) -> Result<Timestamp>;

    /// Raises the session's epoch by [`EPOCH_LEAP`] and drops its owner, so that nobody who was given an epoch before a
    /// restore of the store's data can be taken for the owner after it. Returns the new epoch.
    async fn leap(&self, id: &SessionId) -> Result<u64>;

    /// Removes every key of the session, whatever is left of it, also of an import that was broken off; nothing can be
    /// written to it from the first moment on. Does nothing when there is none, and nothing but say
    /// [`StoreError::HasForks`] while another session shares its history. If it fails half-way, calling it again finishes
    /// it.
    async fn delete(&self, id: &SessionId) -> Result<()>;

    /// Queues the items of `spec.input` from number `from` on; does nothing and says so by the returned count when
    /// `from` is not [`SessionMeta::delivered_inputs`]. Returns the count after it. More than one transaction takes are
    /// queued by several, so that a failure may leave the first ones queued and counted.
    async fn deliver_inputs(&self, id: &SessionId, from: u64, events: Vec<NewEvent>) -> Result<u64>;

    /// Queues events of a client, all or none, and rewrites the wake key in the same transaction. Events that are queued
    /// or in the log already, as given, are returned as they are. The bound of the inbox is approximate: concurrent
    /// callers may exceed it by what each of them brings.
    async fn enqueue(&self, id: &SessionId, events: Vec<NewEvent>) -> Result<Vec<InboxItem>>;

    /// The queued events, oldest first, and the revision of the wake key, read at one revision.
    async fn inbox(&self, id: &SessionId) -> Result<Inbox>;

    /// Returns when the wake key has a revision above `after`, or after `wait` with what there is then.
    async fn wait_inbox(&self, id: &SessionId, after: i64, wait: Duration) -> Result<Inbox>;

    /// Raises the epoch, takes the owner key under a lease of `ttl` and appends `x.session.woken`, in one transaction.
    /// Returns the new epoch and that event, which is the head.
    async fn claim(
        &self,
        id: &SessionId,
        claimant: &Claimant,
        takeover: Takeover,
        ttl: Duration,
    ) -> Result<(u64, Record)>;

    /// Keeps the claim of `epoch` alive; [`StoreError::ClaimLost`] when there is nothing to keep alive any more.
    async fn renew(&self, id: &SessionId, epoch: u64) -> Result<()>;

    /// Appends events of the brain of `epoch`. Each `agent.tool_use` opens a call.
    async fn append(&self, id: &SessionId, epoch: u64, expected_head: u64, events: Vec<NewEvent>) -> Result<Appended>;

    /// Moves queued events to the log in the order given and appends `then`, in one transaction.
    async fn promote(
        &self,
        id: &SessionId,
        epoch: u64,
        expected_head: u64,
        inbox: &[EventId],
        then: Vec<NewEvent>,
    ) -> Result<Appended>;

    /// Appends `events`, removes the wake key and the owner key, in one transaction that requires the wake key to be at
    /// `wake_revision` and the inbox to be empty ([`StoreError::WakeMoved`]): as long as an event is queued or a turn is
    /// open, there is a wake key.
    async fn idle(
        &self,
        id: &SessionId,
        epoch: u64,
        expected_head: u64,
        wake_revision: i64,
        events: Vec<NewEvent>,
    ) -> Result<Appended>;

    /// Appends events of the service itself (results, audit), wherever the head is.
    async fn append_unfenced(&self, id: &SessionId, events: Vec<NewEvent>) -> Result<Appended>;

    /// Gives a session that rests ([`StoreError::AtWork`]) another agent, and says so by `event`, in one transaction. Whoever
    /// claims it next has the new one.
    async fn change_agent(&self, id: &SessionId, agent: AgentSnapshot, event: NewEvent) -> Result<Appended>;

    /// The records that a query asks for. Whatever was acknowledged before the call is found, also by another replica.
    async fn slice(&self, id: &SessionId, query: &Query) -> Result<Slice>;

    /// Records with a sequence number above `after`, at most `limit`; fewer when they are large, but at least one if there
    /// is one. The end is reached when the last one is [`Slice::head`].
    async fn read(&self, id: &SessionId, after: u64, limit: usize) -> Result<Slice> {
        self.slice(id, &Query::after(after, limit)).await
    }

    /// The sequence number of an event in the log. Of what a brain says of itself it is looked for from the end, which reads
    /// as much of the log as there is after it.
    async fn position(&self, id: &SessionId, event: &EventId) -> Result<Option<u64>>;

    /// Every record above `after`, in order and without a gap, then each new one as it is appended. Ends with an error
    /// when the session is deleted, or the store is away for longer than a minute.
    async fn tail(&self, id: &SessionId, after: u64) -> Result<BoxStream<'static, Result<Record>>>;

    /// The tool call's state.
    async fn call(&self, id: &SessionId, call: &EventId) -> Result<CallState>;

    /// Calls that have no result yet, in order of their identifiers.
    async fn open_calls(&self, id: &SessionId) -> Result<Vec<(EventId, CallState)>>;

    /// Gives an open call to a sandbox; requires the caller's epoch. Nothing changes if that sandbox has it already.
    async fn dispatch(&self, id: &SessionId, epoch: u64, call: &EventId, to: &Incarnation) -> Result<()>;

    /// Takes a call back from a sandbox that certainly has not begun it. Nothing changes if it is open already.
    async fn undispatch(&self, id: &SessionId, call: &EventId, from: &Incarnation) -> Result<()>;

    /// Appends the call's result and events that go with it, closes the call and rewrites the wake key, in one
    /// transaction; retries by itself when the head moves.
    async fn finish_call(
        &self,
        id: &SessionId,
        call: &EventId,
        from: &FinishFrom,
        events: Vec<NewEvent>,
    ) -> Result<Appended>;
}
