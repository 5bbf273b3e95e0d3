//! Sandboxes that hand a workspace over, and those that get it.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::sandbox::{SessionRef, WorkspaceFrom};
use rstest::rstest;

use super::tests::{NOW, at, condition, failed, name, observed, pod, ready, terminating};
use super::{View, plan};
use crate::conditions::{Observation, READY, SUSPENDED, find, merge};
use crate::pods::{PodView, Stage};
use crate::sandbox::observe::Observed;
use crate::sandbox::status::status;
use crate::sandbox::volume::Volume;

fn from_giver() -> WorkspaceFrom {
    WorkspaceFrom { sandbox: "giver".into(), uid: "g".into(), ..WorkspaceFrom::default() }
}

#[test]
fn a_sandbox_waits_for_the_workspace_that_it_is_handed_whatever_its_template_says() {
    let mut receiver = observed(None, 0, vec![]);
    let from = WorkspaceFrom { claim: Some("w".into()), ..from_giver() };
    Arc::make_mut(&mut receiver.sandbox).spec.workspace_from = Some(from);
    let waits = plan(&receiver, at(NOW));
    assert_eq!(
        (waits.view.clone(), waits.make.clone(), waits.volume),
        (View::WaitingForWorkspace("giver".into()), None, false)
    );
    let written = status(&receiver, &waits, None, None, at(NOW));
    assert_eq!(
        (find(&written.conditions, READY).unwrap().reason.as_str(), written.workspace_claim),
        ("WorkspaceMoving", None)
    );
    let receiver = receiver.after(&waits, NOW, vec![]);
    let late = plan(&receiver, at(NOW + 120));
    assert!(
        matches!(late.view, View::Resting { ending: false, .. }),
        "what may come still is not thrown away: {late:?}"
    );
    let written = status(&receiver, &late, None, None, at(NOW + 120));
    assert_eq!(condition(&written, SUSPENDED), ("True", "WorkspaceMoving"));
    let mut receiver = receiver;
    receiver.volume = Volume::Bound { name: "w".into() };
    let goes = plan(&receiver, at(NOW));
    assert_eq!((goes.make.is_some(), goes.volume), (true, false));
    assert_eq!(status(&receiver, &goes, None, None, at(NOW)).workspace_claim.as_deref(), Some("w"));

    let mut asleep = receiver.suspended();
    asleep.volume = Volume::Missing;
    let written = status(&asleep, &plan(&asleep, at(NOW)), None, None, at(NOW));
    assert_eq!(find(&written.conditions, SUSPENDED).unwrap().reason, "WorkspaceMoving");
}

#[test]
fn a_sandbox_that_is_handed_over_gets_no_pod_and_goes_when_its_workspace_has() {
    let to = SessionRef { name: "other".into(), uid: "o".into(), sandbox: "main".into() };
    let mut giver = observed(Some(0), 0, vec![pod(0, ready(NOW - 900))]).persistent();
    Arc::make_mut(&mut giver.sandbox).spec.handoff_to = Some(to);
    giver.volume = Volume::Bound { name: "w".into() };
    let goes = plan(&giver, at(NOW));
    assert_eq!((goes.handoff, goes.expired, goes.make.clone(), goes.drain.clone()), (true, None, None, None));
    let written = status(&giver, &goes, goes.pod.as_ref(), None, at(NOW));
    let ready = find(&written.conditions, READY).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "HandingOver"));
    assert_eq!(written.address.as_deref(), Some("10.0.0.7:8090"), "a call that runs is still joined");
    assert_eq!(written.workspace_claim.as_deref(), Some("w"));
    // Even if its pod is lost, or its time is over.
    giver.pods = vec![pod(0, failed(NOW))];
    assert_eq!((plan(&giver, at(NOW)).loss, plan(&giver, at(2_000_000)).view), (None, goes.view));
    // Whoever died before it went is succeeded, too.
    giver.volume = Volume::Missing;
    assert!(plan(&giver, at(NOW)).handoff);
}

