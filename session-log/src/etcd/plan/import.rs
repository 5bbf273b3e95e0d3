//! Importing a session, step by step: nobody can see it before the last one.

use jiff::Timestamp;
use longhand_protocol::event::{NewEvent, Record};
use longhand_protocol::wire::SessionStatus;
use serde::{Deserialize, Serialize};

use super::{Place, Plan};
use crate::etcd::view::{Look, View};
use crate::etcd::write::{Guard, Write};
use crate::objects::payload;
use crate::record::{Head, encode};
use crate::store::{Result, SessionMeta, StoreError};

/// The value of an importing key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Importing {
    /// The session that is being made.
    #[serde(flatten)]
    pub(crate) meta: SessionMeta,
    /// No other import has it.
    pub(crate) import: String,
}

/// A key that holds a payload, and the one that forbids it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) holder: String,
    pub(crate) doomed: String,
    pub(crate) value: Vec<u8>,
}

/// What an import does next.
pub(crate) enum Part<'a> {
    /// Takes the session's place; an import that was there before can do nothing any more.
    Begin,
    /// Puts records.
    Records(&'a [(Record, Vec<u8>)]),
    /// Holds a payload that a later record refers to.
    Hold(&'a Held),
    /// Makes the session.
    Finish {
        /// The epoch to begin with.
        epoch: u64,
        /// The end of what was put.
        head: &'a Head,
        /// What closes it.
        closing: &'a [NewEvent],
    },
}

/// A wish to go on with an import.
pub(crate) struct Import<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) importing: &'a Importing,
    pub(crate) part: Part<'a>,
}

impl Import<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        let mut looks = [keys.meta(id), keys.deleting(id), keys.importing(id)].map(Look::Key).to_vec();
        if let Part::Hold(held) = &self.part {
            looks.push(Look::Key(held.doomed.clone()));
        }
        looks
    }

    pub(crate) fn plan(&self, view: &View, now: Timestamp) -> Result<Plan<()>> {
        let Place { keys, id, .. } = self.place;
        let exists = || StoreError::Exists(id.clone());
        let mark = encode(self.importing)?;
        let marked = view.get(&keys.importing(id)).is_some_and(|stored| stored.value == mark);
        if let Some(stored) = view.get(&keys.meta(id)) {
            let last = matches!(self.part, Part::Finish { .. });
            let ours = last && view.in_doubt && stored.decode::<SessionMeta>()? == self.importing.meta;
            return if ours { Ok(Plan::Done(())) } else { Err(exists()) };
        }
        if view.get(&keys.deleting(id)).is_some() {
            return Err(exists());
        }
        let mut write = Write::default();
        match self.part {
            Part::Begin if marked => return Ok(Plan::Done(())),
            Part::Begin => {
                write.guard(Guard::Absent(keys.meta(id))).guard(Guard::Absent(keys.deleting(id)));
                write.put(keys.importing(id), mark);
                return Ok(Plan::Write(write, ()));
            }
            _ if !marked => return Err(exists()),
            Part::Records(records) => {
                for (record, bytes) in records {
                    self.put(&mut write, record, bytes.clone());
                }
            }
            Part::Hold(held) => {
                if view.get(&held.doomed).is_some() {
                    let reason = "a payload of the same content is being removed; try again";
                    return Err(StoreError::Unavailable(reason.to_owned()));
                }
                write.guard(Guard::Absent(held.doomed.clone()));
                write.put(held.holder.clone(), held.value.clone());
            }
            Part::Finish { epoch, head, closing } => {
                let mut head = Head { epoch, ..head.clone() };
                for stored in head.extend(0, closing.to_vec(), now)? {
                    self.put(&mut write, &stored.record, stored.bytes);
                }
                if head.status == Some(SessionStatus::Terminated) || head.archived_at.is_some() {
                    write.put(keys.ended(id), "");
                }
                write.put(keys.epoch(id), epoch.to_string());
                self.place.put_first_head(&head, &mut write)?;
                write.put(keys.meta(id), encode(&self.importing.meta)?).delete(keys.importing(id));
            }
        }
        write.guard(Guard::Holds(keys.importing(id), mark));
        Ok(Plan::Write(write, ()))
    }

    fn put(&self, write: &mut Write, record: &Record, bytes: Vec<u8>) {
        let Place { keys, id, .. } = self.place;
        write.put(keys.log(id, record.seq), bytes);
        write.put(keys.idem(id, &record.event.id), record.seq.to_string());
        if let Some(call) = payload::answered(&record.event.body) {
            write.put(keys.done(id, &call), record.seq.to_string());
        }
    }
}
