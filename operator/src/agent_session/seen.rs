//! What the proxy of a session says of credentials, for the vaults that they are of.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use longhand_crds::agent_session::HarnessStatus;
use tokio::time::timeout;

use super::Sessions;
use super::observe::Observed;
use super::proxy_health::Credentials;
use crate::pods::Stage;
use crate::vault::sightings::Seen;

/// So many proxies are asked at the same time: who finds that so many are, asks later.
pub(super) const AT_ONCE: usize = 4;
const DEADLINE: Duration = Duration::from_secs(1);
/// When a proxy is asked again that was not, or did not answer.
const AGAIN: Duration = Duration::from_secs(20);

/// Hands on what a proxy said while its pod started. One that runs is asked if the session service was, which is so while a
/// session works and when its work has ended. What is returned is when to try again, if there was no answer.
pub(super) async fn tell_vaults(
    observed: &Observed,
    harness: &HarnessStatus,
    asked: bool,
    sessions: &Sessions,
    now: Timestamp,
) -> Option<Duration> {
    let said = match (&observed.credentials, running(observed, harness).filter(|_| asked)) {
        (Credentials::Unknown, Some(address)) => {
            let Ok(_asking) = sessions.asking.try_acquire() else { return Some(AGAIN) };
            match timeout(DEADLINE, sessions.proxies.credentials(address)).await {
                Ok(said @ Credentials::Reported(..)) => said,
                Ok(Credentials::Unknown) | Err(_) => return Some(AGAIN),
            }
        }
        (said, _) => said.clone(),
    };
    let Credentials::Reported(_, mut seen) = said else { return None };
    let namespace = observed.session.namespace().unwrap_or_default();
    // Nothing is kept of what is no vault, or none any more.
    seen.retain(|seen: &Seen| sessions.vaults.get(&ObjectRef::new(&seen.vault).within(&namespace)).is_some());
    sessions.sightings.note(&namespace, &observed.session.name_any(), seen, now);
    None
}

/// The address of the pod that serves the session, or did so until now, if it lives.
fn running<'a>(observed: &'a Observed, harness: &HarnessStatus) -> Option<&'a str> {
    let before = observed.session.status.as_ref().and_then(|status| status.harness.as_ref());
    let uid = harness.pod_uid.as_ref().or_else(|| before?.pod_uid.as_ref())?;
    let pods = observed.pods.iter().map(|seen| &seen.pod).chain(&observed.warm.pods);
    let runs = |stage: &Stage| matches!(stage, Stage::Running { .. } | Stage::Restarting(_));
    pods.filter(|pod| &pod.uid == uid && runs(&pod.stage)).find_map(|pod| pod.ip.as_deref())
}

#[cfg(test)]
#[path = "seen_tests.rs"]
mod tests;
