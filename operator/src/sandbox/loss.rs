//! Pods that a sandbox has lost: why, how many in a row, and when the next one is made.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::sandbox::{Loss, SandboxStatus};

use super::policy::Policy;
use crate::conditions::{self, READY, false_since};
use crate::pods::{Cause, PodView, Stage, elapsed, is_overdue};

const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A pod that was ready for this long begins a new row of losses.
const STEADY: Duration = Duration::from_secs(300);
/// A pod that was ready and is not for this long is on a node that is lost, or hangs: its liveness probe has failed too.
const UNRESPONSIVE: Duration = Duration::from_secs(60);

/// Why the pod that there was can take no more calls.
pub(super) fn find(status: &SandboxStatus, named: Option<&PodView>, policy: &Policy, now: Timestamp) -> Option<Loss> {
    let kept = if policy.persistent { "; its workspace is kept" } else { "" };
    let gone = |uid: &str, Cause { reason, message }: Cause| {
        let message = format!("{message}{kept}");
        let time = match named.map(|pod| &pod.stage) {
            Some(Stage::Failed(_, at)) => *at,
            _ => now,
        };
        let steady = status.ready_at.as_ref().is_some_and(|since| elapsed(since.0, time) >= STEADY);
        let before = status.last_loss.as_ref().filter(|_| !steady).map_or(0, |before| before.in_a_row);
        let in_a_row = before.saturating_add(1);
        Some(Loss { pod_uid: uid.to_owned(), reason, message, time: Some(Time(time)), in_a_row })
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
pub(super) fn unresponsive(status: &SandboxStatus, pod: &PodView, now: Timestamp) -> Option<Duration> {
    status.ready_at.as_ref()?;
    // The condition of a sandbox that is handed over, or is being filled, is False although its pod is ready.
    let since = pod.unready_since.or_else(|| false_since(&status.conditions, READY)).unwrap_or(now);
    Some(UNRESPONSIVE.saturating_sub(elapsed(since, now)))
}

/// Why a pod is gone that was last seen as the condition says.
fn disappeared(status: &SandboxStatus) -> Cause {
    let known = ["Evicted", "NodeLost", "Preempted"];
    match conditions::find(&status.conditions, READY).filter(|ready| known.contains(&ready.reason.as_str())) {
        Some(ready) => Cause::new(&ready.reason, &ready.message),
        None => Cause::new("Deleted", "the pod was deleted"),
    }
}

/// How long the next pod is still waited with after a loss.
pub(super) fn wait(last: &Loss, now: Timestamp) -> Option<Duration> {
    let left = backoff(last.in_a_row).saturating_sub(elapsed(last.time.as_ref()?.0, now));
    Some(left).filter(|left| !left.is_zero())
}

/// The deadline of the pods that follow a loss: the pause before the next one is no time of theirs. One that is as long as all that was
/// left prolongs nothing, so that somebody who waits for the sandbox does so for a few times what the template gives, at most.
pub(super) fn after_pause(deadline: Timestamp, loss: &Loss, now: Timestamp) -> Timestamp {
    let pause = wait(loss, now).filter(|pause| *pause < elapsed(now, deadline));
    pause.and_then(|pause| deadline.saturating_add(pause).ok()).unwrap_or(deadline)
}

/// How long after so many losses in a row the next pod is made.
pub(super) fn backoff(in_a_row: i64) -> Duration {
    match u32::try_from(in_a_row) {
        Ok(0 | 1) | Err(_) => Duration::ZERO,
        Ok(in_a_row) => Duration::from_secs(2_u64.saturating_pow(in_a_row.saturating_sub(1))).min(MAX_BACKOFF),
    }
}
