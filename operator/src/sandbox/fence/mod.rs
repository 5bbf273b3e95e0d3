//! Whether a sandbox is fenced in: known before it is said to be ready, in the same write, and looked at again when something may have
//! changed.

mod asks;
mod judge;
mod network;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use longhand_sandbox::canary::Canary;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub(super) use self::asks::SOON;
use self::asks::{Asks, Due, period};
use self::network::Fences;
pub(super) use self::network::Network;
use crate::conditions::Observation;
use crate::config::{Fencing, HOST_IP};

/// Whether the sandbox is fenced in.
pub(super) const EGRESS_FENCED: &str = "EgressFenced";

/// The reason if another policy lets it out.
pub(super) const POLICY_OPENS: &str = "PolicyOpensFence";

/// So long a sandbox that is ready waits for its answer: more than a canary's window, and hundreds of times what an answer takes.
const FIRST: Duration = Duration::from_millis(300);
/// So many sandboxes that nobody waits for are asked at once: those that do not answer must not hold up the others.
const REPEATS: usize = 4;

/// The fences of all sandboxes.
pub(super) struct Fence {
    network: Arc<dyn Fences>,
    asks: Asks,
    repeats: Semaphore,
}

/// A pod that runs, and what has been said of its fence.
pub(super) struct Subject<'a> {
    pub(super) pod: &'a Pod,
    /// Whether it is ready.
    pub(super) ready: bool,
    /// Every policy of its namespace.
    pub(super) policies: &'a [Arc<NetworkPolicy>],
    /// The condition, if there is one.
    pub(super) said: Option<&'a Condition>,
    /// Whether that was said of this pod, and not of one before.
    pub(super) of_this_pod: bool,
    /// Whether somebody waits for the sandbox to be ready.
    pub(super) awaited: bool,
}

/// What is to be said.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// Nothing, as long as nothing is known.
    pub(super) seen: Option<Observation>,
    /// When to look again.
    pub(super) again: Option<Duration>,
    /// What was asked for with it, to be tried again in peace.
    pub(super) controls: Vec<Canary>,
}

impl Sight {
    /// Of a sandbox of which no pod runs, where something was said before.
    pub(super) fn without_pod(said: Option<&Condition>) -> Self {
        let none = || Observation::unknown(EGRESS_FENCED, "NoPod", "no pod of the sandbox runs");
        Self { seen: said.map(|_| none()), ..Self::default() }
    }
}

impl Fence {
    pub(super) fn new(network: Arc<dyn Fences>) -> Self {
        Self { network, asks: Asks::default(), repeats: Semaphore::new(REPEATS) }
    }

    /// Looks at the fence around a pod.
    pub(super) async fn see(&self, subject: &Subject<'_>, fencing: &Fencing) -> Sight {
        let Subject { pod, ready, policies, said, of_this_pod, awaited } = *subject;
        if let Some(opened) = judge::opened(policies, pod.labels()) {
            // Policies are watched.
            return Sight { seen: Some(opened), ..Sight::default() };
        }
        let (uid, period) = (pod.uid().unwrap_or_default(), period(fencing.require));
        let stands = of_this_pod && said.is_some_and(|said| said.status == "True");
        // The policy that this was said of is gone.
        let outdated = said.is_some_and(|said| said.reason == POLICY_OPENS);
        // What was said of it, or of the pod before, is not known to hold.
        let silent = || Observation::unknown(EGRESS_FENCED, "NoAnswer", "sandboxd does not say what its canaries show");
        match self.asks.due(&uid, ready, stands, period) {
            Due::Later(left, seen) if !outdated => {
                let seen = seen.or_else(|| said.filter(|_| !of_this_pod).map(|_| silent()));
                return Sight { seen, again: Some(left), controls: Vec::new() };
            }
            Due::Later(..) | Due::Now => {}
        }
        let _permit = match awaited {
            true => None,
            false => match self.repeats.try_acquire() {
                Ok(permit) => Some(permit),
                Err(_) => return Sight { again: Some(SOON), ..Sight::default() },
            },
        };
        let controls = controls(pod, fencing);
        let asked = self.ask(pod, &controls);
        let seen = if awaited { timeout(FIRST, asked).await.ok().flatten() } else { asked.await };
        let again = self.asks.note(&uid, ready, seen.clone(), period);
        Sight { seen: seen.or_else(|| said.map(|_| silent())), again: Some(again), controls }
    }

    /// Asks a pod that is about to be a sandbox, beside what makes it one, so that nobody waits for the answer later.
    pub(super) async fn ask_ahead(&self, pod: &Pod, fencing: &Fencing) {
        let uid = pod.uid().unwrap_or_default();
        if self.asks.knows(&uid) {
            return;
        }
        let seen = timeout(FIRST, self.ask(pod, &controls(pod, fencing))).await.ok().flatten();
        self.asks.note(&uid, true, seen, period(fencing.require));
    }

    /// Forgets the pods that are gone.
    pub(super) fn tidy(&self, is_there: impl Fn(&str) -> bool) {
        self.asks.tidy(is_there);
    }

    /// Tries again what a sight rests on, after all that somebody waits for.
    pub(super) async fn refresh(&self, sight: &Sight) {
        join_all(sight.controls.iter().map(|canary| self.network.refresh(canary))).await;
    }

    async fn ask(&self, pod: &Pod, controls: &[Canary]) -> Option<Observation> {
        let report = self.network.report(pod.status.as_ref()?.pod_ip.as_deref()?).await?;
        let answers = join_all(controls.iter().map(|canary| self.network.answers(canary))).await;
        let controls: Vec<(&str, bool)> = controls.iter().map(Canary::name).zip(answers).collect();
        Some(judge::judge(&report, &controls))
    }
}

/// What the pod must not reach.
fn controls(pod: &Pod, fencing: &Fencing) -> Vec<Canary> {
    let host_ip = pod.status.as_ref().and_then(|status| status.host_ip.as_deref()).unwrap_or_default();
    Canary::list(&fencing.canaries.replace(HOST_IP, host_ip)).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests;
