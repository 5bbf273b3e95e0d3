//! What shall be done about a sandbox.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use longhand_crds::sandbox::{DesiredState, Loss, SandboxStatus, WORKSPACE_LOST, WorkspaceFrom};
use longhand_crds::sandbox_template::OnFailure;

use super::observe::Observed;
use super::pod;
use super::policy::Policy;
use crate::conditions::{FINISHED, READY, SUSPENDED, false_since, find, true_since};
use crate::pods::{self, Cause, Pending, PodView, Stage, elapsed, is_overdue, until_overdue};

const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A pod that was ready and is not for this long is on a node that is lost, or hangs: its liveness probe has failed too.
const UNRESPONSIVE: Duration = Duration::from_secs(60);

/// What shall be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Whether the namespace's fence must be put up, which comes before everything else.
    pub(super) fence: bool,
    /// The pod that is gone, to be written down before another is made.
    pub(super) loss: Option<Loss>,
    /// Pods to delete, by name and UID.
    pub(super) remove: Vec<(String, String)>,
    /// Pods that were told to end and whose nodes do not say that they have, by name and UID.
    pub(super) forget: Vec<(String, String)>,
    /// The pod to make, unless one of the pool can be taken.
    pub(super) make: Option<String>,
    /// Whether the workspace's volume must be made before the pod.
    pub(super) volume: bool,
    /// An idle pod to drain, and then to remove.
    pub(super) drain: Option<Drain>,
    /// Whether the workspace goes to another sandbox, and then this one.
    pub(super) handoff: bool,
    /// The sandbox itself is removed: why.
    pub(super) expired: Option<&'static str>,
    /// The pod that there is.
    pub(super) pod: Option<PodView>,
    /// How often the pod was lost, with `loss`.
    pub(super) restarts: i64,
    /// Which pod is the current or the next one.
    pub(super) incarnation: i64,
    /// When the sandbox is given up unless it is ready by then.
    pub(super) deadline: Option<Timestamp>,
    /// How it looks.
    pub(super) view: View,
    /// When to look again.
    pub(super) requeue: Option<Duration>,
}

/// A pod that may be idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Drain {
    pub(super) pod_name: String,
    pub(super) pod_uid: String,
    pub(super) idle_seconds: u64,
    /// Whether what runs in its background keeps it from being idle.
    pub(super) background_counts: bool,
    /// Whether the sandbox is suspended then, as its workspace is kept, or removed.
    pub(super) suspend: bool,
}

/// How a sandbox looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// There is no template to make it from.
    TemplateMissing,
    /// A pod is on its way.
    Provisioning,
    /// A pod waits for the workspace's volume: what the volume waits for.
    VolumePending(String),
    /// A pod cannot start.
    Stuck(Cause),
    /// It takes calls.
    Ready,
    /// It runs and does not say that it is ready.
    NotReady,
    /// Its pod was told to end.
    Terminating(Option<Cause>),
    /// The next pod is made later, because the last one failed.
    BackingOff,
    /// The next pod is made when the pod of this name has ended, which still has the workspace.
    WaitingForPod(String),
    /// No pod is made before the workspace is here, which this sandbox hands over.
    WaitingForWorkspace(String),
    /// Its pod runs and takes no calls before the workspace of this sandbox has been copied into it.
    Receiving(String),
    /// It takes no more calls, as it goes to this session.
    HandingOver(String),
    /// Its pod ends, and no other is made.
    Suspending,
    /// It has no pod.
    Suspended,
    /// It has ended for this reason, for ever.
    Finished(Cause),
}

/// What shall be done.
pub(super) fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = decide(observed, now);
    let (overdue, next) = pods::overdue(&observed.pods, now);
    plan.forget = overdue;
    plan.requeue = next.map_or(plan.requeue, |next| earliest(plan.requeue, next));
    plan
}

