//! The work of self-hosted environments: which sessions want a worker, and which worker has which.
//!
//! Each piece of work stands for one session. [`item`] holds the rules, without IO: a piece of work is queued, taken by a
//! worker (`attempt` counts how often), acknowledged, kept by heartbeats under a lease, stopped; and queued again when its
//! worker is not heard of. [`Work`] carries them out over a [`WorkStore`], each step as one compare-and-swap, so that two
//! workers never get the same attempt. Clocks decide when a lease is over; what may be written to a session's log is
//! decided there, by the state of its tool calls.

mod etcd;
pub mod item;
mod memory;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::SessionId;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

pub use self::etcd::EtcdWork;
pub use self::item::{Beat, Refused, WorkItem};
pub use self::memory::MemoryWork;
use crate::store::{Result, StoreError};

/// As many pieces of work as a queue holds, with those that have ended lately.
pub const MOST_ITEMS: usize = 10_000;
/// For how long a piece of work that has ended is shown.
const KEPT: SignedDuration = SignedDuration::from_hours(1);
/// As many as one look at the queue removes.
const REMOVED_AT_ONCE: usize = 64;
/// Another replica's news is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const ATTEMPTS: usize = 16;

/// The queue of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Queue {
    /// Its namespace.
    pub namespace: String,
    /// The name of its resource.
    pub environment: String,
}

/// A piece of work as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned {
    /// The piece of work.
    pub item: WorkItem,
    /// What it has to be unchanged since.
    pub version: i64,
}

/// Why a queue refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such piece of work.
    #[error("there is no work {0} in this environment")]
    NotFound(String),
    /// The queue is full.
    #[error("the queue of environment {environment} is full: it holds {MOST_ITEMS} pieces of work")]
    Full {
        /// The environment.
        environment: String,
    },
    /// Its state does not permit this.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Where pieces of work are kept. Each change is one transaction.
#[async_trait]
pub trait WorkStore: Send + Sync + 'static {
    /// Every piece of work of a queue, the oldest first.
    async fn items(&self, queue: &Queue) -> Result<Vec<Versioned>>;

    /// One piece of work.
    async fn item(&self, queue: &Queue, id: &str) -> Result<Option<Versioned>>;

    /// The last piece of work that was made for a session.
    async fn latest(&self, queue: &Queue, session: &SessionId) -> Result<Option<Versioned>>;

    /// Puts a new piece of work in, as the latest of its session, if `before` is the latest until now.
    async fn insert(&self, queue: &Queue, item: &WorkItem, before: Option<&str>) -> Result<bool>;

    /// Puts a changed piece of work in the place of one that has this version.
    async fn replace(&self, queue: &Queue, version: i64, item: &WorkItem) -> Result<bool>;

    /// Removes a piece of work, if it is unchanged.
    async fn remove(&self, queue: &Queue, old: &Versioned) -> Result<bool>;

    /// How many pieces of work a queue holds.
    async fn count(&self, queue: &Queue) -> Result<usize>;
}

/// The queues.
#[derive(Clone)]
pub struct Work {
    store: Arc<dyn WorkStore>,
    /// Something was queued on this replica.
    queued: Arc<Notify>,
}

impl Work {
    /// Over a store.
    #[must_use]
    pub fn new(store: Arc<dyn WorkStore>) -> Self {
        Self { store, queued: Arc::default() }
    }

    /// The session's piece of work that has not ended, which is made if there is none.
    ///
    /// # Errors
    /// [`WorkError::Full`], and those of the store.
    pub async fn ensure(&self, queue: &Queue, session: &SessionId) -> Result<WorkItem, WorkError> {
        for _ in 0..ATTEMPTS {
            let latest = self.store.latest(queue, session).await?;
            let now = Timestamp::now();
            if let Some(found) = &latest {
                let mut item = found.item.clone();
                if !item.settle(now) && !item.has_ended() {
                    return Ok(item);
                }
                if !found.item.has_ended() && !self.store.replace(queue, found.version, &item).await? {
                    continue;
                }
            }
            if self.store.count(queue).await? >= MOST_ITEMS {
                return Err(WorkError::Full { environment: queue.environment.clone() });
            }
            let item = WorkItem::new(session.clone(), now);
            let before = latest.as_ref().map(|latest| latest.item.id.as_str());
            if self.store.insert(queue, &item, before).await? {
                self.queued.notify_waiters();
                return Ok(item);
            }
        }
        Err(contended())
    }

