//! Requests in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Answer, Begun, Requests, Taken};
use crate::store::Result;

type Known = BTreeMap<String, (Taken, Option<Answer>)>;

/// Requests in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryRequests(Arc<Mutex<Known>>);

impl MemoryRequests {
    /// Forgets how every request was answered, as if each had been broken off before.
    pub fn lose_answers(&self) {
        self.known().values_mut().for_each(|(_, answer)| *answer = None);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Requests for MemoryRequests {
    async fn begin(&self, name: &str, digest: &str, now: Timestamp) -> Result<Begun> {
        let mut known = self.known();
        if let Some((taken, answer)) = known.get(name).filter(|(taken, _)| !taken.is_over(now)) {
            return Ok(taken.meet(digest, answer.clone()));
        }
        let taken = Taken::new(digest, now);
        let seed = taken.seed.clone();
        known.insert(name.to_owned(), (taken, None));
        Ok(Begun::Go { seed, first: true })
    }

    async fn answer(&self, name: &str, seed: &str, answer: Answer) -> Result<Answer> {
        let mut known = self.known();
        let taken = known.get_mut(name).filter(|(taken, _)| taken.seed == seed);
        Ok(taken.map_or_else(|| answer.clone(), |(_, kept)| kept.get_or_insert_with(|| answer.clone()).clone()))
    }

    async fn forget(&self, name: &str, seed: &str) -> Result<()> {
        let mut known = self.known();
        if known.get(name).is_some_and(|(taken, _)| taken.seed == seed) {
            known.remove(name);
        }
        Ok(())
    }

    async fn sweep(&self, now: Timestamp) -> Result<u64> {
        let mut known = self.known();
        let before = known.len();
        known.retain(|_, (taken, _)| !taken.is_over(now));
        Ok(u64::try_from(before - known.len()).unwrap_or(u64::MAX))
    }
}
