//! A session that is served by a pod which its agent kept ready.
//!
//! The session service offers a session to such pods when work comes, and one of them claims it within milliseconds, or none
//! does. The operator sees by the owner of the log which one it is, and makes a pod only if there is none.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use longhand_crds::AgentSession;
use longhand_crds::agent_session::HarnessStatus;
use longhand_protocol::internal::SessionSummary;

use super::Sessions;
use super::harness_pod::HARNESS;
use super::observe::{Observed, References};
use super::plan::{LogCall, Plan, View, log_call};
use crate::error::Error;
use crate::pods::{self, Cause, PodView, Stage, elapsed, is_controlled_by};

/// A ready harness has claimed a session within this time, or will not.
const HOLD: Duration = Duration::from_millis(250);
/// How often it is looked whether the pod still owns the session: nothing that is watched changes when it loses it.
const REFRESH: Duration = Duration::from_secs(10);

/// What there is of the agent's ready pods, as far as they may serve the session.
#[derive(Clone, Debug, Default)]
pub(super) struct Warm {
    /// Those that live.
    pub(super) pods: Vec<PodView>,
    /// Whether one of them had room when the agent's status was written.
    pub(super) ready: bool,
}

/// Looks at the store, and at the API server where it cannot say.
pub(super) async fn observe(
    session: &AgentSession,
    references: Option<&References>,
    sessions: &Sessions,
) -> Result<Warm, Error> {
    let Some(references) = references else { return Ok(Warm::default()) };
    let agent = &references.agent;
    // The proxy beside a harness is the way out of one session's sandboxes, and refreshes tokens for one session.
    if !session.spec.takes_any_harness() || references.egress.is_some() || references.refreshes() {
        return Ok(Warm::default());
    }
    let (namespace, uid) = (session.namespace().unwrap_or_default(), agent.uid().unwrap_or_default());
    let ready = agent.status.as_ref().is_some_and(|status| status.warm_ready > 0) && agent.spec.warm > 0;
    let named = session.status.as_ref().and_then(|status| status.harness.as_ref()).filter(|named| named.warm);
    let listed = agent.status.as_ref().is_some_and(|status| !status.warm_pods.is_empty());
    if !ready && !listed && named.is_none() {
        return Ok(Warm::default());
    }
    let ours = |pod: &Pod| pod.metadata.namespace.as_ref() == Some(&namespace) && is_controlled_by(pod, &uid);
    let found = sessions.pods.state_filter(ours);
    let mut pods: Vec<PodView> = found.iter().map(|pod| PodView::of(pod, HARNESS)).collect();
    if let Some((name, pod_uid)) = named.and_then(|named| named.pod_name.as_ref().zip(named.pod_uid.as_ref()))
        && pods.iter().all(|pod| &pod.uid != pod_uid)
    {
        let pod = pods::get(&sessions.context.client, &namespace, name, &uid).await?;
        pods.extend(pod.iter().map(|pod| PodView::of(pod, HARNESS)).filter(|pod| &pod.uid == pod_uid));
    }
    Ok(Warm { pods, ready })
}

/// For how long nothing is done, since a pod that is ready, or the session's own in its grace, may be about to take the session:
/// what is asked and written meanwhile would be in its way.
pub(super) fn held(observed: &Observed, now: Timestamp) -> Option<Duration> {
    let begun = observed.wake_since?;
    let named = before(observed).pod_uid;
    let in_grace = observed
        .pods
        .iter()
        .any(|seen| Some(&seen.pod.uid) == named.as_ref() && matches!(seen.pod.stage, Stage::Running { .. }));
    let offered = observed.pods.is_empty() && named.is_none() && observed.warm.ready;
    let untouched = (in_grace || offered) && log_call(observed) != LogCall::Ensure;
    untouched.then(|| left(begun, now)).filter(|left| !left.is_zero())
}

/// For how long no pod is made, if one that is ready may take the session.
pub(super) fn hold(observed: &Observed, now: Timestamp) -> Option<Duration> {
    let left = observed.wake_since.map_or(HOLD, |begun| left(begun, now));
    (observed.warm.ready && !left.is_zero()).then_some(left)
}

fn left(begun: Timestamp, now: Timestamp) -> Duration {
    HOLD.saturating_sub(elapsed(begun, now))
}

/// The ready pod that serves the session, as the session service says, or, if it does not answer, as the status does.
pub(super) fn serving<'a>(observed: &'a Observed, log: Option<&SessionSummary>) -> Option<&'a PodView> {
    let uid = match log {
        Some(log) => log.owner_pod_uid.clone()?,
        None => Some(before(observed)).filter(|before| before.warm)?.pod_uid?,
    };
    let runs = |pod: &&PodView| pod.uid == uid && matches!(pod.stage, Stage::Running { .. });
    observed.warm.pods.iter().find(runs)
}

/// The plan for a session that a ready pod serves: pods that were made for it are not needed.
pub(super) fn served(observed: &Observed, pod: &PodView) -> Plan {
    let not_gone = observed.pods.iter().filter(|seen| !matches!(seen.pod.stage, Stage::Terminating { .. }));
    let before = before(observed);
    Plan {
        remove: not_gone.map(|seen| (seen.pod.name.clone(), seen.pod.uid.clone())).collect(),
        forget: Vec::new(),
        make: None,
        harness: HarnessStatus {
            generation: observed.pods.iter().map(|seen| seen.generation).fold(before.generation, i64::max),
            pod_name: Some(pod.name.clone()),
            pod_uid: Some(pod.uid.clone()),
            warm: true,
            failures: 0,
        },
        lost: None,
        view: View::Working,
        requeue: Some(REFRESH),
    }
}

/// The harness that the status names, without a ready pod that serves the session no more; and why, if that pod is gone.
pub(super) fn released(observed: &Observed) -> (HarnessStatus, Option<Cause>) {
    let named = before(observed);
    if !named.warm {
        return (named, None);
    }
    let pod = observed.warm.pods.iter().find(|pod| Some(&pod.uid) == named.pod_uid.as_ref());
    let cause = match pod.map(|pod| &pod.stage) {
        Some(Stage::Failed(cause, _) | Stage::Restarting(cause)) => Some(cause.clone()),
        Some(Stage::Terminating { disruption: Some(cause), .. }) => Some(cause.clone()),
        Some(Stage::Running { .. } | Stage::Succeeded | Stage::Pending(_)) => None,
        Some(Stage::Terminating { .. }) | None => Some(Cause::new("Deleted", "the pod was deleted")),
    };
    // Without its agent's credential it is not known which pods there are.
    let cause = cause.filter(|_| observed.references.is_ok());
    (HarnessStatus { pod_name: None, pod_uid: None, warm: false, ..named }, cause)
}

fn before(observed: &Observed) -> HarnessStatus {
    observed.session.status.as_ref().and_then(|status| status.harness.clone()).unwrap_or_default()
}

#[cfg(test)]
#[path = "warm_tests.rs"]
mod tests;
