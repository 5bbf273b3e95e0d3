//! Reading the log: where a query's records are, and the records.
//!
//! The head is read as of now, so that whatever was acknowledged is found. Records never change, so they are read from
//! whichever member answers; only what that one does not have yet is read as of now.

use std::ops::RangeInclusive;

use futures::future::try_join_all;
use jiff::Timestamp;
use longhand_protocol::SessionId;
use longhand_protocol::event::Record;

use super::EtcdStore;
use super::forks::Whole;
use super::payloads::Parcel;
use super::view::Look;
use super::write::Freshness;
use crate::lineage::Lineage;
use crate::objects::payload;
use crate::query::{Query, Scan, TimeSearch};
use crate::store::{Result, Slice};

impl EtcdStore {
    /// See [`crate::SessionStore::slice`].
    pub(super) async fn scan(&self, id: &SessionId, query: &Query) -> Result<Slice> {
        let Whole { head, lineage } = self.whole(id).await?;
        let head = head.seq;
        let mut range = query.range(head);
        if let (Some(wanted), Some(since)) = (&range, query.since) {
            range = clamp(self.first_since(id, &lineage, since, head).await?, u64::MAX, wanted);
        }
        if let (Some(wanted), Some(until)) = (&range, query.until) {
            range = clamp(0, self.first_since(id, &lineage, until, head).await?.saturating_sub(1), wanted);
        }
        let mut scan = Scan::new(query, head, range);
        while let Some(window) = scan.window() {
            let stored = self.stored(id, &lineage, window).await?;
            scan.take(stored.into_iter().map(|(record, bytes)| sized(record, &bytes)).collect());
        }
        let mut slice = scan.finish();
        self.unpack(id, &mut slice.records, &Parcel::default()).await?;
        Ok(slice)
    }

    /// The first record that entered the log at `time` or later; one above `head` if none did.
    async fn first_since(&self, id: &SessionId, lineage: &Lineage, time: Timestamp, head: u64) -> Result<u64> {
        let mut search = TimeSearch::new(time, head);
        loop {
            let probes = search.probes();
            if probes.is_empty() {
                return Ok(search.found());
            }
            let probed = try_join_all(probes.into_iter().map(|seq| self.stored(id, lineage, seq..=seq))).await?;
            for (record, _) in probed.into_iter().flatten() {
                search.take(record.seq, record.event.processed_at);
            }
        }
    }

    /// Every record of the range of a history, which ends at the head or before, with its stored bytes.
    pub(super) async fn stored(
        &self,
        id: &SessionId,
        lineage: &Lineage,
        range: RangeInclusive<u64>,
    ) -> Result<Vec<(Record, Vec<u8>)>> {
        let mut found = Vec::new();
        for (session, part) in lineage.parts(id, &range) {
            found.extend(self.stored_of(session, part).await?);
        }
        Ok(found)
    }

    /// Every record of the range of one session's own log, with its stored bytes.
    pub(super) async fn stored_of(&self, id: &SessionId, range: RangeInclusive<u64>) -> Result<Vec<(Record, Vec<u8>)>> {
        let (first, last) = (*range.start(), *range.end());
        for freshness in [Freshness::Serializable, Freshness::Linearizable] {
            let found = self.stored_as_of(id, first, last, freshness).await?;
            if found.iter().map(|(record, _)| record.seq).eq(range.clone()) {
                return Ok(found);
            }
            // Keys go from the front, when their records are archived.
            if found.first().is_none_or(|(record, _)| record.seq != first) {
                break;
            }
        }
        self.merged(id, first, last).await
    }

    async fn stored_as_of(
        &self,
        id: &SessionId,
        first: u64,
        last: u64,
        freshness: Freshness,
    ) -> Result<Vec<(Record, Vec<u8>)>> {
        let keys = &self.inner.keys;
        let count = i64::try_from(last.saturating_sub(first).saturating_add(1)).unwrap_or(i64::MAX);
        let look = Look::Range(keys.log(id, first), keys.log_end(id), count);
        let view = self.inner.etcd.look_at(&[look], freshness).await?;
        let logs = keys.logs(id);
        view.prefix(&logs).map(|kv| Ok((kv.decode::<Record>()?, kv.value.clone()))).collect()
    }
}

/// A record, and what it takes when it is given out.
fn sized(record: Record, bytes: &[u8]) -> (Record, usize) {
    let apart = payload::reference(&record.event.body).map_or(0, |reference| reference.bytes);
    let size = bytes.len().saturating_add(usize::try_from(apart).unwrap_or(usize::MAX));
    (record, size)
}

fn clamp(first: u64, last: u64, range: &RangeInclusive<u64>) -> Option<RangeInclusive<u64>> {
    let (first, last) = (first.max(*range.start()), last.min(*range.end()));
    (first <= last).then_some(first..=last)
}
