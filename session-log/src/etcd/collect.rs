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
use super::files::uploaded_by;
use super::payloads::{self, Hold};
use super::plan::{self, Place, Plan};
use super::view::{Kv, Look, View};
use super::write::{Guard, Write};
use crate::objects::payload;
use crate::record::encode;
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
    /// Files that clients have uploaded, in the object store.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Objects that nothing referred to, and that are gone.
    pub removed: u64,
}

impl EtcdStore {
    /// Removes objects that nothing has referred to for longer than `grace`; files that are being uploaded have two hours at
    /// least.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the object store or etcd is away; what was removed until then is gone.
    pub async fn collect(&self, grace: SignedDuration, now: Timestamp) -> Result<Collected> {
        let limit = now.checked_sub(grace).unwrap_or(Timestamp::MIN);
        let mut collected = Collected::default();
        let uploaded = uploaded_by(limit, now);
        self.objects()?.remove_unfinished(uploaded).await?;
        self.finish_doomed(&mut collected).await?;
        self.collect_segments(limit, &mut collected).await?;
        self.release_holds(limit).await?;
        self.collect_payloads(limit, &mut collected).await?;
        self.collect_files(uploaded, &mut collected).await?;
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
            let of = held.iter().filter_map(|kv| keys.held(&kv.key).map(|(_, sha256, id)| (*kv, sha256, id)));
            let mut of_sessions: BTreeMap<SessionId, Vec<(&Kv, &str)>> = BTreeMap::new();
            of.for_each(|(kv, sha256, id)| of_sessions.entry(id).or_default().push((kv, sha256)));
            let looks = of_sessions.keys().flat_map(|id| self.signs_of(id)).map(Look::Key).collect::<Vec<_>>();
            let sessions = self.inner.etcd.look(&looks).await?;
            for (id, held) in of_sessions {
                if self.signs_of(&id).iter().all(|key| sessions.get(key).is_none()) {
                    for (kv, _) in held {
                        let guards = self.signs_of(&id).map(Guard::Absent).to_vec();
                        self.change_hold(kv, guards, None).await?;
                    }
                } else if sessions.get(&keys.meta(&id)).is_some() {
                    self.review_holds(&id, held, limit).await?;
                }
            }
        }
    }

    /// The keys that a session has one of as long as anything of it is there.
    fn signs_of(&self, id: &SessionId) -> [String; 3] {
        let keys = &self.inner.keys;
        [keys.meta(id), keys.deleting(id), keys.importing(id)]
    }

    /// Finds out whether a session refers to payloads of which that is not known, though they are old enough for it.
    async fn review_holds(&self, id: &SessionId, held: Vec<(&Kv, &str)>, limit: Timestamp) -> Result<()> {
        let mut doubtful = Vec::new();
        for (kv, sha256) in held {
            let hold: Hold = kv.decode()?;
            if !hold.confirmed && hold.since <= limit {
                doubtful.push((kv, sha256, hold));
            }
        }
        if doubtful.is_empty() {
            return Ok(());
        }
        let wanted = doubtful.iter().map(|(_, sha256, _)| *sha256).collect();
        let Some(referred) = self.referred(id, wanted).await? else { return Ok(()) };
        for (kv, sha256, hold) in doubtful {
            let confirmed = Hold { confirmed: true, ..hold };
            let next = referred.contains(sha256).then(|| encode(&confirmed)).transpose()?;
            self.change_hold(kv, Vec::new(), next).await?;
        }
        Ok(())
    }

    /// Changes a hold that is as it was, or removes it, if the guards hold.
    async fn change_hold(&self, held: &Kv, guards: Vec<Guard>, next: Option<Vec<u8>>) -> Result<()> {
        let key = &held.key;
        let mut write = Write { guards, makes_room: next.is_none(), ..Write::default() };
        write.guard(Guard::Unchanged(key.clone(), held.mod_revision));
        match next {
            Some(value) => write.put(key.clone(), value),
            None => write.delete(key.clone()),
        };
        let look = [Look::Key(key.clone())];
        let plan = |view: &View| match view.get(key) {
            Some(now) if now.mod_revision == held.mod_revision => Ok(Plan::Write(write.clone(), ())),
            _ => Ok(Plan::Done(())),
        };
        match self.inner.etcd.carry_out(&look, None, plan).await {
            // The session came to be meanwhile; the next collection looks again.
            Err(StoreError::Unavailable(reason)) => {
                tracing::debug!(key, reason, "a payload stays held as it is for now");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    /// Which of these payloads an event of the session, in its log or its inbox, refers to; `None` if the session went.
    async fn referred<'a>(&self, id: &SessionId, wanted: BTreeSet<&'a str>) -> Result<Option<BTreeSet<&'a str>>> {
        let keys = &self.inner.keys;
        let mut found = BTreeSet::new();
        let mut take = |body: &_| {
            if let Some(reference) = payload::reference(body) {
                found.extend(wanted.get(reference.sha256.as_str()));
            }
            found.len() == wanted.len()
        };
        // The inbox comes first: what is promoted meanwhile is in the log then.
        let looks = [Look::Key(keys.meta(id)), Look::Key(keys.wake(id)), Look::Prefix(keys.inboxes(id))];
        let view = self.inner.etcd.look(&looks).await?;
        let place: Place<'_> = self.place(id);
        let queued = match plan::inbox(&place, &view) {
            Ok(inbox) => inbox,
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut all = queued.items.iter().any(|item| take(&item.event.body));
        let [head, summary] = place.head_looks();
        let view = self.inner.etcd.look(&[head, summary, Look::Key(keys.meta(id))]).await?;
        let Some(meta) = view.get(&keys.meta(id)) else { return Ok(None) };
        let mut next = base(&meta.decode::<SessionMeta>()?).saturating_add(1);
        let head = place.head(&view)?.seq;
        while next <= head && !all {
            let last = head.min(next.saturating_add(PAGE - 1));
            all = self.stored_of(id, next..=last).await?.iter().any(|(record, _)| take(&record.event.body));
            next = last.saturating_add(1);
        }
        Ok(Some(found))
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
