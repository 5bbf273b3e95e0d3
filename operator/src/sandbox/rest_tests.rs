//! Sandboxes that are not ready in time and keep their workspaces.

use std::sync::Arc;

use longhand_crds::annotations::RETRY;
use longhand_crds::sandbox::WorkspaceFrom;
use rstest::rstest;

use super::tests::{NOW, at, condition, ids, name, observed, pending, pod, ready, terminating};
use super::{View, plan};
use crate::conditions::{FINISHED, Observation, READY, SUSPENDED, find, merge};
use crate::pods::{Cause, Pending, PodView, Stage};
use crate::sandbox::observe::Observed;
use crate::sandbox::status::status;
use crate::sandbox::volume::Volume;

const PINNED: &str =
    "0/2 nodes are available: 1 node(s) had volume node affinity conflict, 1 node(s) were unschedulable.";

const AWAY: &str = "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, \
                    1 node(s) had volume node affinity conflict.";

fn stuck(reason: &str, message: &str) -> Stage {
    Stage::Pending(Pending::Stuck(Cause::new(reason, message)))
}

fn bound() -> Volume {
    Volume::Bound { name: "w".into() }
}

/// A sandbox whose second pod is like this, and whose workspace was written to by the first.
fn woken(stage: Option<Stage>) -> Observed {
    let named = stage.is_some().then_some(1);
    let mut woken = observed(named, 1, stage.into_iter().map(|stage| pod(1, stage)).collect()).persistent();
    woken.volume = bound();
    woken
}

/// The same when its time is over.
fn late(observed: &Observed, now: i64) -> Observed {
    let begun = plan(observed, at(now));
    assert_eq!(begun.deadline, Some(at(now + 120)), "{begun:?}");
    observed.clone().after(&begun, now, observed.pods.clone())
}

fn ask(mut observed: Observed, incarnation: i64) -> Observed {
    let annotations = &mut Arc::make_mut(&mut observed.sandbox).metadata.annotations;
    annotations.get_or_insert_default().insert(RETRY.into(), incarnation.to_string());
    observed
}

#[rstest]
#[case::no_node(Some(stuck("Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.")), "Insufficient cpu")]
#[case::its_node_is_full(
    Some(stuck(
        "Unschedulable",
        "0/2 nodes are available: 1 Insufficient memory, 1 node(s) had volume node affinity conflict."
    )),
    "Insufficient memory"
)]
#[case::its_node_has_no_room_on_its_disk(
    Some(stuck(
        "Unschedulable",
        "1 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }, 1 node(s) didn't match PersistentVolume's node affinity."
    )),
    "disk-pressure"
)]
#[case::no_image(Some(stuck("ImagePullBackOff", "no such image")), "no such image")]
#[case::a_slow_volume(Some(pending()), "Resuming")]
#[case::refused_by_a_quota(None, "")]
fn a_workspace_is_kept_when_there_is_no_pod_for_it_in_time(#[case] stage: Option<Stage>, #[case] why: &str) {
    let woken = woken(stage.clone()).with(|status| {
        status.conditions = merge(&[], &[Observation::yes(SUSPENDED, "WorkspaceKept", "")], None, at(1));
    });
    let late = late(&woken, NOW);
    let over = plan(&late, at(NOW + 120));
    let View::Resting { why: said, ending } = &over.view else { panic!("{:?}", over.view) };
    assert!(said.contains("within 120 s; its workspace is kept, and the next call tries again") && said.contains(why));
    let removed = if stage.is_some() { ids(&[1]) } else { vec![] };
    assert_eq!((*ending, over.remove.clone(), over.make.clone()), (stage.is_some(), removed, None));
    assert_eq!((over.deadline, over.incarnation, over.restarts), (None, 2, 1), "the next one has another name");
    let written = status(&late, &over, None, None, at(NOW + 120));
    assert_eq!(condition(&written, READY), ("False", "ProvisioningDeadlineExceeded"));
    assert!(find(&written.conditions, FINISHED).is_none() && written.pod_uid.is_none());
    assert_eq!(written.workspace_claim.as_deref(), Some("w"));

    // It stays so, whatever looks at it.
    let resting = late.after(&over, NOW + 120, vec![]);
    let still = plan(&resting, at(NOW + 3_000));
    assert_eq!((still.make.clone(), still.incarnation, still.miss.clone()), (None, 2, over.miss.clone()));
    let resting = resting.after(&still, NOW + 3_000, vec![]);
    let written = resting.sandbox.status.clone().unwrap();
    assert_eq!(condition(&written, SUSPENDED), ("True", "WorkspaceKept"));
    assert_eq!(find(&written.conditions, READY).unwrap().message, *said);
    let still = plan(&resting, at(NOW + 3_001));
    assert_eq!(status(&resting, &still, None, None, at(NOW + 3_001)), written, "nothing is written again");

    // Who had asked for the one before is answered already.
    assert_eq!(plan(&ask(resting.clone(), 1), at(NOW + 3_001)).make, None);
    let asked = ask(resting, 2);
    let again = plan(&asked, at(NOW + 3_001));
    assert_eq!((again.make.clone(), again.deadline, again.volume), (name(2), Some(at(NOW + 3_121)), false));
    let asked = asked.after(&again, NOW + 3_001, vec![]);
    assert_eq!(condition(asked.sandbox.status.as_ref().unwrap(), SUSPENDED), ("False", "Resuming"));
    let mut up = asked;
    (up.pods, up.current) = (vec![pod(2, ready(NOW + 3_005))], Some("pod-2".into()));
    let written = status(&up, &plan(&up, at(NOW + 3_005)), up.pods.first(), None, at(NOW + 3_005));
    assert_eq!((condition(&written, READY), &written.last_miss), (("True", "Running"), &None));
}

