//! What somebody wants of the log, and the real plan for it.

use jiff::Timestamp;
use longhand_protocol::event::{EventBody, NewEvent, Permission, StopReason};
use longhand_protocol::harness::{AgentSnapshot, Model};
use longhand_protocol::{EventId, SessionId};

use crate::etcd::keys::Keys;
use crate::etcd::plan::{
    Append, Archive, Author, Claim, Close, Create, Deliver, Dispatch, Effect, Enqueue, Fork, Import, Importing, Leap,
    Part, Place, Plan, Undispatch,
};
use crate::etcd::recent::Seen;
use crate::etcd::view::{Look, View};
use crate::etcd::write::Write;
use crate::lineage::Lineage;
use crate::record::Head;
use crate::store::{Claimant, FinishFrom, Incarnation, Parent, Retention, SessionMeta, StoreError, Takeover};

/// What an event says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Says {
    Message,
    Answer,
    ToolUse,
    Result,
    Unknown,
    Idle,
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wish {
    Create,
    /// Another session shares the history of this one.
    Fork,
    /// The first and the last step of an import of this name.
    ImportBegin {
        import: String,
    },
    ImportFinish {
        import: String,
    },
    Close,
    Archive,
    Leap,
    Enqueue {
        event: String,
    },
    Deliver {
        from: u64,
        event: String,
    },
    Claim {
        brain: usize,
        always: bool,
        woken: String,
    },
    Promote {
        epoch: u64,
        head: u64,
        events: Vec<String>,
    },
    Append {
        epoch: u64,
        head: u64,
        event: String,
        says: Says,
    },
    Idle {
        epoch: u64,
        head: u64,
        wake: i64,
        event: String,
    },
    Audit {
        event: String,
    },
    Finish {
        call: String,
        from: Option<(u8, u8)>,
        event: String,
        says: Says,
    },
    Dispatch {
        epoch: u64,
        call: String,
        to: (u8, u8),
    },
    Undispatch {
        call: String,
        from: (u8, u8),
    },
}

/// Which plan makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Create,
    Fork,
    ImportBegin,
    ImportFinish,
    Close,
    Archive,
    Leap,
    Enqueue,
    Deliver,
    Claim,
    Promote,
    Append,
    Idle,
    Audit,
    Finish,
    Dispatch,
    Undispatch,
}

/// What one who wished for something is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Done,
    Begun(bool),
    Count(u64),
    Claimed { epoch: u64, head: u64 },
    Appended { head: u64 },
}

/// What to do next.
pub(super) enum Step {
    Done(Outcome),
    Read(Vec<Look>),
    Write(Write, Outcome),
}

pub(super) const INBOX_LIMIT: usize = 8;
/// The session that is forked off.
pub(super) const FORK: &str = "sesn_2";

/// The session that everything is about.
pub(super) struct Session {
    pub(super) keys: Keys,
    pub(super) id: SessionId,
    pub(super) meta: SessionMeta,
}

impl Session {
    pub(super) fn new() -> Self {
        let id: SessionId = "sesn_1".parse().unwrap();
        let model = Model { id: "m".into(), max_tokens: 1, api_version: "v".into(), ..Model::default() };
        let agent = AgentSnapshot {
            id: "agent_1".into(),
            name: "a".into(),
            version: 1,
            description: None,
            model,
            system: None,
            tools: vec![],
            mcp_servers: vec![],
            context: longhand_protocol::harness::ContextPolicy::default(),
            handoff: None,
            on_unknown_outcome: std::collections::BTreeMap::new(),
        };
        let meta = SessionMeta {
            id: id.clone(),
            namespace: "n".into(),
            name: "a".into(),
            uid: "u".into(),
            agent,
            sandboxes: vec![],
            harness_idle_seconds: 1,
            delivered_inputs: 0,
            created_at: Timestamp::UNIX_EPOCH,
            thread_id: None,
            parent: None,
            retention: Retention::default(),
        };
        Self { keys: Keys::new("/p"), id, meta }
    }

    fn place(&self) -> Place<'_> {
        Place { keys: &self.keys, id: &self.id, trace: None }
    }
}

pub(super) fn event_id(name: &str) -> EventId {
    format!("sevt_{name}").parse().unwrap()
}

fn incarnation((pod, attempt): (u8, u8)) -> Incarnation {
    Incarnation { sandbox: "box".into(), pod_uid: format!("pod{pod}"), attempt: attempt.to_string() }
}

fn event(name: &str, says: Says, call: Option<&EventId>) -> NewEvent {
    let body = match says {
        Says::Message => EventBody::UserMessage { content: vec![] },
        Says::Answer => EventBody::AgentMessage { content: vec![] },
        Says::ToolUse => EventBody::AgentToolUse {
            name: "bash".into(),
            input: serde_json::Value::Null,
            evaluated_permission: Permission::Allow,
            sandbox: None,
        },
        Says::Result | Says::Unknown => EventBody::AgentToolResult {
            tool_use_id: call.cloned().unwrap(),
            content: None,
            is_error: Some(says == Says::Unknown),
        },
        Says::Idle => EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn },
    };
    NewEvent { id: event_id(name), body }
}

