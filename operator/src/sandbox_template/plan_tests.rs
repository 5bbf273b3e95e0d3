use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use rstest::rstest;

use super::{Plan, plan};
use crate::conditions::{Observation, WARM_READY, find};
use crate::fixtures;
use crate::nodes::{KNOWN_FOR, USER_NAMESPACES};
use crate::pods::{Cause, Pending, PodView, Stage};
use crate::sandbox_template::observe::{Observed, PoolPod};
use crate::sandbox_template::status::status;

const NOW: i64 = 1_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn name(slot: usize) -> String {
    format!("shell-3e8f1-now-{slot}")
}

fn of(slot: usize, hash: &str, stage: Stage) -> PoolPod {
    let pod = PodView {
        name: name(slot),
        uid: format!("pod-{slot}"),
        ip: None,
        created: at(100 + i64::try_from(slot).unwrap()),
        stage,
        unready_since: None,
    };
    PoolPod { pod, hash: hash.into(), verify_key: "key=".into() }
}

fn pod(slot: usize, stage: Stage) -> PoolPod {
    of(slot, "now", stage)
}

fn ready() -> Stage {
    Stage::Running { since: at(1), ready_since: Some(at(1)) }
}

fn unready(since: i64) -> Stage {
    Stage::Running { since: at(since), ready_since: None }
}

fn starting() -> Stage {
    Stage::Pending(Pending::Starting)
}

fn stuck() -> Stage {
    Stage::Pending(Pending::Stuck(Cause::new("Unschedulable", "0/1 nodes are available")))
}

fn failed(second: i64) -> Stage {
    Stage::Failed(Cause::new("OOMKilled", "too much"), at(second))
}

/// A pool that shall have `warm` pods and has these; `taken` are slots whose pods are sandboxes by now.
fn pool(warm: i32, pods: Vec<PoolPod>, taken: &[usize]) -> Observed {
    let mut template = fixtures::template();
    template.spec.warm = warm;
    let names: BTreeSet<String> =
        pods.iter().map(|found| found.pod.name.clone()).chain(taken.iter().map(|slot| name(*slot))).collect();
    Observed { template, user_namespaces: None, hash: "now".into(), pods, names, fenced: true, burst: None }
}

fn names(slots: &[usize]) -> Vec<String> {
    slots.iter().map(|slot| name(*slot)).collect()
}

#[rstest]
#[case::none_wanted(pool(0, vec![], &[]), &[], &[], 0)]
#[case::empty(pool(3, vec![], &[]), &[0, 1, 2], &[], 0)]
#[case::full(pool(2, vec![pod(0, ready()), pod(1, starting())], &[]), &[], &[], 1)]
#[case::taken(pool(2, vec![pod(1, ready())], &[0]), &[2], &[], 1)]
#[case::a_slot_is_free_again(pool(2, vec![pod(1, ready())], &[]), &[0], &[], 1)]
#[case::too_many(pool(1, vec![pod(0, starting()), pod(1, ready()), pod(2, ready())], &[]), &[], &[2, 0], 1)]
#[case::down_to_none(pool(0, vec![pod(0, ready())], &[]), &[], &[0], 0)]
#[case::rolled(pool(2, vec![of(0, "old", ready()), pod(1, ready())], &[]), &[2], &[0], 1)]
#[case::ending_ones_do_not_count(pool(1, vec![pod(0, Stage::Terminating { disruption: None, due: at(NOW) })], &[]), &[1], &[], 0)]
#[case::no_room_for_more(pool(3, vec![pod(0, ready()), pod(1, stuck())], &[]), &[], &[], 1)]
#[case::not_ready_yet(pool(1, vec![pod(0, unready(NOW - 59))], &[]), &[], &[], 0)]
#[case::not_ready_for_long(pool(1, vec![pod(0, unready(NOW - 60))], &[]), &[1], &[0], 0)]
#[case::failed_a_moment_ago(pool(2, vec![pod(0, failed(NOW - 1)), pod(1, ready())], &[]), &[], &[], 1)]
#[case::failed_long_ago(pool(2, vec![pod(0, failed(NOW - 60)), pod(1, ready())], &[]), &[2], &[0], 1)]
fn a_pool_has_as_many_pods_as_are_wanted(
    #[case] observed: Observed,
    #[case] make: &[usize],
    #[case] remove: &[usize],
    #[case] ready: usize,
) {
    let Plan { make: made, remove: removed, ready: counted, .. } = plan(&observed, at(NOW));
    let removed: Vec<String> = removed.into_iter().map(|(name, _)| name).collect();
    assert_eq!((made, removed, counted), (names(make), names(remove), ready));
}

