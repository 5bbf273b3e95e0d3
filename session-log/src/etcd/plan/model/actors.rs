//! Who acts: what each may do next, and what it makes of an answer.

use super::laws::Law;
use super::past::Reading;
use super::wish::{Outcome, Says, Wish};
use super::world::{Action, Budget, World};
use crate::store::{CallState, StoreError};

/// Somebody, with what it remembers between two changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// Sends messages, each after the one before was acknowledged.
    Client {
        next: u8,
        last: u8,
    },
    /// Queues items of `spec.input`, under identifiers of its own.
    Deliverer {
        from: u64,
        last: u64,
        tries: u8,
    },
    Brain(Brain),
    /// Has tool calls made as the brain of this epoch, whatever becomes of it.
    Asker {
        epoch: u64,
    },
    Replica(Replica),
    /// Appends something of the service's.
    Auditor {
        left: u8,
    },
    Creator {
        left: u8,
    },
    Forker {
        left: u8,
    },
    /// Imports the session, which is there only after the last step.
    Importer {
        stage: u8,
    },
    Remover {
        stage: u8,
    },
    Archiver {
        left: u8,
    },
    Leaper {
        left: u8,
    },
}

/// A harness.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Brain {
    /// Takes the session also from an owner that seems to live.
    pub(super) always: bool,
    /// Does what no good harness does: it goes idle over a queue that it knows, and takes a head without reading.
    pub(super) reckless: bool,
    /// 0 without a claim.
    pub(super) epoch: u64,
    /// The head that it knows of, and how far it has read.
    pub(super) head: u64,
    pub(super) read: u64,
    pub(super) wake: i64,
    pub(super) inbox: Vec<String>,
    pub(super) looked: bool,
    pub(super) behind: bool,
}

/// A replica of the service that runs the call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) phase: Phase,
    pub(super) tries: u8,
}

/// Pod and attempt.
type At = (u8, u8);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    #[default]
    Free,
    /// The call is given to this sandbox, by this replica or another.
    Given(At),
    /// The sandbox has begun it.
    Runs(At),
    /// The sandbox has not begun it and never will.
    Refused(At),
    Over,
}

impl Brain {
    fn forget(&mut self) {
        *self = Self { always: self.always, reckless: self.reckless, ..Self::default() };
    }

    fn options(&self, number: usize, world: &World, options: &mut Vec<Action>) {
        if self.epoch == 0 {
            if world.left.claims > 0 && world.is_awake() {
                let woken = format!("w{}", world.left.claims);
                options.push(Action::Start(number, Wish::Claim { brain: number, always: self.always, woken }));
            }
            return;
        }
        let (head, epoch) = (self.head, self.epoch);
        if (self.wake, &self.inbox) != (world.wake(), &world.inbox()) || !self.looked {
            options.push(Action::LookInbox(number));
        }
        if self.read < world.past.head() {
            options.push(Action::ReadOn(number));
            if self.reckless && head < world.past.head() {
                options.push(Action::TakeHead(number));
            }
        }
        if self.behind {
            return;
        }
        if self.looked && !self.inbox.is_empty() {
            options.push(Action::Start(number, Wish::Promote { epoch, head, events: self.inbox.clone() }));
            if self.inbox.len() > 1 {
                options.push(Action::Start(number, Wish::Promote { epoch, head, events: vec![self.inbox[0].clone()] }));
            }
        }
        let Reading { unanswered, open, used, .. } = world.past.reading(self.read);
        let said = |message| self.reckless && world.past.log.iter().any(|entry| entry.0 == self.answer(message, world));
        if let (Some(message), None) = (unanswered.filter(|message| !said(*message)), &open) {
            let (says, event) = if world.tools && !used {
                (Says::ToolUse, "t1".to_owned())
            } else {
                (Says::Answer, self.answer(message, world))
            };
            options.push(Action::Start(number, Wish::Append { epoch, head, event, says }));
        }
        let may_idle = self.inbox.is_empty() || self.reckless;
        // Also a reckless brain leaves no turn open: a store cannot know that.
        let Reading { unanswered, open, .. } =
            world.past.reading(if self.reckless { world.past.head() } else { self.read });
        if unanswered.is_none() && open.is_none() && self.looked && self.wake > 0 && may_idle {
            let wish = Wish::Idle { epoch, head, wake: self.wake, event: format!("i{epoch}x{head}") };
            options.push(Action::Start(number, wish));
        }
    }

