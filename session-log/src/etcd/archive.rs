//! Moving old events to the object store.
//!
//! Each step may be the last one of this process. The segment is written under a name that is used once, and read back
//! and checked; then one transaction, which requires the manifest to be as it was, puts the new manifest and removes the
//! records' keys. Before it everything is where it was, and an object without a reference is left for the collection;
//! after it everything is in the segment.

use jiff::{SignedDuration, Timestamp};
use longhand_protocol::{EventId, SessionId};

use super::EtcdStore;
use super::cold::{base, manifest, object_name, on_cpu};
use super::plan::Plan;
use super::view::{Look, View};
use super::write::{Change, Guard, Write};
use crate::archive::manifest::{Manifest, Segment, fitting, reach};
use crate::archive::segment::{self, Line};
use crate::archive::{ArchivePolicy, Reach};
use crate::objects::payload;
use crate::record::{Head, encode, hash};
use crate::store::{Result, SessionMeta, StoreError};

/// Records that are read at once.
const PAGE: u64 = 256;
/// Identifiers that are forgotten in one transaction.
const FORGOTTEN_AT_ONCE: usize = 50;

/// A segment that was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// How many events left etcd.
    pub events: u64,
    /// Bytes that they took there, without their keys.
    pub raw_bytes: u64,
    /// Size of the object.
    pub bytes: u64,
}

/// What is known of a session before a segment is made.
struct Before {
    meta: SessionMeta,
    head: Head,
    manifest: Manifest,
    /// The manifest is as it was, or there is still none, and so is the session: it may be another one of the same
    /// identifier.
    unchanged: [Guard; 2],
}

impl EtcdStore {
    /// Moves the session's oldest events to the object store, at most one segment of them; `None` if none are to go.
    /// Safe at any time, also when several do it at once: one of them wins.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the object store or etcd is away or another has archived meanwhile: nothing is lost
    /// then, and it may be tried again. [`StoreError::Corrupt`] if what is stored is not whole.
    pub async fn archive_segment(
        &self,
        id: &SessionId,
        policy: &ArchivePolicy,
        wanted: Reach,
    ) -> Result<Option<Archived>> {
        let keys = &self.inner.keys;
        let Some(before) = self.before(id).await? else { return Ok(None) };
        let through = before.manifest.through(base(&before.meta));
        let Some(last) = reach(policy, wanted, through, before.head.seq) else { return Ok(None) };
        let replaced = before.manifest.segments.last().filter(|last| last.is_small(policy));
        let mut lines = match replaced {
            Some(small) => self.read_segment(id, small).await?.ok_or_else(|| StoreError::Corrupt {
                key: keys.archived(id),
                reason: format!("its segment {} is gone", small.object),
            })?,
            None => Vec::new(),
        };
        let old = lines.len();
        self.collect_lines(id, policy, through.saturating_add(1), last, &mut lines).await?;
        let (Some(newest), true) = (lines.last().map(|line| line.record.seq), lines.len() > old) else {
            return Ok(None);
        };
        let first = lines.first().map_or(newest, |line| line.record.seq);
        let start = match (replaced, before.manifest.segments.last()) {
            (Some(small), _) => small.before.clone(),
            (None, Some(last)) => last.hash.clone(),
            // The first of a fork follows a record of its parent.
            (None, None) => lines.first().map(|line| line.record.prev_hash.clone()).unwrap_or_default(),
        };
        let raw_bytes = lines[old..].iter().map(segment::size).sum();
        let written = self.write_segment(id, first, start, lines).await?;
        let archived = Archived { events: newest.saturating_sub(through), raw_bytes, bytes: written.bytes };
        let mut next = before.manifest.clone();
        next.segments.truncate(next.segments.len() - usize::from(replaced.is_some()));
        next.segments.push(written);
        let mut write = Write { makes_room: true, ..Write::default() };
        write
            .changes
            .push(Change::DeleteRange(keys.log(id, through.saturating_add(1)), keys.log(id, newest.saturating_add(1))));
        self.replace_manifest(id, &before, &next, write).await?;
        Ok(Some(archived))
    }

    async fn before(&self, id: &SessionId) -> Result<Option<Before>> {
        let keys = &self.inner.keys;
        let looks = [keys.meta(id), keys.archived(id)].map(Look::Key);
        let looks = looks.into_iter().chain(self.place(id).head_looks()).collect::<Vec<_>>();
        let view = self.inner.etcd.look(&looks).await?;
        let Some(meta) = view.get(&keys.meta(id)) else { return Ok(None) };
        // Of no key at all, etcd compares revision 0.
        let unchanged = [keys.archived(id), keys.meta(id)].map(|key| {
            let revision = view.get(&key).map_or(0, |kv| kv.mod_revision);
            Guard::Unchanged(key, revision)
        });
        Ok(Some(Before {
            meta: meta.decode()?,
            head: self.place(id).head(&view)?,
            manifest: manifest(&view, &keys.archived(id))?,
            unchanged,
        }))
    }

