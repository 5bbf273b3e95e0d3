use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::annotations;
use longhand_crds::sandbox::{DesiredState, SandboxStatus};
use longhand_crds::sandbox_template::{BackgroundProcesses, OnFailure, Persistence, SandboxTemplateSpec};
use rstest::rstest;

use super::loss_tests::loss;
use super::{Drain, Plan, View, plan};
use crate::conditions::{FINISHED, Observation, READY, RESOURCES_READY, SUSPENDED, find, merge};
use crate::fixtures;
use crate::pods::{Cause, Pending, PodView, Stage};
use crate::sandbox::observe::Observed;
use crate::sandbox::status::status;
use crate::sandbox::volume::Volume;

pub(in crate::sandbox) const NOW: i64 = 1_000;
const NAME: &str = "quickstart-main-3e8f1a-3e8f1";
/// What is left of the lifetime.
const LIFE: u64 = 603_801;

pub(in crate::sandbox) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(in crate::sandbox) fn pod(restarts: i64, stage: Stage) -> PodView {
    PodView {
        name: format!("{NAME}-{restarts}"),
        uid: format!("pod-{restarts}"),
        ip: Some("10.0.0.7".into()),
        created: at(900 + restarts),
        stage,
        unready_since: None,
    }
}

pub(in crate::sandbox) fn ready(since: i64) -> Stage {
    Stage::Running { since: at(since), ready_since: Some(at(since)) }
}

pub(in crate::sandbox) fn pending() -> Stage {
    Stage::Pending(Pending::Starting)
}

pub(in crate::sandbox) fn failed(second: i64) -> Stage {
    Stage::Failed(Cause::new("OOMKilled", "too much"), at(second))
}

pub(in crate::sandbox) fn terminating(due: i64) -> Stage {
    Stage::Terminating { disruption: None, due: at(due) }
}

/// A sandbox whose status names the pod after so many restarts.
pub(in crate::sandbox) fn observed(named: Option<i64>, restarts: i64, pods: Vec<PodView>) -> Observed {
    let mut sandbox = fixtures::sandbox();
    sandbox.status = Some(SandboxStatus {
        pod_name: named.map(|named| format!("{NAME}-{named}")),
        pod_uid: named.map(|named| format!("pod-{named}")),
        restarts,
        incarnation: restarts,
        ..SandboxStatus::default()
    });
    let made = || pods.iter().find(|pod| pod.uid == format!("pod-{restarts}")).map(|pod| pod.uid.clone());
    let current = named.map(|named| format!("pod-{named}")).or_else(made);
    Observed {
        sandbox: Arc::new(sandbox),
        template: Some(fixtures::template()),
        pods,
        current,
        fenced: true,
        volume: Volume::Missing,
        warm: vec![],
    }
}

impl Observed {
    pub(in crate::sandbox) fn with(mut self, change: impl FnOnce(&mut SandboxStatus)) -> Self {
        change(Arc::make_mut(&mut self.sandbox).status.as_mut().unwrap());
        self
    }

    pub(in crate::sandbox) fn template(mut self, change: impl FnOnce(&mut SandboxTemplateSpec)) -> Self {
        change(&mut self.template.as_mut().unwrap().spec);
        self
    }

    pub(in crate::sandbox) fn persistent(self) -> Self {
        self.template(|spec| spec.workspace.persistence = Persistence::Persistent)
    }

    pub(in crate::sandbox) fn suspended(mut self) -> Self {
        Arc::make_mut(&mut self.sandbox).spec.desired_state = DesiredState::Suspended;
        self
    }

    pub(in crate::sandbox) fn free_standing(mut self) -> Self {
        Arc::make_mut(&mut self.sandbox).spec.session_ref = None;
        self
    }

