//! What shall be done about a session's harness.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use longhand_crds::agent_session::HarnessStatus;
use longhand_protocol::internal::SessionSummary;
use longhand_protocol::wire::SessionStatus;

use super::harness_pod;
use super::observe::{HarnessPod, Observed, PROXY_START};
use super::warm;
use crate::conditions::{false_since, find};
use crate::pods::{self, Cause, Pending, Stage, elapsed};

/// The condition that speaks of the harness pod.
pub(super) const HARNESS_READY: &str = "HarnessReady";

/// A harness claims its session within this time after it has started, or after work came.
const CLAIM: Duration = Duration::from_secs(15);
/// One that does not for this long is replaced.
const CLAIM_DEADLINE: Duration = Duration::from_secs(60);
/// How often a claim is looked for: nothing that is watched changes when it is made.
const CLAIM_CHECK: Duration = Duration::from_secs(5);
/// How often the status of a session at work is refreshed when nothing else happens.
const REFRESH: Duration = Duration::from_secs(30);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// Input that a full session or namespace has no room for is offered again after so long: nothing says when there is.
const INPUT_AGAIN: Duration = Duration::from_secs(60);

/// What shall be asked of the session service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogCall {
    /// That the log exists, holds the input, and goes on if a limit was raised.
    Ensure,
    /// How far the session is.
    Refresh,
    /// Nothing: nothing can have changed.
    Nothing,
}

/// What shall be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Pods to delete, by name and UID.
    pub(super) remove: Vec<(String, String)>,
    /// Pods that were told to end and whose nodes do not say that they have, by name and UID.
    pub(super) forget: Vec<(String, String)>,
    /// The pod to make.
    pub(super) make: Option<NewPod>,
    /// The harness after `remove` and before `make`.
    pub(super) harness: HarnessStatus,
    /// Why the pod that the status named is no longer there, if work was open.
    pub(super) lost: Option<Cause>,
    /// How the harness looks.
    pub(super) view: View,
    /// When to look again.
    pub(super) requeue: Option<Duration>,
}

/// A pod to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewPod {
    pub(super) name: String,
    pub(super) generation: i64,
}

/// How the harness looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// No work is open, and there is no pod.
    NotNeeded,
    /// Work is open, but something is missing.
    Blocked,
    /// A pod that is ready may take the session.
    Offered,
    /// A pod is on its way.
    Starting,
    /// A pod cannot start.
    Stuck(Cause),
    /// The harness crashed and is started again.
    Crashing(Cause),
    /// A pod runs and has not claimed the session yet.
    Claiming,
    /// A pod runs and does not claim the session.
    NotClaimed,
    /// A pod owns the session.
    Working,
    /// A pod waits for the next message.
    Parked,
    /// The next pod is made later, because this many failed in a row.
    BackingOff(i64),
}

/// What shall be asked of the session service.
pub(super) fn log_call(observed: &Observed) -> LogCall {
    let status = observed.session.status.clone().unwrap_or_default();
    let delivered = status.delivered_inputs.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let behind = status.session_id.is_none()
        || observed.session.spec.input.len() > delivered
        || status.delivered_generation != observed.session.metadata.generation;
    if behind && observed.references.is_ok() && observed.missing_templates.is_empty() {
        LogCall::Ensure
    } else if status.session_id.is_some()
        && (observed.wake_since.is_some()
            || observed.worked.is_some()
            || !observed.pods.is_empty()
            || status.harness.as_ref().is_some_and(|harness| harness.warm)
            || status.phase.as_deref() != Some(SessionStatus::Idle.as_str()))
    {
        LogCall::Refresh
    } else {
        LogCall::Nothing
    }
}

/// Whether a pod shall be made before anything else is asked: somebody waits for the first token. If a pod that was not
/// made for it may serve the session, only the session service knows.
pub(super) fn is_urgent(observed: &Observed) -> bool {
    observed.wake_since.is_some()
        && observed.warm.pods.is_empty()
        && observed.pods.iter().all(|seen| !seen.pod.is_live())
}

/// What shall be done; `log` is what the session service said, if it was asked and answered.
pub(super) fn plan(observed: &Observed, log: Option<&SessionSummary>, now: Timestamp) -> Plan {
    let mut plan = decide(observed, log, now);
    let (overdue, next) = pods::overdue(observed.pods.iter().map(|seen| &seen.pod), now);
    plan.forget = overdue;
    if let Some(next) = next {
        sooner(&mut plan, next);
    }
    plan
}

