use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longhand_crds::agent_session::{AgentSessionStatus, HarnessStatus, Input};
use longhand_protocol::internal::SessionSummary;
use rstest::rstest;

use super::{HARNESS_READY, INPUT_AGAIN, LogCall, NewPod, Plan, REFRESH, View, backoff, is_urgent, log_call, plan};
use crate::agent::mcp::McpAccess;
use crate::agent_session::observe::{HarnessPod, Observed, References, Unresolved};
use crate::agent_session::proxy_health::Credentials;
use crate::agent_session::warm::Warm;
use crate::conditions::{Observation, merge};
use crate::fixtures::{self, summary};
use crate::pods::{Cause, Pending, PodView, Stage};

const NOW: i64 = 1_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(generation: i64, stage: Stage) -> HarnessPod {
    let pod = PodView {
        name: format!("quickstart-harness-3e8f1a-{generation}"),
        uid: format!("pod-{generation}"),
        ip: None,
        created: at(900),
        stage,
        unready_since: None,
    };
    HarnessPod { pod, generation, refresh_tokens: BTreeMap::new() }
}

fn running(since: i64) -> Stage {
    Stage::Running { since: at(since), ready_since: Some(at(since)) }
}

fn pending() -> Stage {
    Stage::Pending(Pending::Starting)
}

fn failed(at_second: i64) -> Stage {
    Stage::Failed(Cause::new("Evicted", "low on disk"), at(at_second))
}

fn terminating() -> Stage {
    Stage::Terminating { disruption: None, due: at(NOW + 10) }
}

/// A session with these pods, whose status names the pod of generation `named`.
struct Case {
    wake_since: Option<i64>,
    named: Option<i64>,
    generation: i64,
    failures: i64,
    harness_ready: Option<(bool, i64)>,
    pods: Vec<HarnessPod>,
    resolved: bool,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            wake_since: None,
            named: None,
            generation: 0,
            failures: 0,
            harness_ready: None,
            pods: Vec::new(),
            resolved: true,
        }
    }
}

impl Case {
    fn observed(self) -> Observed {
        let mut session = fixtures::session();
        let conditions = self.harness_ready.map(|(ready, since)| {
            let seen = if ready {
                Observation::yes(HARNESS_READY, "Working", "")
            } else {
                Observation::no(HARNESS_READY, "NotClaimed", "")
            };
            merge(&[], &[seen], None, at(since))
        });
        session.status = Some(AgentSessionStatus {
            session_id: Some("sesn_1".into()),
            phase: Some("idle".into()),
            delivered_inputs: Some(1),
            delivered_generation: Some(1),
            harness: (self.generation > 0).then(|| HarnessStatus {
                generation: self.generation,
                pod_name: self.named.map(|named| format!("quickstart-harness-3e8f1a-{named}")),
                pod_uid: self.named.map(|named| format!("pod-{named}")),
                warm: false,
                failures: self.failures,
            }),
            conditions: conditions.unwrap_or_default(),
            ..AgentSessionStatus::default()
        });
        let references = References::fixture();
        Observed {
            session: Arc::new(session),
            references: if self.resolved { Ok(references) } else { Err(Unresolved::Agent("coder".into())) },
            missing_templates: Vec::new(),
            wake_since: self.wake_since.map(at),
            pods: self.pods,
            credentials: Credentials::Unknown,
            warm: Warm::default(),
            worked: None,
        }
    }

    fn plan(self, log: Option<&SessionSummary>) -> Plan {
        plan(&self.observed(), log, at(NOW))
    }
}

fn made(generation: i64) -> Option<NewPod> {
    Some(NewPod { name: format!("quickstart-harness-3e8f1a-{generation}"), generation })
}

fn removed(generations: &[i64]) -> Vec<(String, String)> {
    generations
        .iter()
        .map(|generation| (format!("quickstart-harness-3e8f1a-{generation}"), format!("pod-{generation}")))
        .collect()
}

