use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longhand_crds::sandbox::{Loss, SandboxStatus};
use rstest::rstest;

use super::{Drain, Plan, View, backoff, plan};
use crate::conditions::{Observation, READY, find, merge};
use crate::fixtures;
use crate::pods::{Cause, Pending, PodView, Stage};
use crate::sandbox::observe::Observed;
use crate::sandbox::status::{lost, status};

const NOW: i64 = 1_000;
const NAME: &str = "quickstart-main-3e8f1a";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(restarts: i64, stage: Stage) -> PodView {
    PodView {
        name: format!("{NAME}-{restarts}"),
        uid: format!("pod-{restarts}"),
        ip: Some("10.0.0.7".into()),
        created: at(900 + restarts),
        stage,
    }
}

fn ready(since: i64) -> Stage {
    Stage::Running { since: at(since), ready_since: Some(at(since)) }
}

fn pending() -> Stage {
    Stage::Pending(Pending::Starting)
}

fn failed(second: i64) -> Stage {
    Stage::Failed(Cause::new("OOMKilled", "too much"), at(second))
}

fn terminating(due: i64) -> Stage {
    Stage::Terminating { disruption: None, due: at(due) }
}

/// A sandbox whose status names the pod after so many restarts.
fn observed(named: Option<i64>, restarts: i64, pods: Vec<PodView>) -> Observed {
    let mut sandbox = fixtures::sandbox();
    sandbox.status = Some(SandboxStatus {
        pod_name: named.map(|named| format!("{NAME}-{named}")),
        pod_uid: named.map(|named| format!("pod-{named}")),
        restarts,
        ..SandboxStatus::default()
    });
    Observed { sandbox: Arc::new(sandbox), template: Some(fixtures::template()), pods, fenced: true }
}

fn name(restarts: i64) -> Option<String> {
    Some(format!("{NAME}-{restarts}"))
}

fn ids(restarts: &[i64]) -> Vec<(String, String)> {
    restarts.iter().map(|restarts| (format!("{NAME}-{restarts}"), format!("pod-{restarts}"))).collect()
}

#[rstest]
#[case::new(observed(None, 0, vec![]), name(0), &[], View::Provisioning)]
#[case::made_but_not_written(observed(None, 0, vec![pod(0, pending())]), None, &[], View::Provisioning)]
#[case::starting(observed(Some(0), 0, vec![pod(0, pending())]), None, &[], View::Provisioning)]
#[case::ready(observed(Some(0), 0, vec![pod(0, ready(999))]), None, &[], View::Ready)]
#[case::not_ready(observed(Some(0), 0, vec![pod(0, Stage::Running { since: at(990), ready_since: None })]), None, &[], View::NotReady)]
#[case::never_ready(observed(Some(0), 0, vec![pod(0, Stage::Running { since: at(880), ready_since: None })]), None, &[], View::Late)]
#[case::told_to_end(observed(Some(0), 0, vec![pod(0, terminating(NOW))]), None, &[], View::Terminating(None))]
#[case::no_room(
    observed(Some(0), 0, vec![pod(0, Stage::Pending(Pending::Stuck(Cause::new("Unschedulable", "no"))))]),
    None, &[], View::Stuck(Cause::new("Unschedulable", "no"))
)]
#[case::earlier_pods_go(observed(Some(1), 1, vec![pod(0, failed(1)), pod(1, ready(999))]), None, &[0], View::Ready)]
#[case::earlier_pods_that_end_are_left(observed(Some(1), 1, vec![pod(0, terminating(NOW)), pod(1, ready(999))]), None, &[], View::Ready)]
fn a_sandbox_has_one_pod(
    #[case] observed: Observed,
    #[case] make: Option<String>,
    #[case] remove: &[i64],
    #[case] view: View,
) {
    let plan = plan(&observed, at(NOW));
    assert_eq!((plan.make, plan.remove, plan.view, plan.loss), (make, ids(remove), view, None));
}

