//! Sessions as a whole.

use jiff::Timestamp;
use longhand_protocol::id::InvalidId;
use longhand_protocol::{EventId, SessionId};

use super::{Place, Plan};
use crate::etcd::keys::{Keys, last_segment};
use crate::etcd::view::{Kv, Look, View};
use crate::etcd::write::{Guard, Write};
use crate::record::{Head, encode};
use crate::store::{EPOCH_LEAP, Owner, Result, SessionMeta, SessionState, StoreError};

/// A wish to make a session.
pub(crate) struct Create<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) meta: &'a SessionMeta,
}

impl Create<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        [keys.meta(id), keys.deleting(id), keys.importing(id)].map(Look::Key).to_vec()
    }

    pub(crate) fn plan(&self, view: &View) -> Result<Plan<()>> {
        let Place { keys, id, .. } = self.place;
        let exists = Err(StoreError::Exists(id.clone()));
        if let Some(stored) = view.get(&keys.meta(id)) {
            let ours = view.in_doubt && stored.decode::<SessionMeta>()? == *self.meta;
            return if ours { Ok(Plan::Done(())) } else { exists };
        }
        if view.get(&keys.deleting(id)).is_some() || view.get(&keys.importing(id)).is_some() {
            return exists;
        }
        let mut write = Write::default();
        write.guard(Guard::Absent(keys.meta(id))).guard(Guard::Absent(keys.deleting(id)));
        write.guard(Guard::Absent(keys.importing(id)));
        write.put(keys.meta(id), encode(self.meta)?);
        write.put(keys.epoch(id), "0");
        self.place.put_first_head(&Head::empty(self.meta.created_at), &mut write)?;
        Ok(Plan::Write(write, ()))
    }
}

/// What [`state`] needs to know.
pub(crate) fn state_looks(place: &Place<'_>) -> Vec<Look> {
    let Place { keys, id, .. } = *place;
    let mut looks = [keys.meta(id), keys.owner(id), keys.wake(id)].map(Look::Key).to_vec();
    looks.extend(place.head_looks());
    looks.push(Look::Range(keys.forks(id), keys.forks_end(id), 1));
    looks
}

/// A session that shares the history of this one.
fn fork_of(place: &Place<'_>, view: &View) -> Result<Option<SessionId>> {
    let forks = place.keys.forks(place.id);
    let Some(fork) = view.prefix(&forks).next() else { return Ok(None) };
    let corrupt = |error: InvalidId| StoreError::Corrupt { key: fork.key.clone(), reason: error.to_string() };
    last_segment(&fork.key).parse().map(Some).map_err(corrupt)
}

/// Everything but the events.
pub(crate) fn state(place: &Place<'_>, view: &View) -> Result<SessionState> {
    let Place { keys, id, .. } = *place;
    let meta: SessionMeta = view.get(&keys.meta(id)).ok_or_else(|| place.not_found())?.decode()?;
    let head = place.head(view)?;
    let wake_revision = view.get(&keys.wake(id)).map(|wake| wake.mod_revision);
    Ok(SessionState {
        meta,
        epoch: head.epoch,
        head: head.seq,
        owner: view.get(&keys.owner(id)).map(Kv::decode::<Owner>).transpose()?,
        wake_revision,
        status: head.shown_status(wake_revision.is_some()),
        usage: head.usage,
        list_cost: head.list_cost.clone(),
        active: head.active,
        updated_at: head.updated_at,
        size: head.size(),
        archived_at: head.archived_at,
        fork: fork_of(place, view)?,
    })
}

/// A wish to delete a session: the step after which nothing can be written to it.
pub(crate) struct Close<'a> {
    pub(crate) place: Place<'a>,
}