/// Builds the real plan's input, which borrows, and gives it away.
macro_rules! with_append {
    ($session:ident, $wish:ident, |$append:ident| $then:expr, $otherwise:expr) => {{
        let place = $session.place();
        let brain = |epoch: &u64, head: &u64| Author::Brain { epoch: *epoch, expected_head: *head };
        match $wish {
            Wish::Promote { epoch, head, events } => {
                let promoted: Vec<EventId> = events.iter().map(|name| event_id(name)).collect();
                let (author, effect) = (brain(epoch, head), Effect::Nothing);
                let $append = Append { place, author, promoted: &promoted, events: &[], effect };
                $then
            }
            Wish::Append { epoch, head, event: name, says } => {
                let (author, effect, events) = (brain(epoch, head), Effect::Nothing, [event(name, *says, None)]);
                let $append = Append { place, author, promoted: &[], events: &events, effect };
                $then
            }
            Wish::Idle { epoch, head, wake, event: name } => {
                let (author, events) = (brain(epoch, head), [event(name, Says::Idle, None)]);
                let effect = Effect::Idle { wake_revision: *wake };
                let $append = Append { place, author, promoted: &[], events: &events, effect };
                $then
            }
            Wish::Audit { event: name } => {
                let (author, effect, events) = (Author::Service, Effect::Nothing, [event(name, Says::Answer, None)]);
                let $append = Append { place, author, promoted: &[], events: &events, effect };
                $then
            }
            Wish::Finish { call, from, event: name, says } => {
                let call = event_id(call);
                let from = from.map_or(FinishFrom::Open, |to| FinishFrom::Dispatched(incarnation(to)));
                let (author, events) = (Author::Service, [event(name, *says, Some(&call))]);
                let effect = Effect::Finish { call: &call, from: &from };
                let $append = Append { place, author, promoted: &[], events: &events, effect };
                $then
            }
            _ => $otherwise,
        }
    }};
}

