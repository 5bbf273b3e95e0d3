//! Sandboxes whose pods are lost.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::sandbox::Loss;
use rstest::rstest;

use super::tests::{NOW, at, failed, ids, name, observed, pod, ready, terminating};
use super::{View, plan};
use crate::conditions::{Observation, READY, find, merge};
use crate::pods::{Cause, PodView, Stage};
use crate::sandbox::loss::backoff;
use crate::sandbox::status::{lost, status};

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
    let again = plan(&observed, at(NOW));
    let loss = again.loss.clone().unwrap();
    assert_eq!((loss.pod_uid.as_str(), loss.reason.as_str(), again.restarts), ("pod-0", reason, 1));
    assert_eq!((again.make.clone(), again.remove.clone(), again.pod.clone()), (make, ids(remove), None));
    let written = lost(&observed, &again, &loss, at(NOW));
    assert_eq!((written.pod_uid, written.address, written.restarts), (None, None, 1));
    assert_eq!(find(&written.conditions, READY).unwrap().reason, reason);
    assert_eq!(written.last_loss, Some(loss));
}

#[test]
fn a_loss_is_counted_once() {
    let first = observed(Some(0), 0, vec![pod(0, failed(NOW))]);
    let planned = plan(&first, at(NOW));
    let mut second = first.clone();
    let written = lost(&first, &planned, planned.loss.as_ref().unwrap(), at(NOW));
    Arc::make_mut(&mut second.sandbox).status = Some(written);
    second.current = None;
    let again = plan(&second, at(NOW));
    assert_eq!((again.loss, again.restarts, again.make), (None, 1, name(1)));
}

#[test]
fn a_pod_that_was_evicted_before_it_went_was_evicted() {
    let seen = Observation::no(READY, "Evicted", "pod was told to end: drained");
    let observed = observed(Some(0), 0, vec![]).with(|status| status.conditions = merge(&[], &[seen], None, at(1)));
    assert_eq!(plan(&observed, at(NOW)).loss.unwrap().reason, "Evicted");
}

pub(super) fn loss(in_a_row: i64, second: i64) -> Loss {
    Loss {
        pod_uid: "pod-0".into(),
        reason: "OOMKilled".into(),
        time: Some(Time(at(second))),
        in_a_row,
        ..Loss::default()
    }
}

#[rstest]
#[case::first_loss(1, NOW, name(9), View::Provisioning, Some(120))]
#[case::again(3, NOW - 1, None, View::BackingOff, Some(3))]
#[case::again_and_waited(3, NOW - 4, name(9), View::Provisioning, Some(120))]
#[case::the_sixth(6, NOW - 1, None, View::BackingOff, Some(31))]
fn pods_that_are_lost_are_replaced_more_slowly(
    #[case] in_a_row: i64,
    #[case] lost_at: i64,
    #[case] make: Option<String>,
    #[case] view: View,
    #[case] requeue: Option<u64>,
) {
    let observed = observed(None, 9, vec![pod(8, failed(lost_at))])
        .with(|status| status.last_loss = Some(loss(in_a_row, lost_at)));
    let waits = plan(&observed, at(NOW));
    assert_eq!((waits.make.clone(), waits.view.clone(), waits.requeue), (make, view, requeue.map(Duration::from_secs)));
    assert_eq!(waits.remove, ids(&[8]));
    assert_eq!(waits.deadline.is_some(), waits.make.is_some(), "its time begins when there may be a pod");
    let waited = observed.after(&waits, NOW, vec![]);
    let made = plan(&waited, at(NOW + 100));
    assert_eq!((made.make, made.view), (name(9), View::Provisioning));
}