#[rstest]
#[case::on_a_node_that_is_gone(stuck("Unschedulable", PINNED), bound(), Some("WorkspaceLost"))]
#[case::on_a_node_that_is_away(stuck("Unschedulable", AWAY), bound(), None)]
#[case::whose_storage_is_gone(pending(), Volume::Lost { name: "w".into() }, Some("WorkspaceLost"))]
#[case::that_never_was(pending(), Volume::Pending { name: "w".into(), why: "no class".into() }, Some("ProvisioningDeadlineExceeded"))]
#[case::here(pending(), bound(), None)]
fn a_workspace_is_given_up_only_if_no_pod_will_ever_use_it(
    #[case] stage: Stage,
    #[case] volume: Volume,
    #[case] ended: Option<&str>,
) {
    let mut woken = woken(Some(stage));
    woken.volume = volume;
    let over = plan(&late(&woken, NOW), at(NOW + 120));
    match &over.view {
        View::Finished(cause) => assert_eq!(Some(cause.reason.as_str()), ended),
        view => assert!(ended.is_none() && matches!(view, View::Resting { .. }), "{view:?}"),
    }
}

#[test]
fn a_workspace_that_was_handed_over_is_kept_when_the_first_pod_is_late() {
    let mut receiver = observed(Some(0), 0, vec![pod(0, stuck("Unschedulable", "0/1 nodes"))]);
    receiver.volume = bound();
    let own = plan(&late(&receiver, NOW), at(NOW + 120));
    assert!(matches!(own.view, View::Finished(_)), "nothing was ever written to a workspace of its own: {own:?}");
    let from = WorkspaceFrom { sandbox: "giver".into(), uid: "g".into(), claim: Some("w".into()), copied_to: None };
    Arc::make_mut(&mut receiver.sandbox).spec.workspace_from = Some(from);
    let over = plan(&late(&receiver, NOW), at(NOW + 120));
    assert!(matches!(over.view, View::Resting { .. }), "{over:?}");
}

