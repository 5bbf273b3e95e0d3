use jiff::Timestamp;
use longhand_crds::agent::{WarmFailures, WarmPod, WarmState};
use rstest::rstest;

use super::{MOST, Plan, STARTING, plan};
use crate::agent::pool::{Observed, Seen};
use crate::conditions::Truth;
use crate::pods::{Cause, Pending, PodView, Stage};

const NOW: i64 = 10_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn running() -> Stage {
    Stage::Running { since: at(1), ready_since: Some(at(1)) }
}

fn pod(number: i64, stage: Stage) -> Seen {
    let pod = PodView {
        name: format!("w-{number}"),
        uid: format!("u-{number}"),
        ip: None,
        created: at(1),
        stage,
        unready_since: None,
    };
    Seen { pod, number, digest: Some("now".into()), serving: 0 }
}

fn serving(number: i64, sessions: usize) -> Seen {
    Seen { serving: sessions, ..pod(number, running()) }
}

fn listed(number: i64, state: WarmState, since: i64) -> WarmPod {
    WarmPod { name: format!("w-{number}"), uid: format!("u-{number}"), state, since: at(since).into() }
}

/// An agent that wants two, of which the status speaks as it would after the pods were seen parked at second 100.
fn observed(pods: Vec<Seen>) -> Observed {
    Observed {
        wanted: 2,
        sessions_per_pod: 1,
        digest: Ok("now".into()),
        listed: pods.iter().map(|seen| listed(seen.number, WarmState::Parked, 100 + seen.number)).collect(),
        generation: pods.iter().map(|seen| seen.number).max().unwrap_or(0),
        failures: None,
        pods,
    }
}

fn decide(observed: &Observed) -> Plan {
    plan(observed, at(NOW))
}

fn states(plan: &Plan) -> Vec<(String, WarmState)> {
    plan.pods.iter().map(|pod| (pod.name.clone(), pod.state)).collect()
}