    /// As it is after the plan was carried out, with these pods.
    pub(in crate::sandbox) fn after(mut self, plan: &Plan, now: i64, pods: Vec<PodView>) -> Self {
        let written = status(&self, plan, plan.pod.as_ref(), None, at(now));
        self.current = written.pod_uid.clone();
        Arc::make_mut(&mut self.sandbox).status = Some(written);
        self.pods = pods;
        self
    }
}

pub(in crate::sandbox) fn condition<'a>(status: &'a SandboxStatus, kind: &str) -> (&'a str, &'a str) {
    find(&status.conditions, kind).map_or(("", ""), |condition| (&condition.status, &condition.reason))
}

pub(in crate::sandbox) fn name(restarts: i64) -> Option<String> {
    Some(format!("{NAME}-{restarts}"))
}

pub(in crate::sandbox) fn ids(restarts: &[i64]) -> Vec<(String, String)> {
    restarts.iter().map(|restarts| (format!("{NAME}-{restarts}"), format!("pod-{restarts}"))).collect()
}

#[rstest]
#[case::new(observed(None, 0, vec![]), name(0), &[], View::Provisioning)]
#[case::made_but_not_written(observed(None, 0, vec![pod(0, pending())]), None, &[], View::Provisioning)]
#[case::starting(observed(Some(0), 0, vec![pod(0, pending())]), None, &[], View::Provisioning)]
#[case::ready(observed(Some(0), 0, vec![pod(0, ready(999))]), None, &[], View::Ready)]
#[case::not_ready(observed(Some(0), 0, vec![pod(0, Stage::Running { since: at(990), ready_since: None })]), None, &[], View::NotReady)]
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

fn drain() -> Option<Drain> {
    Some(Drain {
        pod_name: format!("{NAME}-0"),
        pod_uid: "pod-0".into(),
        idle_seconds: 10,
        background_counts: false,
        suspend: false,
    })
}

#[rstest]
#[case::in_use(observed(Some(0), 0, vec![pod(0, ready(NOW - 4))]), None, Some(6))]
#[case::perhaps_idle(observed(Some(0), 0, vec![pod(0, ready(NOW - 10))]), drain(), Some(LIFE))]
#[case::unless_something_runs_in_its_background(
    observed(Some(0), 0, vec![pod(0, ready(NOW - 10))]).template(|spec| spec.background_processes = BackgroundProcesses::KeepAwake),
    drain().map(|drain| Drain { background_counts: true, ..drain }), Some(LIFE)
)]
#[case::to_be_suspended(
    observed(Some(0), 0, vec![pod(0, ready(NOW - 10))]).persistent(),
    drain().map(|drain| Drain { suspend: true, ..drain }), Some(LIFE)
)]
#[case::free_standing(observed(Some(0), 0, vec![pod(0, ready(1))]).free_standing(), None, Some(LIFE))]
#[case::template_gone(
    Observed { template: None, ..observed(Some(0), 0, vec![pod(0, ready(NOW - 300))]) },
    drain().map(|drain| Drain { idle_seconds: 300, ..drain }), Some(LIFE)
)]
#[case::template_gone_and_workspace_kept(
    Observed { template: None, volume: Volume::Bound { name: "w".into() }, ..observed(Some(0), 0, vec![pod(0, ready(NOW - 300))]) },
    drain().map(|drain| Drain { idle_seconds: 300, suspend: true, ..drain }), Some(LIFE)
)]
#[case::template_gone_and_in_use(Observed { template: None, ..observed(Some(0), 0, vec![pod(0, ready(NOW - 299))]) }, None, Some(1))]
#[case::not_ready(observed(Some(0), 0, vec![pod(0, pending())]), None, Some(120))]
fn an_idle_sandbox_of_a_session_is_reclaimed(
    #[case] observed: Observed,
    #[case] expected: Option<Drain>,
    #[case] requeue: Option<u64>,
) {
    let plan = plan(&observed, at(NOW));
    assert_eq!((plan.drain, plan.requeue), (expected, requeue.map(Duration::from_secs)));
}