fn decide(observed: &Observed, log: Option<&SessionSummary>, now: Timestamp) -> Plan {
    if let Some(pod) = warm::serving(observed, log) {
        return warm::served(observed, pod);
    }
    let (before, warm_lost) = warm::released(observed);
    let work = observed.wake_since.is_some() || log.is_some_and(|log| log.wake);
    let live: Vec<&HarnessPod> = observed.pods.iter().filter(|seen| seen.pod.is_live()).collect();
    let named = live.iter().find(|seen| Some(&seen.pod.uid) == before.pod_uid.as_ref());
    let current = named.or(live.last()).copied();
    let mut plan = Plan {
        remove: removable(&live, current),
        forget: Vec::new(),
        make: None,
        harness: after_loss(&before, observed, current),
        lost: warm_lost.or_else(|| loss(&before, observed, current)).filter(|_| work),
        view: View::NotNeeded,
        requeue: work.then_some(REFRESH),
    };
    if log.is_some_and(|log| {
        usize::try_from(log.delivered_inputs).is_ok_and(|count| count < observed.session.spec.input.len())
    }) {
        sooner(&mut plan, INPUT_AGAIN);
    }
    plan.remove.extend(finished(observed, |stage| matches!(stage, Stage::Succeeded)));
    match current {
        Some(current) => judge(&mut plan, observed, current, log, work, now),
        None if work => match warm::hold(observed, now).filter(|_| plan.lost.is_none()) {
            Some(left) => {
                plan.view = View::Offered;
                sooner(&mut plan, left);
            }
            None => replace(&mut plan, observed, now),
        },
        None => {
            plan.remove.extend(finished(observed, |stage| matches!(stage, Stage::Failed(..))));
            plan.harness.failures = 0;
        }
    }
    plan
}

/// Live pods beside the current one.
fn removable(live: &[&HarnessPod], current: Option<&HarnessPod>) -> Vec<(String, String)> {
    live.iter().filter(|seen| Some(**seen) != current).map(|seen| id(seen)).collect()
}

fn finished(observed: &Observed, which: impl Fn(&Stage) -> bool) -> Vec<(String, String)> {
    observed.pods.iter().filter(|seen| which(&seen.pod.stage)).map(id).collect()
}

fn id(seen: &HarnessPod) -> (String, String) {
    (seen.pod.name.clone(), seen.pod.uid.clone())
}

/// Why the pod that the status named can no longer be the harness; none if it did its work.
fn loss(before: &HarnessStatus, observed: &Observed, current: Option<&HarnessPod>) -> Option<Cause> {
    let named = before.pod_uid.as_ref()?;
    if current.is_some_and(|current| &current.pod.uid == named) {
        return None;
    }
    match observed.pods.iter().find(|seen| &seen.pod.uid == named).map(|seen| &seen.pod.stage) {
        Some(Stage::Failed(cause, _)) => Some(cause.clone()),
        Some(Stage::Terminating { disruption: Some(cause), .. }) => Some(cause.clone()),
        Some(Stage::Succeeded) => None,
        _ => Some(Cause::new("Deleted", "the pod was deleted")),
    }
}

/// The harness as it is without the pods that are gone: a failure counts once, while the status still names the pod.
fn after_loss(before: &HarnessStatus, observed: &Observed, current: Option<&HarnessPod>) -> HarnessStatus {
    let failed = observed
        .pods
        .iter()
        .any(|seen| Some(&seen.pod.uid) == before.pod_uid.as_ref() && matches!(seen.pod.stage, Stage::Failed(..)));
    HarnessStatus {
        generation: before.generation.max(current.map_or(0, |current| current.generation)),
        pod_name: current.map(|current| current.pod.name.clone()),
        pod_uid: current.map(|current| current.pod.uid.clone()),
        warm: false,
        failures: before.failures.saturating_add(i64::from(failed)),
    }
}