    /// Reads records that are in etcd, from number `next` to `last`, until the segment is full.
    async fn collect_lines(
        &self,
        id: &SessionId,
        policy: &ArchivePolicy,
        next: u64,
        last: u64,
        lines: &mut Vec<Line>,
    ) -> Result<()> {
        let mut next = next;
        while next <= last {
            let page = self.stored_of(id, next..=last.min(next.saturating_add(PAGE - 1))).await?;
            let page: Vec<Line> = page.into_iter().map(|(record, bytes)| Line { record, bytes }).collect();
            let events = u64::try_from(lines.len()).unwrap_or(u64::MAX);
            let fits = fitting(policy, events, lines.iter().map(segment::size).sum(), &page);
            let full = fits < page.len();
            next = next.saturating_add(PAGE);
            lines.extend(page.into_iter().take(fits));
            if full {
                break;
            }
        }
        Ok(())
    }

    /// Writes a segment and reads it back, which checks it.
    async fn write_segment(&self, id: &SessionId, first: u64, before: String, lines: Vec<Line>) -> Result<Segment> {
        let key = self.inner.keys.logs(id);
        let (extent, content) = on_cpu(move || {
            let extent = segment::extent(&key, first, &before, &lines)?;
            Ok((extent, segment::encode(&lines)?))
        })
        .await?;
        let nonce = EventId::generate().to_string();
        let nonce = nonce.rsplit('_').next().unwrap_or_default();
        let object = format!("{first:016x}-{:016x}-{nonce}.ndjson.zst", extent.last);
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let segment = Segment::new(extent, object, bytes, hash(&content));
        let name = object_name(&self.object_prefix().await?, id, &segment.object);
        self.objects()?.put(&name, content.into()).await?;
        match self.read_segment(id, &segment).await? {
            Some(_) => Ok(segment),
            None => Err(StoreError::Unavailable(format!("{name} was written and is not there"))),
        }
    }

    /// Puts a manifest in place of the one that was read, and carries out `with`, in one transaction.
    async fn replace_manifest(&self, id: &SessionId, before: &Before, next: &Manifest, with: Write) -> Result<()> {
        let keys = &self.inner.keys;
        let (meta, archived) = (keys.meta(id), keys.archived(id));
        let value = encode(next)?;
        let plan = |view: &View| {
            if view.get(&archived).is_some_and(|kv| kv.value == value) {
                return Ok(Plan::Done(()));
            }
            if view.get(&meta).is_none() {
                return Err(StoreError::NotFound(id.clone()));
            }
            if !before.unchanged.iter().all(|guard| guard.holds(view)) {
                return Err(StoreError::Unavailable(
                    "another has archived meanwhile, or the session changed".to_owned(),
                ));
            }
            let mut write = with.clone();
            write.guards.extend(before.unchanged.clone());
            write.put(archived.clone(), value.clone());
            Ok(Plan::Write(write, ()))
        };
        let looks = [meta.clone(), archived.clone()].map(Look::Key);
        self.inner.etcd.carry_out(&looks, None, plan).await?;
        Ok(())
    }

    /// Removes the keys by which repetitions of archived events are recognised, of those that entered the log more than
    /// `memory` ago; at most those of one segment. Returns how many events were forgotten.
    ///
    /// # Errors
    /// As [`EtcdStore::archive_segment`].
    pub async fn forget(&self, id: &SessionId, memory: SignedDuration, now: Timestamp) -> Result<u64> {
        let keys = &self.inner.keys;
        let Some(before) = self.before(id).await? else { return Ok(0) };
        let known = before.manifest.forgotten.max(base(&before.meta));
        let Some(segment) = before.manifest.find(known.saturating_add(1)) else { return Ok(0) };
        let limit = now.checked_sub(memory).unwrap_or(Timestamp::MIN);
        let Some(lines) = self.read_segment(id, segment).await? else { return Ok(0) };
        let old: Vec<Line> = lines
            .into_iter()
            .filter(|line| line.record.seq > known)
            .take_while(|line| line.record.event.processed_at.is_none_or(|time| time < limit))
            .collect();
        let Some(last) = old.last().map(|line| line.record.seq) else { return Ok(0) };
        for some in old.chunks(FORGOTTEN_AT_ONCE) {
            let mut write = Write { makes_room: true, ..Write::default() };
            write.guards.extend(before.unchanged.clone());
            for line in some {
                let event = &line.record.event;
                write.delete(keys.idem(id, &event.id));
                if let Some(call) = payload::answered(&event.body) {
                    write.delete(keys.done(id, &call));
                }
            }
            let looks = [keys.archived(id), keys.meta(id)].map(Look::Key);
            let plan = |view: &View| {
                let unchanged = before.unchanged.iter().all(|guard| guard.holds(view));
                Ok(if unchanged { Plan::Write(write.clone(), ()) } else { Plan::Done(()) })
            };
            self.inner.etcd.carry_out(&looks, None, plan).await?;
        }
        let next = Manifest { forgotten: last, ..before.manifest.clone() };
        self.replace_manifest(id, &before, &next, Write::default()).await?;
        Ok(last.saturating_sub(known))
    }
}