fn decide(observed: &Observed, now: Timestamp) -> Plan {
    let policy = Policy::of(&observed.sandbox, observed.template.as_ref());
    let status = observed.sandbox.status.clone().unwrap_or_default();
    let mut plan = Plan {
        fence: !observed.fenced,
        loss: None,
        remove: Vec::new(),
        forget: Vec::new(),
        make: None,
        volume: false,
        drain: None,
        handoff: false,
        expired: None,
        pod: None,
        restarts: status.restarts,
        incarnation: status.incarnation,
        deadline: None,
        view: View::Provisioning,
        requeue: None,
    };
    if let Some(to) = &observed.sandbox.spec.handoff_to {
        // Whoever made the pod, or whatever it was about to become: it is on its way out.
        hand_over(&mut plan, observed, (&status, &policy), &to.name, now);
        return plan;
    }
    if let Some(ended) = find(&status.conditions, FINISHED).filter(|ended| ended.status == "True") {
        let left = policy.retention.saturating_sub(elapsed(ended.last_transition_time.0, now));
        plan.expired = left.is_zero().then_some("it has ended, and was kept for as long as its template says");
        plan.requeue = Some(left).filter(|left| !left.is_zero());
        plan.remove = removable(observed, None);
        plan.view = View::Finished(Cause::new(&ended.reason, &ended.message));
        return plan;
    }
    let lifetime_left = policy.lifetime.saturating_sub(elapsed(created(observed), now));
    if lifetime_left.is_zero() {
        let message = format!("it was made {} s ago and may live no longer", policy.lifetime.as_secs());
        end(&mut plan, observed, &policy, Cause::new("LifetimeExceeded", message));
        return plan;
    }
    match observed.sandbox.spec.desired_state {
        DesiredState::Running => run(&mut plan, observed, &status, &policy, now),
        DesiredState::Suspended => suspend(&mut plan, observed, &status, &policy, now),
    }
    if !matches!(plan.view, View::Finished(_)) {
        plan.requeue = earliest(plan.requeue, lifetime_left);
    }
    plan
}

fn created(observed: &Observed) -> Timestamp {
    // Without a time it is as good as new.
    observed.sandbox.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0)
}

fn earliest(one: Option<Duration>, other: Duration) -> Option<Duration> {
    Some(one.map_or(other, |one| one.min(other)).max(Duration::from_millis(1)))
}

/// No pod may be any more, and none will.
fn end(plan: &mut Plan, observed: &Observed, policy: &Policy, cause: Cause) {
    leave(plan, observed);
    plan.make = None;
    plan.volume = false;
    plan.drain = None;
    plan.remove = removable(observed, None);
    plan.requeue = Some(policy.retention);
    plan.view = View::Finished(cause);
}

/// Its workspace goes to another session. A pod that there is stays until nothing runs in it any more.
fn hand_over(
    plan: &mut Plan,
    observed: &Observed,
    (status, policy): (&SandboxStatus, &Policy),
    session: &str,
    now: Timestamp,
) {
    plan.view = View::HandingOver(session.to_owned());
    let current = observed.current.as_ref().and_then(|uid| observed.pods.iter().find(|seen| &seen.uid == uid));
    // A workspace that is in no volume is lost with its pod: there is none that it could be copied from.
    let in_volume = observed.volume.name().is_some();
    plan.handoff = true;
    plan.loss = loss(status, current, policy, now).filter(|_| !in_volume);
    if plan.loss.is_some() {
        plan.restarts = plan.restarts.saturating_add(1);
        plan.incarnation = plan.incarnation.saturating_add(1);
        return;
    }
    plan.pod = current.filter(|pod| in_volume || matches!(pod.stage, Stage::Running { .. })).cloned();
}

/// The sandbox whose workspace has to be copied into this one's pod before that takes calls.
pub(super) fn awaits(observed: &Observed) -> Option<&WorkspaceFrom> {
    observed.sandbox.spec.workspace_from.as_ref().filter(|from| from.is_awaited())
}

/// The pod that there is, if any, is the current one no more.
fn leave(plan: &mut Plan, observed: &Observed) {
    // With a loss it has been counted.
    plan.incarnation = plan.incarnation.saturating_add(i64::from(observed.current.is_some() && plan.loss.is_none()));
    plan.pod = None;
    plan.deadline = None;
}

fn suspend(plan: &mut Plan, observed: &Observed, status: &SandboxStatus, policy: &Policy, now: Timestamp) {
    leave(plan, observed);
    plan.remove = removable(observed, None);
    let ending = observed.pods.iter().filter_map(|pod| match pod.stage {
        Stage::Terminating { due, .. } if is_overdue(due, now) => None,
        Stage::Terminating { due, .. } => Some(until_overdue(due, now)),
        _ => Some(Duration::MAX),
    });
    if let Some(wait) = ending.min() {
        plan.view = View::Suspending;
        plan.requeue = Some(wait);
        return;
    }
    plan.view = View::Suspended;
    if let Some(limit) = policy.suspended {
        let since = true_since(&status.conditions, SUSPENDED).unwrap_or(now);
        let left = limit.saturating_sub(elapsed(since, now));
        plan.expired = left.is_zero().then_some("it was suspended for as long as its template allows");
        plan.requeue = Some(left);
    }
}

