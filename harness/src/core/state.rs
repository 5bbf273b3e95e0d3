//! What a brain knows, what it is told and what it does.

use std::collections::HashSet;
use std::time::Duration;

use longhand_protocol::event::NewEvent;
use longhand_protocol::harness::{HarnessSession, Inbox, McpServer};
use longhand_protocol::{EventId, Record};
use serde_json::Value;

use super::checkpoint;
use super::mcp::{Call, Discovery, Outcome, Work};
use super::tools::ToolSet;
use super::transcript::Transcript;
use crate::model::{Failure, Reply, Target};

/// What a brain knows. All of it but the transcript may be lost at any time.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) session: HarnessSession,
    pub(super) tools: ToolSet,
    pub(super) log: Transcript,
    /// The log has records that were not read yet.
    pub(super) behind: bool,
    /// The last look at the inbox, while it is good enough to act on.
    pub(super) inbox: Option<Inbox>,
    /// That look was before the model's last answer: before it is asked again, there is another.
    pub(super) inbox_is_old: bool,
    /// The highest revision of the wake key that was looked at.
    pub(super) wake_seen: Option<i64>,
    /// What is being taken up is to go into the log together with the request that answers it.
    pub(super) joined: bool,
    /// The log has refused that, and is asked for one after the other.
    pub(super) apart: bool,
    /// The model request that this brain began itself; any other that is open was begun by one that died.
    pub(super) request: Option<OwnRequest>,
    /// The outcome of a model request that is not in the log yet.
    pub(super) uncommitted: Option<Uncommitted>,
    /// A failure must be waited out before the next request.
    pub(super) rest: Option<Rest>,
    /// Calls that the service cannot answer, or not in time.
    pub(super) abandoned: HashSet<EventId>,
    /// The log is long and was not read: the newest checkpoint is looked for first.
    pub(super) lost: bool,
    /// After so many records a checkpoint is due.
    pub(super) interval: u64,
    /// Calls of MCP servers.
    pub(super) mcp: Work,
}

/// A model request of this brain.
#[derive(Clone, Debug)]
pub(super) struct OwnRequest {
    pub(super) span: EventId,
    pub(super) purpose: Purpose,
}

/// What a model is asked for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// The next message, of this identifier.
    Answer(EventId),
    /// A summary of the conversation.
    Summary,
}

/// Events that must be appended before anything else is done.
#[derive(Clone, Debug)]
pub(super) struct Uncommitted {
    pub(super) span: EventId,
    pub(super) events: Vec<NewEvent>,
    /// What a checkpoint after them says of the conversation, and the checkpoint's identifier.
    pub(super) summary: Option<(EventId, String)>,
    /// Whether they already replace an answer that the log did not take.
    pub(super) replaced: bool,
}

/// A wait before another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// How many tries in a row have failed.
    pub failures: u32,
    /// What the model API asked for.
    pub at_least: Option<Duration>,
}

/// What came back from an effect.
#[derive(Clone, Debug)]
pub enum Input {
    /// The session is claimed.
    Claimed,
    /// The newest checkpoint of the log, if there is one.
    Checkpoint(Option<Box<Record>>),
    /// Records that were read or appended, and the last sequence number of the log.
    Records {
        /// In order.
        records: Vec<Record>,
        /// The log's head.
        head: u64,
    },
    /// Records that were read together with the inbox.
    Page {
        /// In order.
        records: Vec<Record>,
        /// The log's head.
        head: u64,
        /// What is queued.
        inbox: Inbox,
    },
    /// The turn has ended and the session is given up.
    Released {
        /// In order.
        records: Vec<Record>,
    },
    /// A change was refused because something moved.
    Moved(Moved),
    /// A change was refused for good.
    Refused {
        /// Why.
        reason: String,
    },
    /// What is queued.
    Inbox(Inbox),
    /// A model call, tool calls or a wait were stopped because of what is queued.
    Interrupted(Inbox),
    /// The model has answered, or has not.
    Model(Result<Reply, Failure>),
    /// Tool calls have ended: their results are in the log, except of those that the service cannot answer, or not in
    /// time.
    Executed {
        /// Calls without a result.
        abandoned: Vec<EventId>,
    },
    /// The wait is over.
    Rested,
    /// MCP servers were asked for their tools.
    Discovered(Vec<Discovery>),
    /// Calls of MCP servers have ended; those that were to be cancelled are over.
    Called {
        /// What came of calls.
        outcomes: Vec<Outcome>,
        /// Calls that are over whether they have an outcome or not.
        cancelled: Vec<EventId>,
    },
}

/// What moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// The log has grown.
    Head,
    /// Something came into the inbox.
    Wake,
    /// A queued event was taken up.
    Queue,
}