#[rstest]
#[case::killed(vec![], "Deleted", name(1), &[])]
#[case::out_of_memory(vec![pod(0, failed(NOW))], "OOMKilled", name(1), &[0])]
#[case::ended(vec![pod(0, Stage::Succeeded)], "Exited", name(1), &[0])]
#[case::between_exit_and_failed(vec![pod(0, Stage::Restarting(Cause::new("Exited", "1")))], "Exited", name(1), &[0])]
#[case::node_does_not_answer(vec![pod(0, terminating(NOW - 30))], "NodeLost", name(1), &[])]
fn a_lost_pod_is_replaced_and_its_cause_kept(
    #[case] pods: Vec<PodView>,
    #[case] reason: &str,
    #[case] make: Option<String>,
    #[case] remove: &[i64],
) {
    let observed = observed(Some(0), 0, pods);
    let plan = plan(&observed, at(NOW));
    let loss = plan.loss.clone().unwrap();
    assert_eq!((loss.pod_uid.as_str(), loss.reason.as_str(), plan.restarts), ("pod-0", reason, 1));
    assert_eq!((plan.make, plan.remove, plan.pod), (make, ids(remove), None));
    let written = lost(&observed, plan.restarts, &loss, at(NOW));
    assert_eq!((written.pod_uid, written.address, written.restarts), (None, None, 1));
    assert_eq!(find(&written.conditions, READY).unwrap().reason, reason);
    assert_eq!(written.last_loss, Some(loss));
}

#[test]
fn a_loss_is_counted_once() {
    let first = observed(Some(0), 0, vec![pod(0, failed(NOW))]);
    let loss = plan(&first, at(NOW)).loss.unwrap();
    let mut second = first.clone();
    Arc::make_mut(&mut second.sandbox).status = Some(lost(&first, 1, &loss, at(NOW)));
    let again = plan(&second, at(NOW));
    assert_eq!((again.loss, again.restarts, again.make), (None, 1, name(1)));
}

#[test]
fn a_pod_that_was_evicted_before_it_went_was_evicted() {
    let mut observed = observed(Some(0), 0, vec![]);
    let seen = Observation::no(READY, "Evicted", "pod was told to end: drained");
    let status = Arc::make_mut(&mut observed.sandbox).status.as_mut().unwrap();
    status.conditions = merge(&[], &[seen], None, at(1));
    assert_eq!(plan(&observed, at(NOW)).loss.unwrap().reason, "Evicted");
}

#[rstest]
#[case::first_loss(1, NOW, name(1), View::Provisioning, None)]
#[case::again(3, NOW - 1, None, View::BackingOff, Some(3))]
#[case::again_and_waited(3, NOW - 4, name(3), View::Provisioning, None)]
fn pods_that_fail_are_replaced_more_slowly(
    #[case] restarts: i64,
    #[case] failed_at: i64,
    #[case] make: Option<String>,
    #[case] view: View,
    #[case] requeue: Option<u64>,
) {
    let observed = observed(None, restarts, vec![pod(restarts - 1, failed(failed_at))]);
    let plan = plan(&observed, at(NOW));
    assert_eq!((plan.make.clone(), plan.view.clone(), plan.requeue), (make, view, requeue.map(Duration::from_secs)));
    assert_eq!(plan.remove.is_empty(), plan.make.is_none());
}

fn drain() -> Option<Drain> {
    Some(Drain { pod_name: format!("{NAME}-0"), pod_uid: "pod-0".into(), idle_seconds: 10 })
}