fn run(plan: &mut Plan, observed: &Observed, status: &SandboxStatus, policy: &Policy, now: Timestamp) {
    let named = observed.current.as_ref().and_then(|uid| observed.pods.iter().find(|seen| &seen.uid == uid));
    plan.loss = loss(status, named, policy, now);
    if let Some(loss) = &plan.loss {
        plan.restarts = plan.restarts.saturating_add(1);
        plan.incarnation = plan.incarnation.saturating_add(1);
        if policy.on_failure == OnFailure::Fail {
            let cause = Cause::new(&loss.reason, format!("pod {} is lost: {}", loss.pod_uid, loss.message));
            end(plan, observed, policy, cause);
            return;
        }
    }
    // What was written counts on: a pod that is lost before it was ready gives the next one no more time.
    plan.deadline = status.provisioning_deadline.as_ref().map(|time| time.0);
    match named.filter(|_| plan.loss.is_none()) {
        Some(current) => {
            plan.pod = Some(current.clone());
            plan.remove = removable(observed, Some(current));
            judge(plan, observed, status, policy, current, now);
        }
        None => replace(plan, observed, policy, now),
    }
    bound(plan, observed, status, policy, now);
}

/// Nothing is on its way to being ready for ever.
fn bound(plan: &mut Plan, observed: &Observed, status: &SandboxStatus, policy: &Policy, now: Timestamp) {
    let was_ready = plan.pod.is_some() && status.ready_at.is_some();
    match plan.view {
        View::Ready => plan.deadline = None,
        View::Terminating(_) | View::NotReady if was_ready => {}
        _ => {
            let after = |begin: Timestamp, wait: Duration| begin.saturating_add(wait).unwrap_or(Timestamp::MAX);
            let deadline = match plan.view {
                // As long again to fill the workspace, whatever becomes of its pods meanwhile.
                View::Receiving(_) => after(created(observed).min(now), policy.provisioning.saturating_mul(2)),
                _ => plan.deadline.unwrap_or_else(|| after(now, policy.provisioning)),
            };
            plan.deadline = Some(deadline);
            if now < deadline {
                plan.requeue = earliest(plan.requeue, elapsed(now, deadline));
                return;
            }
            let last = find(&status.conditions, READY).filter(|ready| ready.status != "True");
            let last = last.map_or_else(String::new, |ready| format!(": {}: {}", ready.reason, ready.message));
            let given = if matches!(plan.view, View::Receiving(_)) { 2 } else { 1 };
            let seconds = policy.provisioning.saturating_mul(given).as_secs();
            let kept = observed.volume.may_hold_files() && awaits(observed).is_none();
            let cause = if plan.incarnation > 0 && kept {
                let message = format!("no pod could use the workspace that was kept within {seconds} s{last}");
                Cause::new(WORKSPACE_LOST, message)
            } else {
                Cause::new("ProvisioningDeadlineExceeded", format!("it was not ready within {seconds} s{last}"))
            };
            end(plan, observed, policy, cause);
        }
    }
}

/// Why the pod that there was can take no more calls.
fn loss(status: &SandboxStatus, named: Option<&PodView>, policy: &Policy, now: Timestamp) -> Option<Loss> {
    let kept = if policy.persistent { "; its workspace is kept" } else { "" };
    let gone = |uid: &str, Cause { reason, message }: Cause| {
        Some(Loss { pod_uid: uid.to_owned(), reason, message: format!("{message}{kept}") })
    };
    let Some(pod) = named else {
        let uid = status.pod_uid.as_deref()?;
        return gone(uid, disappeared(status));
    };
    match &pod.stage {
        Stage::Failed(cause, _) | Stage::Restarting(cause) => gone(&pod.uid, cause.clone()),
        Stage::Succeeded => gone(&pod.uid, Cause::new("Exited", "sandboxd ended by itself")),
        Stage::Terminating { disruption, due } if is_overdue(*due, now) => {
            let silent = || Cause::new("NodeLost", "the pod was told to end and its node does not answer");
            gone(&pod.uid, disruption.clone().unwrap_or_else(silent))
        }
        Stage::Running { ready_since: None, .. }
            if unresponsive(status, pod, now).is_some_and(|left| left.is_zero()) =>
        {
            let message = format!(
                "the pod was ready and has not been so for {} s: it hangs, or its node is lost",
                UNRESPONSIVE.as_secs()
            );
            gone(&pod.uid, Cause::new("Unresponsive", message))
        }
        Stage::Terminating { .. } | Stage::Pending(_) | Stage::Running { .. } => None,
    }
}

/// For how long a pod that was ready, and is not now, is still waited for.
fn unresponsive(status: &SandboxStatus, pod: &PodView, now: Timestamp) -> Option<Duration> {
    status.ready_at.as_ref()?;
    // The condition of a sandbox that is handed over, or is being filled, is False although its pod is ready.
    let since = pod.unready_since.or_else(|| false_since(&status.conditions, READY)).unwrap_or(now);
    Some(UNRESPONSIVE.saturating_sub(elapsed(since, now)))
}