#[rstest]
#[case::nothing_to_do(Case::default(), None, &[], View::NotNeeded)]
#[case::first_wake(Case { wake_since: Some(999), ..Case::default() }, made(1), &[], View::Starting)]
#[case::next_wake(Case { wake_since: Some(999), generation: 3, ..Case::default() }, made(4), &[], View::Starting)]
#[case::starting(
    Case { wake_since: Some(999), generation: 1, named: Some(1), pods: vec![pod(1, pending())], ..Case::default() },
    None, &[], View::Starting
)]
#[case::status_was_not_written(
    Case { wake_since: Some(999), pods: vec![pod(1, pending())], ..Case::default() },
    None, &[], View::Starting
)]
#[case::two_pods_and_one_is_named(
    Case { wake_since: Some(999), generation: 1, named: Some(1), pods: vec![pod(1, pending()), pod(2, pending())], ..Case::default() },
    None, &[2], View::Starting
)]
#[case::two_pods_and_none_is_named(
    Case { wake_since: Some(999), pods: vec![pod(1, pending()), pod(2, pending())], ..Case::default() },
    None, &[1], View::Starting
)]
#[case::killed(
    Case { wake_since: Some(900), generation: 1, named: Some(1), ..Case::default() },
    made(2), &[], View::Starting
)]
#[case::told_to_end(
    Case { wake_since: Some(900), generation: 1, named: Some(1), pods: vec![pod(1, terminating())], ..Case::default() },
    made(2), &[], View::Starting
)]
#[case::done_and_woken_again(
    Case { wake_since: Some(999), generation: 1, named: Some(1), pods: vec![pod(1, Stage::Succeeded)], ..Case::default() },
    made(2), &[1], View::Starting
)]
#[case::done(
    Case { generation: 1, named: Some(1), pods: vec![pod(1, Stage::Succeeded)], ..Case::default() },
    None, &[1], View::NotNeeded
)]
#[case::failed_once(
    Case { wake_since: Some(900), generation: 1, named: Some(1), pods: vec![pod(1, failed(NOW))], ..Case::default() },
    made(2), &[1], View::Starting
)]
#[case::failed_twice(
    Case { wake_since: Some(900), generation: 2, named: Some(2), failures: 1, pods: vec![pod(2, failed(NOW - 1))], ..Case::default() },
    None, &[], View::BackingOff(2)
)]
#[case::failed_twice_and_waited(
    Case { wake_since: Some(900), generation: 2, failures: 2, pods: vec![pod(2, failed(NOW - 2))], ..Case::default() },
    made(3), &[2], View::Starting
)]
#[case::failed_and_no_work(
    Case { generation: 2, failures: 2, pods: vec![pod(2, failed(NOW))], ..Case::default() },
    None, &[2], View::NotNeeded
)]
#[case::nothing_to_make_it_from(
    Case { wake_since: Some(999), resolved: false, ..Case::default() },
    None, &[], View::Blocked
)]
#[case::agent_gone_while_it_runs(
    Case { wake_since: Some(999), resolved: false, generation: 1, named: Some(1), pods: vec![pod(1, running(990))], ..Case::default() },
    None, &[], View::Claiming
)]
fn pods_follow_the_wake_key(
    #[case] case: Case,
    #[case] make: Option<NewPod>,
    #[case] remove: &[i64],
    #[case] view: View,
) {
    let plan = case.plan(None);
    assert_eq!((plan.make, plan.remove, plan.view), (make, removed(remove), view));
}

