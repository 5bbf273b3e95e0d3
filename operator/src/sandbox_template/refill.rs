//! When a pool that was taken from is filled again.
//!
//! Sandboxes come in bursts. Pods that are made meanwhile would take the API server and the nodes from those that wait for what is
//! there, and each pod that is taken would have the template's status written anew.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So long after a pod was taken the next is made. A burst is over by then, and a pod takes longer than this to start.
const AFTER: Duration = Duration::from_millis(500);
/// What is known of a pool that nobody has looked at for so long is forgotten.
const KEPT: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Pool {
    /// How many pods had been taken when the pool was filled last.
    taken: usize,
    /// When it was noticed that there are more.
    since: Option<Instant>,
    looked: Instant,
}

/// What this process knows of all pools, by the UIDs of their templates.
#[derive(Debug, Default)]
pub(super) struct Refills(Mutex<HashMap<String, Pool>>);

impl Refills {
    /// How long to leave the pool alone, of whose pods there are `taken` that sandboxes have.
    pub(super) fn wait(&self, template: &str, taken: usize) -> Option<Duration> {
        let now = Instant::now();
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pool) = pools.get_mut(template) else {
            pools.retain(|_, pool| now.duration_since(pool.looked) < KEPT);
            pools.insert(template.to_owned(), Pool { taken, since: None, looked: now });
            return None;
        };
        pool.looked = now;
        if taken > pool.taken {
            let left = AFTER.saturating_sub(now.duration_since(*pool.since.get_or_insert(now)));
            if !left.is_zero() {
                return Some(left);
            }
        }
        (pool.taken, pool.since) = (taken, None);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{AFTER, KEPT, Refills};

    #[tokio::test(start_paused = true)]
    async fn a_pool_is_filled_a_moment_after_it_was_taken_from_however_many_come() {
        let refills = Refills::default();
        assert_eq!(refills.wait("pool", 3), None, "nobody knows since when");
        assert_eq!(refills.wait("pool", 4), Some(AFTER));
        tokio::time::advance(AFTER / 2).await;
        assert_eq!(refills.wait("pool", 9), Some(AFTER / 2), "those that come later do not put it off");
        tokio::time::advance(AFTER / 2).await;
        assert_eq!(refills.wait("pool", 12), None);
        assert_eq!(refills.wait("pool", 12), None);
        assert_eq!(refills.wait("pool", 13), Some(AFTER), "the next burst");
        assert_eq!(refills.wait("pool", 2), None, "sandboxes that end are no burst");
    }

    #[tokio::test(start_paused = true)]
    async fn pools_that_are_gone_are_forgotten() {
        let refills = Refills::default();
        refills.wait("gone", 0);
        tokio::time::advance(KEPT).await;
        refills.wait("pool", 0);
        assert_eq!(refills.0.lock().unwrap().len(), 1);
    }
}
