//! Which files there are, under the store's prefix: `file/{namespace}/{file}`. Identifiers grow with time, so that their
//! order is the one in which files were uploaded.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::FileId;

use super::EtcdStore;
use super::collect::Collected;
use super::plan::Plan;
use super::view::{Kv, Look, View};
use super::write::{Guard, Write};
use crate::files::{FileIndex, Span, StoredFile, object_name};
use crate::record::encode;
use crate::store::Result;

/// Objects whose entries are looked for in one read, of etcd's 128 operations.
const TOGETHER: usize = 64;
/// A content is listed from the beginning of its upload on, which takes an hour at the most, and has its entry after the end.
const GRACE: SignedDuration = SignedDuration::from_hours(2);
/// Entries that are read at once.
const PAGE: i64 = 256;

#[async_trait]
impl FileIndex for EtcdStore {
    async fn prefix(&self) -> Result<Arc<str>> {
        self.object_prefix().await
    }

    async fn add(&self, namespace: &str, file: &StoredFile) -> Result<()> {
        let key = self.inner.keys.file(namespace, &file.id);
        let value = encode(file)?;
        let plan = |view: &View| {
            // Nobody else has its identifier: an attempt whose answer was lost has written it.
            if view.get(&key).is_some() {
                return Ok(Plan::Done(()));
            }
            let mut write = Write::default();
            write.guard(Guard::Absent(key.clone())).put(key.clone(), value.clone());
            Ok(Plan::Write(write, ()))
        };
        self.inner.etcd.carry_out(&[Look::Key(key.clone())], None, plan).await?;
        Ok(())
    }

    async fn get(&self, namespace: &str, id: &FileId) -> Result<Option<StoredFile>> {
        let key = self.inner.keys.file(namespace, id);
        let view = self.inner.etcd.look(&[Look::Key(key.clone())]).await?;
        view.get(&key).map(Kv::decode).transpose()
    }

    async fn page(&self, namespace: &str, span: &Span, limit: usize) -> Result<Vec<StoredFile>> {
        let keys = &self.inner.keys;
        let prefix = keys.files(namespace);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // What comes before in the order of a page is newer, and greater.
        let from = span.before.as_ref().map_or_else(|| prefix.clone(), |id| format!("{}\0", keys.file(namespace, id)));
        let end = || format!("{}0", prefix.trim_end_matches('/'));
        let to = span.after.as_ref().map_or_else(end, |id| keys.file(namespace, id));
        if from >= to {
            return Ok(Vec::new());
        }
        // For the last ones etcd reads the whole range, and sorts it: see [`crate::files`] for how many do so at once.
        let look = if span.is_backwards() { Look::Range(from, to, limit) } else { Look::Last(from, to, limit) };
        let view = self.inner.etcd.look(&[look]).await?;
        let mut files = view.prefix(&prefix).map(Kv::decode).collect::<Result<Vec<StoredFile>>>()?;
        files.reverse();
        Ok(files)
    }

    async fn count(&self, namespace: &str) -> Result<u64> {
        let prefix = self.inner.keys.files(namespace);
        let view = self.inner.etcd.look(&[Look::Count(prefix.clone())]).await?;
        Ok(u64::try_from(view.count(&prefix)).unwrap_or(u64::MAX))
    }

    async fn remove(&self, namespace: &str, id: &FileId) -> Result<bool> {
        let key = self.inner.keys.file(namespace, id);
        let plan = |view: &View| {
            let Some(kv) = view.get(&key) else { return Ok(Plan::Done(view.in_doubt)) };
            let mut write = Write { makes_room: true, ..Write::default() };
            write.guard(Guard::Unchanged(key.clone(), kv.mod_revision)).delete(key.clone());
            Ok(Plan::Write(write, true))
        };
        Ok(self.inner.etcd.carry_out(&[Look::Key(key.clone())], None, plan).await?.0)
    }

    async fn all(&self, after: Option<(&str, &FileId)>) -> Result<Vec<(String, StoredFile)>> {
        let keys = &self.inner.keys;
        let prefix = keys.all_files();
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let from = after.map_or_else(|| prefix.clone(), |(namespace, id)| format!("{}\0", keys.file(namespace, id)));
        let view = self.inner.etcd.look(&[Look::Range(from, end, PAGE)]).await?;
        let read = |kv: &Kv| {
            let namespace = kv.key[prefix.len()..].split('/').next().unwrap_or_default();
            Ok((namespace.to_owned(), kv.decode()?))
        };
        view.prefix(&prefix).map(read).collect()
    }
}

/// What was written before this belongs to no upload that is under way, whatever grace others have.
pub(super) fn uploaded_by(limit: Timestamp, now: Timestamp) -> Timestamp {
    limit.min(now.checked_sub(GRACE).unwrap_or(Timestamp::MIN))
}

impl EtcdStore {
    /// Removes contents from before `limit` (see [`uploaded_by`]) that have no entry: an upload was broken off before it, or a
    /// deletion after it.
    pub(super) async fn collect_files(&self, limit: Timestamp, collected: &mut Collected) -> Result<()> {
        let prefix = format!("{}/file", self.object_prefix().await?);
        let mut listed = self.objects()?.list(&prefix).ready_chunks(TOGETHER);
        while let Some(some) = listed.next().await {
            let mut old = BTreeSet::new();
            for object in some {
                let object = object?;
                collected.files += 1;
                collected.file_bytes = collected.file_bytes.saturating_add(object.bytes);
                if object.modified <= limit {
                    old.insert(object.name);
                }
            }
            self.remove_without_entry(&old, collected).await?;
        }
        Ok(())
    }

    async fn remove_without_entry(&self, names: &BTreeSet<String>, collected: &mut Collected) -> Result<()> {
        let (keys, store) = (&self.inner.keys, self.object_prefix().await?);
        let of = |name: &str| {
            let mut parts = name.rsplit('/');
            let (id, namespace) = (parts.next()?.parse::<FileId>().ok()?, parts.next()?);
            let expected = object_name(&store, namespace, id.as_str()) == name;
            expected.then(|| keys.file(namespace, &id))
        };
        let entries: Vec<(&String, String)> = names.iter().filter_map(|name| Some((name, of(name)?))).collect();
        if entries.is_empty() {
            return Ok(());
        }
        let looks: Vec<Look> = entries.iter().map(|(_, key)| Look::Key(key.clone())).collect();
        let view = self.inner.etcd.look(&looks).await?;
        for (name, _) in entries.iter().filter(|(_, key)| view.get(key).is_none()) {
            self.objects()?.delete(name).await?;
            tracing::info!(name, "the content of a file that is not there is removed");
            collected.removed += 1;
        }
        Ok(())
    }
}