#[rstest]
#[case::owned(Some("pod-1"), running(900), Some(900), None, View::Working, false)]
#[case::just_started(None, running(NOW - 14), Some(900), None, View::Claiming, false)]
#[case::just_woken(None, running(500), Some(NOW - 14), Some((true, 500)), View::Claiming, false)]
#[case::late(None, running(NOW - 15), Some(900), Some((false, 900)), View::NotClaimed, false)]
#[case::lost_its_lease_a_moment_ago(None, running(500), Some(500), Some((true, 500)), View::NotClaimed, false)]
#[case::never_claimed(None, running(NOW - 60), Some(900), Some((false, 900)), View::Starting, true)]
#[case::does_not_claim_again(None, running(500), Some(500), Some((false, NOW - 60)), View::Starting, true)]
#[case::another_owns(Some("pod-0"), running(NOW - 60), Some(900), Some((false, 900)), View::Starting, true)]
#[case::crashed(
    None,
    Stage::Restarting(Cause::new("Exited", "1")),
    Some(900),
    None,
    View::Crashing(Cause::new("Exited", "1")),
    false
)]
#[case::stuck(
    None,
    Stage::Pending(Pending::Stuck(Cause::new("ErrImagePull", "no"))),
    Some(900),
    None,
    View::Stuck(Cause::new("ErrImagePull", "no")),
    false
)]
fn a_pod_that_does_not_claim_is_replaced_after_a_minute(
    #[case] owner: Option<&str>,
    #[case] stage: Stage,
    #[case] wake_since: Option<i64>,
    #[case] harness_ready: Option<(bool, i64)>,
    #[case] view: View,
    #[case] replaced: bool,
) {
    let case =
        Case { wake_since, generation: 1, named: Some(1), harness_ready, pods: vec![pod(1, stage)], ..Case::default() };
    let plan = case.plan(Some(&summary(owner, true)));
    assert_eq!(plan.view, view);
    assert_eq!(plan.remove, if replaced { removed(&[1]) } else { Vec::new() });
    assert_eq!(plan.make, if replaced { made(2) } else { None });
    assert_eq!(plan.lost.map(|cause| cause.reason), replaced.then(|| "NotClaimed".to_owned()));
    assert_eq!(plan.harness.failures, i64::from(replaced));
}

#[rstest]
#[case::parked(running(500), None, &[], View::Parked, None)]
#[case::never_started(pending(), None, &[1], View::NotNeeded, None)]
#[case::done_before_its_node_says_that_it_runs(pending(), Some("pod-1"), &[], View::Parked, Some(REFRESH))]
#[case::another_was_faster(pending(), Some("pod-0"), &[1], View::NotNeeded, None)]
#[case::stuck(Stage::Pending(Pending::Stuck(Cause::new("CreateContainerConfigError", ""))), Some("pod-1"), &[1], View::NotNeeded, None)]
#[case::crashing(Stage::Restarting(Cause::new("Exited", "1")), Some("pod-1"), &[1], View::NotNeeded, None)]
fn without_work_only_a_pod_stays_that_runs(
    #[case] stage: Stage,
    #[case] owner: Option<&str>,
    #[case] remove: &[i64],
    #[case] view: View,
    #[case] requeue: Option<Duration>,
) {
    let case = Case { generation: 1, named: Some(1), failures: 1, pods: vec![pod(1, stage)], ..Case::default() };
    let plan = case.plan(Some(&summary(owner, false)));
    assert_eq!((plan.remove, plan.view, plan.requeue), (removed(remove), view, requeue));
}

/// A session whose vault says that its refresh token is in the Secret `second`.
fn refreshing() -> References {
    let mut credential = fixtures::vault().spec.credentials.remove(0);
    credential.oauth = serde_json::from_value(serde_json::json!({"refresh": {"clientID": "me",
        "tokenEndpoint": "https://auth.test/token", "tokenEndpointAuth": "none", "refreshTokenRef": {"name": "second", "key": "r"}}}))
    .unwrap();
    let server = McpAccess {
        name: "tickets".into(),
        url: "https://mcp.test/".into(),
        upstream: "https://mcp.test/".into(),
        private_addresses: longhand_crds::vault::PrivateAddresses::Refuse,
        credential: Some(credential),
        vault: Some("models".into()),
    };
    References { mcp: vec![server], ..References::fixture() }
}

