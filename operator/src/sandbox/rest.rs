//! A sandbox that was not ready in time and whose workspace is kept: it has no pod until somebody asks for it again.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use longhand_crds::annotations::RETRY;
use longhand_crds::sandbox::{Miss, SandboxStatus};

use super::observe::Observed;
use super::plan::{Plan, View, awaits, earliest, ending, keep, leave, removable};
use super::policy::Policy;
use super::volume::Volume;
use crate::pods::elapsed;

/// How long a free-standing sandbox rests after the first miss; twice as long after each that follows.
const FIRST_REST: Duration = Duration::from_secs(30);
const LONGEST_REST: Duration = Duration::from_secs(600);

/// The scheduler's words for a volume that a node cannot mount, of older and newer ones.
const OF_VOLUME: [&str; 2] = ["volume node affinity conflict", "PersistentVolume's node affinity"];
/// Its words for a node that has no room now, and for one that does not answer, which may be about to start again. One that is
/// cordoned is on its way out.
const PASSING: [&str; 5] =
    ["Insufficient ", "Too many pods", "-pressure", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Whether there is a workspace that outlives a sandbox that is not ready in time: one that a pod may have written to, or that comes from
/// another sandbox, on its way or here.
pub(super) fn is_kept(plan: &Plan, observed: &Observed) -> bool {
    if matches!(plan.view, View::WaitingForWorkspace(_)) {
        return true;
    }
    let handed = observed.sandbox.spec.workspace_from.as_ref().is_some_and(|from| from.claim.is_some());
    let used = plan.incarnation > 0 && awaits(observed).is_none();
    observed.volume.may_hold_files() && (handed || used)
}

/// Whether no pod will ever use the workspace again: its storage is gone, or no node that there is can mount it. A node that could and
/// is merely full or away is no reason.
pub(super) fn is_out_of_reach(view: &View, volume: &Volume) -> bool {
    let has = |message: &str, words: &[&str]| words.iter().any(|words| message.contains(words));
    let pinned = |message: &str| has(message, &OF_VOLUME) && !has(message, &PASSING);
    match (volume, view) {
        (Volume::Lost { .. }, _) => true,
        (_, View::Stuck(cause)) => cause.reason == "Unschedulable" && pinned(&cause.message),
        _ => false,
    }
}

/// When it is tried again, for a person.
pub(super) fn again(observed: &Observed) -> &'static str {
    match observed.sandbox.spec.session_ref {
        Some(_) => "the next call tries again",
        None => "it is tried again in a while",
    }
}

/// Why it rests, if it does: nobody has asked for it since, and its pause is not over.
pub(super) fn resting<'a>(observed: &Observed, status: &'a SandboxStatus, now: Timestamp) -> Option<&'a Miss> {
    if status.provisioning_deadline.is_some() || observed.current.is_some() {
        return None;
    }
    let miss = status.last_miss.as_ref()?;
    let asked = observed.sandbox.annotations().get(RETRY) == Some(&status.incarnation.to_string());
    let over = pause(miss, observed, now).is_some_and(|left| left.is_zero());
    (!asked && !over).then_some(miss)
}

/// How long it rests still; a session's until a call asks for it.
fn pause(miss: &Miss, observed: &Observed, now: Timestamp) -> Option<Duration> {
    if observed.sandbox.spec.session_ref.is_some() {
        return None;
    }
    let doublings = u32::try_from(miss.in_a_row.saturating_sub(1)).unwrap_or(0);
    let whole = FIRST_REST.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_REST);
    Some(whole.saturating_sub(elapsed(miss.time.0, now)))
}

/// It has missed its deadline.
pub(super) fn begin(
    plan: &mut Plan,
    observed: &Observed,
    (status, policy): (&SandboxStatus, &Policy),
    why: String,
    now: Timestamp,
) {
    let in_a_row = status.last_miss.as_ref().map_or(0, |miss| miss.in_a_row).saturating_add(1);
    let miss = Miss { time: Time(now), in_a_row, message: why };
    leave(plan, observed);
    // Who asks again names the incarnation, also if no pod could be made of the one before.
    plan.incarnation = plan.incarnation.max(status.incarnation.saturating_add(1));
    plan.requeue = None;
    go_on(plan, observed, (status, policy), &miss, now);
}

/// It goes on to have no pod.
pub(super) fn go_on(
    plan: &mut Plan,
    observed: &Observed,
    (status, policy): (&SandboxStatus, &Policy),
    miss: &Miss,
    now: Timestamp,
) {
    (plan.make, plan.volume, plan.drain) = (None, false, None);
    plan.remove = removable(observed, None);
    plan.miss = Some(miss.clone());
    if let Some(left) = pause(miss, observed, now) {
        plan.requeue = earliest(plan.requeue, left);
    }
    let ends = ending(observed, now);
    plan.view = View::Resting { why: miss.message.clone(), ending: ends.is_some() };
    match ends {
        Some(wait) => plan.requeue = earliest(plan.requeue, wait),
        None => keep(plan, status, policy, now),
    }
}
