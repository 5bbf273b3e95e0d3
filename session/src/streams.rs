//! What may be open at a replica at the same time: event streams, transfers and ways into sandboxes, of all namespaces together and
//! of each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::error::{ApiError, Result};
use crate::metrics;

/// Each costs memory for as long as its client takes to read.
const ALL: usize = 2_048;
/// Who finds all of it taken asks again.
const RETRY: Duration = Duration::from_secs(5);

/// Namespaces with something open, and how much. None has nothing, so that there are never more of them than is open.
type Open = Arc<Mutex<HashMap<String, usize>>>;

fn locked(open: &Open) -> MutexGuard<'_, HashMap<String, usize>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much is open, and how much may be.
#[derive(Debug)]
pub struct Streams {
    all: Arc<Semaphore>,
    open: Open,
    /// Of one namespace.
    share: usize,
}

/// Something that is open, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    open: Open,
    namespace: String,
    _all: OwnedSemaphorePermit,
}

impl Streams {
    /// Nothing is open; of one namespace so much may be, or all if it is 0.
    #[must_use]
    pub fn new(share: u32) -> Self {
        Self::of(ALL, share)
    }

    fn of(all: usize, share: u32) -> Self {
        let share = usize::try_from(share).ok().filter(|share| *share > 0).unwrap_or(all);
        Self { all: Arc::new(Semaphore::new(all)), open: Open::default(), share }
    }

    /// One more of this namespace. Its caller may use it: who may not would take it from others.
    ///
    /// # Errors
    /// 429 if all is taken, or the namespace's share of it.
    pub fn open(&self, namespace: &str) -> Result<Slot> {
        let mut open = locked(&self.open);
        let used = open.get(namespace).copied().unwrap_or_default();
        if used >= self.share {
            metrics::rate_limited("namespace_streams");
            let message =
                format!("namespace {namespace} has {used} streams and transfers open at this replica, its share");
            return Err(ApiError::too_many(message, RETRY));
        }
        let all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| {
            metrics::rate_limited("streams");
            ApiError::too_many("too many streams and transfers are open at this replica", RETRY)
        })?;
        open.insert(namespace.to_owned(), used + 1);
        Ok(Slot { open: Arc::clone(&self.open), namespace: namespace.to_owned(), _all: all })
    }

    /// How many more may be opened.
    #[cfg(test)]
    pub(crate) fn left(&self) -> usize {
        self.all.available_permits()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = locked(&self.open);
        if let Some(used) = open.get_mut(&self.namespace) {
            *used -= 1;
            if *used == 0 {
                open.remove(&self.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Streams, locked};

    fn refused(streams: &Streams, namespace: &str) -> String {
        let error = streams.open(namespace).unwrap_err();
        assert_eq!(error.status(), 429);
        error.to_string()
    }

    #[test]
    fn one_namespace_leaves_room_for_others() {
        let streams = Streams::of(8, 2);
        let mut first: Vec<_> = (0..2).map(|_| streams.open("team-a").unwrap()).collect();
        assert!(refused(&streams, "team-a").contains("namespace team-a has 2 streams and transfers open"));
        let _other = streams.open("team-b").unwrap();
        first.pop();
        first.push(streams.open("team-a").unwrap());
        refused(&streams, "team-a");
    }

    #[test]
    fn all_of_them_together_are_bounded_too() {
        let streams = Streams::of(3, 2);
        let open: Vec<_> = ["a", "a", "b"].into_iter().map(|namespace| streams.open(namespace).unwrap()).collect();
        assert!(refused(&streams, "c").contains("too many streams"));
        assert_eq!(locked(&streams.open).len(), 2, "who is refused is not remembered");
        drop(open);
        assert_eq!((locked(&streams.open).len(), streams.left()), (0, 3), "nothing is kept of what is closed");
    }

    #[test]
    fn no_share_is_all_of_it() {
        let streams = Streams::of(3, 0);
        let _open: Vec<_> = (0..3).map(|_| streams.open("a").unwrap()).collect();
        assert!(refused(&streams, "a").contains("its share"));
    }
}