#[rstest]
#[case::the_vault_s(Some("second"), false, false)]
#[case::superseded(Some("first"), false, true)]
#[case::superseded_at_work(Some("first"), true, false)]
#[case::made_before_there_was_one(None, false, true)]
fn an_idle_pod_with_an_old_refresh_token_goes(#[case] mounted: Option<&str>, #[case] work: bool, #[case] goes: bool) {
    let references = refreshing();
    let volume = references.refresh_tokens().into_keys().next().unwrap();
    let mut only = pod(1, running(500));
    only.refresh_tokens = mounted.map(|secret| (volume, secret.to_owned())).into_iter().collect();
    let mut observed = Case { generation: 1, named: Some(1), pods: vec![only], ..Case::default() }.observed();
    observed.references = Ok(references);
    let log = summary(work.then_some("pod-1"), work);
    let plan = plan(&observed, Some(&log), at(NOW));
    assert_eq!(plan.remove, if goes { removed(&[1]) } else { Vec::new() });
    assert_eq!((plan.harness.pod_uid.is_none(), plan.lost, plan.make), (goes, None, None));
}

#[test]
fn a_pod_is_not_taken_for_unneeded_when_the_service_does_not_answer() {
    let case = Case { generation: 1, named: Some(1), pods: vec![pod(1, pending())], ..Case::default() };
    assert_eq!(case.plan(None).remove, []);
}

#[test]
fn the_service_may_know_of_work_before_the_watch_does() {
    let plan = Case::default().plan(Some(&summary(None, true)));
    assert_eq!(plan.make, made(1));
}

#[rstest]
#[case::killed(vec![], "Deleted", 0)]
#[case::failed(vec![pod(1, failed(NOW))], "Evicted", 1)]
#[case::drained(vec![pod(1, Stage::Terminating { disruption: Some(Cause::new("Preempted", "")), due: at(NOW) })], "Preempted", 0)]
fn a_lost_pod_has_a_cause_and_a_failure_counts_once(
    #[case] pods: Vec<HarnessPod>,
    #[case] reason: &str,
    #[case] failures: i64,
) {
    let case = |named, failures, pods: &[HarnessPod]| Case {
        wake_since: Some(900),
        generation: 1,
        named,
        failures,
        pods: pods.to_vec(),
        ..Case::default()
    };
    let plan = case(Some(1), 0, &pods).plan(None);
    assert_eq!(plan.lost.unwrap().reason, reason);
    assert_eq!((plan.harness.failures, plan.harness.pod_uid), (failures, None));
    let again = case(None, failures, &pods).plan(None);
    assert_eq!((again.lost, again.harness.failures), (None, failures));
}

#[test]
fn a_pod_that_went_when_it_was_done_is_no_loss() {
    let plan = Case { generation: 1, named: Some(1), ..Case::default() }.plan(None);
    assert_eq!((plan.lost, plan.harness.pod_uid, plan.harness.generation), (None, None, 1));
}

#[rstest]
#[case::idle(Case::default(), None)]
#[case::at_work(Case { wake_since: Some(900), generation: 1, named: Some(1), pods: vec![pod(1, pending())], ..Case::default() }, Some(30))]
#[case::claiming(Case { wake_since: Some(900), generation: 1, named: Some(1), pods: vec![pod(1, running(999))], ..Case::default() }, Some(5))]
#[case::proxy_starts(Case { wake_since: Some(900), generation: 1, named: Some(1), pods: vec![pod(1, Stage::Pending(Pending::Sidecar(at(NOW - 1))))], ..Case::default() }, Some(2))]
#[case::proxy_waits(Case { wake_since: Some(900), generation: 1, named: Some(1), pods: vec![pod(1, Stage::Pending(Pending::Sidecar(at(NOW - 9))))], ..Case::default() }, Some(5))]
#[case::backing_off(Case { wake_since: Some(900), generation: 2, failures: 5, pods: vec![pod(2, failed(NOW - 6))], ..Case::default() }, Some(10))]
fn it_is_looked_at_again_when_time_matters(#[case] case: Case, #[case] seconds: Option<u64>) {
    assert_eq!(case.plan(None).requeue, seconds.map(Duration::from_secs));
}