/// What to think of the pod that there is.
fn judge(
    plan: &mut Plan,
    observed: &Observed,
    current: &HarnessPod,
    log: Option<&SessionSummary>,
    work: bool,
    now: Timestamp,
) {
    let known_idle = !work && log.is_some();
    plan.view = match &current.pod.stage {
        Stage::Running { since, .. } if work => running(observed, current, log, *since, now),
        Stage::Running { .. } if known_idle && is_superseded(observed, current) => return drop_unneeded(plan, current),
        Stage::Running { .. } => View::Parked,
        // It has claimed the session and done its work before its node says that it runs. Nothing that is watched says when
        // its lease runs out.
        Stage::Pending(Pending::Starting | Pending::Sidecar(_)) if known_idle && owns(current, log) => {
            sooner(plan, REFRESH);
            View::Parked
        }
        _ if known_idle => return drop_unneeded(plan, current),
        Stage::Restarting(cause) => View::Crashing(cause.clone()),
        Stage::Pending(Pending::Stuck(cause)) => View::Stuck(cause.clone()),
        Stage::Pending(Pending::Sidecar(since)) => {
            let waited = elapsed(*since, now);
            sooner(plan, if waited < PROXY_START { PROXY_START.saturating_sub(waited) } else { CLAIM_CHECK });
            View::Starting
        }
        _ => View::Starting,
    };
    match plan.view {
        View::Working | View::Parked => plan.harness.failures = 0,
        View::Claiming => sooner(plan, CLAIM_CHECK),
        View::NotClaimed if unclaimed(observed, current, now) >= CLAIM_DEADLINE => {
            let seconds = CLAIM_DEADLINE.as_secs();
            plan.lost = Some(Cause::new("NotClaimed", format!("it ran for {seconds} s without claiming the session")));
            plan.harness.failures = plan.harness.failures.saturating_add(1);
            drop_unneeded(plan, current);
            replace(plan, observed, now);
        }
        View::NotClaimed => sooner(plan, CLAIM_CHECK),
        _ => {}
    }
}

fn running(
    observed: &Observed,
    current: &HarnessPod,
    log: Option<&SessionSummary>,
    since: Timestamp,
    now: Timestamp,
) -> View {
    if log.is_none() {
        return View::Claiming;
    }
    if owns(current, log) {
        return View::Working;
    }
    let begun = observed.wake_since.map_or(since, |wake| wake.max(since));
    if elapsed(begun, now) < CLAIM { View::Claiming } else { View::NotClaimed }
}

fn owns(pod: &HarnessPod, log: Option<&SessionSummary>) -> bool {
    log.is_some_and(|log| log.owner_pod_uid.as_ref() == Some(&pod.pod.uid))
}

/// Whether the pod has a refresh token that is not its vault's any more: it must not use that, and a mount does not change.
fn is_superseded(observed: &Observed, current: &HarnessPod) -> bool {
    let Ok(references) = &observed.references else { return false };
    references.refresh_tokens().iter().any(|(volume, secret)| current.refresh_tokens.get(volume) != Some(secret))
}

/// For how long a pod that should have claimed the session has not.
fn unclaimed(observed: &Observed, current: &HarnessPod, now: Timestamp) -> Duration {
    let conditions = observed.session.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let judged = find(conditions, HARNESS_READY).and_then(|_| false_since(conditions, HARNESS_READY));
    let (Some(judged), Stage::Running { since, .. }) = (judged, &current.pod.stage) else { return Duration::ZERO };
    let begun = observed.wake_since.map_or(*since, |wake| wake.max(*since));
    elapsed(judged.max(begun), now)
}

fn drop_unneeded(plan: &mut Plan, current: &HarnessPod) {
    plan.remove.push(id(current));
    (plan.harness.pod_name, plan.harness.pod_uid) = (None, None);
}

/// Makes a pod, unless something is missing or too many failed of late.
fn replace(plan: &mut Plan, observed: &Observed, now: Timestamp) {
    if observed.references.is_err() {
        plan.view = View::Blocked;
        return;
    }
    let failed_at = observed.pods.iter().filter_map(|seen| match seen.pod.stage {
        Stage::Failed(_, at) => Some(at),
        _ => None,
    });
    let left =
        failed_at.max().map_or(Duration::ZERO, |at| backoff(plan.harness.failures).saturating_sub(elapsed(at, now)));
    if left > Duration::ZERO {
        // Until then the failed pod stays, as it says when it failed.
        plan.view = View::BackingOff(plan.harness.failures);
        sooner(plan, left);
        return;
    }
    plan.remove.extend(finished(observed, |stage| matches!(stage, Stage::Failed(..))));
    let generation = plan.harness.generation.saturating_add(1);
    let uid = observed.session.uid().unwrap_or_default();
    let name = harness_pod::name(&observed.session.name_any(), &uid, generation);
    plan.make = Some(NewPod { name, generation });
    plan.view = View::Starting;
}

fn sooner(plan: &mut Plan, delay: Duration) {
    plan.requeue = Some(plan.requeue.map_or(delay, |before| before.min(delay)));
}

/// How long after the last of `failures` failures the next pod is made.
fn backoff(failures: i64) -> Duration {
    match u32::try_from(failures) {
        Ok(0 | 1) | Err(_) => Duration::ZERO,
        Ok(failures) => Duration::from_secs(2_u64.saturating_pow(failures.saturating_sub(1))).min(MAX_BACKOFF),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