#[test]
fn a_large_pool_is_made_in_parts() {
    assert_eq!(plan(&pool(1_000, vec![], &[]), at(NOW)).make.len(), 32);
}

#[test]
fn a_failed_pod_says_when_the_next_one_is_made() {
    let plan = plan(&pool(2, vec![pod(0, failed(NOW - 20)), pod(1, unready(NOW - 1))], &[]), at(NOW));
    assert_eq!(plan.requeue, Some(Duration::from_secs(40)));
}

#[rstest]
#[case::all(pool(1, vec![pod(0, ready())], &[]), "True", "AllReady", "1 pods wait")]
#[case::some(pool(2, vec![pod(0, ready())], &[]), "False", "Starting", "of 2 pods")]
#[case::stuck(pool(1, vec![pod(0, stuck())], &[]), "False", "Unschedulable", "0/1 nodes")]
#[case::no_image(
    pool(1, vec![pod(0, Stage::Pending(Pending::Stuck(Cause::new("InvalidImageName", "couldn't parse"))))], &[]),
    "False", "InvalidImageName", "couldn't parse"
)]
#[case::failed(pool(1, vec![pod(0, failed(NOW - 1))], &[]), "False", "BackingOff", "OOMKilled: too much")]
fn the_condition_says_what_is_missing(
    #[case] observed: Observed,
    #[case] truth: &str,
    #[case] reason: &str,
    #[case] message: &str,
) {
    let written = status(&observed, &plan(&observed, at(NOW)), None, at(NOW));
    let warm = find(&written.conditions, WARM_READY).unwrap();
    assert_eq!((warm.status.as_str(), warm.reason.as_str()), (truth, reason));
    assert!(warm.message.contains(message), "{}", warm.message);
    assert_eq!(written.selector.as_deref(), Some("longhand.dev/pool-uid=3e8f1a2b-shell"));
}

#[test]
fn a_template_without_a_pool_does_not_speak_of_one_and_its_status_is_written_once() {
    let mut observed = pool(0, vec![], &[]);
    let first = status(&observed, &plan(&observed, at(1)), None, at(1));
    assert_eq!((first.observed_generation, first.conditions.len()), (Some(1), 1));
    assert_eq!(first.conditions[0].reason, "Accepted");
    observed.template.status = Some(first.clone());
    assert_eq!(status(&observed, &plan(&observed, at(2)), None, at(2)), first);
}

#[test]
fn a_pod_of_a_pool_on_a_lost_node_is_forgotten() {
    let ending = |due: i64| Stage::Terminating { disruption: None, due: at(due) };
    let plan = plan(&pool(0, vec![pod(0, ending(NOW - 30)), pod(1, ending(NOW))], &[]), at(NOW));
    assert_eq!(plan.forget, [(name(0), "pod-0".to_owned())]);
    assert_eq!(plan.requeue, Some(Duration::from_secs(30)));
}

#[test]
fn what_is_left_to_nodes_is_said_as_long_as_it_is_and_looked_at_again() {
    let mut pool = pool(0, vec![], &[]);
    pool.user_namespaces = Some(Observation::no(USER_NAMESPACES, "NodeWithoutSupport", "node old does not"));
    let planned = plan(&pool, at(NOW));
    assert_eq!(planned.requeue, Some(KNOWN_FOR));
    let written = status(&pool, &planned, None, at(NOW));
    assert_eq!(find(&written.conditions, USER_NAMESPACES).unwrap().reason, "NodeWithoutSupport");
    (pool.template.status, pool.user_namespaces) = (Some(written), None);
    let planned = plan(&pool, at(NOW));
    assert_eq!(planned.requeue, None);
    assert_eq!(find(&status(&pool, &planned, None, at(NOW)).conditions, USER_NAMESPACES), None);
}

#[rstest]
#[case::plenty(3, 0)]
#[case::a_quarter(2, 0)]
#[case::less(1, 1)]
#[case::nothing(0, 2)]
fn while_pods_are_being_taken_a_quarter_is_kept(#[case] waiting: usize, #[case] made: usize) {
    let mut pool = pool(8, (0..waiting).map(|slot| pod(slot, ready())).collect(), &[]);
    let again = Duration::from_millis(500);
    pool.burst = Some(again);
    let plan = plan(&pool, at(NOW));
    assert_eq!((plan.make.len(), plan.remove.len(), plan.requeue), (made, 0, Some(again)));
}