    /// The session's latest piece of work.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn latest(&self, queue: &Queue, session: &SessionId) -> Result<Option<WorkItem>> {
        Ok(self.store.latest(queue, session).await?.map(|found| found.item))
    }

    /// One piece of work.
    ///
    /// # Errors
    /// [`WorkError::NotFound`], and those of the store.
    pub async fn get(&self, queue: &Queue, id: &str) -> Result<WorkItem, WorkError> {
        let found = self.store.item(queue, id).await?;
        found.map(|found| found.item).ok_or_else(|| WorkError::NotFound(id.to_owned()))
    }

    /// Every piece of work, the oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(&self, queue: &Queue) -> Result<Vec<WorkItem>> {
        Ok(self.tidied(queue).await?.into_iter().map(|found| found.item).collect())
    }

    /// Gives the oldest piece of work that waits to a worker; waits up to `wait` for one. What was taken and not
    /// acknowledged within `reclaim`, or whose worker was not heard of, waits again.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn take(
        &self,
        queue: &Queue,
        worker: Option<&str>,
        reclaim: Duration,
        wait: Duration,
    ) -> Result<Option<WorkItem>> {
        let until = Instant::now() + wait;
        let reclaim = SignedDuration::try_from(reclaim).unwrap_or(SignedDuration::MAX);
        loop {
            let queued = self.queued.notified();
            tokio::pin!(queued);
            // From here on, before the look, nothing that is queued is missed.
            queued.as_mut().enable();
            for found in self.tidied(queue).await? {
                let now = Timestamp::now();
                let mut item = found.item;
                if item.waits(now, reclaim) {
                    item.take(worker, now);
                    if self.store.replace(queue, found.version, &item).await? {
                        return Ok(Some(item));
                    }
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Whether news came or the time is over, the next look tells.
            let _ = timeout(left.min(LOOK_AGAIN), queued).await;
        }
    }

    /// Changes a piece of work by one of its rules.
    ///
    /// # Errors
    /// What the rule refuses, [`WorkError::NotFound`], and those of the store.
    pub async fn change<T>(
        &self,
        queue: &Queue,
        id: &str,
        rule: impl Fn(&mut WorkItem, Timestamp) -> Result<T, Refused> + Send,
    ) -> Result<(WorkItem, T), WorkError> {
        for _ in 0..ATTEMPTS {
            let found = self.store.item(queue, id).await?.ok_or_else(|| WorkError::NotFound(id.to_owned()))?;
            let mut item = found.item.clone();
            let outcome = rule(&mut item, Timestamp::now())?;
            if item == found.item || self.store.replace(queue, found.version, &item).await? {
                return Ok((item, outcome));
            }
        }
        Err(contended())
    }

    /// The queue, without what has ended long ago; what was asked to stop and is not heard of has ended.
    async fn tidied(&self, queue: &Queue) -> Result<Vec<Versioned>> {
        let now = Timestamp::now();
        let mut kept = Vec::new();
        let mut removed = 0;
        for mut found in self.store.items(queue).await? {
            let old = found.item.stopped_at.is_some_and(|at| now.duration_since(at) > KEPT);
            if old && removed < REMOVED_AT_ONCE {
                removed += 1;
                self.store.remove(queue, &found).await?;
                continue;
            }
            if found.item.settle(now) && !self.store.replace(queue, found.version, &found.item).await? {
                continue;
            }
            kept.push(found);
        }
        Ok(kept)
    }
}

fn contended() -> WorkError {
    StoreError::Unavailable("the work changes faster than this change can be made".to_owned()).into()
}

#[cfg(test)]
mod tests;
