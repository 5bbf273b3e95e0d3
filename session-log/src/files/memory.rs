//! Files that are known in memory only.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use longhand_protocol::FileId;

use super::{FileIndex, Span, StoredFile};
use crate::store::Result;

type Known = BTreeMap<String, BTreeMap<FileId, StoredFile>>;

/// Files that are known in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryFiles(Arc<Mutex<Known>>);

impl MemoryFiles {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl FileIndex for MemoryFiles {
    async fn prefix(&self) -> Result<Arc<str>> {
        Ok("memory".into())
    }

    async fn add(&self, namespace: &str, file: &StoredFile) -> Result<()> {
        self.known().entry(namespace.to_owned()).or_default().insert(file.id.clone(), file.clone());
        Ok(())
    }

    async fn get(&self, namespace: &str, id: &FileId) -> Result<Option<StoredFile>> {
        Ok(self.known().get(namespace).and_then(|files| files.get(id)).cloned())
    }

    async fn page(&self, namespace: &str, span: &Span, limit: usize) -> Result<Vec<StoredFile>> {
        let excluded = |id: &Option<FileId>| id.clone().map_or(Bound::Unbounded, Bound::Excluded);
        // The newest first is the greatest first.
        let (from, to) = (excluded(&span.before), excluded(&span.after));
        let empty = matches!((&span.before, &span.after), (Some(from), Some(to)) if from >= to);
        let known = self.known();
        let Some(files) = known.get(namespace).filter(|_| !empty) else { return Ok(Vec::new()) };
        let within = files.range((from, to)).map(|(_, file)| file.clone());
        if span.is_backwards() {
            let mut nearest: Vec<StoredFile> = within.take(limit).collect();
            nearest.reverse();
            return Ok(nearest);
        }
        Ok(within.rev().take(limit).collect())
    }

    async fn count(&self, namespace: &str) -> Result<u64> {
        let count = self.known().get(namespace).map_or(0, BTreeMap::len);
        Ok(u64::try_from(count).unwrap_or(u64::MAX))
    }

    async fn remove(&self, namespace: &str, id: &FileId) -> Result<bool> {
        Ok(self.known().get_mut(namespace).is_some_and(|files| files.remove(id).is_some()))
    }

    async fn all(&self, after: Option<(&str, &FileId)>) -> Result<Vec<(String, StoredFile)>> {
        let known = self.known();
        let all = known.iter().flat_map(|(namespace, files)| files.values().map(move |file| (namespace, file)));
        let later =
            all.skip_while(|(namespace, file)| after.is_some_and(|after| (namespace.as_str(), &file.id) <= after));
        Ok(later.take(super::PAGE).map(|(namespace, file)| (namespace.clone(), file.clone())).collect())
    }
}
