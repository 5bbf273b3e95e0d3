//! Decisions, without IO: what was read and what is wanted give what to write, or why not.
//!
//! Each plan is made again from what a refused transaction found, or from what is read back after an ambiguous failure.
//! So it is the same code that says "head moved", finds a repeated append, and builds the next attempt.

mod append;
mod call;
mod claim;
mod fork;
mod head;
mod import;
mod inbox;
#[cfg(test)]
mod model;
mod session;
#[cfg(test)]
mod tests;

use longhand_protocol::event::{EventBody, Record};
use longhand_protocol::trace::TraceParent;
use longhand_protocol::{EventId, SessionId};

pub(crate) use self::append::{Append, Author, Effect, Extended};
pub(crate) use self::call::{Dispatch, Undispatch, state_of};
pub(crate) use self::claim::Claim;
pub(crate) use self::fork::Fork;
pub(crate) use self::head::StoredHead;
pub(crate) use self::import::{Held, Import, Importing, Part};
pub(crate) use self::inbox::{Deliver, Enqueue, inbox};
pub(crate) use self::session::{Archive, Close, Create, Leap, list, state, state_looks};
use super::keys::Keys;
use super::view::{Kv, Look, View};
use super::write::Write;
use crate::record::{self, Head};
use crate::store::{Appended, Result, StoreError};

/// What to do next.
#[derive(Debug)]
pub(crate) enum Plan<T> {
    /// Nothing: it is so already.
    Done(T),
    /// Read this too, and plan again.
    Read(Vec<Look>),
    /// Write this; then it is so.
    Write(Write, T),
}

/// Which keys of which session, and for whom.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) keys: &'a Keys,
    pub(crate) id: &'a SessionId,
    /// What the change belongs to.
    pub(crate) trace: Option<TraceParent>,
}

impl Place<'_> {
    fn not_found(&self) -> StoreError {
        StoreError::NotFound(self.id.clone())
    }

    fn look_idem<'a>(&self, ids: impl Iterator<Item = &'a EventId>) -> Vec<Look> {
        ids.map(|event| Look::Key(self.keys.idem(self.id, event))).collect()
    }

    fn epoch(&self, view: &View) -> Result<u64> {
        view.get(&self.keys.epoch(self.id)).ok_or_else(|| self.not_found())?.decode()
    }

    pub(crate) fn check_epoch(&self, view: &View, given: u64) -> Result<()> {
        check_epoch(self.epoch(view)?, given)
    }

    /// The sequence number of an event in the log.
    fn seq(&self, view: &View, event: &EventId) -> Result<Option<u64>> {
        view.get(&self.keys.idem(self.id, event)).map(Kv::decode).transpose()
    }

    /// The records with these numbers, or what is still to read.
    fn records(&self, view: &View, seqs: &[u64]) -> Result<Result<Vec<Record>, Vec<Look>>> {
        let keys: Vec<String> = seqs.iter().map(|seq| self.keys.log(self.id, *seq)).collect();
        if keys.iter().any(|key| !view.has_looked(key)) {
            return Ok(Err(keys.into_iter().map(Look::Key).collect()));
        }
        let decode = |key: String| match view.get(&key) {
            Some(kv) => kv.decode(),
            None => Err(StoreError::Corrupt { key, reason: "the record is missing".to_owned() }),
        };
        keys.into_iter().map(decode).collect::<Result<Vec<Record>>>().map(Ok)
    }

    /// The records of a brain's append that is repeated, if it is one: the events are in the session's own log, as given,
    /// right after the record that the brain has read up to.
    fn repeated_after(
        &self,
        view: &View,
        head: &Head,
        epoch: u64,
        read: u64,
        events: &[Given<'_>],
    ) -> Result<Repeated> {
        let last = read.saturating_add(u64::try_from(events.len()).unwrap_or(u64::MAX));
        if events.is_empty() || read < head.inherited || last > head.seq {
            return Ok(Repeated::No);
        }
        let seqs: Vec<u64> = (read.saturating_add(1)..=last).collect();
        self.same(view, &seqs, epoch, events)
    }

    /// The records of an append of the service that is repeated, if it is one: every event is in the log, as given, in a
    /// row, by the same author.
    fn repeated(&self, view: &View, epoch: u64, events: &[Given<'_>]) -> Result<Repeated> {
        let mut seqs = Vec::with_capacity(events.len());
        for (event, _) in events {
            match self.seq(view, event)? {
                Some(seq) => seqs.push(seq),
                None => return Ok(Repeated::No),
            }
        }
        if seqs.windows(2).any(|pair| pair[0].checked_add(1) != Some(pair[1])) {
            return Ok(Repeated::No);
        }
        self.same(view, &seqs, epoch, events)
    }

    /// Whether the records with these numbers are these events of this author.
    fn same(&self, view: &View, seqs: &[u64], epoch: u64, events: &[Given<'_>]) -> Result<Repeated> {
        let Some(head) = seqs.last().copied() else { return Ok(Repeated::No) };
        let records = match self.records(view, seqs)? {
            Ok(records) => records,
            Err(looks) => return Ok(Repeated::Read(looks)),
        };
        let same = records.iter().zip(events).all(|(stored, (id, body))| record::is_repeated(stored, epoch, id, *body));
        Ok(if same { Repeated::Yes(Appended { records, head }) } else { Repeated::No })
    }

    /// The first of the events that is in the log already.
    fn check_new<'a>(&self, view: &View, mut events: impl Iterator<Item = &'a EventId>) -> Result<()> {
        match events.find(|event| view.get(&self.keys.idem(self.id, event)).is_some()) {
            Some(event) => Err(StoreError::Duplicate(event.clone())),
            None => Ok(()),
        }
    }
}

/// Whether a brain of the epoch `given` may write when `current` is the session's.
fn check_epoch(current: u64, given: u64) -> Result<()> {
    if given == current && given > 0 { Ok(()) } else { Err(StoreError::Fenced { given, current }) }
}

/// An event of an append: its identifier, and its body unless it is queued.
type Given<'a> = (&'a EventId, Option<&'a EventBody>);

/// Whether an append was carried out before.
#[derive(Debug)]
enum Repeated {
    No,
    Yes(Appended),
    /// To know it, read this.
    Read(Vec<Look>),
}
