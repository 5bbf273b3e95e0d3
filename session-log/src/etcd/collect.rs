//! Removing objects that nothing refers to: what crashes have left, and what belonged to deleted sessions.
//!
//! Only objects older than the grace are looked at. The list comes first and the references are read after it, as of
//! now: an object's name is used once, and whoever writes one refers to it within a deadline that is far shorter than
//! the grace, so what is old and not referred to will never be. A payload's name comes again with its content; it is
//! doomed in etcd before it goes, which a session that wants to hold it sees.
//!
//! One replica at a time may do this. One that loses the right to must have stopped before another begins.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::SessionId;

use super::EtcdStore;
use super::cold::{base, manifest};
use super::payloads::{self, Hold};
use super::plan::{self, Place, Plan};
use super::view::{Look, View};
use super::write::{Guard, Write};
use crate::objects::payload;
use crate::store::{Result, SessionMeta, StoreError};

/// Objects, or keys, that are looked at together.
const TOGETHER: usize = 256;
/// Sessions that are looked at in one read: each takes three operations of etcd's 128.
const SESSIONS_TOGETHER: usize = 32;
/// Records that are searched at once for a payload.
const PAGE: u64 = 128;

/// What a collection has found and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Segments in the object store.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Payloads in the object store.
    pub payloads: u64,
    /// Their bytes.
    pub payload_bytes: u64,
    /// Objects that nothing referred to, and that are gone.
    pub removed: u64,
}

impl EtcdStore {
    /// Removes objects that nothing has referred to for longer than `grace`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the object store or etcd is away; what was removed until then is gone.
    pub async fn collect(&self, grace: SignedDuration, now: Timestamp) -> Result<Collected> {
        let limit = now.checked_sub(grace).unwrap_or(Timestamp::MIN);
        let mut collected = Collected::default();
        self.objects()?.remove_unfinished(limit).await?;
        self.finish_doomed(&mut collected).await?;
        self.collect_segments(limit, &mut collected).await?;
        self.release_holds(limit).await?;
        self.collect_payloads(limit, &mut collected).await?;
        Ok(collected)
    }

    async fn collect_segments(&self, limit: Timestamp, collected: &mut Collected) -> Result<()> {
        let prefix = format!("{}/session", self.object_prefix().await?);
        let mut listed = self.objects()?.list(&prefix).ready_chunks(TOGETHER);
        while let Some(some) = listed.next().await {
            let mut old: BTreeMap<SessionId, Vec<String>> = BTreeMap::new();
            for object in some {
                let object = object?;
                collected.segments += 1;
                collected.segment_bytes = collected.segment_bytes.saturating_add(object.bytes);
                let id = object.name.rsplit('/').nth(1).and_then(|id| id.parse().ok());
                if let (true, Some(id)) = (object.modified <= limit, id) {
                    old.entry(id).or_default().push(object.name);
                }
            }
            let old: Vec<(SessionId, Vec<String>)> = old.into_iter().collect();
            for group in old.chunks(SESSIONS_TOGETHER) {
                self.remove_segments(group, collected).await?;
            }
        }
        Ok(())
    }

    async fn remove_segments(&self, group: &[(SessionId, Vec<String>)], collected: &mut Collected) -> Result<()> {
        let keys = &self.inner.keys;
        let looks: Vec<Look> = group.iter().map(|(id, _)| Look::Key(keys.archived(id))).collect();
        let view = self.inner.etcd.look(&looks).await?;
        for (id, names) in group {
            let manifest = manifest(&view, &keys.archived(id))?;
            let referred: BTreeSet<&str> = manifest.segments.iter().map(|segment| segment.object.as_str()).collect();
            for name in names {
                if !referred.contains(name.rsplit('/').next().unwrap_or_default()) {
                    self.objects()?.delete(name).await?;
                    tracing::info!(name, "a segment that nothing refers to is removed");
                    collected.removed += 1;
                }
            }
        }
        Ok(())
    }

    /// Ends holds of sessions that are gone, and of events that were never stored.
    async fn release_holds(&self, limit: Timestamp) -> Result<()> {
        let keys = &self.inner.keys;
        let end = format!("{}0", keys.payloads().trim_end_matches('/'));
        let mut from = keys.payloads();
        loop {
            let count = i64::try_from(SESSIONS_TOGETHER).unwrap_or(i64::MAX);
            let view = self.inner.etcd.look(&[Look::Range(from.clone(), end.clone(), count)]).await?;
            let prefix = keys.payloads();
            let held: Vec<_> = view.prefix(&prefix).collect();
            let Some(last) = held.last() else { return Ok(()) };
            from = format!("{}\0", last.key);
            let of = held.iter().filter_map(|kv| keys.held(&kv.key).map(|(_, sha256, id)| (kv, sha256, id)));
            let of: Vec<_> = of.collect();
            let looks: BTreeSet<String> = of.iter().flat_map(|(_, _, id)| [keys.meta(id), keys.deleting(id)]).collect();
            let looks: Vec<Look> = looks.into_iter().map(Look::Key).collect();
            let sessions = self.inner.etcd.look(&looks).await?;
            for (kv, sha256, id) in of {
                if sessions.get(&keys.meta(&id)).is_none() && sessions.get(&keys.deleting(&id)).is_none() {
                    let guards = vec![Guard::Absent(keys.meta(&id)), Guard::Absent(keys.deleting(&id))];
                    self.release(&kv.key, kv.mod_revision, guards).await?;
                    continue;
                }
                let hold: Hold = kv.decode()?;
                if !hold.confirmed && hold.since <= limit && !self.refers(&id, sha256).await? {
                    self.release(&kv.key, kv.mod_revision, Vec::new()).await?;
                }
            }
        }
    }