#[rstest]
#[case(0, 0)]
#[case(1, 0)]
#[case(2, 2)]
#[case(3, 4)]
#[case(7, 60)]
#[case(i64::MAX, 60)]
fn pods_that_fail_in_a_row_are_replaced_more_slowly(#[case] failures: i64, #[case] seconds: u64) {
    assert_eq!(backoff(failures.min(i64::from(u32::MAX))), Duration::from_secs(seconds));
}

#[rstest]
#[case::new(|observed: &mut Observed| set(observed, |status| status.session_id = None), LogCall::Ensure)]
#[case::input_grew(|observed: &mut Observed| set(observed, |status| status.delivered_inputs = Some(0)), LogCall::Ensure)]
#[case::spec_changed(|observed: &mut Observed| set(observed, |status| status.delivered_generation = None), LogCall::Ensure)]
#[case::agent_missing(
    |observed: &mut Observed| {
        set(observed, |status| status.session_id = None);
        observed.references = Err(Unresolved::Agent("coder".into()));
    },
    LogCall::Nothing
)]
#[case::template_missing(
    |observed: &mut Observed| {
        set(observed, |status| status.session_id = None);
        observed.missing_templates.push("shell".into());
    },
    LogCall::Nothing
)]
#[case::asleep(|_: &mut Observed| {}, LogCall::Nothing)]
#[case::woken(|observed: &mut Observed| observed.wake_since = Some(at(NOW)), LogCall::Refresh)]
#[case::just_asleep(|observed: &mut Observed| set(observed, |status| status.phase = Some("running".into())), LogCall::Refresh)]
#[case::has_a_pod(|observed: &mut Observed| observed.pods.push(pod(1, running(900))), LogCall::Refresh)]
fn the_service_is_asked_only_when_something_may_have_changed(
    #[case] change: impl FnOnce(&mut Observed),
    #[case] expected: LogCall,
) {
    let mut observed = Case::default().observed();
    change(&mut observed);
    assert_eq!(log_call(&observed), expected);
}

fn set(observed: &mut Observed, change: impl FnOnce(&mut AgentSessionStatus)) {
    change(Arc::make_mut(&mut observed.session).status.as_mut().unwrap());
}

#[rstest]
#[case(None, vec![], false)]
#[case(Some(999), vec![], true)]
#[case(Some(999), vec![pod(1, terminating())], true)]
#[case(Some(999), vec![pod(1, running(900))], false)]
fn a_first_token_waits_for_nothing_but_the_pod(
    #[case] wake_since: Option<i64>,
    #[case] pods: Vec<HarnessPod>,
    #[case] urgent: bool,
) {
    assert_eq!(is_urgent(&Case { wake_since, pods, ..Case::default() }.observed()), urgent);
}

#[test]
fn input_that_has_no_room_yet_is_delivered_later() {
    let mut observed = Case::default().observed();
    Arc::make_mut(&mut observed.session).spec.input.push(Input { text: "more".into() });
    let full = summary(None, false);
    assert_eq!(plan(&observed, Some(&full), at(100)).requeue, Some(INPUT_AGAIN));
    let taken = SessionSummary { delivered_inputs: 2, ..full };
    assert_eq!(plan(&observed, Some(&taken), at(100)).requeue, None);
}

#[rstest]
#[case::in_time(NOW + 10, &[])]
#[case::on_a_node_that_does_not_answer(NOW - 30, &[1])]
fn a_harness_pod_that_does_not_end_is_replaced_at_once_and_forgotten_later(
    #[case] due: i64,
    #[case] forgotten: &[i64],
) {
    let ending = pod(1, Stage::Terminating { disruption: Some(Cause::new("NodeLost", "")), due: at(due) });
    let case = Case { wake_since: Some(900), generation: 1, named: Some(1), pods: vec![ending], ..Case::default() };
    let plan = case.plan(None);
    assert_eq!((plan.make, plan.forget, plan.remove), (made(2), removed(forgotten), vec![]));
}