/// What a brain does.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Look for the newest record of type [`super::checkpoint::KIND`]: [`Input::Checkpoint`].
    Restore,
    /// Read the log: [`Input::Page`], or [`Input::Records`] from who does not give the inbox with it.
    Read {
        /// From here on.
        after: u64,
    },
    /// Look at the inbox: [`Input::Inbox`].
    Look,
    /// Append: [`Input::Records`], [`Input::Moved`] or [`Input::Refused`].
    Append {
        /// The head that must not have moved.
        expected_head: u64,
        /// What to append.
        events: Vec<NewEvent>,
    },
    /// Take up queued events: [`Input::Records`], [`Input::Moved`] or [`Input::Refused`].
    Promote {
        /// The head that must not have moved.
        expected_head: u64,
        /// Which, in order.
        inbox: Vec<EventId>,
        /// What follows them.
        then: Vec<NewEvent>,
    },
    /// End the turn: [`Input::Released`], [`Input::Moved`] or [`Input::Refused`].
    Idle {
        /// The head that must not have moved.
        expected_head: u64,
        /// The wake key that must not have moved.
        wake_revision: i64,
        /// The last events of the turn.
        events: Vec<NewEvent>,
    },
    /// Call the model: [`Input::Model`] or [`Input::Interrupted`].
    CallModel {
        /// How it is sent.
        target: Target,
        /// The body of the request.
        body: Value,
        /// The identifier of the `agent.message` that previews announce; nothing is shown without.
        message: Option<EventId>,
    },
    /// Run tool calls: [`Input::Executed`] or [`Input::Interrupted`].
    Execute {
        /// Their events.
        calls: Vec<EventId>,
    },
    /// Wait for a moment for the results of calls that an interrupt has stopped: [`Input::Executed`].
    Stop {
        /// Their events.
        calls: Vec<EventId>,
    },
    /// Wait before another try: [`Input::Rested`] or [`Input::Interrupted`].
    Rest(Rest),
    /// Ask MCP servers for their tools: [`Input::Discovered`] or [`Input::Interrupted`].
    Discover {
        /// Which.
        servers: Vec<McpServer>,
    },
    /// Send calls to MCP servers, without waiting for what comes of them: [`Input::Called`].
    SendMcp {
        /// The calls.
        calls: Vec<Call>,
    },
    /// Wait until calls that were sent have ended: [`Input::Called`] or [`Input::Interrupted`].
    AwaitMcp,
    /// Tell MCP servers that calls are not waited for any more: [`Input::Called`].
    CancelMcp {
        /// Their events.
        calls: Vec<EventId>,
    },
}

/// What happens next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// This, and then [`super::step`] with what came back.
    Do(Effect),
    /// Nothing is left to do.
    Done,
    /// Nothing can be done.
    Fail {
        /// Why.
        reason: String,
    },
}

impl State {
    /// A brain that has claimed a session; `log` is what it knows of it from before.
    #[must_use]
    pub fn claimed(session: HarnessSession, log: Transcript) -> Self {
        Self {
            tools: ToolSet::of(&session, log.mcp()),
            session,
            log,
            behind: true,
            inbox: None,
            inbox_is_old: false,
            wake_seen: None,
            joined: false,
            apart: false,
            request: None,
            uncommitted: None,
            rest: None,
            abandoned: HashSet::new(),
            lost: false,
            interval: checkpoint::INTERVAL,
            mcp: Work::default(),
        }
    }

    /// The log ends with this record, as the claim says.
    #[must_use]
    pub fn with_head(mut self, head: u64) -> Self {
        self.lost = head.saturating_sub(self.log.head()) > self.interval;
        self
    }

    /// The claim has given what there is to read. Of a log that is restored from a checkpoint only the inbox counts.
    #[must_use]
    pub fn with_page(mut self, records: &[Record], head: u64, inbox: Inbox) -> Self {
        self.look(inbox);
        if !self.lost {
            self.absorb(records, head);
        }
        self
    }

    /// After so many records, from 1, a checkpoint is due.
    #[must_use]
    pub fn with_interval(mut self, records: u64) -> Self {
        self.interval = records.max(1);
        self
    }

    /// MCP servers whose tools may be others than the log says.
    pub fn note_changed(&mut self, servers: impl IntoIterator<Item = String>) {
        self.mcp.note_changed(servers);
    }

    /// What the log says as far as it was read.
    #[must_use]
    pub const fn transcript(&self) -> &Transcript {
        &self.log
    }

    /// Whether the model or a tool has answered and the log does not say so yet.
    #[must_use]
    pub fn has_uncommitted(&self) -> bool {
        self.uncommitted.is_some() || self.mcp.pending().is_some()
    }

    /// Gives up everything that may be lost.
    #[must_use]
    pub fn into_transcript(self) -> Transcript {
        self.log
    }

    /// The highest revision of the wake key that was looked at.
    #[must_use]
    pub const fn wake_revision(&self) -> Option<i64> {
        self.wake_seen
    }

    /// Takes in a look at the inbox.
    pub(super) fn look(&mut self, inbox: Inbox) {
        self.wake_seen = self.wake_seen.max(inbox.wake_revision);
        self.inbox = Some(inbox);
        self.inbox_is_old = false;
    }
}
