//! Forking a session.

use jiff::Timestamp;
use longhand_protocol::event::NewEvent;

use super::{Place, Plan};
use crate::etcd::view::{Look, View};
use crate::etcd::write::{Guard, Write};
use crate::lineage::Lineage;
use crate::record::{Head, encode};
use crate::store::{Parent, Result, SessionMeta, StoreError};

/// A wish to fork a session, of whose history everything that is needed was read before: it does not change.
pub(crate) struct Fork<'a> {
    /// That of the new session.
    pub(crate) place: Place<'a>,
    /// That of the new session, whose `parent` is `from`.
    pub(crate) meta: &'a SessionMeta,
    pub(crate) from: &'a Parent,
    /// That of the new session.
    pub(crate) lineage: &'a Lineage,
    /// The end of what it inherits.
    pub(crate) head: &'a Head,
    /// What closes it.
    pub(crate) closing: &'a [NewEvent],
}

impl Fork<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        [keys.meta(&self.from.session), keys.meta(id), keys.deleting(id), keys.importing(id)].map(Look::Key).to_vec()
    }

    pub(crate) fn plan(&self, view: &View, now: Timestamp) -> Result<Plan<()>> {
        let Place { keys, id, .. } = self.place;
        let parent = keys.meta(&self.from.session);
        if view.get(&parent).is_none() {
            return Err(StoreError::NotFound(self.from.session.clone()));
        }
        if let Some(stored) = view.get(&keys.meta(id)) {
            let ours = view.in_doubt && stored.decode::<SessionMeta>()? == *self.meta;
            return if ours { Ok(Plan::Done(())) } else { Err(StoreError::Exists(id.clone())) };
        }
        let taken = [keys.deleting(id), keys.importing(id)];
        if taken.iter().any(|key| view.get(key).is_some()) {
            return Err(StoreError::Exists(id.clone()));
        }
        let mut write = Write::default();
        write.guard(Guard::Present(parent)).guard(Guard::Absent(keys.meta(id)));
        taken.into_iter().for_each(|key| write.guards.push(Guard::Absent(key)));
        write.put(keys.fork(&self.from.session, id), "");
        write.put(keys.meta(id), encode(self.meta)?).put(keys.epoch(id), "0");
        write.put(keys.lineage(id), encode(self.lineage)?);
        let mut head = self.head.clone();
        for stored in head.extend(0, self.closing.to_vec(), now)? {
            write.put(keys.idem(id, &stored.record.event.id), stored.record.seq.to_string());
            write.put(keys.log(id, stored.record.seq), stored.bytes);
        }
        self.place.put_first_head(&head, &mut write)?;
        Ok(Plan::Write(write, ()))
    }
}
