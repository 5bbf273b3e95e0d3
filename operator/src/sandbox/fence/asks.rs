//! When a sandbox is asked for its fence, and what it has said.
//!
//! Between two answers nothing is asked: whatever changes inside shows in the pod's readiness, as `sandboxd` tries its canaries all the
//! time. A sandbox is asked before it is said to be ready, when its readiness changes, and then rarely, each at a time of its own.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::conditions::{Observation, Truth};

/// A fence that stands is looked at again after this long, a fifth more or less.
const AGAIN: Duration = Duration::from_secs(600);
/// The same where sandboxes are ready without a fence, so that their readiness shows nothing.
const AGAIN_UNREQUIRED: Duration = Duration::from_secs(120);
/// While something is not known yet, or not well; twice as long each time.
pub(in crate::sandbox) const SOON: Duration = Duration::from_secs(5);

/// How long a fence that stands is not asked for.
pub(super) const fn period(required: bool) -> Duration {
    if required { AGAIN } else { AGAIN_UNREQUIRED }
}

/// What is remembered of a pod.
#[derive(Clone, Debug)]
struct Asked {
    /// When it is asked again.
    due: Instant,
    /// Whether it was ready when it was asked.
    ready: bool,
    /// How often it was asked in vain, or said something else than that it is fenced in.
    doubts: u32,
    seen: Option<Observation>,
}

/// Whether to ask a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    /// After so long; and what it said last, if this process has asked it.
    Later(Duration, Option<Observation>),
}

/// What all pods have said, by their UIDs.
#[derive(Debug, Default)]
pub(super) struct Asks(Mutex<HashMap<String, Asked>>);

impl Asks {
    /// Whether the pod with this UID is to be asked; `stands` if its status says that its fence stands.
    pub(super) fn due(&self, uid: &str, ready: bool, stands: bool, period: Duration) -> Due {
        let now = Instant::now();
        let mut pods = self.pods();
        let due = due(pods.get(uid), uid, ready, stands, period, now);
        if let (Due::Later(left, None), None) = (&due, pods.get(uid)) {
            pods.insert(uid.to_owned(), Asked { due: now + *left, ready, doubts: 0, seen: None });
        }
        due
    }

    /// Notes what a pod has said, if it has; how long not to ask it.
    pub(super) fn note(&self, uid: &str, ready: bool, seen: Option<Observation>, period: Duration) -> Duration {
        let now = Instant::now();
        let mut pods = self.pods();
        let before = pods.get(uid).filter(|asked| asked.ready == ready).map_or(0, |asked| asked.doubts);
        let stands = seen.as_ref().is_some_and(|seen| seen.truth == Truth::True);
        let again = pause(uid, stands, before, period);
        let doubts = if stands { 0 } else { before.saturating_add(1) };
        pods.insert(uid.to_owned(), Asked { due: now + again, ready, doubts, seen });
        again
    }

    /// Whether anything is known of the pod.
    pub(super) fn knows(&self, uid: &str) -> bool {
        self.pods().contains_key(uid)
    }

