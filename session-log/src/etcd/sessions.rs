//! What takes more than one transaction: delivering inputs, deleting.

use longhand_protocol::SessionId;
use longhand_protocol::event::NewEvent;

use super::plan::{Close, Deliver, Plan};
use super::view::{Look, View};
use super::write::{Change, Guard, Write};
use super::{EtcdStore, capped};
use crate::store::Result;

/// Keys that are removed at once.
const REMOVED_AT_ONCE: i64 = 512;

impl EtcdStore {
    pub(super) async fn deliver(&self, id: &SessionId, from: u64, events: &[NewEvent]) -> Result<u64> {
        let parcel = self.pack(id, events).await?;
        let (mut from, mut rest) = (from, parcel.events.as_slice());
        loop {
            let (now, later) = rest.split_at(Deliver::fitting(rest)?);
            let (place, caps) = (self.place(id), &self.inner.options.caps);
            let deliver = Deliver { place, from, events: now, limit: self.inner.inbox_limit };
            let looks = [deliver.looks(), capped::queue_looks(caps, place.keys, id)].concat();
            let plan = |view: &_| capped::queued(caps, &place, view, now, deliver.plan(view)?);
            let (count, _) = self.inner.etcd.carry_out(&looks, None, plan).await?;
            let due = from.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            if later.is_empty() || count != due {
                self.confirm(id, &parcel).await;
                return Ok(count);
            }
            (from, rest) = (due, later);
        }
    }

    pub(super) async fn remove(&self, id: &SessionId) -> Result<()> {
        let keys = &self.inner.keys;
        let deleting = keys.deleting(id);
        let close = Close { place: self.place(id) };
        let (begun, removed) = self.inner.etcd.carry_out(&close.looks(), None, |view| close.plan(view)).await?;
        self.inner.heads.forget(id);
        self.inner.recent.forget(id);
        if !begun {
            return Ok(());
        }
        self.revoke_leases(&removed).await;
        let view = self.inner.etcd.look(&[Look::Key(deleting.clone())]).await?;
        // Without the mark another has finished it.
        let Some(mark) = view.get(&deleting) else { return Ok(()) };
        let guard = Guard::Unchanged(deleting.clone(), mark.mod_revision);
        if self.clear(id, &guard).await? {
            self.remove_if(&guard, Change::Delete(deleting)).await?;
        }
        Ok(())
    }

    /// Removes everything under the session's prefixes as long as the guard holds, and whether it has held: one that
    /// stood still for long must not take away what was made since.
    pub(super) async fn clear(&self, id: &SessionId, guard: &Guard) -> Result<bool> {
        let keys = &self.inner.keys;
        for prefix in [keys.logs(id), keys.session(id)] {
            loop {
                let page = self.inner.etcd.keys(&prefix, REMOVED_AT_ONCE).await?;
                let (Some(first), Some(last)) = (page.first(), page.last()) else { break };
                if !self.remove_if(guard, Change::DeleteRange(first.clone(), format!("{last}\0"))).await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes keys if the guard holds; whether it did.
    async fn remove_if(&self, guard: &Guard, removal: Change) -> Result<bool> {
        let write = Write { guards: vec![guard.clone()], changes: vec![removal], makes_room: true };
        let plan =
            |view: &View| Ok(if guard.holds(view) { Plan::Write(write.clone(), true) } else { Plan::Done(false) });
        Ok(self.inner.etcd.carry_out(&[Look::Key(guard.key().to_owned())], None, plan).await?.0)
    }
}
