//! Reading what is archived, as if it were not.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use longhand_protocol::SessionId;
use longhand_protocol::event::Record;

use super::EtcdStore;
use super::client::Again;
use super::payloads::is_missing;
use super::view::{Kv, Look, View};
use crate::archive::manifest::{Manifest, Segment};
use crate::archive::segment::{self, Line};
use crate::store::{Result, SessionMeta, StoreError};

/// Segments that are kept in memory after they were read; each is a few MiB.
const KEPT: usize = 4;
/// A segment that is gone was replaced, so the manifest is read again; so many times.
const ATTEMPTS: usize = 4;

/// A segment that was read and checked: its first record's number and its stored records.
#[derive(Debug)]
pub(super) struct Cached {
    object: String,
    first: u64,
    lines: Vec<Vec<u8>>,
}

impl Cached {
    /// The records from `first` to `last` that it holds.
    fn range(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &Vec<u8>)> {
        (self.first..).zip(&self.lines).filter(move |(seq, _)| (first..=last).contains(seq))
    }
}

/// The segments that were read last.
#[derive(Debug, Default)]
pub(super) struct Segments(Mutex<VecDeque<Arc<Cached>>>);

impl Segments {
    fn get(&self, object: &str) -> Option<Arc<Cached>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = kept.iter().position(|cached| cached.object == object)?;
        let found = kept.remove(index)?;
        kept.push_front(Arc::clone(&found));
        Some(found)
    }

    fn put(&self, cached: Arc<Cached>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front(cached);
        kept.truncate(KEPT);
    }
}

/// The name of a segment in a store of this identifier.
pub(super) fn object_name(store: &str, id: &SessionId, object: &str) -> String {
    format!("{store}/session/{id}/{object}")
}

/// The number of the last record that is not the session's own.
pub(super) fn base(meta: &SessionMeta) -> u64 {
    meta.parent.as_ref().map_or(0, |parent| parent.seq)
}

impl EtcdStore {
    /// Every record from `first` to `last`, from the archive and from under their own keys.
    pub(super) async fn merged(&self, id: &SessionId, first: u64, last: u64) -> Result<Vec<(Record, Vec<u8>)>> {
        let mut found: Vec<(Record, Vec<u8>)> = Vec::new();
        for _ in 0..ATTEMPTS {
            let due = found.last().map_or(first, |(record, _)| record.seq.saturating_add(1));
            if self.merge(id, due, last, &mut found).await? {
                return Ok(found);
            }
        }
        let reason = format!("a record of {first} to {last} is missing");
        Err(StoreError::Corrupt { key: self.inner.keys.logs(id), reason })
    }

    /// Adds records from number `due` on, as of one revision; whether that were all.
    async fn merge(&self, id: &SessionId, due: u64, last: u64, found: &mut Vec<(Record, Vec<u8>)>) -> Result<bool> {
        let keys = &self.inner.keys;
        let count = i64::try_from(last.saturating_sub(due).saturating_add(1)).unwrap_or(i64::MAX);
        let range = Look::Range(keys.log(id, due), keys.log_end(id), count);
        let [head, summary] = self.place(id).head_looks();
        let view = self.inner.etcd.look(&[head, summary, Look::Key(keys.archived(id)), range]).await?;
        // A log that was deleted meanwhile has lost its head first.
        self.place(id).head(&view)?;
        let manifest = manifest(&view, &keys.archived(id))?;
        let mut due = due;
        while let Some(segment) = manifest.find(due).filter(|_| due <= last) {
            let Some(cached) = self.segment(id, segment).await? else { return Ok(false) };
            for (seq, bytes) in cached.range(due, last) {
                let Line { record, bytes } = Line::parse(&segment.object, bytes.clone())?;
                due = seq.saturating_add(1);
                found.push((record, bytes));
            }
        }
        let logs = keys.logs(id);
        for kv in view.prefix(&logs) {
            let record: Record = kv.decode()?;
            if record.seq == due && due <= last {
                due = due.saturating_add(1);
                found.push((record, kv.value.clone()));
            }
        }
        Ok(due > last)
    }

    /// A segment that the manifest has just named, read from the object store.
    pub(super) async fn read_whole_segment(&self, id: &SessionId, segment: &Segment) -> Result<Vec<Line>> {
        self.read_segment(id, segment).await?.ok_or_else(|| {
            StoreError::Unavailable("a segment was replaced while an event was looked for; try again".to_owned())
        })
    }

    /// A segment, checked against what the manifest says; `None` if there is no such object any more.
    pub(super) async fn segment(&self, id: &SessionId, segment: &Segment) -> Result<Option<Arc<Cached>>> {
        if let Some(cached) = self.inner.segments.get(&segment.object) {
            return Ok(Some(cached));
        }
        let lines = match self.read_segment(id, segment).await? {
            Some(lines) => lines.into_iter().map(|line| line.bytes).collect(),
            None => return Ok(None),
        };
        let cached = Arc::new(Cached { object: segment.object.clone(), first: segment.first, lines });
        self.inner.segments.put(Arc::clone(&cached));
        Ok(Some(cached))
    }

    /// The same, read from the object store in any case.
    pub(super) async fn read_segment(&self, id: &SessionId, segment: &Segment) -> Result<Option<Vec<Line>>> {
        let name = object_name(&self.object_prefix().await?, id, &segment.object);
        let content = match self.objects()?.get(&name, segment.bytes, &segment.sha256).await {
            Ok(content) => content,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let extent = segment.extent();
        on_cpu(move || segment::decode(&name, &content, &extent)).await.map(Some)
    }
}

/// What takes long enough to hold others up.
pub(super) async fn on_cpu<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(StoreError::Unavailable(format!("a segment could not be worked on: {error}"))),
    }
}

/// The manifest that is in a view; an empty one if nothing is archived.
pub(super) fn manifest(view: &View, key: &str) -> Result<Manifest> {
    view.get(key).map_or_else(|| Ok(Manifest::default()), Kv::decode)
}

/// Records that have left etcd are read from where they are.
impl Again for EtcdStore {
    async fn look_again(&self, looks: &[Look]) -> Result<View> {
        let mut view = self.inner.etcd.look(looks).await?;
        for look in looks {
            let Look::Key(key) = look else { continue };
            if view.get(key).is_some() {
                continue;
            }
            if let Some((id, seq)) = self.inner.keys.record(key) {
                for (_, bytes) in self.merged(&id, seq, seq).await? {
                    view.insert(Kv { key: key.clone(), value: bytes, ..Kv::default() });
                }
            }
        }
        Ok(view)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Cached, KEPT, Segments};

    #[test]
    fn the_segments_that_were_read_last_are_kept() {
        let segments = Segments::default();
        let put = |number: usize| {
            segments.put(Arc::new(Cached { object: number.to_string(), first: 1, lines: vec![] }));
        };
        (0..KEPT).for_each(put);
        assert!(segments.get("0").is_some());
        put(KEPT);
        assert!(segments.get("0").is_some() && segments.get("1").is_none());
        assert_eq!(segments.0.lock().unwrap().len(), KEPT);
    }

    #[test]
    fn a_part_of_a_segment_is_found() {
        let cached =
            Cached { object: String::new(), first: 5, lines: vec![b"5".to_vec(), b"6".to_vec(), b"7".to_vec()] };
        let seqs = |first, last| cached.range(first, last).map(|(seq, _)| seq).collect::<Vec<_>>();
        assert_eq!((seqs(6, 9), seqs(1, 5), seqs(8, 9)), (vec![6, 7], vec![5], vec![]));
    }
}