impl Close<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        let mut looks = [keys.meta(id), keys.deleting(id), keys.importing(id)].map(Look::Key).to_vec();
        looks.push(Look::Range(keys.forks(id), keys.forks_end(id), 1));
        looks
    }

    /// Whether there is anything to remove.
    pub(crate) fn plan(&self, view: &View) -> Result<Plan<bool>> {
        let Place { keys, id, .. } = self.place;
        let mut write = Write { makes_room: true, ..Write::default() };
        if let Some(importing) = view.get(&keys.importing(id)) {
            write.guard(Guard::Unchanged(importing.key.clone(), importing.mod_revision));
            write.put(keys.deleting(id), importing.value.clone()).delete(importing.key.clone());
            return Ok(Plan::Write(write, true));
        }
        let Some(live) = view.get(&keys.meta(id)) else {
            return Ok(Plan::Done(view.get(&keys.deleting(id)).is_some()));
        };
        if let Some(fork) = fork_of(&self.place, view)? {
            return Err(StoreError::HasForks { session: id.clone(), fork });
        }
        write.guard(Guard::Unchanged(live.key.clone(), live.mod_revision)).guard(Guard::NoneUnder(keys.forks(id)));
        write.put(keys.deleting(id), live.value.clone()).delete(live.key.clone());
        write.delete(keys.head(id)).delete(keys.wake(id)).delete(keys.owner(id));
        if let Some(parent) = live.decode::<SessionMeta>()?.parent {
            write.delete(keys.fork(&parent.session, id));
        }
        Ok(Plan::Write(write, true))
    }
}

/// A wish to end a session for good.
pub(crate) struct Archive<'a> {
    pub(crate) place: Place<'a>,
    /// The identifier of the event that says so, if none does yet.
    pub(crate) terminated: &'a EventId,
}

impl Archive<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        self.place.head_looks().to_vec()
    }

    pub(crate) fn plan(&self, view: &View, now: Timestamp) -> Result<Plan<Timestamp>> {
        let Place { keys, id, .. } = self.place;
        let before = self.place.head(view)?;
        if let Some(archived_at) = before.archived_at {
            return Ok(Plan::Done(archived_at));
        }
        let mut head = Head { epoch: before.epoch.saturating_add(1), ..before.clone() };
        let mut write = Write::default();
        self.place.guard_head(view, &mut write)?;
        for stored in head.archive(self.terminated, now)? {
            write.put(keys.idem(id, &stored.record.event.id), stored.record.seq.to_string());
            write.put(keys.log(id, stored.record.seq), stored.bytes);
        }
        write.put(keys.epoch(id), head.epoch.to_string());
        self.place.put_head(view, &before, &head, &mut write)?;
        write.put(keys.ended(id), "").delete(keys.wake(id)).delete(keys.owner(id));
        Ok(Plan::Write(write, head.archived_at.unwrap_or(now)))
    }
}

/// A wish to fence off everybody who was ever given an epoch.
pub(crate) struct Leap<'a> {
    pub(crate) place: Place<'a>,
}

impl Leap<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        self.place.head_looks().to_vec()
    }

    pub(crate) fn plan(&self, view: &View) -> Result<Plan<u64>> {
        let Place { keys, id, .. } = self.place;
        let before = self.place.head(view)?;
        let head = Head { epoch: before.epoch.saturating_add(EPOCH_LEAP), ..before.clone() };
        let mut write = Write::default();
        self.place.guard_head(view, &mut write)?;
        write.put(keys.epoch(id), head.epoch.to_string()).delete(keys.owner(id));
        self.place.put_head(view, &before, &head, &mut write)?;
        Ok(Plan::Write(write, head.epoch))
    }
}

/// At most `limit` sessions, live ones and those that are being deleted or imported, in order.
pub(crate) fn list(keys: &Keys, view: &View, limit: usize) -> Result<Vec<SessionMeta>> {
    let (live, deleting, importing) = (keys.metas(), keys.deletings(), keys.importings());
    let found = view.prefix(&live).chain(view.prefix(&deleting)).chain(view.prefix(&importing));
    let mut metas = found.map(Kv::decode).collect::<Result<Vec<_>>>()?;
    metas.sort_by(|a: &SessionMeta, b| a.id.cmp(&b.id));
    metas.truncate(limit);
    Ok(metas)
}
