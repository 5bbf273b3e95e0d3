//! A bounded map whose entries end by themselves.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A bounded map whose entries end by themselves. When it is full, what has ended goes first, then anything.
#[derive(Debug)]
pub struct TtlCache<K, V> {
    entries: Mutex<HashMap<K, (Instant, V)>>,
    capacity: usize,
}

impl<K: Eq + Hash + Clone, V: Clone> TtlCache<K, V> {
    /// A cache of at most `capacity` entries.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { entries: Mutex::default(), capacity }
    }

    /// The value, if it was put in and has not ended.
    pub fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    /// Puts a value in that ends after `ttl`.
    pub fn put(&self, key: K, value: V, ttl: Duration) {
        let now = Instant::now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.capacity && !entries.contains_key(&key) {
            entries.retain(|_, (until, _)| *until > now);
            if entries.len() >= self.capacity
                && let Some(victim) = entries.keys().next().cloned()
            {
                entries.remove(&victim);
            }
        }
        entries.insert(key, (now + ttl, value));
    }

    /// Takes the value out.
    pub fn remove(&self, key: &K) -> Option<V> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::TtlCache;

    #[tokio::test(start_paused = true)]
    async fn entries_end_and_never_exceed_the_capacity() {
        let cache = TtlCache::new(2);
        cache.put("a", 1, Duration::from_secs(1));
        cache.put("b", 2, Duration::from_secs(10));
        assert_eq!((cache.get(&"a"), cache.get(&"b")), (Some(1), Some(2)));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(cache.get(&"a"), None);
        cache.put("c", 3, Duration::from_secs(10));
        assert_eq!((cache.get(&"b"), cache.get(&"c")), (Some(2), Some(3)), "what has ended went first");
        cache.put("d", 4, Duration::from_secs(10));
        let left = ["b", "c"].iter().filter(|key| cache.get(key).is_some()).count();
        assert_eq!((left, cache.get(&"d")), (1, Some(4)));
        assert_eq!(cache.remove(&"d"), Some(4));
        assert_eq!(cache.get(&"d"), None);
    }
}
