//! How much somebody may ask: a bucket of tokens for each, in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What a bucket holds, and how fast it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come in each second; none is no limit.
    pub per_second: u32,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

/// A bucket for each key.
///
/// A bucket is the time at which it will be full again, so that one that is full need not be kept.
#[derive(Debug)]
pub struct Limiter<K> {
    rate: Rate,
    full_at: Mutex<HashMap<K, Instant>>,
    capacity: usize,
}

impl<K: Eq + Hash + Clone> Limiter<K> {
    /// At most `capacity` buckets. Should all of them be in use, one is forgotten for each new one.
    #[must_use]
    pub fn new(rate: Rate, capacity: usize) -> Self {
        Self { rate, full_at: Mutex::default(), capacity }
    }

    /// Takes `tokens` from a bucket; what is more than it can ever hold is not counted.
    ///
    /// # Errors
    /// How long to wait until there are as many.
    pub fn take(&self, key: &K, tokens: u32) -> Result<(), Duration> {
        if self.rate.per_second == 0 {
            return Ok(());
        }
        let filling = |tokens: u32| Duration::from_secs(tokens.into()) / self.rate.per_second;
        let burst = self.rate.burst.max(1);
        let now = Instant::now();
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let known = buckets.get(key).copied();
        let full_at = known.unwrap_or(now).max(now) + filling(tokens.min(burst));
        let wait = full_at.duration_since(now).saturating_sub(filling(burst));
        if !wait.is_zero() {
            return Err(wait);
        }
        if known.is_none() && buckets.len() >= self.capacity {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= self.capacity
                && let Some(victim) = buckets.keys().next().cloned()
            {
                buckets.remove(&victim);
            }
        }
        buckets.insert(key.clone(), full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::{Limiter, Rate};

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills() {
        let limiter = Limiter::new(Rate { per_second: 10, burst: 3 }, 8);
        for _ in 0..3 {
            assert_eq!(limiter.take(&"a", 1), Ok(()));
        }
        assert_eq!(limiter.take(&"a", 1), Err(Duration::from_millis(100)));
        assert_eq!(limiter.take(&"b", 1), Ok(()), "another's bucket");
        advance(Duration::from_millis(100)).await;
        assert_eq!(limiter.take(&"a", 1), Ok(()));
        assert_eq!(limiter.take(&"a", 2), Err(Duration::from_millis(200)), "a refusal takes nothing");
        assert_eq!(limiter.take(&"a", 2), Err(Duration::from_millis(200)));
        advance(Duration::from_secs(60)).await;
        assert_eq!(limiter.take(&"a", 9), Ok(()), "a full bucket is enough for anything");
        assert_eq!(limiter.take(&"a", 1), Err(Duration::from_millis(100)), "and holds no more than a burst");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_full_buckets_go_first() {
        let limiter = Limiter::new(Rate { per_second: 1, burst: 2 }, 2);
        limiter.take(&1, 1).unwrap();
        advance(Duration::from_secs(1)).await;
        limiter.take(&2, 2).unwrap();
        limiter.take(&3, 1).unwrap();
        assert_eq!(limiter.take(&2, 1), Err(Duration::from_secs(1)), "1 was full again and went");
        limiter.take(&4, 1).unwrap();
        assert!(limiter.full_at.lock().unwrap().len() <= 2);
    }

    #[test]
    fn no_rate_is_no_limit() {
        let limiter = Limiter::new(Rate { per_second: 0, burst: 0 }, 1);
        for _ in 0..1_000 {
            assert_eq!(limiter.take(&(), 1), Ok(()));
        }
    }
}
