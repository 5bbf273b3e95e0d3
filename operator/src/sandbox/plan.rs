//! What shall be done about a sandbox.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use longhand_crds::sandbox::Loss;

use super::observe::Observed;
use super::pod;
use crate::conditions::{READY, find};
use crate::pods::{Cause, Pending, PodView, Stage, elapsed, is_overdue};

/// A pod is ready within this time, or its condition says that it is late.
const PROVISIONING: Duration = Duration::from_secs(120);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// What shall be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Whether the namespace's fence must be put up, which comes before everything else.
    pub(super) fence: bool,
    /// The pod that is gone, to be written down before another is made.
    pub(super) loss: Option<Loss>,
    /// Pods to delete, by name and UID.
    pub(super) remove: Vec<(String, String)>,
    /// The pod to make.
    pub(super) make: Option<String>,
    /// An idle pod to drain, and then to remove with its sandbox.
    pub(super) drain: Option<Drain>,
    /// The pod that there is.
    pub(super) pod: Option<PodView>,
    /// How often the pod was replaced, with `loss`.
    pub(super) restarts: i64,
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
}

/// How a sandbox looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// There is no template to make it from.
    TemplateMissing,
    /// A pod is on its way.
    Provisioning,
    /// A pod has been on its way for too long.
    Late,
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
}

/// What shall be done.
pub(super) fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let status = observed.sandbox.status.clone().unwrap_or_default();
    let name = observed.sandbox.name_any();
    let named = match &status.pod_uid {
        Some(uid) => observed.pods.iter().find(|seen| &seen.uid == uid),
        None => observed.pods.iter().find(|seen| seen.name == pod::name(&name, status.restarts)),
    };
    let loss = loss(observed, named, now);
    let current = named.filter(|_| loss.is_none());
    let restarts = status.restarts.saturating_add(i64::from(loss.is_some()));
    let mut plan = Plan {
        fence: !observed.fenced,
        loss,
        remove: Vec::new(),
        make: None,
        drain: None,
        pod: current.cloned(),
        restarts,
        view: View::Provisioning,
        requeue: None,
    };
    match current {
        Some(current) => {
            plan.remove = removable(observed, Some(current));
            judge(&mut plan, observed, current, now);
        }
        None => replace(&mut plan, observed, pod::name(&name, restarts), now),
    }
    plan
}

/// Why the pod that there was can take no more calls.
fn loss(observed: &Observed, named: Option<&PodView>, now: Timestamp) -> Option<Loss> {
    let status = observed.sandbox.status.as_ref();
    let gone =
        |uid: &str, cause: Cause| Some(Loss { pod_uid: uid.to_owned(), reason: cause.reason, message: cause.message });
    let Some(pod) = named else {
        let uid = status.and_then(|status| status.pod_uid.as_deref())?;
        return gone(uid, disappeared(observed));
    };
    match &pod.stage {
        Stage::Failed(cause, _) | Stage::Restarting(cause) => gone(&pod.uid, cause.clone()),
        Stage::Succeeded => gone(&pod.uid, Cause::new("Exited", "sandboxd ended by itself")),
        Stage::Terminating { disruption, due } if is_overdue(*due, now) => {
            let silent = || Cause::new("NodeLost", "the pod was told to end and its node does not answer");
            gone(&pod.uid, disruption.clone().unwrap_or_else(silent))
        }
        Stage::Terminating { .. } | Stage::Pending(_) | Stage::Running { .. } => None,
    }
}

/// Why a pod is gone that was last seen as the condition says.
fn disappeared(observed: &Observed) -> Cause {
    let conditions = observed.sandbox.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    match find(conditions, READY).filter(|ready| ["Evicted", "NodeLost", "Preempted"].contains(&ready.reason.as_str()))
    {
        Some(ready) => Cause::new(&ready.reason, &ready.message),
        None => Cause::new("Deleted", "the pod was deleted"),
    }
}

/// Pods of earlier incarnations, but for those that are ending already.
fn removable(observed: &Observed, current: Option<&PodView>) -> Vec<(String, String)> {
    let others = observed.pods.iter().filter(|seen| current.is_none_or(|current| current.uid != seen.uid));
    others
        .filter(|seen| !matches!(seen.stage, Stage::Terminating { .. }))
        .map(|seen| (seen.name.clone(), seen.uid.clone()))
        .collect()
}

fn judge(plan: &mut Plan, observed: &Observed, current: &PodView, now: Timestamp) {
    plan.view = match &current.stage {
        Stage::Running { ready_since: Some(since), .. } => {
            reclaim(plan, observed, current, *since, now);
            View::Ready
        }
        Stage::Running { ready_since: None, since } => starting(plan, *since, View::NotReady, now),
        Stage::Pending(Pending::Stuck(cause)) => View::Stuck(cause.clone()),
        Stage::Pending(_) => starting(plan, current.created, View::Provisioning, now),
        Stage::Terminating { disruption, due } => {
            let overdue = due.saturating_add(Duration::from_secs(31)).unwrap_or(*due);
            plan.requeue = Some(elapsed(now, overdue).max(Duration::from_secs(1)));
            View::Terminating(disruption.clone())
        }
        // These are losses, and a lost pod is not the current one.
        Stage::Restarting(_) | Stage::Succeeded | Stage::Failed(..) => View::NotReady,
    };
}

/// Looks again when the time to start is over.
fn starting(plan: &mut Plan, since: Timestamp, view: View, now: Timestamp) -> View {
    let left = PROVISIONING.saturating_sub(elapsed(since, now));
    if left.is_zero() {
        return View::Late;
    }
    plan.requeue = Some(left);
    view
}

/// A session's sandbox goes when it has been idle for as long as its template says. Only the service knows when a call
/// ran last, so it is asked when the time may be over.
fn reclaim(plan: &mut Plan, observed: &Observed, current: &PodView, ready_since: Timestamp, now: Timestamp) {
    let Some(template) = observed.template.as_ref().filter(|_| observed.sandbox.spec.session_ref.is_some()) else {
        return;
    };
    let idle_seconds = u64::try_from(template.spec.idle_seconds).unwrap_or(1).max(1);
    let left = Duration::from_secs(idle_seconds).saturating_sub(elapsed(ready_since, now));
    if left.is_zero() {
        plan.drain = Some(Drain { pod_name: current.name.clone(), pod_uid: current.uid.clone(), idle_seconds });
    } else {
        plan.requeue = Some(left);
    }
}

fn replace(plan: &mut Plan, observed: &Observed, name: String, now: Timestamp) {
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
    plan.make = Some(name);
}

/// How long after a failure the next pod is made.
fn backoff(restarts: i64) -> Duration {
    match u32::try_from(restarts) {
        Ok(0 | 1) | Err(_) => Duration::ZERO,
        Ok(restarts) => Duration::from_secs(2_u64.saturating_pow(restarts.saturating_sub(1))).min(MAX_BACKOFF),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
