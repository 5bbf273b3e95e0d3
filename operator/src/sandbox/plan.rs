//! What shall be done about a sandbox.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use longhand_crds::sandbox::{
    DEADLINE_EXCEEDED, DesiredState, Loss, Miss, SandboxStatus, WORKSPACE_LOST, WorkspaceFrom,
};
use longhand_crds::sandbox_template::OnFailure;

use super::observe::Observed;
use super::policy::Policy;
use super::{loss, pod, rest};
use crate::conditions::{FINISHED, READY, SUSPENDED, find, true_since};
use crate::pods::{self, Cause, Pending, PodView, Stage, elapsed, is_overdue, until_overdue};

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
    /// Why it was not ready in time, until it is.
    pub(super) miss: Option<Miss>,
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
    /// It was not ready in time, keeps its workspace and has no pod until somebody asks for it again, or once its pods have ended.
    Resting {
        /// Why it was not.
        why: String,
        /// Whether a pod ends still.
        ending: bool,
    },
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
        miss: status.last_miss.clone(),
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

pub(super) fn earliest(one: Option<Duration>, other: Duration) -> Option<Duration> {
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
    plan.loss = loss::find(status, current, policy, now).filter(|_| !in_volume);
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
pub(super) fn leave(plan: &mut Plan, observed: &Observed) {
    // With a loss it has been counted.
    plan.incarnation = plan.incarnation.saturating_add(i64::from(observed.current.is_some() && plan.loss.is_none()));
    plan.pod = None;
    plan.deadline = None;
}

fn suspend(plan: &mut Plan, observed: &Observed, status: &SandboxStatus, policy: &Policy, now: Timestamp) {
    leave(plan, observed);
    plan.miss = None;
    plan.remove = removable(observed, None);
    if let Some(wait) = ending(observed, now) {
        plan.view = View::Suspending;
        plan.requeue = Some(wait);
        return;
    }
    plan.view = View::Suspended;
    keep(plan, status, policy, now);
}

/// How long a pod that is still there may take to end, if there is one.
pub(super) fn ending(observed: &Observed, now: Timestamp) -> Option<Duration> {
    let waits = observed.pods.iter().filter_map(|pod| match pod.stage {
        Stage::Terminating { due, .. } if is_overdue(due, now) => None,
        Stage::Terminating { due, .. } => Some(until_overdue(due, now)),
        _ => Some(Duration::MAX),
    });
    waits.min()
}

/// Without a pod it is kept for as long as its template allows.
pub(super) fn keep(plan: &mut Plan, status: &SandboxStatus, policy: &Policy, now: Timestamp) {
    if let Some(limit) = policy.suspended {
        let since = true_since(&status.conditions, SUSPENDED).unwrap_or(now);
        let left = limit.saturating_sub(elapsed(since, now));
        plan.expired = left.is_zero().then_some("it was suspended for as long as its template allows");
        plan.requeue = earliest(plan.requeue, left);
    }
}

fn run(plan: &mut Plan, observed: &Observed, status: &SandboxStatus, policy: &Policy, now: Timestamp) {
    if let Some(miss) = rest::resting(observed, status, now) {
        rest::go_on(plan, observed, (status, policy), miss, now);
        return;
    }
    let named = observed.current.as_ref().and_then(|uid| observed.pods.iter().find(|seen| &seen.uid == uid));
    plan.loss = loss::find(status, named, policy, now);
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
    if let (Some(deadline), Some(loss)) = (plan.deadline, &plan.loss) {
        plan.deadline = Some(loss::after_pause(deadline, loss, now));
    }
    match named.filter(|_| plan.loss.is_none()) {
        Some(current) => {
            plan.pod = Some(current.clone());
            plan.remove = removable(observed, Some(current));
            judge(plan, observed, status, policy, current, now);
        }
        None => replace(plan, observed, status, policy, now),
    }
    if !matches!(plan.view, View::Finished(_)) {
        bound(plan, observed, status, policy, now);
    }
}

/// Nothing is on its way to being ready for ever.
fn bound(plan: &mut Plan, observed: &Observed, status: &SandboxStatus, policy: &Policy, now: Timestamp) {
    let was_ready = plan.pod.is_some() && status.ready_at.is_some();
    match plan.view {
        View::Ready => (plan.deadline, plan.miss) = (None, None),
        View::Terminating(_) | View::NotReady if was_ready => {}
        // Time is given to pods: it begins when one may be made. What the waits are for has bounds of its own.
        View::BackingOff | View::WaitingForPod(_) if plan.deadline.is_none() => {}
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
            if !rest::is_kept(plan, observed) {
                let message = format!("it was not ready within {seconds} s{last}");
                end(plan, observed, policy, Cause::new(DEADLINE_EXCEEDED, message));
            } else if rest::is_out_of_reach(&plan.view, &observed.volume) {
                let message = format!("no pod could use the workspace that was kept within {seconds} s{last}");
                end(plan, observed, policy, Cause::new(WORKSPACE_LOST, message));
            } else {
                let again = rest::again(observed);
                let why = format!("it was not ready within {seconds} s; its workspace is kept, and {again}{last}");
                rest::begin(plan, observed, (status, policy), why, now);
            }
        }
    }
}