    /// Forgets the pods that are gone.
    pub(super) fn tidy(&self, is_there: impl Fn(&str) -> bool) {
        let mut pods = self.pods();
        pods.retain(|uid, _| is_there(uid));
        let kept = pods.len().saturating_mul(2);
        pods.shrink_to(kept);
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether to ask a pod of which this is remembered.
fn due(asked: Option<&Asked>, uid: &str, ready: bool, stands: bool, period: Duration, now: Instant) -> Due {
    match asked {
        // Another process has asked it. Were all asked at once by a new leader, none of them would be soon.
        None if stands && ready => Due::Later(period.mul_f64(fraction(uid)), None),
        None => Due::Now,
        Some(asked) if asked.ready != ready || asked.due <= now => Due::Now,
        Some(asked) => Due::Later(asked.due - now, asked.seen.clone()),
    }
}

/// How long not to ask a pod that has been in doubt so often.
fn pause(uid: &str, stands: bool, doubts: u32, period: Duration) -> Duration {
    let plain = if stands { period } else { SOON.saturating_mul(2_u32.saturating_pow(doubts)).min(period) };
    plain.mul_f64(0.8 + 0.4 * fraction(uid))
}

/// A number from 0 to 1 that is each pod's own.
fn fraction(uid: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    f64::from(u16::try_from(hasher.finish() >> 48).unwrap_or_default()) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;

    use super::{AGAIN, Asks, Due, SOON, pause};
    use crate::conditions::Observation;

    fn fenced() -> Option<Observation> {
        Some(Observation::yes("EgressFenced", "CanariesBlocked", "the sandbox does not reach api"))
    }

    #[rstest]
    #[case::stands(true, 0, AGAIN)]
    #[case::first_doubt(false, 0, SOON)]
    #[case::third_doubt(false, 2, SOON * 4)]
    #[case::for_ever(false, 40, AGAIN)]
    fn pauses_differ_by_a_fifth(#[case] stands: bool, #[case] doubts: u32, #[case] middle: Duration) {
        let all: Vec<Duration> = (0..1_000).map(|pod| pause(&format!("pod-{pod}"), stands, doubts, AGAIN)).collect();
        let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(*least >= middle.mul_f64(0.79) && *least < middle.mul_f64(0.81), "{least:?}");
        assert!(*most <= middle.mul_f64(1.21) && *most > middle.mul_f64(1.19), "{most:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_has_answered_is_left_alone_until_something_shows() {
        let asks = Asks::default();
        assert_eq!(asks.due("pod", true, false, AGAIN), Due::Now);
        let again = asks.note("pod", true, fenced(), AGAIN);
        assert_eq!(asks.due("pod", true, true, AGAIN), Due::Later(again, fenced()));
        assert_eq!(asks.due("pod", false, true, AGAIN), Due::Now, "it is not ready any more");
        tokio::time::advance(again).await;
        assert_eq!(asks.due("pod", true, true, AGAIN), Due::Now);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_asked_less_and_less() {
        let asks = Asks::default();
        let first = asks.note("pod", true, None, AGAIN);
        let second = asks.note("pod", true, None, AGAIN);
        assert!(second.abs_diff(first * 2) < Duration::from_micros(1), "{first:?} {second:?}");
        assert_eq!(asks.note("pod", false, None, AGAIN), first, "that it is ready no more is news");
        asks.note("pod", true, fenced(), AGAIN);
        assert_eq!(asks.note("pod", true, None, AGAIN), first, "it did answer in between");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_process_asks_each_in_its_time() {
        let asks = Asks::default();
        let due = |pod: usize| asks.due(&format!("pod-{pod}"), true, true, AGAIN);
        let left = |due: Due| match due {
            Due::Later(left, None) => left,
            other => panic!("{other:?}"),
        };
        let all: Vec<Duration> = (0..1_000).map(|pod| left(due(pod))).collect();
        for part in 0..10_u32 {
            let (from, to) = (AGAIN * part / 10, AGAIN * (part + 1) / 10);
            let count = all.iter().filter(|left| from <= **left && **left < to).count();
            assert!((50..150).contains(&count), "{count} in part {part}");
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        let (pod, before) = all.iter().enumerate().max_by_key(|(_, left)| **left).unwrap();
        assert_eq!(left(due(pod)), *before - Duration::from_secs(1), "looking at it does not put it off");
        assert_eq!(asks.due("pod", true, false, AGAIN), Due::Now, "of this one nothing is known");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_are_gone_are_forgotten() {
        let asks = Asks::default();
        for pod in 0..1_000 {
            asks.note(&format!("gone-{pod}"), true, fenced(), AGAIN);
        }
        asks.note("pod", true, fenced(), AGAIN);
        asks.tidy(|uid| uid == "pod");
        assert!(asks.knows("pod") && !asks.knows("gone-0"));
        assert!(asks.pods().capacity() < 100, "nor do they take memory");
    }
}
