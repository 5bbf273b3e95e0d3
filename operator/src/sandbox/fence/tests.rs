use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use longhand_sandbox::canary::Canary;
use longhand_sandbox::wire::{FenceReport, FenceState};
use serde_json::json;

use super::network::Fences;
use super::{Fence, REPEATS, SOON, Sight, Subject};
use crate::sandbox::network_policy;
use crate::testing::fencing;

/// Says what it is told to, and counts how often it was asked.
#[derive(Default)]
pub(in crate::sandbox) struct Told {
    pub(in crate::sandbox) report: Option<FenceReport>,
    pub(in crate::sandbox) answers: bool,
    pub(in crate::sandbox) asked: AtomicUsize,
    /// Never answers.
    pub(in crate::sandbox) hangs: bool,
}

impl Told {
    /// Says that it is fenced in.
    pub(in crate::sandbox) fn fenced() -> Self {
        let report = FenceReport { state: FenceState::Fenced, tried: vec!["api".into()], reached: vec![] };
        Self { report: Some(report), answers: true, ..Self::default() }
    }

    pub(in crate::sandbox) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Fences for Told {
    async fn report(&self, _: &str) -> Option<FenceReport> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.report.clone()
    }

    async fn answers(&self, _: &Canary) -> bool {
        self.answers
    }

    async fn refresh(&self, _: &Canary) {}
}

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "p", "uid": "pod-0", "labels": { "longhand.dev/role": "sandbox" } },
        "status": { "podIP": "10.0.0.9", "hostIP": "10.0.0.1" },
    }))
    .unwrap()
}

fn condition(status: &str) -> Condition {
    serde_json::from_value(json!({
        "type": "EgressFenced", "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

async fn see(fence: &Fence, policies: &[Arc<NetworkPolicy>], said: Option<&Condition>, awaited: bool) -> Sight {
    let pod = pod();
    let subject = Subject { pod: &pod, ready: true, policies, said, of_this_pod: false, awaited };
    fence.see(&subject, &fencing()).await
}

fn said(sight: &Sight) -> (&str, &str) {
    let seen = sight.seen.as_ref().unwrap();
    (seen.truth.as_str(), seen.reason.as_str())
}

#[tokio::test(start_paused = true)]
async fn the_policy_comes_before_what_the_canaries_show_which_is_remembered() {
    let told = Arc::new(Told::fenced());
    let fence = Fence::new(told.clone());
    let ours = Arc::new(network_policy::build("team", "longhand-system"));
    let first = see(&fence, std::slice::from_ref(&ours), None, true).await;
    assert_eq!(said(&first), ("True", "CanariesBlocked"));
    let theirs: NetworkPolicy = serde_json::from_value(
        json!({ "metadata": { "name": "theirs" }, "spec": { "podSelector": {}, "egress": [{}] } }),
    )
    .unwrap();
    let opened = see(&fence, &[ours, Arc::new(theirs)], None, false).await;
    assert_eq!(said(&opened), ("False", "PolicyOpensFence"));
    assert_eq!(told.asked(), 1);
    let mut before = condition("False");
    before.reason = "PolicyOpensFence".into();
    let closed = see(&fence, &[], Some(&before), false).await;
    assert_eq!(
        (said(&closed), told.asked()),
        (("True", "CanariesBlocked"), 2),
        "the network may not have closed it yet"
    );
    let again = see(&fence, &[], Some(&condition("True")), false).await;
    assert_eq!((said(&again), told.asked()), (("True", "CanariesBlocked"), 2), "nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_not_known_and_holds_nobody_up() {
    let fence = Fence::new(Arc::new(Told { hangs: true, ..Told::default() }));
    let begun = tokio::time::Instant::now();
    let first = see(&fence, &[], None, true).await;
    assert!(begun.elapsed() <= super::FIRST, "{:?}", begun.elapsed());
    assert_eq!(first.seen, None, "nothing was ever said");
    assert!(first.again.is_some_and(|again| again < SOON * 2));
    // What was said of the pod before does not hold for this one.
    let fence = Fence::new(Arc::new(Told::default()));
    let unknown = see(&fence, &[], Some(&condition("True")), true).await;
    assert_eq!(said(&unknown), ("Unknown", "NoAnswer"));
}

#[tokio::test(start_paused = true)]
async fn those_that_nobody_waits_for_are_asked_a_few_at_a_time() {
    let told = Arc::new(Told { hangs: true, ..Told::default() });
    let fence = Arc::new(Fence::new(told.clone()));
    let mut hanging = Vec::new();
    for number in 0..REPEATS {
        let fence = fence.clone();
        hanging.push(tokio::spawn(async move {
            let mut pod = pod();
            pod.metadata.uid = Some(format!("hanging-{number}"));
            let subject =
                Subject { pod: &pod, ready: true, policies: &[], said: None, of_this_pod: false, awaited: false };
            fence.see(&subject, &fencing()).await;
        }));
    }
    while told.asked() < REPEATS {
        tokio::task::yield_now().await;
    }
    let put_off = see(&fence, &[], None, false).await;
    assert_eq!((put_off.again, told.asked()), (Some(SOON), REPEATS));
    see(&fence, &[], None, true).await;
    assert_eq!(told.asked(), REPEATS + 1, "one that is waited for is asked all the same");
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
}
