//! Growing the log: append, promote, idle, results.

use jiff::Timestamp;
use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent, Record};
use longhand_protocol::harness::AgentSnapshot;
use longhand_protocol::wire::SessionStatus;

use super::call::{state_of, wanted};
use super::inbox::{Queued, wake_value};
use super::{Place, Plan, Repeated, StoredHead, check_epoch};
use crate::etcd::recent::Seen;
use crate::etcd::view::{Kv, Look, View};
use crate::etcd::write::{Guard, Write};
use crate::limits;
use crate::record::{Head, Stored, encode, is_remembered, result_of};
use crate::store::{Appended, CallState, FinishFrom, Result, SessionMeta, StoreError};

/// Who appends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Author {
    /// The brain of this epoch, which has read up to this sequence number.
    Brain { epoch: u64, expected_head: u64 },
    /// The service, wherever the head is.
    Service,
}

/// What goes with the new records.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect<'a> {
    /// Nothing.
    Nothing,
    /// The session is given up, if its wake key is at this revision and nothing is queued.
    Idle { wake_revision: i64 },
    /// A tool call is closed, if it is in this state.
    Finish { call: &'a EventId, from: &'a FinishFrom },
    /// The session has this agent from now on, if it rests.
    Agent { agent: &'a AgentSnapshot },
}

/// A wish to grow the log.
#[derive(Clone, Copy)]
pub(crate) struct Append<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) author: Author,
    pub(crate) promoted: &'a [EventId],
    pub(crate) events: &'a [NewEvent],
    pub(crate) effect: Effect<'a>,
}

/// A log that has grown.
#[derive(Debug)]
pub(crate) struct Extended {
    pub(crate) appended: Appended,
    /// The head, and as it is stored, if this plan wrote it.
    pub(crate) head: Option<(Head, StoredHead)>,
}

