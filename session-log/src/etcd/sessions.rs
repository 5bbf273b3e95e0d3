//! What takes more than one transaction: reading pages, delivering inputs, deleting.

use longhand_protocol::SessionId;
use longhand_protocol::event::{NewEvent, Record};

use super::EtcdStore;
use super::plan::{Deliver, Plan};
use super::view::{Look, View};
use super::write::{Guard, Write};
use crate::store::{Result, Slice, StoreError};

/// Records that are read at once.
const PAGE: usize = 64;
/// A slice ends after the page in which it has grown beyond this.
const SLICE_BYTES: usize = 8 * 1024 * 1024;
/// Keys that are removed at once.
const REMOVED_AT_ONCE: i64 = 512;

impl EtcdStore {
    pub(super) async fn read_pages(&self, id: &SessionId, after: u64, limit: usize) -> Result<Slice> {
        let keys = &self.inner.keys;
        let mut records: Vec<Record> = Vec::new();
        let (mut bytes, mut head) = (0, None);
        loop {
            let last = records.last().map_or(after, |record| record.seq);
            let wanted = limit.saturating_sub(records.len()).min(PAGE);
            let mut looks = vec![Look::Key(keys.head(id))];
            if wanted > 0 {
                let (from, to) = (keys.log(id, last.saturating_add(1)), keys.log_end(id));
                looks.push(Look::Range(from, to, i64::try_from(wanted).unwrap_or(i64::MAX)));
            }
            let view = self.inner.etcd.look(&looks).await?;
            let end = *head.get_or_insert(self.place(id).head(&view)?.seq);
            let log = keys.logs(id);
            let page = view.prefix(&log).map(|kv| (kv.value.len(), kv.decode::<Record>(), &kv.key));
            let before = records.len();
            for (size, record, key) in page {
                let (record, due) = (record?, records.last().map_or(after, |record| record.seq).saturating_add(1));
                if record.seq != due {
                    return Err(StoreError::Corrupt { key: key.clone(), reason: format!("record {due} is missing") });
                }
                if record.seq > end {
                    break;
                }
                bytes += size;
                records.push(record);
            }
            let got = records.len() - before;
            if got < PAGE || records.len() >= limit || bytes >= SLICE_BYTES {
                return Ok(Slice { records, head: end });
            }
        }
    }

    pub(super) async fn deliver(&self, id: &SessionId, from: u64, events: &[NewEvent]) -> Result<u64> {
        let (mut from, mut rest) = (from, events);
        loop {
            let (now, later) = rest.split_at(Deliver::fitting(rest)?);
            let deliver = Deliver { place: self.place(id), from, events: now, limit: self.inner.inbox_limit };
            let (count, _) = self.inner.etcd.carry_out(&deliver.looks(), None, |view| deliver.plan(view)).await?;
            let due = from.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            if later.is_empty() || count != due {
                return Ok(count);
            }
            (from, rest) = (due, later);
        }
    }

    pub(super) async fn remove(&self, id: &SessionId) -> Result<()> {
        let keys = &self.inner.keys;
        let (meta, deleting) = (keys.meta(id), keys.deleting(id));
        let looks = [meta.clone(), deleting.clone()].map(Look::Key);
        let close = |view: &View| {
            let Some(live) = view.get(&meta) else {
                return Ok(Plan::Done(view.get(&deleting).is_some()));
            };
            let mut write = Write::default();
            write.guard(Guard::Unchanged(meta.clone(), live.mod_revision));
            write.put(deleting.clone(), live.value.clone()).delete(meta.clone());
            write.delete(keys.head(id)).delete(keys.wake(id)).delete(keys.owner(id));
            Ok(Plan::Write(write, true))
        };
        let (begun, removed) = self.inner.etcd.carry_out(&looks, None, close).await?;
        self.inner.heads.forget(id);
        if !begun {
            return Ok(());
        }
        for kv in removed.iter().filter(|kv| kv.lease != 0) {
            self.inner.etcd.revoke(kv.lease).await;
        }
        loop {
            let page = self.inner.etcd.keys(&keys.session(id), REMOVED_AT_ONCE).await?;
            let (Some(first), Some(last)) = (page.first(), page.last()) else { break };
            self.inner.etcd.remove_range(first, &format!("{last}\0")).await?;
        }
        self.inner.etcd.remove_range(&deleting, &format!("{deleting}\0")).await
    }
}
