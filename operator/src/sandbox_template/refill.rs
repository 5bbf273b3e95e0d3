//! When a pool that was taken from is filled again.
//!
//! Sandboxes come in bursts. Pods that are made meanwhile would take the API server and the nodes from those that wait for what is
//! there, and each pod that is taken would have the template's status written anew. So a pool is filled when a burst pauses, and kept
//! from running empty until then.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So long after a pod was taken the next is made. A burst is over by then, and a pod takes longer than this to start.
const AFTER: Duration = Duration::from_millis(500);
/// A burst that goes on for so long is how many come: then the pool is filled beside it.
const LONGEST_BURST: Duration = Duration::from_secs(30);
/// Pods that become ready one after the other are looked at together.
const EVERY: Duration = Duration::from_millis(250);
/// What is known of a pool that nobody has looked at for so long is forgotten.
const KEPT: Duration = Duration::from_secs(600);

/// What to do with a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refill {
    /// Nothing for so long.
    Wait(Duration),
    /// Pods are being taken: it is kept from running empty, and looked at again after so long.
    Hold(Duration),
    /// It is filled.
    Fill,
}

#[derive(Clone, Copy, Debug)]
struct Pool {
    /// How many pods had been taken when it was acted on last.
    taken: usize,
    /// When it was noticed that there are more.
    since: Option<Instant>,
    /// How many had been taken by the last look, and when a look found more than the one before.
    newest: (usize, Option<Instant>),
    /// When the burst began that goes on.
    burst: Option<Instant>,
    acted: Instant,
    looked: Instant,
}

/// What this process knows of all pools, by the UIDs of their templates.
#[derive(Debug, Default)]
pub(super) struct Refills(Mutex<HashMap<String, Pool>>);

impl Refills {
    /// What to do with the pool, of whose pods there are `taken` that sandboxes have.
    pub(super) fn next(&self, template: &str, taken: usize) -> Refill {
        let now = Instant::now();
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pool) = pools.get_mut(template) else {
            pools.retain(|_, pool| now.duration_since(pool.looked) < KEPT);
            let pool = Pool { taken, since: None, newest: (taken, None), burst: None, acted: now, looked: now };
            pools.insert(template.to_owned(), pool);
            return Refill::Fill;
        };
        pool.look(taken, now)
    }
}

impl Pool {
    fn look(&mut self, taken: usize, now: Instant) -> Refill {
        self.looked = now;
        let (before, mut last) = self.newest;
        if taken > before {
            last = Some(now);
            self.burst.get_or_insert(now);
        }
        self.newest = (taken, last);
        let wait = match taken > self.taken {
            true => AFTER.saturating_sub(now.duration_since(*self.since.get_or_insert(now))),
            false => EVERY.saturating_sub(now.duration_since(self.acted)),
        };
        if !wait.is_zero() {
            return Refill::Wait(wait);
        }
        (self.taken, self.since, self.acted) = (taken, None, now);
        let goes_on = last.is_some_and(|last| now.duration_since(last) < AFTER);
        if !goes_on {
            self.burst = None;
            return Refill::Fill;
        }
        match self.burst.is_some_and(|burst| now.duration_since(burst) < LONGEST_BURST) {
            true => Refill::Hold(AFTER),
            false => Refill::Fill,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::{AFTER, EVERY, KEPT, LONGEST_BURST, Refill, Refills};

    #[tokio::test(start_paused = true)]
    async fn a_pool_is_filled_a_moment_after_it_was_taken_from_however_many_come() {
        let refills = Refills::default();
        assert_eq!(refills.next("pool", 3), Refill::Fill, "nobody knows since when");
        assert_eq!(refills.next("pool", 4), Refill::Wait(AFTER));
        assert_eq!(refills.next("pool", 9), Refill::Wait(AFTER), "those that come later do not put it off");
        advance(AFTER).await;
        assert_eq!(refills.next("pool", 9), Refill::Fill);
        advance(AFTER).await;
        assert_eq!(refills.next("pool", 13), Refill::Wait(AFTER), "the next burst");
        advance(AFTER).await;
        assert_eq!(refills.next("pool", 2), Refill::Fill, "sandboxes that end are no burst");
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_burst_goes_on_the_pool_is_only_kept_from_running_empty() {
        let refills = Refills::default();
        refills.next("pool", 0);
        let step = Duration::from_millis(100);
        let mut held = Duration::ZERO;
        for taken in 1.. {
            match refills.next("pool", taken) {
                Refill::Wait(left) => assert!(left <= AFTER),
                Refill::Hold(again) => assert_eq!(again, AFTER),
                Refill::Fill => break,
            }
            advance(step).await;
            held += step;
        }
        assert!((LONGEST_BURST..LONGEST_BURST + AFTER * 2).contains(&held), "{held:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_become_ready_are_looked_at_together() {
        let refills = Refills::default();
        assert_eq!(refills.next("pool", 0), Refill::Fill);
        assert_eq!(refills.next("pool", 0), Refill::Wait(EVERY));
        advance(EVERY).await;
        assert_eq!(refills.next("pool", 0), Refill::Fill);
    }

    #[tokio::test(start_paused = true)]
    async fn pools_that_are_gone_are_forgotten() {
        let refills = Refills::default();
        refills.next("gone", 0);
        advance(KEPT).await;
        refills.next("pool", 0);
        assert_eq!(refills.0.lock().unwrap().len(), 1);
    }
}