impl Append<'_> {
    /// What has to be known.
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        let mut looks = self.place.head_looks().to_vec();
        match self.effect {
            Effect::Nothing => {}
            Effect::Idle { .. } => looks.extend([Look::Key(keys.wake(id)), Look::Count(keys.inboxes(id))]),
            Effect::Finish { call, .. } => {
                looks.extend([keys.meta(id), keys.call(id, call), keys.done(id, call)].map(Look::Key));
            }
            Effect::Agent { .. } => looks.extend([keys.meta(id), keys.wake(id)].map(Look::Key)),
        }
        looks.extend(self.promoted.iter().map(|event| Look::Key(keys.inbox(id, event))));
        looks.extend(self.place.look_idem(self.promoted.iter().chain(self.remembered())));
        looks
    }

    /// Those of the events whose identifiers are remembered apart from the log, and may not be there yet. Of a brain's
    /// events the head is enough to find a repetition by.
    fn remembered(&self) -> impl Iterator<Item = &EventId> {
        let all = matches!(self.author, Author::Service);
        self.events.iter().filter(move |event| all || is_remembered(&event.body)).map(|event| &event.id)
    }

    /// What one who is up to date would find, so that the transaction can be tried at once: it compares all of it. Nothing where
    /// something is needed that was not seen.
    pub(crate) fn assume(&self, seen: Seen) -> Option<View> {
        let Place { keys, id, .. } = self.place;
        let mut view = View::assumed();
        let found = |key, value| Kv { key, value, ..Kv::default() };
        match (self.author, self.effect) {
            (Author::Brain { epoch: 0, .. }, _) | (_, Effect::Agent { .. }) => return None,
            // Absent keys have revision 0, so a key has to be seen before its revision is relied on.
            (_, Effect::Idle { wake_revision }) if wake_revision < 1 => return None,
            (Author::Brain { .. }, Effect::Idle { wake_revision }) => {
                view.insert(Kv { key: keys.wake(id), mod_revision: wake_revision, ..Kv::default() });
            }
            (Author::Brain { .. }, Effect::Nothing) => {}
            (Author::Service, Effect::Finish { call, from }) => {
                view.insert(found(keys.meta(id), seen.meta?));
                view.insert(found(keys.call(id, call), encode(&wanted(from)).ok()?));
            }
            (Author::Brain { .. }, Effect::Finish { .. }) | (Author::Service, _) => return None,
        }
        for event in self.promoted {
            view.insert(found(keys.inbox(id, event), seen.queued.get(event)?.clone()));
        }
        self.place.assume_head(seen.head, &mut view);
        Some(view)
    }

    pub(crate) fn plan(&self, view: &View, now: Timestamp) -> Result<Plan<Extended>> {
        let Place { keys, id, .. } = self.place;
        let before = self.place.head(view)?;
        let repeated = match self.author {
            Author::Brain { epoch, expected_head } => {
                self.place.repeated_after(view, &before, epoch, expected_head, &self.given())
            }
            Author::Service => self.place.repeated(view, self.epoch(), &self.given()),
        };
        match repeated? {
            Repeated::Yes(appended) => return Ok(Plan::Done(Extended { appended, head: None })),
            Repeated::Read(looks) => return Ok(Plan::Read(looks)),
            Repeated::No => {}
        }
        let mut write = Write::default();
        self.fence(view, &before, &mut write)?;
        let mut events = self.take_promoted(view, &mut write)?;
        self.take_effect(view, &before, &mut write)?;

        events.extend_from_slice(self.events);
        let mut head = before.clone();
        let stored = head.extend(self.epoch(), events, now)?;
        limits::check_bytes(stored.iter().map(|stored| stored.bytes.len()).sum())?;
        let records: Vec<Record> = self.put_records(stored, &mut write)?;
        if let Effect::Finish { call, .. } = self.effect {
            let result = result_of(call, self.events).and_then(|index| records.get(index));
            write.put(keys.done(id, call), result.map_or(head.seq, |record| record.seq).to_string());
        }
        if head.status == Some(SessionStatus::Terminated) {
            write.put(keys.ended(id), "");
        }
        let stored = self.place.put_head(view, &before, &head, &mut write)?;
        let appended = Appended { records, head: head.seq };
        Ok(Plan::Write(write, Extended { appended, head: Some((head, stored)) }))
    }

    fn epoch(&self) -> u64 {
        match self.author {
            Author::Brain { epoch, .. } => epoch,
            Author::Service => 0,
        }
    }

    fn given(&self) -> Vec<(&EventId, Option<&EventBody>)> {
        let promoted = self.promoted.iter().map(|event| (event, None));
        promoted.chain(self.events.iter().map(|event| (&event.id, Some(&event.body)))).collect()
    }

    /// The head, which names the epoch, and the identifiers that are remembered are as they have to be, and stay so.
    fn fence(&self, view: &View, head: &Head, write: &mut Write) -> Result<()> {
        let Place { keys, id, .. } = self.place;
        if let Author::Brain { epoch, expected_head } = self.author {
            check_epoch(head.epoch, epoch)?;
            self.place.check_new(view, self.remembered())?;
            if head.seq != expected_head {
                return Err(StoreError::HeadMoved { head: head.seq });
            }
        }
        self.place.check_new(view, self.remembered())?;
        self.place.guard_head(view, write)?;
        for event in self.remembered() {
            write.guard(Guard::Absent(keys.idem(id, event)));
        }
        Ok(())
    }

    /// Takes events out of the inbox.
    fn take_promoted(&self, view: &View, write: &mut Write) -> Result<Vec<NewEvent>> {
        let Place { keys, id, .. } = self.place;
        let mut events = Vec::with_capacity(self.promoted.len());
        for event in self.promoted {
            let known = view.get(&keys.idem(id, event)).is_some();
            let queued = view.get(&keys.inbox(id, event)).filter(|_| !known);
            let queued = queued.ok_or_else(|| StoreError::NotQueued(event.clone()))?;
            events.push(queued.decode::<Queued>()?.event);
            write.guard(Guard::Present(queued.key.clone())).delete(queued.key.clone());
            if view.is_assumed() {
                write.guard(Guard::Absent(keys.idem(id, event)));
            }
        }
        Ok(events)
    }

    fn take_effect(&self, view: &View, head: &Head, write: &mut Write) -> Result<()> {
        let Place { keys, id, .. } = self.place;
        match self.effect {
            Effect::Nothing => {}
            Effect::Idle { wake_revision } => {
                let wake = view.get(&keys.wake(id)).filter(|wake| wake.mod_revision == wake_revision);
                let wake = wake.filter(|_| view.count(&keys.inboxes(id)) == 0).ok_or(StoreError::WakeMoved)?;
                write.guard(Guard::Unchanged(wake.key.clone(), wake_revision));
                write.guard(Guard::NoneUnder(keys.inboxes(id)));
                write.delete(wake.key.clone()).delete(keys.owner(id));
            }
            Effect::Finish { call, from } => {
                let state = state_of(&self.place, view, call)?;
                let open = view.get(&keys.call(id, call)).filter(|_| state == wanted(from));
                let Some(open) = open else { return Err(StoreError::CallState { call: call.clone(), state }) };
                // One open call is like another, and each attempt has a name of its own: the state says all that counts.
                write.guard(Guard::Holds(open.key.clone(), open.value.clone())).delete(open.key.clone());
                if head.archived_at.is_none() {
                    write.put(keys.wake(id), wake_value(&self.place, view)?);
                }
            }
            Effect::Agent { agent } => {
                head.check_rest(id, view.get(&keys.wake(id)).is_some())?;
                let stored = view.get(&keys.meta(id)).ok_or_else(|| self.place.not_found())?;
                let meta = SessionMeta { agent: agent.clone(), ..stored.decode()? };
                write
                    .guard(Guard::Absent(keys.wake(id)))
                    .guard(Guard::Unchanged(stored.key.clone(), stored.mod_revision));
                write.put(stored.key.clone(), encode(&meta)?);
            }
        }
        Ok(())
    }

    /// Puts the records, the identifiers that are remembered, and the calls that are opened.
    fn put_records(&self, stored: Vec<Stored>, write: &mut Write) -> Result<Vec<Record>> {
        let Place { keys, id, .. } = self.place;
        let mut records = Vec::with_capacity(stored.len());
        for (index, Stored { record, bytes }) in stored.into_iter().enumerate() {
            write.put(keys.log(id, record.seq), bytes);
            // Whoever queued an event may ask for it again.
            let asked_for = index < self.promoted.len() || matches!(self.author, Author::Service);
            if asked_for || is_remembered(&record.event.body) {
                write.put(keys.idem(id, &record.event.id), record.seq.to_string());
            }
            // By its name: the body of a large one is elsewhere.
            if record.event.body.kind() == "agent.tool_use" {
                write.put(keys.call(id, &record.event.id), encode(&CallState::Open)?);
            }
            records.push(record);
        }
        Ok(records)
    }
}
