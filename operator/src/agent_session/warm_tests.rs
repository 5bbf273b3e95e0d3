use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longhand_crds::agent_session::{AgentSessionStatus, HarnessStatus};

use super::{HOLD, Warm, held};
use crate::agent_session::observe::{HarnessPod, Observed, References};
use crate::agent_session::plan::{LogCall, View, is_urgent, log_call, plan};
use crate::agent_session::proxy_health::Credentials;
use crate::fixtures::{self, summary};
use crate::pods::{Cause, Pending, PodView, Stage};

const NOW: i64 = 1_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn pod(uid: &str, stage: Stage) -> PodView {
    PodView { name: format!("pod-{uid}"), uid: uid.to_owned(), ip: None, created: now(), stage, unready_since: None }
}

fn running() -> Stage {
    Stage::Running { since: now(), ready_since: Some(now()) }
}

/// A session that was woken now, of an agent with one ready pod, `w`; the status names this pod.
fn observed(named: Option<&str>) -> Observed {
    let mut session = fixtures::session();
    session.status = Some(AgentSessionStatus {
        session_id: Some("sesn_1".into()),
        phase: Some("idle".into()),
        delivered_inputs: Some(1),
        delivered_generation: Some(1),
        harness: Some(HarnessStatus {
            generation: 2,
            pod_name: named.map(|uid| format!("pod-{uid}")),
            pod_uid: named.map(ToOwned::to_owned),
            warm: named.is_some(),
            failures: 0,
        }),
        ..AgentSessionStatus::default()
    });
    Observed {
        session: Arc::new(session),
        references: Ok(References::fixture()),
        missing_templates: Vec::new(),
        wake_since: Some(now()),
        pods: Vec::new(),
        credentials: Credentials::Unknown,
        warm: Warm { pods: vec![pod("w", running())], ready: true },
        worked: None,
    }
}

#[test]
fn a_wake_is_held_back_for_a_moment_and_for_no_longer() {
    let mut woken = observed(None);
    assert_eq!(held(&woken, now()), Some(HOLD));
    assert_eq!(held(&woken, now() + HOLD), None);
    assert!(!is_urgent(&woken), "the session service is asked before a pod is made");
    let later = plan(&woken, Some(&summary(None, true)), now() + HOLD);
    assert_eq!((later.make.map(|new| new.generation), later.view), (Some(3), View::Starting));
    // The service is away: the session waits no longer for its harness.
    assert!(plan(&woken, None, now() + HOLD).make.is_some());
    woken.warm.ready = false;
    assert_eq!(held(&woken, now()), None);
    assert!(plan(&woken, Some(&summary(None, true)), now()).make.is_some());
}

#[test]
fn a_harness_in_its_grace_is_left_alone_for_a_moment() {
    let mut woken = observed(Some("own"));
    let own = |stage| vec![HarnessPod { pod: pod("own", stage), generation: 2, refresh_tokens: BTreeMap::new() }];
    woken.pods = own(running());
    woken.warm = Warm::default();
    assert_eq!(held(&woken, now()), Some(HOLD));
    assert_eq!(held(&woken, now() + HOLD), None);
    // One that has ended takes nothing.
    woken.pods = own(Stage::Succeeded);
    assert_eq!(held(&woken, now()), None);
    woken.pods = Vec::new();
    assert_eq!(held(&woken, now()), None);
    // Nor does one that the status does not name.
    woken.pods = own(running());
    Arc::make_mut(&mut woken.session).status.as_mut().unwrap().harness = None;
    assert_eq!(held(&woken, now()), None);
}

#[test]
fn a_session_that_was_just_made_is_offered_too() {
    let mut new = observed(None);
    new.wake_since = None;
    assert_eq!(held(&new, now()), None);
    let plan = plan(&new, Some(&summary(None, true)), now());
    assert_eq!((plan.make, plan.view, plan.requeue), (None, View::Offered, Some(HOLD)));
}

#[test]
fn who_claimed_it_is_its_harness() {
    let mut taken = observed(None);
    let first = plan(&taken, Some(&summary(Some("w"), true)), now());
    assert_eq!((first.make.clone(), first.view.clone()), (None, View::Working));
    let expected = HarnessStatus {
        generation: 2,
        pod_name: Some("pod-w".into()),
        pod_uid: Some("w".into()),
        warm: true,
        failures: 0,
    };
    assert_eq!(first.harness, expected);
    // A pod that was made at the same moment is not needed.
    taken.pods = vec![HarnessPod {
        pod: pod("own", Stage::Pending(Pending::Starting)),
        generation: 3,
        refresh_tokens: BTreeMap::new(),
    }];
    let second = plan(&taken, Some(&summary(Some("w"), true)), now());
    assert_eq!(second.remove, [("pod-own".to_owned(), "own".to_owned())]);
    assert_eq!((second.harness.generation, second.harness.warm), (3, true));
}

#[test]
fn a_pod_of_its_own_that_owns_the_session_stays() {
    let mut own = observed(None);
    own.pods = vec![HarnessPod { pod: pod("own", running()), generation: 3, refresh_tokens: BTreeMap::new() }];
    let plan = plan(&own, Some(&summary(Some("own"), true)), now());
    assert_eq!((plan.view, plan.remove.len(), plan.harness.warm), (View::Working, 0, false));
    assert_eq!(held(&own, now()), None);
}

#[test]
fn at_rest_the_pod_is_given_back_and_left_alone() {
    let mut rests = observed(Some("w"));
    rests.wake_since = None;
    assert_eq!(log_call(&rests), LogCall::Refresh);
    let plan = plan(&rests, Some(&summary(None, false)), now());
    assert_eq!((plan.remove, plan.make, plan.lost), (vec![], None, None));
    assert_eq!(plan.harness, HarnessStatus { generation: 2, ..HarnessStatus::default() });
    assert_eq!((plan.view, plan.requeue), (View::NotNeeded, None));
}

#[test]
fn while_the_service_is_away_the_pod_is_kept() {
    let plan = plan(&observed(Some("w")), None, now() + Duration::from_secs(60));
    assert_eq!((plan.view, plan.harness.warm, plan.make), (View::Working, true, None));
}

#[test]
fn one_that_died_is_replaced_without_another_wait() {
    let mut lost = observed(Some("w"));
    let stages = [
        Some(Stage::Failed(Cause::new("Evicted", "low on disk"), now())),
        Some(Stage::Restarting(Cause::new("OOMKilled", "too much"))),
        Some(Stage::Terminating { disruption: None, due: now() }),
        None,
    ];
    for stage in stages {
        lost.warm.pods = stage.into_iter().map(|stage| pod("w", stage)).collect();
        let plan = plan(&lost, Some(&summary(Some("w"), true)), now());
        assert!(plan.lost.is_some(), "{plan:?}");
        assert_eq!(plan.make.map(|new| new.generation), Some(3));
        assert_eq!(plan.remove, [], "the pod is its agent's");
    }
}

#[test]
fn a_message_that_comes_before_the_pod_was_given_back_is_offered_again() {
    let again = observed(Some("w"));
    assert_eq!(held(&again, now()), None, "the session service is asked at once");
    let plan = plan(&again, Some(&summary(None, true)), now());
    assert_eq!((plan.view, plan.harness.pod_uid, plan.lost), (View::Offered, None, None));
}

#[test]
fn work_that_was_over_before_anybody_looked_is_told() {
    let mut over = observed(None);
    over.wake_since = None;
    assert_eq!(log_call(&over), LogCall::Nothing);
    over.worked = Some(7);
    assert_eq!(log_call(&over), LogCall::Refresh);
}