/// Pods that are not the current one, but for those that are ending already.
pub(super) fn removable(observed: &Observed, current: Option<&PodView>) -> Vec<(String, String)> {
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
                reclaim(plan, observed, policy, current, ready_for_us(status, current, *since, now), now);
                View::Ready
            }
        },
        Stage::Running { ready_since: None, .. } => {
            plan.requeue = loss::unresponsive(status, current, now);
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

/// Since when the pod has been ready for this sandbox: one of a pool may have been so long before.
fn ready_for_us(status: &SandboxStatus, pod: &PodView, ready_since: Timestamp, now: Timestamp) -> Timestamp {
    if status.pod_uid.as_ref() != Some(&pod.uid) {
        return now;
    }
    status.ready_at.as_ref().map_or(ready_since, |since| since.0.max(ready_since))
}

/// A session's sandbox goes when it has been idle for as long as its template says. Only the service knows when a call
/// ran last, so it is asked when the time may be over.
fn reclaim(
    plan: &mut Plan,
    observed: &Observed,
    policy: &Policy,
    current: &PodView,
    ready_since: Timestamp,
    now: Timestamp,
) {
    let Some(idle) = policy.idle else { return };
    let left = idle.saturating_sub(elapsed(ready_since, now));
    if left.is_zero() {
        plan.drain = Some(Drain {
            pod_name: current.name.clone(),
            pod_uid: current.uid.clone(),
            idle_seconds: idle.as_secs(),
            background_counts: policy.background_counts,
            // Whatever its template says by now, if there still is one.
            suspend: policy.persistent || observed.volume.may_hold_files(),
        });
    } else {
        plan.requeue = Some(left);
    }
}

fn replace(plan: &mut Plan, observed: &Observed, status: &SandboxStatus, policy: &Policy, now: Timestamp) {
    if observed.template.is_none() {
        plan.view = View::TemplateMissing;
        return;
    }
    plan.remove = removable(observed, None);
    let last = plan.loss.as_ref().or(status.last_loss.as_ref());
    if let Some(left) = last.and_then(|last| loss::wait(last, now)) {
        plan.view = View::BackingOff;
        plan.requeue = Some(left);
        return;
    }
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
    let handed = observed.sandbox.spec.workspace_from.as_ref().is_some_and(|from| from.claim.is_some());
    let used = plan.volume && (handed || plan.incarnation > 0);
    if let Some(claim) = status.workspace_claim.as_ref().filter(|_| used) {
        let message = format!("its PersistentVolumeClaim {claim} is gone");
        end(plan, observed, policy, Cause::new(WORKSPACE_LOST, message));
        return;
    }
    let moves = |from: &&WorkspaceFrom| plan.volume && from.claim.is_some();
    if let Some(from) = observed.sandbox.spec.workspace_from.as_ref().filter(moves) {
        plan.volume = false;
        plan.view = View::WaitingForWorkspace(from.sandbox.clone());
        return;
    }
    let uid = observed.sandbox.uid().unwrap_or_default();
    plan.make = Some(pod::name(&observed.sandbox.name_any(), &uid, plan.incarnation));
}

#[cfg(test)]
#[path = "plan_handoff_tests.rs"]
mod handoff_tests;
#[cfg(test)]
#[path = "loss_tests.rs"]
mod loss_tests;
#[cfg(test)]
#[path = "rest_tests.rs"]
mod rest_tests;
#[cfg(test)]
#[path = "plan_tests.rs"]
pub(super) mod tests;