    /// The identifier of an answer. Who takes a head without reading answers again, and nobody would protect it from doing
    /// so under the same one.
    fn answer(&self, message: usize, world: &World) -> String {
        let name = format!("a{}x{message}", self.epoch);
        let again = self.reckless && world.past.log.iter().any(|entry| entry.0 == name);
        if again { name + "again" } else { name }
    }

    fn answered(&mut self, wish: &Wish, answer: &Result<Outcome, StoreError>) {
        match (wish, answer) {
            (Wish::Claim { .. }, Ok(Outcome::Claimed { epoch, head })) => {
                self.forget();
                (self.epoch, self.head, self.read, self.behind) = (*epoch, *head, *head, false);
            }
            (Wish::Idle { .. }, Ok(_)) if !self.reckless => self.forget(),
            (_, Ok(Outcome::Appended { head })) => {
                if self.read == self.head {
                    self.read = *head;
                }
                self.head = *head;
                if let Wish::Promote { events, .. } = wish {
                    self.inbox.retain(|event| !events.contains(event));
                }
            }
            (Wish::Claim { .. }, _) => {}
            (_, Err(StoreError::HeadMoved { .. } | StoreError::Duplicate(_))) => self.behind = true,
            (_, Err(StoreError::WakeMoved | StoreError::NotQueued(_))) => {
                (self.wake, self.looked) = (0, false);
                self.inbox.clear();
            }
            _ => self.forget(),
        }
    }
}

impl Replica {
    fn options(self, number: usize, world: &World, options: &mut Vec<Action>) {
        let (call, past) = (|| "t1".to_owned(), &world.past);
        let finish = |from, says, kind: &str| {
            Action::Start(number, Wish::Finish { call: call(), from, event: format!("{kind}{number}"), says })
        };
        match self.phase {
            Phase::Free => {
                if !past.has_call() {
                    return;
                }
                let to = (past.pod, u8::try_from(number).unwrap() * 16 + self.tries);
                for epoch in world.epochs() {
                    if self.tries < 2 {
                        options.push(Action::Start(number, Wish::Dispatch { epoch, call: call(), to }));
                    }
                }
                options.push(finish(None, Says::Unknown, "never"));
            }
            Phase::Given(at) => {
                if past.lost.contains(&at.0) {
                    options.push(finish(Some(at), Says::Unknown, "lost"));
                } else if !past.draining.contains(&at.0) {
                    options.push(Action::Begin(number));
                }
                // Only who made the attempt can know that it has not begun.
                if at.1 >> 4 == u8::try_from(number).unwrap() && !past.began.contains(&at.0) {
                    options.push(Action::Refuse(number));
                }
            }
            Phase::Runs(at) => {
                options.push(finish(Some(at), Says::Result, "done"));
                if past.lost.contains(&at.0) {
                    options.push(finish(Some(at), Says::Unknown, "lost"));
                }
            }
            Phase::Refused(at) => options.push(Action::Start(number, Wish::Undispatch { call: call(), from: at })),
            Phase::Over => {}
        }
    }

    fn answered(&mut self, wish: &Wish, answer: &Result<Outcome, StoreError>) {
        self.phase = match (wish, answer) {
            (Wish::Dispatch { to, .. }, Ok(_)) => Phase::Given(*to),
            (Wish::Undispatch { .. }, Ok(_)) => {
                self.tries += 1;
                Phase::Free
            }
            (
                Wish::Dispatch { .. },
                Err(StoreError::CallState { state: CallState::Dispatched { incarnation }, .. }),
            ) => {
                let pod = incarnation.pod_uid.trim_start_matches("pod").parse().unwrap();
                Phase::Given((pod, incarnation.attempt.parse().unwrap()))
            }
            (Wish::Dispatch { .. }, Err(StoreError::Fenced { .. })) => Phase::Free,
            (Wish::Finish { from: None, .. }, Err(StoreError::CallState { state, .. }))
                if !matches!(state, CallState::Finished { .. }) =>
            {
                Phase::Free
            }
            _ => Phase::Over,
        };
    }
}