#[rstest]
#[case::it_runs(vec![ready(NOW - 900)], true, None)]
#[case::it_does_not_answer(vec![Stage::Running { since: at(NOW), ready_since: None }], true, None)]
#[case::it_ends(vec![terminating(NOW + 30)], false, None)]
#[case::it_has_failed(vec![failed(NOW)], false, Some("OOMKilled"))]
#[case::it_is_gone(vec![], false, Some("Deleted"))]
fn a_workspace_in_no_volume_is_there_as_long_as_its_pod(
    #[case] stage: Vec<Stage>,
    #[case] there: bool,
    #[case] lost: Option<&str>,
) {
    let to = SessionRef { name: "other".into(), uid: "o".into(), sandbox: "main".into() };
    let mut giver = observed(Some(0), 0, stage.into_iter().map(|stage| pod(0, stage)).collect());
    Arc::make_mut(&mut giver.sandbox).spec.handoff_to = Some(to);
    let goes = plan(&giver, at(NOW));
    assert_eq!((goes.handoff, goes.expired, goes.make.clone()), (true, None, None));
    assert_eq!(goes.loss.as_ref().map(|loss| loss.reason.as_str()), lost);
    assert_eq!((goes.restarts, goes.incarnation), if lost.is_some() { (1, 1) } else { (0, 0) });
    assert!(goes.remove.is_empty(), "what may be copied stays");
    let written = status(&giver, &goes, goes.pod.as_ref(), None, at(NOW));
    assert_eq!(written.pod_uid.is_some(), there, "{written:?}");
    assert_eq!(condition(&written, READY), ("False", "HandingOver"));
}

#[rstest]
#[case::a_moment(NOW - 5, None)]
#[case::too_long(NOW - 61, Some("Unresponsive"))]
fn a_pod_that_is_filled_is_lost_when_it_does_not_answer_for_long(#[case] since: i64, #[case] lost: Option<&str>) {
    let unready =
        PodView { unready_since: Some(at(since)), ..pod(0, Stage::Running { since: at(1), ready_since: None }) };
    let mut receiver = observed(Some(0), 0, vec![unready]).with(|status| {
        // It has not been ready by this since it was made.
        status.conditions = merge(&[], &[Observation::no(READY, "WorkspaceMoving", "")], None, at(NOW - 100));
        status.ready_at = Some(Time(at(NOW - 100)));
    });
    let sandbox = Arc::make_mut(&mut receiver.sandbox);
    sandbox.spec.workspace_from = Some(from_giver());
    sandbox.metadata.creation_timestamp = Some(Time(at(NOW - 101)));
    assert_eq!(plan(&receiver, at(NOW)).loss.map(|loss| loss.reason).as_deref(), lost);
}

#[test]
fn a_sandbox_takes_no_call_before_a_workspace_has_been_copied_into_its_pod() {
    let mut receiver = observed(None, 0, vec![]);
    let sandbox = Arc::make_mut(&mut receiver.sandbox);
    sandbox.spec.workspace_from = Some(from_giver());
    sandbox.metadata.creation_timestamp = Some(Time(at(NOW)));
    let begins = plan(&receiver, at(NOW));
    assert_eq!((begins.view.clone(), begins.make.clone(), begins.volume), (View::Provisioning, name(0), false));
    // One of the pool is ready at once, and is known of by the write that names it.
    let taken = status(&receiver, &begins, Some(&pod(0, ready(NOW))), None, at(NOW));
    assert_eq!(condition(&taken, READY), ("False", "WorkspaceMoving"));
    assert_eq!(taken.address.as_deref(), Some("10.0.0.7:8090"), "it is sent there");

    let receiver = receiver.after(&begins, NOW, vec![pod(0, ready(NOW + 1))]).with(|status| *status = taken);
    let mut receiver = Observed { current: Some("pod-0".into()), ..receiver };
    let waits = plan(&receiver, at(NOW + 119));
    assert_eq!((waits.view.clone(), waits.drain.clone()), (View::Receiving("giver".into()), None), "it is not idle");
    let written = status(&receiver, &waits, waits.pod.as_ref(), None, at(NOW + 119));
    assert_eq!(condition(&written, READY), ("False", "WorkspaceMoving"));
    assert_eq!(written.provisioning_deadline, Some(Time(at(NOW + 240))), "as long again to fill it");

    // A pod that is lost meanwhile is replaced, and the time goes on.
    let mut lost = receiver.clone().with(|status| *status = written.clone());
    lost.pods = vec![pod(0, failed(NOW + 119))];
    let again = plan(&lost, at(NOW + 120));
    assert_eq!((again.make.clone(), again.deadline), (name(1), Some(at(NOW + 240))));

    let late = plan(&receiver, at(NOW + 240));
    let View::Finished(cause) = late.view else { panic!("{:?}", late.view) };
    assert_eq!(cause.reason, "ProvisioningDeadlineExceeded");

    let copied = WorkspaceFrom { copied_to: Some("pod-0".into()), ..from_giver() };
    Arc::make_mut(&mut receiver.sandbox).spec.workspace_from = Some(copied);
    let ready = plan(&receiver, at(NOW + 2));
    assert_eq!(ready.view, View::Ready);
    let written = status(&receiver, &ready, ready.pod.as_ref(), None, at(NOW + 2));
    assert_eq!(condition(&written, READY), ("True", "Running"));
    assert_eq!(written.provisioning_deadline, None);
}
