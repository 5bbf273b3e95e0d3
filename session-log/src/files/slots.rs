//! How much is done at once: for all namespaces together, and for each of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Whose slots are all taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Those of all namespaces together.
    All,
    /// Those of this namespace.
    Own,
}

/// Slots, of which a namespace takes a share at the most.
#[derive(Debug)]
pub(super) struct Slots {
    all: Arc<Semaphore>,
    share: usize,
    /// Of namespaces that hold one or wait for one.
    own: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A slot, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Slots {
    pub(super) fn new(all: usize, share: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), share, own: Mutex::default() }
    }

    /// A slot, if one is free.
    pub(super) fn try_take(&self, namespace: &str) -> Result<Slot, Taken> {
        let own = self.own(namespace).try_acquire_owned().map_err(|_| Taken::Own)?;
        let all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| Taken::All)?;
        Ok(Slot { _all: all, _own: own })
    }

    /// A slot, as soon as one is free within this time. Who waits for one of its own namespace keeps none from another.
    pub(super) async fn take(&self, namespace: &str, wait: Duration) -> Result<Slot, Taken> {
        let until = Instant::now() + wait;
        let own = timeout_at(until, self.own(namespace).acquire_owned()).await;
        let own = own.ok().and_then(Result::ok).ok_or(Taken::Own)?;
        let all = timeout_at(until, Arc::clone(&self.all).acquire_owned()).await;
        let all = all.ok().and_then(Result::ok).ok_or(Taken::All)?;
        Ok(Slot { _all: all, _own: own })
    }

    fn own(&self, namespace: &str) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds one or waits for one holds the semaphore too.
        own.retain(|_, slots| Arc::strong_count(slots) > 1);
        Arc::clone(own.entry(namespace.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.share))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Slots, Taken};

    const WAIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_namespace_takes_its_share_and_leaves_the_rest() {
        let slots = Slots::new(3, 2);
        let mut held = vec![slots.try_take("a").unwrap(), slots.try_take("a").unwrap()];
        assert_eq!(slots.try_take("a").unwrap_err(), Taken::Own);
        held.push(slots.take("b", WAIT).await.unwrap());
        assert_eq!(slots.try_take("b").unwrap_err(), Taken::All);
        assert_eq!(slots.take("a", WAIT).await.unwrap_err(), Taken::Own);
        assert_eq!(slots.take("c", WAIT).await.unwrap_err(), Taken::All);
        // One that is given back goes to who waits, and what failed to take one holds none.
        let (taken, ()) = tokio::join!(slots.take("b", WAIT), async { drop(held.remove(0)) });
        held.push(taken.unwrap());
        drop(held);
        assert!(slots.try_take("c").is_ok());
        assert_eq!((slots.all.available_permits(), slots.own.lock().unwrap().len()), (3, 1));
    }
}