impl Role {
    pub(super) fn options(&self, number: usize, world: &World, options: &mut Vec<Action>) {
        let start = |wish| Action::Start(number, wish);
        match self {
            Self::Client { next, last } if next <= last => {
                options.push(start(Wish::Enqueue { event: format!("m{next}") }));
            }
            Self::Deliverer { from, last, tries } if from < last => {
                let event = format!("in{}r{number}x{tries}", from + 1);
                options.push(start(Wish::Deliver { from: *from, event }));
            }
            Self::Brain(brain) => brain.options(number, world, options),
            Self::Replica(replica) => replica.clone().options(number, world, options),
            Self::Auditor { left: 1.. } => options.push(start(Wish::Audit { event: format!("audit{number}") })),
            Self::Creator { left: 1.. } if !world.is_live() => options.push(start(Wish::Create)),
            Self::Forker { left: 1.. } => options.push(start(Wish::Fork)),
            Self::Importer { stage: 0 } => options.push(start(Wish::ImportBegin { import: format!("import{number}") })),
            Self::Importer { stage: 1 } => {
                options.push(start(Wish::ImportFinish { import: format!("import{number}") }));
            }
            Self::Remover { stage: 0 } => options.push(start(Wish::Close)),
            Self::Remover { stage: 1 } => options.push(Action::RemoveKeys(number)),
            Self::Remover { stage: 2 } => options.push(Action::RemoveMark(number)),
            Self::Archiver { left: 1.. } => options.push(start(Wish::Archive)),
            Self::Leaper { left: 1.. } => options.push(start(Wish::Leap)),
            _ => {}
        }
    }

    /// What it makes of an answer.
    pub(super) fn answered(&mut self, wish: &Wish, answer: &Result<Outcome, StoreError>) -> Result<(), Law> {
        if let Err(StoreError::Corrupt { key, reason }) = answer {
            return Err(Law::Corrupt(format!("{key}: {reason}")));
        }
        match self {
            Self::Client { next, .. } if answer.is_ok() => *next += 1,
            Self::Client { next, last } => *next = *last + 1,
            Self::Deliverer { from, last, tries } => {
                *tries += 1;
                *from = match answer {
                    Ok(Outcome::Count(count)) => *count,
                    _ => *last,
                };
            }
            Self::Brain(brain) => brain.answered(wish, answer),
            Self::Replica(replica) => replica.answered(wish, answer),
            Self::Auditor { left }
            | Self::Creator { left }
            | Self::Forker { left }
            | Self::Archiver { left }
            | Self::Leaper { left } => *left -= 1,
            Self::Importer { stage } => *stage = if answer.is_ok() { *stage + 1 } else { 2 },
            Self::Asker { .. } => {}
            Self::Remover { stage } => {
                *stage = if matches!(answer, Ok(Outcome::Begun(true))) { 1 } else { 3 };
            }
        }
        Ok(())
    }

    /// It does not know whether its change was made, and does not look.
    pub(super) fn gave_up(&mut self) {
        match self {
            Self::Deliverer { tries, .. } => *tries += 1,
            Self::Brain(brain) if !brain.reckless => brain.behind = true,
            _ => {}
        }
    }

    /// Whether it can crash; what it remembers is lost then.
    pub(super) fn crash(&mut self) -> bool {
        match self {
            Self::Brain(brain) if brain.epoch > 0 => {
                brain.forget();
                true
            }
            Self::Replica(replica) if replica.phase != Phase::Free => {
                *replica = Replica { phase: Phase::Free, tries: replica.tries + 1 };
                true
            }
            Self::Remover { stage: stage @ 1..=2 } => {
                *stage = 0;
                true
            }
            _ => false,
        }
    }
}

impl Budget {
    /// Takes one of `left`, if there is one.
    pub(super) fn take(left: &mut u8) {
        *left = left.saturating_sub(1);
    }
}