#[rstest]
#[case::taken_a_moment_ago(Some(NOW - 4), Some(6), None)]
#[case::taken_and_not_written_down(None, Some(10), None)]
#[case::taken_long_ago(Some(NOW - 10), Some(LIFE), drain())]
fn a_pod_of_a_pool_is_idle_only_since_it_was_taken(
    #[case] taken: Option<i64>,
    #[case] requeue: Option<u64>,
    #[case] expected: Option<Drain>,
) {
    let waited = vec![pod(0, ready(-1_000_000))];
    let mine = match taken {
        Some(taken) => observed(Some(0), 0, waited).with(|status| status.ready_at = Some(Time(at(taken)))),
        None => observed(None, 0, waited),
    };
    let planned = plan(&mine, at(NOW));
    assert_eq!(
        (planned.view.clone(), planned.requeue, planned.drain.clone()),
        (View::Ready, requeue.map(Duration::from_secs), expected)
    );
    let written = status(&mine, &planned, planned.pod.as_ref(), None, at(NOW));
    assert_eq!(written.ready_at, Some(Time(at(taken.unwrap_or(NOW)))));
}

#[test]
fn a_pod_is_ready_for_a_sandbox_since_it_was_taken() {
    let claims = observed(None, 0, vec![]);
    let begins = plan(&claims, at(NOW));
    let written = status(&claims, &begins, Some(&pod(0, ready(-1_000_000))), None, at(NOW));
    assert_eq!((condition(&written, READY), &written.ready_at), (("True", "Running"), &Some(Time(at(NOW)))));
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
fn what_is_not_ready_in_time_has_ended_and_says_why() {
    let stuck = || pod(0, Stage::Pending(Pending::Stuck(Cause::new("Unschedulable", "0/1 nodes are available"))));
    let first = observed(Some(0), 0, vec![stuck()]);
    let begun = plan(&first, at(NOW));
    assert_eq!((begun.deadline, begun.requeue), (Some(at(NOW + 120)), Some(Duration::from_secs(120))));
    let later = first.after(&begun, NOW, vec![stuck()]);
    assert_eq!(plan(&later, at(NOW + 119)).view, begun.view);
    let over = plan(&later, at(NOW + 120));
    assert_eq!((over.remove.clone(), over.make.clone(), over.incarnation), (ids(&[0]), None, 1));
    let written = status(&later, &over, over.pod.as_ref(), None, at(NOW + 120));
    for kind in [READY, FINISHED] {
        let said = find(&written.conditions, kind).unwrap();
        assert_eq!(said.reason, "ProvisioningDeadlineExceeded");
        assert!(
            said.message.contains("within 120 s: Unschedulable: ") && said.message.contains("0/1 nodes"),
            "{said:?}"
        );
    }
    assert_eq!((written.pod_uid, written.provisioning_deadline), (None, None));
}

#[rstest]
#[case::without_a_template(Observed { template: None, ..observed(None, 0, vec![]) })]
#[case::failing_again_and_again(observed(None, 7, vec![]).with(|status| status.last_loss = Some(loss(7, NOW - 1))))]
fn nothing_is_on_its_way_for_ever(#[case] observed: Observed) {
    let observed = observed.with(|status| status.provisioning_deadline = Some(Time(at(NOW))));
    assert_ne!(condition(observed.sandbox.status.as_ref().unwrap(), FINISHED).0, "True");
    assert!(matches!(plan(&observed, at(NOW)).view, View::Finished(_)));
    assert!(!matches!(plan(&observed, at(NOW - 1)).view, View::Finished(_)));
}

#[test]
fn a_sandbox_that_is_ready_has_no_deadline_any_more() {
    let late = observed(Some(0), 0, vec![pod(0, ready(NOW))])
        .with(|status| status.provisioning_deadline = Some(Time(at(NOW - 1))));
    let plan = plan(&late, at(NOW));
    assert_eq!((plan.view.clone(), plan.deadline), (View::Ready, None));
    let written = status(&late, &plan, plan.pod.as_ref(), None, at(NOW));
    assert_eq!((written.provisioning_deadline, written.ready_at), (None, Some(Time(at(NOW)))));
}

#[rstest]
#[case::in_use(LIFE - 1, false)]
#[case::over(LIFE, true)]
fn a_lifetime_is_a_hard_bound(#[case] later: u64, #[case] over: bool) {
    let now = NOW + i64::try_from(later).unwrap();
    let planned = plan(&observed(Some(0), 0, vec![pod(0, ready(now))]), at(now));
    assert_eq!(matches!(planned.view, View::Finished(ref cause) if cause.reason == "LifetimeExceeded"), over);
    assert_eq!(planned.remove, if over { ids(&[0]) } else { vec![] });
}

#[rstest]
#[case::kept(1, None, Some(3_599))]
#[case::removed(3_600, Some(()), None)]
fn what_has_ended_is_kept_to_be_looked_at_and_no_longer(
    #[case] later: i64,
    #[case] expired: Option<()>,
    #[case] requeue: Option<u64>,
) {
    let ended = observed(Some(0), 0, vec![pod(0, failed(NOW))]).template(|spec| spec.on_failure = OnFailure::Fail);
    let first = plan(&ended, at(NOW));
    assert_eq!((first.make.clone(), first.restarts, first.incarnation), (None, 1, 1));
    let ended = ended.after(&first, NOW, vec![]);
    let written = ended.sandbox.status.clone().unwrap();
    assert_eq!(
        (condition(&written, FINISHED), condition(&written, READY)),
        (("True", "OOMKilled"), ("False", "OOMKilled"))
    );
    assert_eq!(written.last_loss.unwrap().reason, "OOMKilled");
    let later = plan(&ended, at(NOW + later));
    assert_eq!((later.expired.map(|_| ()), later.requeue), (expired, requeue.map(Duration::from_secs)));
    assert_eq!(later.make, None);
}

#[test]
fn a_sandbox_is_suspended_and_resumed_with_its_workspace() {
    let bound = || Volume::Bound { name: "w".into() };
    let mut running = observed(Some(0), 0, vec![pod(0, ready(NOW))]).persistent();
    running.volume = bound();
    let told = running.suspended();
    let suspending = plan(&told, at(NOW));
    assert_eq!((suspending.remove.clone(), suspending.view.clone()), (ids(&[0]), View::Suspending));
    let ending = told.after(&suspending, NOW, vec![pod(0, terminating(NOW + 30))]);
    let written = ending.sandbox.status.clone().unwrap();
    assert_eq!(condition(&written, SUSPENDED), ("False", "Suspending"));
    assert_eq!((written.pod_uid, written.incarnation), (None, 1));
    let still = plan(&ending, at(NOW + 1));
    assert_eq!((still.remove.clone(), still.view, still.incarnation), (vec![], View::Suspending, 1));

    // Told to run before the pod has gone: two pods must not have one workspace.
    let mut woken = ending.clone();
    Arc::make_mut(&mut woken.sandbox).spec.desired_state = DesiredState::Running;
    let waiting = plan(&woken, at(NOW + 1));
    assert_eq!((waiting.make.clone(), waiting.loss, waiting.view), (None, None, View::WaitingForPod(name(0).unwrap())));

    let gone = plan(&Observed { pods: vec![], ..ending.clone() }, at(NOW + 2));
    assert_eq!((gone.view.clone(), gone.loss.clone(), gone.restarts), (View::Suspended, None, 0));
    let mut woken = ending.after(&gone, NOW + 2, vec![]);
    assert_eq!(condition(woken.sandbox.status.as_ref().unwrap(), SUSPENDED), ("True", "WorkspaceKept"));
    Arc::make_mut(&mut woken.sandbox).spec.desired_state = DesiredState::Running;
    let resuming = plan(&woken, at(NOW + 3));
    assert_eq!((resuming.make.clone(), resuming.volume, resuming.restarts), (name(1), false, 0));
    let resumed = woken.after(&resuming, NOW + 3, vec![]);
    let written = resumed.sandbox.status.clone().unwrap();
    assert_eq!(
        (condition(&written, SUSPENDED), condition(&written, READY)),
        (("False", "Resuming"), ("False", "Resuming"))
    );
    let mut up = resumed;
    (up.pods, up.current) = (vec![pod(1, ready(NOW + 4))], Some("pod-1".into()));
    let up_again = plan(&up, at(NOW + 4));
    let up = up.after(&up_again, NOW + 4, vec![]);
    let written = up.sandbox.status.as_ref().unwrap();
    assert_eq!((condition(written, SUSPENDED), condition(written, READY)), (("False", "Running"), ("True", "Running")));
}

#[test]
fn an_ephemeral_workspace_does_not_wait_for_the_pod_before_and_its_loss_is_said() {
    let told = observed(None, 1, vec![pod(0, terminating(NOW + 30))]);
    assert_eq!(plan(&told, at(NOW)).make, name(1));
    let told = observed(None, 1, vec![]).suspended();
    let suspended = plan(&told, at(NOW));
    let written = status(&told, &suspended, None, None, at(NOW));
    assert_eq!(condition(&written, SUSPENDED), ("True", "WorkspaceLost"));
}

#[rstest]
#[case::of_a_session(true, 86_399, Some(1), false)]
#[case::of_a_session_for_too_long(true, 86_400, None, true)]
#[case::free_standing(false, 86_400, Some(LIFE - 86_400), false)]
fn a_suspended_sandbox_of_a_session_is_kept_for_a_while(
    #[case] of_session: bool,
    #[case] later: i64,
    #[case] requeue: Option<u64>,
    #[case] expired: bool,
) {
    let told = observed(None, 0, vec![]).persistent().suspended();
    let told = if of_session { told } else { told.free_standing() };
    let first = plan(&told, at(NOW));
    let told = told.after(&first, NOW, vec![]);
    let planned = plan(&told, at(NOW + later));
    assert_eq!(planned.expired.is_some(), expired);
    if let Some(requeue) = requeue {
        assert_eq!(planned.requeue, Some(Duration::from_secs(requeue)));
    }
}

#[test]
fn a_volume_is_made_once_before_the_pod_and_waited_for() {
    let mut new = observed(None, 0, vec![]).persistent();
    let first = plan(&new, at(NOW));
    assert_eq!((first.make, first.volume), (name(0), true));
    new.volume = Volume::Pending { name: "w".into(), why: "no StorageClass".into() };
    assert!(!plan(&new, at(NOW)).volume);
    new.pods = vec![pod(0, pending())];
    new.current = Some("pod-0".into());
    let waiting = plan(&new, at(NOW));
    let written = status(&new, &waiting, waiting.pod.as_ref(), None, at(NOW));
    let ready = find(&written.conditions, READY).unwrap();
    assert_eq!(ready.reason, "VolumePending");
    assert!(ready.message.contains("no StorageClass"));
}

#[test]
fn a_workspace_that_lies_on_a_node_that_is_gone_is_given_up_and_its_loss_said() {
    let message = "0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity";
    let stuck = || pod(1, Stage::Pending(Pending::Stuck(Cause::new("Unschedulable", message))));
    let mut moved = observed(Some(1), 1, vec![stuck()]).persistent();
    moved.volume = Volume::Bound { name: "w".into() };
    let waits = plan(&moved, at(NOW));
    assert_eq!(waits.requeue, Some(Duration::from_secs(120)));
    let moved = moved.after(&waits, NOW, vec![stuck()]);
    assert_eq!(plan(&moved, at(NOW + 119)).view, waits.view);
    let over = plan(&moved, at(NOW + 120));
    let View::Finished(cause) = &over.view else { panic!("{:?}", over.view) };
    assert_eq!((cause.reason.as_str(), &over.remove), ("WorkspaceLost", &ids(&[1])));
    assert!(cause.message.contains("within 120 s: Unschedulable: ") && cause.message.contains("node affinity"));
}

#[rstest]
#[case::in_time(29, &[], Some(1))]
#[case::on_a_node_that_does_not_answer(30, &[0], Some(LIFE))]
fn a_pod_whose_node_does_not_say_that_it_has_ended_is_forgotten(
    #[case] overdue: i64,
    #[case] forgotten: &[i64],
    #[case] requeue: Option<u64>,
) {
    let replaced = observed(Some(1), 1, vec![pod(0, terminating(NOW - overdue)), pod(1, ready(NOW))]).free_standing();
    let plan = plan(&replaced, at(NOW));
    assert_eq!((plan.forget, plan.requeue), (ids(forgotten), requeue.map(Duration::from_secs)));
    assert!(plan.remove.is_empty() && plan.view == View::Ready);
}

#[test]
fn a_sandbox_that_has_ended_leaves_no_pod_on_a_lost_node() {
    let ended = observed(None, 1, vec![pod(0, terminating(NOW - 30))])
        .with(|status| status.conditions = merge(&[], &[Observation::yes(FINISHED, "OOMKilled", "")], None, at(NOW)));
    assert_eq!(plan(&ended, at(NOW)).forget, ids(&[0]));
}

#[test]
fn what_the_workspace_lacks_is_said_until_it_is_there() {
    let said = |annotation: Option<&str>, before: Option<SandboxStatus>| {
        let mut observed = observed(Some(0), 0, vec![pod(0, ready(NOW))]);
        let annotation = annotation.map(|why| (annotations::RESOURCES_FAILED.to_owned(), why.to_owned()));
        let sandbox = Arc::make_mut(&mut observed.sandbox);
        sandbox.metadata.annotations = Some(annotation.into_iter().collect());
        sandbox.status = before.or(sandbox.status.take());
        let plan = plan(&observed, at(NOW));
        let written = status(&observed, &plan, plan.pod.as_ref(), None, at(NOW));
        let found = find(&written.conditions, RESOURCES_READY).cloned();
        (written, found.map(|found| (found.status, found.message)))
    };
    assert_eq!(said(None, None).1, None, "most sandboxes have nothing to say of it");
    let (failed, why) = said(Some("repo: not found"), None);
    assert_eq!(why.unwrap(), ("False".to_owned(), "repo: not found".to_owned()));
    assert_eq!(said(None, Some(failed)).1.unwrap().0, "True");
}

#[test]
fn a_sandbox_without_a_session_says_what_it_is_not_given() {
    let mut observed = observed(Some(0), 0, vec![pod(0, ready(NOW))]);
    let provision = serde_json::json!([
        { "name": "app", "mountPath": "/workspace/app", "gitRepository": { "url": "https://g.test/o/app.git" } },
        { "name": "notes", "mountPath": "/workspace/notes", "file": { "content": "" } },
    ]);
    let template = observed.template.as_mut().unwrap();
    template.spec.provision = serde_json::from_value(provision).unwrap();
    let said = |observed: &Observed| {
        let plan = plan(observed, at(NOW));
        let written = status(observed, &plan, plan.pod.as_ref(), None, at(NOW));
        find(&written.conditions, RESOURCES_READY).map(|found| (found.reason.clone(), found.message.clone()))
    };
    assert_eq!(said(&observed), None, "a session's calls have it filled");
    Arc::make_mut(&mut observed.sandbox).spec.session_ref = None;
    let (reason, message) = said(&observed).unwrap();
    assert!(reason == "Unsupported" && message.starts_with("app: "), "{reason} {message}");
    observed.template.as_mut().unwrap().spec.provision.truncate(0);
    assert_eq!(said(&observed), None);
}