impl Wish {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Create => Kind::Create,
            Self::Fork => Kind::Fork,
            Self::ImportBegin { .. } => Kind::ImportBegin,
            Self::ImportFinish { .. } => Kind::ImportFinish,
            Self::Close => Kind::Close,
            Self::Archive => Kind::Archive,
            Self::Leap => Kind::Leap,
            Self::Enqueue { .. } => Kind::Enqueue,
            Self::Deliver { .. } => Kind::Deliver,
            Self::Claim { .. } => Kind::Claim,
            Self::Promote { .. } => Kind::Promote,
            Self::Append { .. } => Kind::Append,
            Self::Idle { .. } => Kind::Idle,
            Self::Audit { .. } => Kind::Audit,
            Self::Finish { .. } => Kind::Finish,
            Self::Dispatch { .. } => Kind::Dispatch,
            Self::Undispatch { .. } => Kind::Undispatch,
        }
    }

    /// The epoch that it needs to be the session's, if it is a brain's.
    pub(super) fn epoch(&self) -> Option<u64> {
        match self {
            Self::Promote { epoch, .. }
            | Self::Append { epoch, .. }
            | Self::Idle { epoch, .. }
            | Self::Dispatch { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }

    /// What is assumed in place of a first look, of what the replica has seen: with the head of this number, or the last one.
    pub(super) fn assume(
        &self,
        session: &Session,
        rests: bool,
        seen: impl Fn(Option<u64>) -> Option<Seen>,
    ) -> Option<View> {
        let wish = self;
        with_append!(
            session,
            wish,
            |append| match append.author {
                Author::Brain { expected_head, .. } => append.assume(seen(Some(expected_head))?),
                Author::Service => append.assume(seen(None)?),
            },
            match wish {
                Wish::Enqueue { event: name } if rests => {
                    let events = [event(name, Says::Message, None)];
                    Enqueue { place: session.place(), events: &events, limit: INBOX_LIMIT }.assume(seen(None)?)
                }
                _ => None,
            }
        )
    }

    pub(super) fn looks(&self, session: &Session) -> Vec<Look> {
        let wish = self;
        with_append!(session, wish, |append| append.looks(), self.other_looks(session))
    }

    fn other_looks(&self, session: &Session) -> Vec<Look> {
        let (place, meta) = (session.place(), &session.meta);
        match self {
            Self::Create => Create { place, meta }.looks(),
            Self::Fork => with_fork(session, |fork| fork.looks()),
            Self::ImportBegin { import } => with_import(session, import, false, |import| import.looks()),
            Self::ImportFinish { import } => with_import(session, import, true, |import| import.looks()),
            Self::Close => Close { place }.looks(),
            Self::Archive => Archive { place, terminated: &event_id("archived") }.looks(),
            Self::Leap => Leap { place }.looks(),
            Self::Enqueue { event: name } => {
                Enqueue { place, events: &[event(name, Says::Message, None)], limit: INBOX_LIMIT }.looks()
            }
            Self::Deliver { from, event: name } => {
                let events = [event(name, Says::Message, None)];
                Deliver { place, from: *from, events: &events, limit: INBOX_LIMIT }.looks()
            }
            Self::Claim { brain, always, woken } => with_claim(session, *brain, *always, woken, |claim| claim.looks()),
            Self::Dispatch { epoch, call, to } => {
                Dispatch { place, epoch: *epoch, call: &event_id(call), to: &incarnation(*to) }.looks()
            }
            Self::Undispatch { call, from } => {
                Undispatch { place, call: &event_id(call), from: &incarnation(*from) }.looks()
            }
            _ => unreachable!("these grow the log"),
        }
    }

    pub(super) fn plan(&self, session: &Session, view: &View) -> Result<Step, StoreError> {
        let (wish, now) = (self, Timestamp::UNIX_EPOCH);
        with_append!(
            session,
            wish,
            |append| Ok(step(append.plan(view, now)?, |extended| Outcome::Appended { head: extended.appended.head })),
            self.other_plan(session, view, now)
        )
    }

    fn other_plan(&self, session: &Session, view: &View, now: Timestamp) -> Result<Step, StoreError> {
        let (place, meta) = (session.place(), &session.meta);
        Ok(match self {
            Self::Create => step(Create { place, meta }.plan(view)?, |()| Outcome::Done),
            Self::Fork => step(with_fork(session, |fork| fork.plan(view, now))?, |()| Outcome::Done),
            Self::ImportBegin { import } => {
                step(with_import(session, import, false, |import| import.plan(view, now))?, |()| Outcome::Done)
            }
            Self::ImportFinish { import } => {
                step(with_import(session, import, true, |import| import.plan(view, now))?, |()| Outcome::Done)
            }
            Self::Close => step(Close { place }.plan(view)?, Outcome::Begun),
            Self::Archive => {
                step(Archive { place, terminated: &event_id("archived") }.plan(view, now)?, |_| Outcome::Done)
            }
            Self::Leap => step(Leap { place }.plan(view)?, |_| Outcome::Done),
            Self::Enqueue { event: name } => {
                let events = [event(name, Says::Message, None)];
                step(Enqueue { place, events: &events, limit: INBOX_LIMIT }.plan(view)?, |_| Outcome::Done)
            }
            Self::Deliver { from, event: name } => {
                let events = [event(name, Says::Message, None)];
                let deliver = Deliver { place, from: *from, events: &events, limit: INBOX_LIMIT };
                step(deliver.plan(view)?, Outcome::Count)
            }
            Self::Claim { brain, always, woken } => {
                let plan = with_claim(session, *brain, *always, woken, |claim| claim.plan(view, now))?;
                step(plan, |claimed| Outcome::Claimed { epoch: claimed.epoch, head: claimed.record.seq })
            }
            Self::Dispatch { epoch, call, to } => {
                let (call, to) = (event_id(call), incarnation(*to));
                step(Dispatch { place, epoch: *epoch, call: &call, to: &to }.plan(view)?, |()| Outcome::Done)
            }
            Self::Undispatch { call, from } => {
                let (call, from) = (event_id(call), incarnation(*from));
                step(Undispatch { place, call: &call, from: &from }.plan(view)?, |()| Outcome::Done)
            }
            _ => unreachable!("these grow the log"),
        })
    }
}

fn with_claim<T>(session: &Session, brain: usize, always: bool, woken: &str, then: impl Fn(Claim<'_>) -> T) -> T {
    let claimant = Claimant { pod_uid: format!("pod{brain}"), pod_name: format!("pod{brain}") };
    let takeover = if always { Takeover::Always } else { Takeover::IfFree };
    let lease = i64::try_from(brain).unwrap() + 1;
    then(Claim { place: session.place(), claimant: &claimant, takeover, lease, woken: &event_id(woken) })
}

fn with_fork<T>(session: &Session, then: impl Fn(Fork<'_>) -> T) -> T {
    let (id, from) = (FORK.parse().unwrap(), Parent { session: session.id.clone(), seq: 0 });
    let meta = SessionMeta { id, parent: Some(from.clone()), ..session.meta.clone() };
    let (lineage, head) = (Lineage::none(), Head::empty(Timestamp::UNIX_EPOCH));
    let place = Place { keys: &session.keys, id: &meta.id, trace: None };
    then(Fork { place, meta: &meta, from: &from, lineage: &lineage, head: &head, closing: &[] })
}

fn with_import<T>(session: &Session, name: &str, finish: bool, then: impl Fn(Import<'_>) -> T) -> T {
    let importing = Importing { meta: session.meta.clone(), import: name.to_owned() };
    let head = Head::empty(Timestamp::UNIX_EPOCH);
    let part = if finish { Part::Finish { epoch: 1, head: &head, closing: &[] } } else { Part::Begin };
    then(Import { place: session.place(), importing: &importing, part })
}

fn step<T>(plan: Plan<T>, outcome: impl FnOnce(T) -> Outcome) -> Step {
    match plan {
        Plan::Done(done) => Step::Done(outcome(done)),
        Plan::Read(looks) => Step::Read(looks),
        Plan::Write(write, done) => Step::Write(write, outcome(done)),
    }
}