/// Why a pod is gone that was last seen as the condition says.
fn disappeared(status: &SandboxStatus) -> Cause {
    let known = ["Evicted", "NodeLost", "Preempted"];
    match find(&status.conditions, READY).filter(|ready| known.contains(&ready.reason.as_str())) {
        Some(ready) => Cause::new(&ready.reason, &ready.message),
        None => Cause::new("Deleted", "the pod was deleted"),
    }
}

/// Pods that are not the current one, but for those that are ending already.
fn removable(observed: &Observed, current: Option<&PodView>) -> Vec<(String, String)> {
    let others = observed.pods.iter().filter(|seen| current.is_none_or(|current| current.uid != seen.uid));
    others
        .filter(|seen| !matches!(seen.stage, Stage::Terminating { .. }))
        .map(|seen| (seen.name.clone(), seen.uid.clone()))
        .collect()
}

fn judge(
    plan: &mut Plan,
    observed: &Observed,
    status: &SandboxStatus,
    policy: &Policy,
    current: &PodView,
    now: Timestamp,
) {
    plan.view = match &current.stage {
        Stage::Running { ready_since: Some(since), .. } => match awaits(observed) {
            Some(from) => View::Receiving(from.sandbox.clone()),
            None => {
                reclaim(plan, policy, current, *since, now);
                View::Ready
            }
        },
        Stage::Running { ready_since: None, .. } => {
            plan.requeue = unresponsive(status, current, now);
            View::NotReady
        }
        Stage::Pending(Pending::Stuck(cause)) => View::Stuck(cause.clone()),
        Stage::Pending(_) => match observed.volume.pending() {
            Some(why) => View::VolumePending(why.to_owned()),
            None => View::Provisioning,
        },
        Stage::Terminating { disruption, due } => {
            plan.requeue = Some(until_overdue(*due, now));
            View::Terminating(disruption.clone())
        }
        // These are losses, and a lost pod is not the current one.
        Stage::Restarting(_) | Stage::Succeeded | Stage::Failed(..) => View::NotReady,
    };
}

/// A session's sandbox goes when it has been idle for as long as its template says. Only the service knows when a call
/// ran last, so it is asked when the time may be over.
fn reclaim(plan: &mut Plan, policy: &Policy, current: &PodView, ready_since: Timestamp, now: Timestamp) {
    let Some(idle) = policy.idle else { return };
    let left = idle.saturating_sub(elapsed(ready_since, now));
    if left.is_zero() {
        plan.drain = Some(Drain {
            pod_name: current.name.clone(),
            pod_uid: current.uid.clone(),
            idle_seconds: idle.as_secs(),
            background_counts: policy.background_counts,
            suspend: policy.persistent,
        });
    } else {
        plan.requeue = Some(left);
    }
}

fn replace(plan: &mut Plan, observed: &Observed, policy: &Policy, now: Timestamp) {
    if observed.template.is_none() {
        plan.view = View::TemplateMissing;
        return;
    }
    let failed_at = observed.pods.iter().filter_map(|seen| match seen.stage {
        Stage::Failed(_, at) => Some(at),
        _ => None,
    });
    let left = failed_at.max().map_or(Duration::ZERO, |at| backoff(plan.restarts).saturating_sub(elapsed(at, now)));
    if left > Duration::ZERO {
        // Until then the failed pod stays, as it says when it failed.
        plan.view = View::BackingOff;
        plan.requeue = Some(left);
        return;
    }
    plan.remove = removable(observed, None);
    if policy.persistent
        && let Some((ending, due)) = observed.pods.iter().find_map(|seen| match seen.stage {
            Stage::Terminating { due, .. } if !is_overdue(due, now) => Some((seen, due)),
            _ => None,
        })
    {
        // Two pods must not write to one workspace.
        plan.view = View::WaitingForPod(ending.name.clone());
        plan.requeue = Some(until_overdue(due, now));
        return;
    }
    plan.volume = policy.persistent && observed.volume.is_missing();
    let moves = |from: &&WorkspaceFrom| plan.volume && from.claim.is_some();
    if let Some(from) = observed.sandbox.spec.workspace_from.as_ref().filter(moves) {
        plan.volume = false;
        plan.view = View::WaitingForWorkspace(from.sandbox.clone());
        return;
    }
    let uid = observed.sandbox.uid().unwrap_or_default();
    plan.make = Some(pod::name(&observed.sandbox.name_any(), &uid, plan.incarnation));
}

/// How long after a failure the next pod is made.
fn backoff(restarts: i64) -> Duration {
    match u32::try_from(restarts) {
        Ok(0 | 1) | Err(_) => Duration::ZERO,
        Ok(restarts) => Duration::from_secs(2_u64.saturating_pow(restarts.saturating_sub(1))).min(MAX_BACKOFF),
    }
}

#[cfg(test)]
#[path = "plan_handoff_tests.rs"]
mod handoff_tests;
#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
