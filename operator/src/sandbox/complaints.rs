//! What the kubelet and the volume controllers say of a pod that does not start, and say in Events alone: the pod itself is merely
//! `ContainerCreating`.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::calls::call;
use crate::conditions::word;
use crate::pods::{Cause, Pending, PodView, Stage, elapsed};

/// A pod that starts for this long is asked about for the first time; then after twice the time, and so on.
const FIRST: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(2);
/// Events are in no cache of the API server.
const AT_ONCE: usize = 4;
/// Those of one pod that are looked at.
const MOST: u32 = 20;
/// Characters of a message that are kept.
const LONGEST: usize = 256;

struct Entry {
    /// When it is asked about again.
    due: Instant,
    pause: Duration,
    cause: Option<Cause>,
}

/// What was said last, by the UIDs of pods.
pub(super) struct Complaints {
    entries: Mutex<HashMap<String, Entry>>,
    asking: Semaphore,
}

impl Default for Complaints {
    fn default() -> Self {
        Self { entries: Mutex::default(), asking: Semaphore::new(AT_ONCE) }
    }
}

impl Complaints {
    /// Why the pod does not start as far as that is known, if it says nothing itself, and when to look again. It is seldom asked for.
    pub(super) async fn of(
        &self,
        client: &Client,
        namespace: &str,
        pod: &PodView,
        now: Timestamp,
    ) -> (Option<Cause>, Option<Duration>) {
        if !matches!(pod.stage, Stage::Pending(Pending::Starting | Pending::Sidecar(_))) {
            return (None, None);
        }
        let young = FIRST.saturating_sub(elapsed(pod.created, now));
        if !young.is_zero() {
            return (None, Some(young));
        }
        if let Some(known) = self.known(&pod.uid) {
            return known;
        }
        // Who finds others asking looks again soon, and what is known stays until it does.
        let before = self.entries().get(&pod.uid).and_then(|entry| entry.cause.clone());
        let Ok(_asking) = self.asking.try_acquire() else { return (before, Some(FIRST)) };
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let selector = format!("involvedObject.uid={},type=Warning", pod.uid);
        let params = ListParams::default().fields(&selector).limit(MOST);
        let what = || format!("list the events of pod {namespace}/{}", pod.name);
        let cause = match timeout(DEADLINE, call(what, api.list(&params))).await {
            Ok(Ok(found)) => newest(found.items),
            Ok(Err(error)) => {
                tracing::warn!(%error, "it is not known why a pod does not start");
                before
            }
            Err(_) => before,
        };
        let mut entries = self.entries();
        let pause = entries.get(&pod.uid).map_or(FIRST, |entry| entry.pause.saturating_mul(2));
        entries.insert(pod.uid.clone(), Entry { due: Instant::now() + pause, pause, cause: cause.clone() });
        (cause, Some(pause))
    }

    fn known(&self, uid: &str) -> Option<(Option<Cause>, Option<Duration>)> {
        let entries = self.entries();
        let entry = entries.get(uid)?;
        let left = entry.due.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| (entry.cause.clone(), Some(left)))
    }

    /// Forgets pods that are gone.
    pub(super) fn tidy(&self, is_there: impl Fn(&str) -> bool) {
        let mut entries = self.entries();
        entries.retain(|uid, _| is_there(uid));
        let kept = entries.len().saturating_mul(2);
        entries.shrink_to(kept);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn newest(events: Vec<Event>) -> Option<Cause> {
    // What the scheduler says last is in the pod too, and no more than that counts.
    let others = events.into_iter().filter(|event| event.reason.as_deref() != Some("FailedScheduling"));
    let newest = others.max_by_key(seen_at)?;
    let message: String = newest.message.unwrap_or_default().chars().take(LONGEST).collect();
    Some(Cause::new(word(&newest.reason.unwrap_or_default()), message))
}

/// When it was seen last: each way of writing events says it elsewhere.
fn seen_at(event: &Event) -> Timestamp {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0);
    series.into_iter().chain(last).chain(first).max().unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::{Complaints, newest};
    use crate::pods::{Cause, Pending, PodView, Stage};
    use crate::sandbox::plan::tests::{NOW, at, pod, ready};
    use crate::testing::context;

    const EVENTS: &str = "/api/v1/namespaces/team/events";

    fn event(reason: &str, message: &str, time: &Value) -> Value {
        let mut event =
            json!({ "metadata": { "name": "e" }, "involvedObject": {}, "reason": reason, "message": message });
        event.as_object_mut().unwrap().extend(time.as_object().unwrap().clone());
        event
    }

    #[rstest]
    #[case::by_the_last_time(
        json!({ "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:09Z" }),
        json!({ "lastTimestamp": "2026-01-01T00:00:05Z" })
    )]
    #[case::by_the_series(
        json!({ "eventTime": "2026-01-01T00:00:00.000000Z", "series": { "count": 3, "lastObservedTime": "2026-01-01T00:00:09.000000Z" } }),
        json!({ "eventTime": "2026-01-01T00:00:05.000000Z" })
    )]
    fn the_newest_counts(#[case] new: Value, #[case] old: Value) {
        let events =
            [event("FailedMount", &"x".repeat(999), &new), event("FailedCreatePodSandBox", "no handler", &old)];
        let cause = newest(events.into_iter().map(|event| serde_json::from_value(event).unwrap()).collect()).unwrap();
        assert_eq!((cause.reason.as_str(), cause.message.len()), ("FailedMount", 256));
        assert_eq!(newest(vec![]), None);
        let scheduled = serde_json::from_value(event("FailedScheduling", "no node", &json!({}))).unwrap();
        assert_eq!(newest(vec![scheduled]), None, "by now it has a node");
    }

    #[tokio::test]
    async fn a_pod_that_does_not_start_is_asked_about_seldom_and_one_that_says_why_itself_is_not() {
        let (context, server) = context();
        let said = json!({ "metadata": {}, "items": [event("FailedMount", "no such volume", &json!({}))] });
        let nothing = json!({ "metadata": {}, "items": [] });
        let failure =
            json!({ "kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError", "message": "" });
        let server =
            server.expect([("GET", EVENTS, 200, nothing), ("GET", EVENTS, 200, said), ("GET", EVENTS, 500, failure)]);
        let complaints = Complaints::default();
        let starts = pod(0, Stage::Pending(Pending::Starting));
        let stuck = pod(0, Stage::Pending(Pending::Stuck(Cause::new("ErrImagePull", ""))));
        let ask = async |pod: &PodView, now: i64| complaints.of(&context.client, "team", pod, at(now)).await;
        for other in [&stuck, &pod(0, ready(NOW))] {
            assert_eq!(ask(other, NOW).await, (None, None));
        }
        let young = ask(&starts, 907).await;
        assert_eq!(young, (None, Some(Duration::from_secs(3))), "it may well start by itself");
        let cause = || Some(Cause::new("FailedMount", "no such volume"));
        // What is known stays while nobody answers.
        for (cause, pause) in [(None, 10), (cause(), 20), (cause(), 40)] {
            for _ in 0..2 {
                let (found, again) = ask(&starts, NOW).await;
                let again = again.unwrap();
                assert_eq!(found, cause);
                assert!(again <= Duration::from_secs(pause) && again > Duration::from_secs(pause - 5), "{again:?}");
            }
            complaints.entries().get_mut("pod-0").unwrap().due = Instant::now();
        }
        complaints.tidy(|uid| uid == "other");
        assert!(complaints.entries().is_empty());
        server.nothing_else(context).await;
    }
}
