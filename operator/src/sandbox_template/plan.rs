//! What shall be done about a template's pool.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::observe::{Observed, PoolPod};
use crate::nodes::KNOWN_FOR;
use crate::pods::{self, Cause, Pending, PodView, Stage, elapsed};
use crate::sandbox::pod;

/// A pod that failed keeps its slot for so long, and the next one waits with it.
const BACKOFF: Duration = Duration::from_secs(60);
/// A pod that runs and is not ready is of use to nobody after so long: its node may be lost.
const UNREADY: Duration = Duration::from_secs(60);
/// So many pods are made at once; then the pool looks again.
const AT_ONCE: usize = 32;
/// While pods are being taken, the pool is kept at one of so many that shall wait.
const BURST_SHARE: usize = 4;

/// What shall be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Names of pods to make.
    pub(super) make: Vec<String>,
    /// Pods to delete, by name and UID.
    pub(super) remove: Vec<(String, String)>,
    /// Pods that were told to end and whose nodes do not say that they have, by name and UID.
    pub(super) forget: Vec<(String, String)>,
    /// How many pods wait and are ready.
    pub(super) ready: usize,
    /// A pod that cannot start, and why.
    pub(super) stuck: Option<(String, Cause)>,
    /// A pod that has failed, and why.
    pub(super) failed: Option<(String, Cause)>,
    /// When to look again.
    pub(super) requeue: Option<Duration>,
}

/// How many pods shall wait.
pub(super) fn wanted(observed: &Observed) -> usize {
    usize::try_from(observed.template.spec.warm).unwrap_or(0)
}

/// What shall be done.
pub(super) fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let (forget, requeue) = pods::overdue(observed.pods.iter().map(|found| &found.pod), now);
    // What nodes say changes, and nothing tells of it.
    let nodes = observed.user_namespaces.as_ref().map(|_| KNOWN_FOR);
    let requeue = requeue.into_iter().chain(observed.burst).chain(nodes).min();
    let mut plan = Plan { forget, requeue, ..Plan::default() };
    let mut kept: Vec<&PodView> = Vec::new();
    for PoolPod { pod, hash, .. } in &observed.pods {
        match &pod.stage {
            Stage::Terminating { .. } => {}
            // A change of the template rolls the pool: sandboxes take no pod that is not as the template says.
            _ if *hash != observed.hash => remove(&mut plan, pod),
            Stage::Failed(cause, at) => failed(&mut plan, &mut kept, pod, cause, *at, now),
            Stage::Succeeded | Stage::Restarting(_) => {
                let cause = Cause::new("Exited", "sandboxd ended by itself");
                failed(&mut plan, &mut kept, pod, &cause, pod.created, now);
            }
            Stage::Running { ready_since: None, since } => {
                let left = UNREADY.saturating_sub(elapsed(*since, now));
                if left.is_zero() {
                    remove(&mut plan, pod);
                } else {
                    look_again(&mut plan, left);
                    kept.push(pod);
                }
            }
            Stage::Pending(_) | Stage::Running { ready_since: Some(_), .. } => kept.push(pod),
        }
    }
    plan.stuck = kept.iter().find_map(|pod| match &pod.stage {
        Stage::Pending(Pending::Stuck(cause)) => Some((pod.name.clone(), cause.clone())),
        _ => None,
    });
    let wanted = wanted(observed);
    // Those that are of least use go first: those that failed or do not run, and then the youngest.
    kept.sort_by_key(|pod| (rank(pod), pod.created, pod.name.clone()));
    for pod in kept.iter().skip(wanted) {
        remove(&mut plan, pod);
    }
    kept.truncate(wanted);
    plan.ready = kept.iter().filter(|pod| rank(pod) == 0).count();
    // A pool whose pods find no place or no image asks for no more of them; those that there are show what is missing, to
    // autoscalers too.
    if plan.stuck.is_none() {
        let least = if observed.burst.is_some() { wanted.div_ceil(BURST_SHARE) } else { wanted };
        let missing = least.saturating_sub(kept.len());
        plan.make = free(observed).take(missing.min(AT_ONCE)).collect();
    }
    plan
}

fn remove(plan: &mut Plan, pod: &PodView) {
    plan.remove.push((pod.name.clone(), pod.uid.clone()));
}

fn look_again(plan: &mut Plan, after: Duration) {
    plan.requeue = Some(plan.requeue.map_or(after, |other| other.min(after)));
}

/// The failed pod itself is what says how long to wait.
fn failed<'a>(
    plan: &mut Plan,
    kept: &mut Vec<&'a PodView>,
    pod: &'a PodView,
    cause: &Cause,
    at: Timestamp,
    now: Timestamp,
) {
    let left = BACKOFF.saturating_sub(elapsed(at, now));
    if left.is_zero() {
        remove(plan, pod);
        return;
    }
    look_again(plan, left);
    plan.failed.get_or_insert_with(|| (pod.name.clone(), cause.clone()));
    kept.push(pod);
}

const fn rank(pod: &PodView) -> u8 {
    match pod.stage {
        Stage::Running { ready_since: Some(_), .. } => 0,
        Stage::Running { ready_since: None, .. } => 1,
        Stage::Pending(_) => 2,
        _ => 3,
    }
}

/// Names of slots in which there is no pod, the lowest first.
fn free(observed: &Observed) -> impl Iterator<Item = String> {
    let template = &observed.template;
    let stem = pod::stem(&template.name_any(), &template.uid().unwrap_or_default());
    let names = (0_u32..).map(move |slot| format!("{stem}-{}-{slot}", observed.hash));
    names.filter(|name| !observed.names.contains(name))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