fn removed(plan: &Plan) -> Vec<&str> {
    plan.remove.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn an_empty_pool_is_filled_and_a_full_one_is_left_alone() {
    let first = decide(&observed(vec![]));
    assert_eq!((first.make, first.generation, first.ready), (vec![1, 2], 2, 0));
    assert_eq!((first.condition.truth, first.condition.reason.as_str()), (Truth::False, "Starting"));
    let full = decide(&observed(vec![pod(1, running()), pod(2, running())]));
    assert_eq!((full.make, full.remove, full.ready, full.requeue), (vec![], vec![], 2, None));
    assert_eq!((full.condition.truth, full.condition.reason.as_str()), (Truth::True, "Ready"));
    assert_eq!(full.pods[0].since.0, at(101), "what did not change keeps its time");
}

#[test]
fn what_starts_counts_so_that_it_is_not_made_twice() {
    let mut half = observed(vec![pod(1, running()), pod(2, Stage::Pending(Pending::Starting))]);
    half.listed[1].state = WarmState::Starting;
    let plan = decide(&half);
    assert_eq!((plan.make, plan.ready), (vec![], 1));
}

#[test]
fn a_pod_that_is_taken_is_replaced_and_stays() {
    let plan = decide(&observed(vec![serving(1, 1), pod(2, running())]));
    assert_eq!((plan.make.as_slice(), plan.ready), ([3].as_slice(), 1));
    assert_eq!(states(&plan), [("w-1".into(), WarmState::Taken), ("w-2".into(), WarmState::Parked)]);
    assert_eq!(plan.pods[0].since.0, at(NOW));
}

#[test]
fn a_pod_with_room_for_more_sessions_is_not_replaced() {
    let with = |serving_now: usize| {
        let observed = Observed { sessions_per_pod: 4, ..observed(vec![serving(1, serving_now), pod(2, running())]) };
        let plan = decide(&observed);
        (plan.make.len(), plan.ready)
    };
    assert_eq!(with(3), (0, 2));
    assert_eq!(with(4), (1, 1));
}

#[test]
fn a_surplus_goes_after_a_while_the_longest_idle_first() {
    let mut three = observed(vec![pod(1, running()), pod(2, running()), pod(3, running())]);
    three.listed[0].since = at(NOW - 10).into();
    three.listed[1].since = at(NOW - 59).into();
    three.listed[2].since = at(NOW - 20).into();
    let waits = decide(&three);
    assert_eq!((waits.requeue.unwrap().as_secs(), waits.remove.len()), (1, 0));
    three.listed[1].since = at(NOW - 60).into();
    let goes = decide(&three);
    assert_eq!(states(&goes)[1].1, WarmState::Retiring);
    assert_eq!((goes.ready, goes.remove.len()), (2, 0), "it is told before it is deleted");
    three.listed[1] = listed(2, WarmState::Retiring, NOW - 4);
    assert_eq!(decide(&three).requeue.unwrap().as_secs(), 1);
    three.listed[1] = listed(2, WarmState::Retiring, NOW - 5);
    assert_eq!(removed(&decide(&three)), ["w-2"]);
    three.pods[1].serving = 1;
    assert!(decide(&three).remove.is_empty(), "what was taken in the last moment serves its session");
}

#[test]
fn none_are_wanted_and_all_go_that_are_idle() {
    let all = Observed {
        wanted: 0,
        ..observed(vec![serving(1, 1), pod(2, running()), pod(3, Stage::Pending(Pending::Starting))])
    };
    let plan = decide(&all);
    assert_eq!(
        states(&plan),
        [("w-1".into(), WarmState::Taken), ("w-2".into(), WarmState::Retiring), ("w-3".into(), WarmState::Retiring)]
    );
    assert_eq!(removed(&plan), ["w-3"], "one that never ran serves nothing");
    assert_eq!((plan.condition.reason.as_str(), plan.make.len()), ("NotWanted", 0));
}

#[test]
fn pods_of_another_make_are_replaced_at_once() {
    let mut old = observed(vec![serving(1, 1), pod(2, running())]);
    old.pods[0].digest = Some("before".into());
    old.pods[1].digest = None;
    let plan = decide(&old);
    assert!(states(&plan).iter().all(|(_, state)| *state == WarmState::Retiring), "{plan:?}");
    assert_eq!((plan.make.as_slice(), plan.ready, plan.remove.len()), ([3, 4].as_slice(), 0, 0));
}

#[test]
fn without_its_credential_no_pod_is_kept_or_made() {
    let missing = Observed { digest: Err(Cause::new("VaultNotFound", "v")), ..observed(vec![pod(1, running())]) };
    let plan = decide(&missing);
    assert_eq!((plan.make.len(), plan.condition.reason.as_str()), (0, "VaultNotFound"));
    assert_eq!(states(&plan)[0].1, WarmState::Retiring);
}

#[test]
fn a_pod_whose_making_was_not_written_down_is_taken_up_and_a_forgotten_one_goes() {
    let mut made = observed(vec![pod(1, running()), pod(2, running())]);
    (made.listed, made.generation) = (vec![], 1);
    let plan = decide(&made);
    assert_eq!(states(&plan), [("w-1".into(), WarmState::Retiring), ("w-2".into(), WarmState::Parked)]);
    assert_eq!((plan.make.as_slice(), plan.generation), ([3].as_slice(), 3));
}

#[rstest]
#[case(Stage::Pending(Pending::Stuck(Cause::new("Unschedulable", "0/3 nodes"))), "Unschedulable")]
#[case(Stage::Restarting(Cause::new("Exited", "exit code 2")), "Exited")]
fn where_one_cannot_start_no_others_are_made(#[case] stage: Stage, #[case] reason: &str) {
    let mut stuck = Observed { wanted: 50, ..observed(vec![pod(1, stage)]) };
    stuck.listed[0].state = WarmState::Starting;
    let plan = decide(&stuck);
    assert_eq!((plan.make.len(), plan.condition.reason.as_str(), plan.condition.truth), (0, reason, Truth::False));
    assert!(plan.condition.message.contains("w-1"), "{}", plan.condition.message);
}

#[test]
fn only_so_many_start_at_once_and_there_are_only_so_many() {
    let many = Observed { wanted: 100, ..observed(vec![]) };
    assert_eq!(decide(&many).make.len(), STARTING);
    let most = i64::try_from(MOST).unwrap();
    let full = decide(&observed((1..=most).map(|number| serving(number, 1)).collect()));
    assert_eq!((full.make.len(), full.condition.reason.as_str()), (0, "TooManyPods"));
}

#[rstest]
#[case::failed(Stage::Failed(Cause::new("Evicted", "low on disk"), at(9_000)))]
#[case::ended_untold(Stage::Succeeded)]
fn a_failure_counts_once_and_delays_the_next_pod(#[case] stage: Stage) {
    let mut failed = observed(vec![pod(1, stage), pod(2, running())]);
    let first = decide(&failed);
    assert_eq!((removed(&first), first.lost.len()), (vec!["w-1"], 1));
    let failures = first.failures.clone().unwrap();
    assert_eq!((failures.count, failures.at.0), (1, at(NOW)));
    assert_eq!((first.make.len(), first.condition.reason.as_str()), (0, "BackingOff"));
    assert_eq!(first.requeue.unwrap().as_secs(), 2);
    // The pod is still there, and the status does not name it any more.
    failed.listed.remove(0);
    failed.failures = Some(WarmFailures { count: 3, at: at(NOW - 7).into() });
    failed.pods.truncate(1);
    let again = decide(&failed);
    assert_eq!((again.failures.clone().unwrap().count, again.requeue.unwrap().as_secs()), (3, 1));
    failed.failures = Some(WarmFailures { count: 3, at: at(NOW - 8).into() });
    assert_eq!(decide(&failed).make.len(), 2);
    // One that is ready ends the row.
    failed.pods = vec![pod(2, running())];
    assert_eq!(decide(&failed).failures, None);
}

#[test]
fn one_that_was_told_to_go_is_no_failure() {
    let mut told = observed(vec![pod(1, Stage::Succeeded), pod(2, running()), pod(3, running())]);
    told.listed[0].state = WarmState::Retiring;
    let plan = decide(&told);
    assert_eq!((removed(&plan), plan.lost.len(), plan.failures.clone()), (vec!["w-1"], 0, None));
    assert_eq!(plan.pods.len(), 2);
}