    /// Removes a hold that is as it was, if the guards hold.
    async fn release(&self, key: &str, revision: i64, guards: Vec<Guard>) -> Result<()> {
        let mut write = Write { guards, makes_room: true, ..Write::default() };
        write.guard(Guard::Unchanged(key.to_owned(), revision)).delete(key.to_owned());
        let look = [Look::Key(key.to_owned())];
        let plan = |view: &View| match view.get(key) {
            Some(held) if held.mod_revision == revision => Ok(Plan::Write(write.clone(), ())),
            _ => Ok(Plan::Done(())),
        };
        match self.inner.etcd.carry_out(&look, None, plan).await {
            // The session came to be meanwhile; the next collection looks again.
            Err(StoreError::Unavailable(reason)) => {
                tracing::debug!(key, reason, "a payload stays held for now");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    /// Whether an event of the session, in its log or its inbox, refers to this payload.
    async fn refers(&self, id: &SessionId, sha256: &str) -> Result<bool> {
        let refers = |body: &_| payload::reference(body).is_some_and(|reference| reference.sha256 == sha256);
        let keys = &self.inner.keys;
        // The inbox comes first: what is promoted meanwhile is in the log then.
        let looks = [Look::Key(keys.meta(id)), Look::Key(keys.wake(id)), Look::Prefix(keys.inboxes(id))];
        let view = self.inner.etcd.look(&looks).await?;
        let place: Place<'_> = self.place(id);
        let queued = match plan::inbox(&place, &view) {
            Ok(inbox) => inbox,
            Err(StoreError::NotFound(_)) => return Ok(true),
            Err(error) => return Err(error),
        };
        if queued.items.iter().any(|item| refers(&item.event.body)) {
            return Ok(true);
        }
        let view = self.inner.etcd.look(&[Look::Key(keys.head(id)), Look::Key(keys.meta(id))]).await?;
        let Some(meta) = view.get(&keys.meta(id)) else { return Ok(true) };
        let mut next = base(&meta.decode::<SessionMeta>()?).saturating_add(1);
        let head = place.head(&view)?.seq;
        while next <= head {
            let last = head.min(next.saturating_add(PAGE - 1));
            if self.stored_of(id, next..=last).await?.iter().any(|(record, _)| refers(&record.event.body)) {
                return Ok(true);
            }
            next = last.saturating_add(1);
        }
        Ok(false)
    }

    async fn collect_payloads(&self, limit: Timestamp, collected: &mut Collected) -> Result<()> {
        let prefix = format!("{}/payload", self.object_prefix().await?);
        let mut listed = self.objects()?.list(&prefix);
        while let Some(object) = listed.next().await {
            let object = object?;
            collected.payloads += 1;
            collected.payload_bytes = collected.payload_bytes.saturating_add(object.bytes);
            let mut parts = object.name.rsplit('/');
            let (Some(sha256), Some(namespace)) = (parts.next(), parts.next()) else { continue };
            if object.modified <= limit && self.doom(namespace, sha256).await? {
                self.remove_doomed(namespace, sha256, collected).await?;
            }
        }
        Ok(())
    }

    /// Sees to it that nobody begins to hold a payload, if nobody does.
    async fn doom(&self, namespace: &str, sha256: &str) -> Result<bool> {
        let keys = &self.inner.keys;
        let (holders, doomed) = (keys.holders(namespace, sha256), keys.doomed(namespace, sha256));
        let plan = |view: &View| {
            if view.count(&holders) > 0 {
                return Ok(Plan::Done(false));
            }
            let mut write = Write::default();
            write.guard(Guard::NoneUnder(holders.clone())).put(doomed.clone(), "");
            Ok(Plan::Write(write, true))
        };
        Ok(self.inner.etcd.carry_out(&[Look::Count(holders.clone())], None, plan).await?.0)
    }

    async fn remove_doomed(&self, namespace: &str, sha256: &str, collected: &mut Collected) -> Result<()> {
        let name = payloads::object_name(&self.object_prefix().await?, namespace, sha256);
        self.objects()?.delete(&name).await?;
        let doomed = self.inner.keys.doomed(namespace, sha256);
        self.inner.etcd.remove_range(&doomed, &format!("{doomed}\0")).await?;
        tracing::info!(name, "a payload that nothing refers to is removed");
        collected.removed += 1;
        Ok(())
    }

    /// Goes on where a collection was broken off.
    async fn finish_doomed(&self, collected: &mut Collected) -> Result<()> {
        let prefix = self.inner.keys.doomed_prefix();
        let most = i64::try_from(TOGETHER).unwrap_or(i64::MAX);
        for key in self.inner.etcd.keys(&prefix, most).await? {
            if let Some((namespace, sha256)) = key.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) {
                self.remove_doomed(namespace, sha256, collected).await?;
            }
        }
        Ok(())
    }
}
