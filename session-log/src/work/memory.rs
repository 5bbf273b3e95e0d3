//! Pieces of work in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use longhand_protocol::SessionId;

use super::{Queue, Versioned, WorkItem, WorkStore};
use crate::store::Result;

#[derive(Default)]
struct State {
    items: BTreeMap<(Queue, String), Versioned>,
    latest: BTreeMap<(Queue, SessionId), String>,
    version: i64,
}

impl State {
    fn put(&mut self, queue: &Queue, item: &WorkItem) {
        self.version += 1;
        let stored = Versioned { item: item.clone(), version: self.version };
        self.items.insert((queue.clone(), item.id.clone()), stored);
    }

    fn has(&self, queue: &Queue, id: &str, version: i64) -> bool {
        self.items.get(&(queue.clone(), id.to_owned())).is_some_and(|stored| stored.version == version)
    }
}

/// Pieces of work in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryWork(Arc<Mutex<State>>);

impl MemoryWork {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl WorkStore for MemoryWork {
    async fn items(&self, queue: &Queue) -> Result<Vec<Versioned>> {
        let state = self.state();
        let mut items: Vec<Versioned> =
            state.items.iter().filter(|((of, _), _)| of == queue).map(|(_, stored)| stored.clone()).collect();
        items.sort_by(|a, b| (a.item.created_at, &a.item.id).cmp(&(b.item.created_at, &b.item.id)));
        Ok(items)
    }

    async fn item(&self, queue: &Queue, id: &str) -> Result<Option<Versioned>> {
        Ok(self.state().items.get(&(queue.clone(), id.to_owned())).cloned())
    }

    async fn latest(&self, queue: &Queue, session: &SessionId) -> Result<Option<Versioned>> {
        let state = self.state();
        let id = state.latest.get(&(queue.clone(), session.clone()));
        Ok(id.and_then(|id| state.items.get(&(queue.clone(), id.clone())).cloned()))
    }

    async fn insert(&self, queue: &Queue, item: &WorkItem, before: Option<&str>) -> Result<bool> {
        let mut state = self.state();
        let key = (queue.clone(), item.session.clone());
        if state.latest.get(&key).map(String::as_str) != before {
            return Ok(false);
        }
        state.latest.insert(key, item.id.clone());
        state.put(queue, item);
        Ok(true)
    }

    async fn replace(&self, queue: &Queue, version: i64, item: &WorkItem) -> Result<bool> {
        let mut state = self.state();
        let fits = state.has(queue, &item.id, version);
        if fits {
            state.put(queue, item);
        }
        Ok(fits)
    }

    async fn remove(&self, queue: &Queue, old: &Versioned) -> Result<bool> {
        let mut state = self.state();
        let fits = state.has(queue, &old.item.id, old.version);
        if fits {
            state.items.remove(&(queue.clone(), old.item.id.clone()));
            let key = (queue.clone(), old.item.session.clone());
            if state.latest.get(&key) == Some(&old.item.id) {
                state.latest.remove(&key);
            }
        }
        Ok(fits)
    }

    async fn count(&self, queue: &Queue) -> Result<usize> {
        Ok(self.state().items.keys().filter(|(of, _)| of == queue).count())
    }
}
