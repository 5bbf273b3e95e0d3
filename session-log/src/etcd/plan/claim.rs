//! Taking a session.

use jiff::Timestamp;
use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent, Record};

use super::{Place, Plan, StoredHead};
use crate::etcd::view::{Look, View};
use crate::etcd::write::{Change, Write};
use crate::record::{Head, encode};
use crate::store::{Claimant, Owner, Result, StoreError, Takeover};

/// A wish to own a session.
pub(crate) struct Claim<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) claimant: &'a Claimant,
    pub(crate) takeover: Takeover,
    /// The lease of the owner key.
    pub(crate) lease: i64,
    /// The identifier of the claim's `x.session.woken`, under which it is found after an ambiguous failure.
    pub(crate) woken: &'a EventId,
}

/// A session that was taken.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) epoch: u64,
    pub(crate) record: Record,
    /// The head as it is stored, if this plan wrote it.
    pub(crate) head: Option<StoredHead>,
    /// The lease of the owner before.
    pub(crate) old_lease: Option<i64>,
}

impl Claim<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        let looks = [keys.owner(id), keys.idem(id, self.woken)].map(Look::Key);
        self.place.head_looks().into_iter().chain(looks).collect()
    }

    pub(crate) fn plan(&self, view: &View, now: Timestamp) -> Result<Plan<Claimed>> {
        let Place { keys, id, .. } = self.place;
        let before = self.place.head(view)?;
        if let Some(seq) = self.place.seq(view, self.woken)? {
            return Ok(match self.place.records(view, &[seq])? {
                Ok(records) => match records.into_iter().next() {
                    Some(record) => Plan::Done(Claimed { epoch: record.epoch, record, head: None, old_lease: None }),
                    None => return Err(self.place.not_found()),
                },
                Err(looks) => Plan::Read(looks),
            });
        }
        if before.archived_at.is_some() {
            return Err(StoreError::Ended(id.clone()));
        }
        let owner = view.get(&keys.owner(id));
        if let (Takeover::IfFree, Some(owner)) = (self.takeover, owner) {
            let pod_uid = owner.decode::<Owner>()?.claimant.pod_uid;
            if pod_uid != self.claimant.pod_uid {
                return Err(StoreError::Owned { pod_uid });
            }
        }
        let epoch = before.epoch.saturating_add(1);
        let mut head = Head { epoch, ..before.clone() };
        let mut write = Write::default();
        self.place.guard_head(view, &mut write)?;

        let body = EventBody::SessionWoken { epoch, harness: self.claimant.pod_name.clone() };
        let woken = NewEvent { id: self.woken.clone(), body };
        let mut record = None;
        for stored in head.extend(epoch, vec![woken], now)? {
            write.put(keys.log(id, stored.record.seq), stored.bytes);
            write.put(keys.idem(id, self.woken), stored.record.seq.to_string());
            record = Some(stored.record);
        }
        let record = record.ok_or_else(|| self.place.not_found())?;
        write.put(keys.epoch(id), epoch.to_string());
        let stored = self.place.put_head(view, &before, &head, &mut write)?;
        let owner_value = encode(&Owner { claimant: self.claimant.clone(), epoch })?;
        write.changes.push(Change::PutLeased(keys.owner(id), owner_value, self.lease));
        let old_lease = owner.map(|owner| owner.lease).filter(|lease| *lease != 0);
        Ok(Plan::Write(write, Claimed { epoch, record, head: Some(stored), old_lease }))
    }
}
