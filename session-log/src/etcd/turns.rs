//! Appends that go wherever the head is take turns: of those that went at once, all but one would find the head moved, and
//! each would have cost a batch. Other replicas, and the brain, are not waited for; the transactions compare.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longhand_protocol::SessionId;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::failure::Trouble;
use crate::store::Result;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// Whose turn it is, by session.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<SessionId, Lock>>);

/// A turn, until it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    id: &'a SessionId,
    lock: Option<Lock>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for those who came before, but not longer than `patience`.
    pub(super) async fn wait<'a>(&'a self, id: &'a SessionId, patience: Duration) -> Result<Turn<'a>> {
        let lock = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.clone()).or_default());
        // Made first, so that one who gives up leaves nothing behind either.
        let mut turn = Turn { turns: self, id, lock: Some(Arc::clone(&lock)), guard: None };
        let guard = timeout(patience, lock.lock_owned()).await.map_err(|_| Trouble::Busy.into_store())?;
        turn.guard = Some(guard);
        Ok(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        self.lock = None;
        let mut locks = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.get(self.id).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Turns;
    use crate::store::StoreError;

    const PATIENCE: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_nothing_is_kept() {
        let (turns, one, two) = (Turns::default(), "sesn_1".parse().unwrap(), "sesn_2".parse().unwrap());
        let first = turns.wait(&one, PATIENCE).await.unwrap();
        let other = turns.wait(&two, PATIENCE).await.unwrap();
        assert!(matches!(turns.wait(&one, PATIENCE).await, Err(StoreError::Overloaded { .. })));
        let mut waiting = Box::pin(turns.wait(&one, PATIENCE));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(first);
        let second = waiting.await.unwrap();
        assert_eq!(turns.0.lock().unwrap().len(), 2);
        drop((second, other));
        assert!(turns.0.lock().unwrap().is_empty());
    }
}