#[rstest]
#[case::out_of_memory(vec![pod(0, failed(NOW - 1))], Some(NOW - 1))]
#[case::deleted_or_evicted(vec![], None)]
#[case::ended(vec![pod(0, Stage::Succeeded)], None)]
#[case::node_lost(vec![pod(0, terminating(NOW - 30))], None)]
fn every_loss_counts_in_a_row_until_a_pod_was_ready_for_a_while(
    #[case] pods: Vec<PodView>,
    #[case] since: Option<i64>,
    #[values((None, 4), (Some(NOW - 299), 4), (Some(NOW - 301), 1))] (ready_at, in_a_row): (Option<i64>, i64),
) {
    let observed = observed(Some(0), 3, pods).with(|status| {
        status.last_loss = Some(loss(3, NOW - 400));
        status.ready_at = ready_at.map(|since| Time(at(since)));
    });
    let lost = plan(&observed, at(NOW));
    let said = lost.loss.clone().unwrap();
    assert_eq!((said.time, said.in_a_row, lost.restarts), (Some(Time(at(since.unwrap_or(NOW)))), in_a_row, 4));
    assert_eq!(lost.make.is_some(), in_a_row == 1, "{lost:?}");
}

#[test]
fn the_last_loss_stays_when_the_next_pod_is_ready() {
    let mut observed = observed(Some(1), 1, vec![pod(1, ready(NOW))]);
    let loss = loss(1, NOW - 9);
    Arc::make_mut(&mut observed.sandbox).status.as_mut().unwrap().last_loss = Some(loss.clone());
    let plan = plan(&observed, at(NOW));
    assert_eq!(status(&observed, &plan, plan.pod.as_ref(), None, at(NOW)).last_loss, Some(loss));
}

#[rstest]
#[case(1, 0)]
#[case(2, 2)]
#[case(6, 32)]
#[case(400, 60)]
fn waits_grow_up_to_a_minute(#[case] in_a_row: i64, #[case] seconds: u64) {
    assert_eq!(backoff(in_a_row), Duration::from_secs(seconds));
}

#[test]
fn a_pod_that_hangs_or_whose_node_is_lost_is_replaced() {
    let hangs = || pod(0, Stage::Running { since: at(1), ready_since: None });
    let was_ready = observed(Some(0), 0, vec![hangs()]).with(|status| status.ready_at = Some(Time(at(1))));
    let first = plan(&was_ready, at(NOW));
    assert_eq!(
        (first.view.clone(), first.requeue, first.deadline),
        (View::NotReady, Some(Duration::from_secs(60)), None)
    );
    let later = was_ready.after(&first, NOW, vec![hangs()]);
    assert_eq!(plan(&later, at(NOW + 59)).loss, None);
    let lost = plan(&later, at(NOW + 60));
    assert_eq!((lost.loss.unwrap().reason.as_str(), lost.make, lost.remove), ("Unresponsive", name(1), ids(&[0])));
}

#[test]
fn a_loss_says_that_the_workspace_is_kept() {
    let lost = plan(&observed(Some(0), 0, vec![pod(0, failed(NOW))]).persistent(), at(NOW)).loss.unwrap();
    assert_eq!(lost.message, "too much; its workspace is kept");
}

#[rstest]
#[case::the_first_is_replaced_at_once(0, NOW + 60, NOW + 60)]
#[case::the_pause_is_no_time_of_the_next(3, NOW + 60, NOW + 68)]
#[case::one_as_long_as_what_is_left_prolongs_nothing(3, NOW + 8, NOW + 8)]
fn a_pause_is_no_time_of_a_pod(#[case] in_a_row: i64, #[case] deadline: i64, #[case] expected: i64) {
    let lost = observed(Some(0), 0, vec![pod(0, failed(NOW))]).with(|status| {
        status.last_loss = Some(loss(in_a_row, NOW - 1));
        status.provisioning_deadline = Some(Time(at(deadline)));
    });
    let planned = plan(&lost, at(NOW));
    assert_eq!(planned.deadline, Some(at(expected)));
    let waits = lost.after(&planned, NOW, vec![]);
    assert_eq!(plan(&waits, at(NOW + 1)).deadline, Some(at(expected)), "once");
}