#[rstest]
#[case::in_use(observed(Some(0), 0, vec![pod(0, ready(NOW - 4))]), None, Some(6))]
#[case::perhaps_idle(observed(Some(0), 0, vec![pod(0, ready(NOW - 10))]), drain(), None)]
#[case::free_standing(
    { let mut observed = observed(Some(0), 0, vec![pod(0, ready(1))]); Arc::make_mut(&mut observed.sandbox).spec.session_ref = None; observed },
    None, None
)]
#[case::template_gone(Observed { template: None, ..observed(Some(0), 0, vec![pod(0, ready(1))]) }, None, None)]
#[case::not_ready(observed(Some(0), 0, vec![pod(0, pending())]), None, Some(20))]
fn an_idle_sandbox_of_a_session_is_reclaimed(
    #[case] observed: Observed,
    #[case] expected: Option<Drain>,
    #[case] requeue: Option<u64>,
) {
    let plan = plan(&observed, at(NOW));
    assert_eq!((plan.drain, plan.requeue), (expected, requeue.map(Duration::from_secs)));
}

#[test]
fn without_a_template_nothing_is_made() {
    let observed = Observed { template: None, fenced: false, ..observed(None, 0, vec![]) };
    let plan = plan(&observed, at(NOW));
    assert_eq!((plan.make.clone(), plan.view.clone(), plan.fence), (None, View::TemplateMissing, true));
    let written = status(&observed, &plan, None, None, at(NOW));
    let ready = find(&written.conditions, READY).unwrap();
    assert_eq!(ready.reason, "TemplateNotFound");
    assert!(ready.message.contains("SandboxTemplate shell"), "{}", ready.message);
}

#[rstest]
#[case(Some("10.0.0.7"), Some("10.0.0.7:8090"))]
#[case(Some("fd00::7"), Some("[fd00::7]:8090"))]
#[case(None, None)]
fn the_address_is_known_while_the_pod_is_ready(#[case] ip: Option<&str>, #[case] address: Option<&str>) {
    let mut pods = vec![pod(0, ready(NOW))];
    pods[0].ip = ip.map(ToOwned::to_owned);
    let observed = observed(Some(0), 0, pods);
    let plan = plan(&observed, at(NOW));
    let written = status(&observed, &plan, plan.pod.as_ref(), None, at(NOW));
    assert_eq!(written.address.as_deref(), address);
    assert_eq!(find(&written.conditions, READY).unwrap().status, "True");
}

#[rstest]
#[case(pending(), "Provisioning")]
#[case(terminating(NOW), "Terminating")]
#[case(Stage::Pending(Pending::Stuck(Cause::new("ErrImagePull", "no"))), "ErrImagePull")]
#[case(Stage::Terminating { disruption: Some(Cause::new("Preempted", "x")), due: at(NOW) }, "Preempted")]
fn a_pod_that_takes_no_calls_has_no_address(#[case] stage: Stage, #[case] reason: &str) {
    let observed = observed(Some(0), 0, vec![pod(0, stage)]);
    let plan: Plan = plan(&observed, at(NOW));
    let written = status(&observed, &plan, plan.pod.as_ref(), None, at(NOW));
    let ready = find(&written.conditions, READY).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", reason));
    assert_eq!((written.address, written.pod_uid.as_deref()), (None, Some("pod-0")));
}

#[test]
fn the_last_loss_stays_when_the_next_pod_is_ready() {
    let mut observed = observed(Some(1), 1, vec![pod(1, ready(NOW))]);
    let loss = Loss { pod_uid: "pod-0".into(), reason: "Evicted".into(), message: String::new() };
    Arc::make_mut(&mut observed.sandbox).status.as_mut().unwrap().last_loss = Some(loss.clone());
    let plan = plan(&observed, at(NOW));
    assert_eq!(status(&observed, &plan, plan.pod.as_ref(), None, at(NOW)).last_loss, Some(loss));
}

#[rstest]
#[case(1, 0)]
#[case(2, 2)]
#[case(6, 32)]
#[case(400, 60)]
fn waits_grow_up_to_a_minute(#[case] restarts: i64, #[case] seconds: u64) {
    assert_eq!(backoff(restarts), Duration::from_secs(seconds));
}
