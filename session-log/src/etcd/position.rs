//! Where an event is.
//!
//! By its identifier's key if there is one. What a brain says of itself has none: it is looked for from the end, and so is
//! what was forgotten. That reads as much as there is after it, so only a few look at a time.

use std::ops::RangeInclusive;

use longhand_protocol::{EventId, SessionId};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::EtcdStore;
use super::cold::manifest;
use super::failure::Trouble;
use super::view::{Kv, Look};
use crate::store::Result;

/// So many look through logs at a time.
pub(super) const LOOKING: usize = 2;
/// Records that are read together.
const PAGE: u64 = 256;

impl EtcdStore {
    /// See [`crate::SessionStore::position`].
    pub(super) async fn find(&self, id: &SessionId, event: &EventId) -> Result<Option<u64>> {
        let keys = &self.inner.keys;
        let mut looks = self.whole_looks(id).to_vec();
        looks.push(Look::Key(keys.idem(id, event)));
        let view = self.inner.etcd.look(&looks).await?;
        let whole = self.whole_of(id, &view)?;
        if let Some(own) = view.get(&keys.idem(id, event)) {
            return own.decode().map(Some);
        }
        let (lineage, own) = (whole.lineage, whole.head.inherited.saturating_add(1)..=whole.head.seq);
        let looks: Vec<Look> = lineage.ancestors().map(|(id, _)| Look::Key(keys.idem(id, event))).collect();
        if !looks.is_empty() {
            let view = self.inner.etcd.look(&looks).await?;
            for (ancestor, part) in lineage.ancestors() {
                let seq = view.get(&keys.idem(ancestor, event)).map(Kv::decode::<u64>).transpose()?;
                if let Some(seq) = seq.filter(|seq| part.contains(seq)) {
                    return Ok(Some(seq));
                }
            }
        }
        let _looking = self.look_through().await?;
        let ancestors: Vec<_> = lineage.ancestors().collect();
        for (session, part) in std::iter::once((id, own)).chain(ancestors.into_iter().rev()) {
            if let Some(seq) = self.find_in(session, event, part).await? {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    async fn look_through(&self) -> Result<SemaphorePermit<'_>> {
        match timeout(self.inner.etcd.timeout(), self.inner.looking.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Trouble::Busy.into_store()),
        }
    }

    /// Looks through a part of a session's own log, the newest first: what is in etcd, then segment by segment.
    async fn find_in(&self, id: &SessionId, event: &EventId, part: RangeInclusive<u64>) -> Result<Option<u64>> {
        let archived = self.inner.keys.archived(id);
        let manifest = manifest(&self.inner.etcd.look(&[Look::Key(archived.clone())]).await?, &archived)?;
        let (first, mut last) = (*part.start(), *part.end());
        let hot = first.max(manifest.through(0).saturating_add(1));
        while hot <= last {
            let page = hot.max(last.saturating_sub(PAGE - 1));
            let stored = self.stored_of(id, page..=last).await?;
            if let Some((record, _)) = stored.iter().rev().find(|(record, _)| record.event.id == *event) {
                return Ok(Some(record.seq));
            }
            last = page.saturating_sub(1);
        }
        let cold = manifest.segments.iter().rev().filter(|segment| segment.first <= last && segment.last >= first);
        for segment in cold {
            let lines = self.read_whole_segment(id, segment).await?;
            let found = lines.iter().rev().find(|line| line.record.event.id == *event);
            if let Some(seq) = found.map(|line| line.record.seq).filter(|seq| part.contains(seq)) {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }
}
