//! Forks: what they share is read from whom it belongs to.

use std::collections::HashSet;

use jiff::Timestamp;
use longhand_protocol::{EventId, SessionId};

use super::EtcdStore;
use super::keys::last_segment;
use super::plan::Fork;
use super::view::{Kv, Look, View};
use crate::cut::{Cause, Cut};
use crate::lineage::Lineage;
use crate::query::Query;
use crate::record::Head;
use crate::store::{Parent, Result, SessionMeta, SessionStore as _, StoreError};

/// Records that are looked at together for what they leave open.
const CUT_PAGE: usize = 256;

/// The end of a log, and whose records its history is made of.
pub(super) struct Whole {
    pub(super) head: Head,
    pub(super) lineage: Lineage,
}

impl EtcdStore {
    /// What [`EtcdStore::whole`] is known by.
    pub(super) fn whole_looks(&self, id: &SessionId) -> [Look; 3] {
        let [head, summary] = self.place(id).head_looks();
        [head, summary, Look::Key(self.inner.keys.lineage(id))]
    }

    pub(super) fn whole_of(&self, id: &SessionId, view: &View) -> Result<Whole> {
        let head = self.place(id).head(view)?;
        let lineage = view.get(&self.inner.keys.lineage(id)).map(Kv::decode).transpose()?;
        Ok(Whole { head, lineage: lineage.unwrap_or_else(Lineage::none) })
    }

    /// As of now.
    pub(super) async fn whole(&self, id: &SessionId) -> Result<Whole> {
        self.whole_of(id, &self.inner.etcd.look(&self.whole_looks(id)).await?)
    }

    /// See [`crate::SessionStore::fork`].
    pub(super) async fn branch(&self, meta: SessionMeta, from: &Parent) -> Result<()> {
        let parent = self.state(&from.session).await?;
        if parent.meta.namespace != meta.namespace {
            return Err(StoreError::NotFound(from.session.clone()));
        }
        if from.seq > parent.head {
            return Err(StoreError::NoSuchEvent { session: from.session.clone(), seq: from.seq, head: parent.head });
        }
        let meta = SessionMeta { parent: Some(from.clone()), ..meta };
        let whole = self.whole(&from.session).await?;
        let cut = self.cut_at(from).await?;
        let head = if from.seq == 0 {
            Head::empty(meta.created_at)
        } else {
            let last = self.stored(&from.session, &whole.lineage, from.seq..=from.seq).await?;
            let (record, bytes) = last.first().ok_or_else(|| StoreError::NotFound(from.session.clone()))?;
            Head::at(record, bytes, &cut)
        };
        let fork = Fork {
            place: self.place(&meta.id),
            meta: &meta,
            from,
            lineage: &whole.lineage.fork(from)?,
            head: &head,
            closing: &cut.closing(&meta.id, Cause::Fork)?,
        };
        self.inner.etcd.carry_out(&fork.looks(), None, |view| fork.plan(view, Timestamp::now())).await?;
        Ok(())
    }

    /// What the history up to this event leaves open.
    async fn cut_at(&self, at: &Parent) -> Result<Cut> {
        let mut cut = Cut::default();
        let mut query = Query { before: Some(at.seq.saturating_add(1)), ..Query::last(CUT_PAGE) };
        loop {
            let slice = self.scan(&at.session, &query).await?;
            slice.records.iter().for_each(|record| cut.take(record));
            match slice.next {
                Some(next) if !cut.is_complete() => query = query.from(next),
                _ => break,
            }
        }
        // Calls of long ago that have no result to this day.
        let keys = &self.inner.keys;
        let prefix = keys.calls(&at.session);
        let view = self.inner.etcd.look(&[Look::Prefix(prefix.clone())]).await?;
        let open: HashSet<EventId> = view.prefix(&prefix).filter_map(|kv| last_segment(&kv.key).parse().ok()).collect();
        for call in open {
            if self.find(&at.session, &call).await?.is_some_and(|seq| seq <= at.seq) {
                cut.take_open(call);
            }
        }
        Ok(cut)
    }
}
