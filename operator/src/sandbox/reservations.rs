//! What this process is about to do with pods, or has just done, and no watch has shown yet.
//!
//! Only the API server decides who has a pod. This spares sandboxes that come at once from asking it for the same one, and one
//! that is looked at twice at once from having two.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// By then the watch has shown what became of a pod, or nothing did.
const KEPT: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Known {
    /// For whom a pod of a pool is being taken, by the UIDs of both.
    reserved: HashMap<String, (String, Instant)>,
    /// The name of the pod that a sandbox has, by its UID and the incarnation.
    had: HashMap<(String, i64), (String, Instant)>,
}

/// What no watch has shown yet.
#[derive(Debug, Default)]
pub(super) struct Reservations(Mutex<Known>);

impl Reservations {
    /// Whether the sandbox with this UID may try to take the pod with this UID; from then on no other may for a while.
    pub(super) fn reserve(&self, pod: &str, sandbox: &str) -> bool {
        let now = Instant::now();
        let mut known = self.known();
        let taken = known.reserved.entry(pod.to_owned()).or_insert_with(|| (sandbox.to_owned(), now));
        if !is_young(taken.1, now) {
            *taken = (sandbox.to_owned(), now);
        }
        taken.0 == sandbox
    }

    /// Whether the pod was reserved for this sandbox: it may be its own by now.
    pub(super) fn is_for(&self, pod: &str, sandbox: &str) -> bool {
        let now = Instant::now();
        self.known().reserved.get(pod).is_some_and(|(by, since)| by == sandbox && is_young(*since, now))
    }

    /// The sandbox has this pod.
    pub(super) fn has(&self, sandbox: &str, incarnation: i64, pod_name: &str) {
        let now = Instant::now();
        let mut known = self.known();
        // Each pod that is made or taken comes by here once, so that both maps hold the pods of half a minute.
        known.reserved.retain(|_, (_, since)| is_young(*since, now));
        known.had.retain(|_, (_, since)| is_young(*since, now));
        known.had.insert((sandbox.to_owned(), incarnation), (pod_name.to_owned(), now));
    }

    /// The name of the pod that the sandbox has.
    pub(super) fn pod_of(&self, sandbox: &str, incarnation: i64) -> Option<String> {
        let (now, known) = (Instant::now(), self.known());
        let (name, since) = known.had.get(&(sandbox.to_owned(), incarnation))?;
        is_young(*since, now).then(|| name.clone())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_young(since: Instant, now: Instant) -> bool {
    now.duration_since(since) < KEPT
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Reservations;

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_for_one_sandbox_at_a_time() {
        let all = Reservations::default();
        assert!(all.reserve("pod", "one") && all.reserve("pod", "one"));
        assert!(!all.reserve("pod", "other") && !all.is_for("pod", "other"));
        assert!(all.is_for("pod", "one"));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(all.reserve("pod", "other"), "nothing is reserved for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_done_is_known_until_a_watch_has_shown_it() {
        let all = Reservations::default();
        all.has("one", 3, "pod");
        assert_eq!((all.pod_of("one", 3).as_deref(), all.pod_of("one", 4)), (Some("pod"), None));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(all.pod_of("one", 3), None);
    }
}
