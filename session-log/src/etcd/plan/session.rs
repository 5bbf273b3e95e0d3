//! Sessions as a whole.

use super::{Place, Plan};
use crate::etcd::keys::Keys;
use crate::etcd::view::{Kv, Look, View};
use crate::etcd::write::{Guard, Write};
use crate::record::{Head, encode};
use crate::store::{Owner, Result, SessionMeta, SessionState, StoreError};

/// A wish to make a session.
pub(crate) struct Create<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) meta: &'a SessionMeta,
}

impl Create<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id } = self.place;
        [keys.meta(id), keys.deleting(id)].map(Look::Key).to_vec()
    }

    pub(crate) fn plan(&self, view: &View) -> Result<Plan<()>> {
        let Place { keys, id } = self.place;
        let exists = Err(StoreError::Exists(id.clone()));
        if let Some(stored) = view.get(&keys.meta(id)) {
            let ours = view.in_doubt && stored.decode::<SessionMeta>()? == *self.meta;
            return if ours { Ok(Plan::Done(())) } else { exists };
        }
        if view.get(&keys.deleting(id)).is_some() {
            return exists;
        }
        let mut write = Write::default();
        write.guard(Guard::Absent(keys.meta(id))).guard(Guard::Absent(keys.deleting(id)));
        write.put(keys.meta(id), encode(self.meta)?);
        write.put(keys.epoch(id), "0");
        write.put(keys.head(id), encode(&Head::empty(self.meta.created_at))?);
        Ok(Plan::Write(write, ()))
    }
}

/// What [`state`] needs to know.
pub(crate) fn state_looks(place: &Place<'_>) -> Vec<Look> {
    let Place { keys, id } = *place;
    [keys.meta(id), keys.epoch(id), keys.head(id), keys.owner(id), keys.wake(id)].map(Look::Key).to_vec()
}

/// Everything but the events.
pub(crate) fn state(place: &Place<'_>, view: &View) -> Result<SessionState> {
    let Place { keys, id } = *place;
    let meta: SessionMeta = view.get(&keys.meta(id)).ok_or_else(|| place.not_found())?.decode()?;
    let head = place.head(view)?;
    let wake_revision = view.get(&keys.wake(id)).map(|wake| wake.mod_revision);
    Ok(SessionState {
        meta,
        epoch: place.epoch(view)?,
        head: head.seq,
        owner: view.get(&keys.owner(id)).map(Kv::decode::<Owner>).transpose()?,
        wake_revision,
        status: head.shown_status(wake_revision.is_some()),
        usage: head.usage,
        updated_at: head.updated_at,
    })
}

/// At most `limit` sessions, live ones and those that are being deleted, in order.
pub(crate) fn list(keys: &Keys, view: &View, limit: usize) -> Result<Vec<SessionMeta>> {
    let (live, deleting) = (keys.metas(), keys.deletings());
    let mut metas = view.prefix(&live).chain(view.prefix(&deleting)).map(Kv::decode).collect::<Result<Vec<_>>>()?;
    metas.sort_by(|a: &SessionMeta, b| a.id.cmp(&b.id));
    metas.truncate(limit);
    Ok(metas)
}