#[test]
fn a_sandbox_without_a_session_is_tried_again_more_and_more_slowly() {
    let mut sandbox = woken(Some(pending())).free_standing();
    let mut now = NOW;
    for (round, rest) in [30, 60, 120, 240, 480, 600, 600].into_iter().enumerate() {
        let late = late(&sandbox, now);
        now += 120;
        let over = plan(&late, at(now));
        assert!(matches!(&over.view, View::Resting { why, .. } if why.contains("in a while")), "{over:?}");
        assert_eq!(over.requeue.map(|wait| wait.as_secs()), Some(rest), "round {round}");
        let resting = late.after(&over, now, vec![]);
        assert_eq!(plan(&resting, at(now + i64::try_from(rest).unwrap() - 1)).make, None);
        now += i64::try_from(rest).unwrap();
        let again = plan(&resting, at(now));
        assert_eq!(again.make, name(over.incarnation));
        sandbox = Observed { pods: vec![], ..resting };
    }
    // It ends with its life all the same.
    let over = plan(&sandbox, at(700_000));
    assert!(matches!(&over.view, View::Finished(cause) if cause.reason == "LifetimeExceeded"), "{over:?}");
}

#[test]
fn a_sandbox_of_a_session_rests_no_longer_than_it_may_be_suspended() {
    let late = late(&woken(None), NOW);
    let over = plan(&late, at(NOW + 120));
    let resting = late.after(&over, NOW + 120, vec![]);
    let resting = resting.with(|status| {
        status.conditions = merge(&[], &[Observation::yes(SUSPENDED, "WorkspaceKept", "")], None, at(NOW + 120));
    });
    assert!(plan(&resting, at(NOW + 120 + 86_399)).expired.is_none());
    assert!(plan(&resting, at(NOW + 120 + 86_400)).expired.is_some());
}

#[test]
fn who_suspends_and_wakes_a_sandbox_that_rests_tries_again() {
    let late = late(&woken(None), NOW);
    let over = plan(&late, at(NOW + 120));
    let mut told = late.after(&over, NOW + 120, vec![]);
    let running = told.sandbox.spec.clone();
    told = told.suspended();
    let suspended = plan(&told, at(NOW + 121));
    let mut woken = told.after(&suspended, NOW + 121, vec![]);
    assert_eq!(woken.sandbox.status.as_ref().unwrap().last_miss, None);
    Arc::make_mut(&mut woken.sandbox).spec = running;
    assert_eq!(plan(&woken, at(NOW + 122)).make, name(2));
}

#[test]
fn a_pod_that_ends_still_has_the_workspace_until_it_has() {
    let late = late(&woken(Some(pending())), NOW);
    let over = plan(&late, at(NOW + 120));
    let ends: Vec<PodView> = vec![pod(1, terminating(NOW + 150))];
    let resting = late.after(&over, NOW + 120, ends);
    let planned = plan(&resting, at(NOW + 121));
    assert!(matches!(planned.view, View::Resting { ending: true, .. }) && planned.remove.is_empty());
    let asked = plan(&ask(resting, 2), at(NOW + 121));
    assert_eq!((asked.make, asked.view), (None, View::WaitingForPod(name(1).unwrap())));
}

#[rstest]
#[case::it_was_there(Some("w"), false)]
#[case::it_never_was(None, true)]
fn a_workspace_whose_claim_is_gone_is_not_replaced_by_an_empty_one_without_a_word(
    #[case] claim: Option<&str>,
    #[case] made: bool,
) {
    let mut woken = woken(None).with(|status| status.workspace_claim = claim.map(Into::into));
    woken.volume = Volume::Missing;
    let planned = plan(&woken, at(NOW));
    assert_eq!((planned.make.is_some(), planned.volume), (made, made));
    assert_eq!(matches!(&planned.view, View::Finished(cause) if cause.reason == "WorkspaceLost"), !made);
    // It is remembered as long as it is not wanted.
    let asleep = woken.suspended();
    let written = status(&asleep, &plan(&asleep, at(NOW)), None, None, at(NOW));
    assert_eq!(written.workspace_claim.as_deref(), claim);
    assert_eq!(condition(&written, SUSPENDED), ("True", "WorkspaceLost"));
}
