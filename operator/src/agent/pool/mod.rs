//! Harness pods that an agent keeps ready, which belong to no session.
//!
//! A pod is known to the session service once `status.warmPods` names it, and by nothing else. Which of them serve sessions is
//! seen by the status of the sessions.

mod apply;
mod plan;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use longhand_crds::agent::{WarmFailures, WarmPod};
use longhand_crds::{Agent, AgentStatus, annotations, labels};

use super::Agents;
use super::references::Missing;
use crate::agent_session::harness_pod::{self, HARNESS};
use crate::agent_session::observe::References;
use crate::error::Error;
use crate::pods::{self, Cause, PodView, is_controlled_by};

pub(super) use self::apply::{apply, tell};
pub(super) use self::plan::{Plan, plan};

/// The condition that says whether so many pods are ready as are wanted.
pub(super) const WARM_READY: &str = "WarmReady";

/// What there is of an agent's pool.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// How many pods shall be ready.
    pub(super) wanted: usize,
    /// How many sessions each serves at once.
    pub(super) sessions_per_pod: usize,
    /// What a pod is made of now, as a digest, or why there can be none.
    pub(super) digest: Result<String, Cause>,
    /// As the status says.
    pub(super) listed: Vec<WarmPod>,
    /// As the status says.
    pub(super) generation: i64,
    /// As the status says.
    pub(super) failures: Option<WarmFailures>,
    /// Every pod of the pool.
    pub(super) pods: Vec<Seen>,
}

/// A pod of the pool.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) pod: PodView,
    /// Which of the agent's it is.
    pub(super) number: i64,
    /// What it was made of.
    pub(super) digest: Option<String>,
    /// How many sessions it serves.
    pub(super) serving: usize,
}

/// Looks at the stores, and at the API server where a store cannot say; `None` if the agent has no pool and had none.
pub(super) async fn observe(
    agent: &Agent,
    references: Result<&References, &Missing>,
    agents: &Agents,
) -> Result<Option<Observed>, Error> {
    let (namespace, uid) = (agent.namespace().unwrap_or_default(), agent.uid().unwrap_or_default());
    let status = agent.status.clone().unwrap_or_default();
    let ours = |pod: &Pod| pod.metadata.namespace.as_ref() == Some(&namespace) && is_controlled_by(pod, &uid);
    let mut pods: Vec<Pod> = agents.pods.state_filter(ours).iter().map(|pod| (**pod).clone()).collect();
    if agent.spec.warm <= 0 && status.warm_pods.is_empty() && pods.is_empty() {
        return Ok(None);
    }
    for listed in &status.warm_pods {
        if pods.iter().all(|pod| pod.metadata.uid.as_ref() != Some(&listed.uid)) {
            // The watch may not have brought a pod yet that was made a moment ago: only the API server knows.
            let pod = pods::get(&agents.context.client, &namespace, &listed.name, &uid).await?;
            pods.extend(pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&listed.uid)));
        }
    }
    let serving = serving(agents, &namespace);
    let pods = pods.iter().map(|pod| Seen {
        number: harness_pod::generation(&pod.name_any()).unwrap_or(0),
        digest: pod.annotations().get(annotations::POD_DIGEST).cloned(),
        serving: pod.metadata.uid.as_ref().and_then(|uid| serving.get(uid)).copied().unwrap_or(0),
        pod: PodView::of(pod, HARNESS),
    });
    let mut pods: Vec<Seen> = pods.collect();
    pods.sort_by_key(|seen| seen.number);
    let sessions = agent.spec.harness.as_ref().map_or(1, |harness| harness.sessions_per_pod);
    Ok(Some(Observed {
        wanted: usize::try_from(agent.spec.warm).unwrap_or(0),
        sessions_per_pod: usize::try_from(sessions).unwrap_or(1).max(1),
        digest: digest(references, agents),
        listed: status.warm_pods,
        generation: status.warm_generation,
        failures: status.warm_failures,
        pods,
    }))
}

fn digest(references: Result<&References, &Missing>, agents: &Agents) -> Result<String, Cause> {
    let references = references.map_err(|missing| Cause::new(missing.reason(), missing.to_string()))?;
    if references.refreshes() {
        let message =
            "the access token of an MCP server is refreshed, which the pod of one session does: none is kept ready";
        return Err(Cause::new("TokenIsRefreshed", message));
    }
    Ok(harness_pod::digest(&harness_pod::build_warm(&agents.context, references, "")))
}

/// How many sessions each pod serves that was not made for one, by its UID.
fn serving(agents: &Agents, namespace: &str) -> BTreeMap<String, usize> {
    let mut serving = BTreeMap::new();
    for session in agents.sessions.state() {
        let Ok(session) = &session.0 else { continue };
        let harness = session.status.as_ref().and_then(|status| status.harness.as_ref()).filter(|harness| harness.warm);
        if let Some(uid) = harness.and_then(|harness| harness.pod_uid.clone())
            && session.metadata.namespace.as_deref() == Some(namespace)
        {
            *serving.entry(uid).or_default() += 1;
        }
    }
    serving
}

/// The status with what is known of the pool after a reconcile.
pub(super) fn status(agent: &Agent, before: AgentStatus, plan: &Plan) -> AgentStatus {
    AgentStatus {
        warm_ready: i32::try_from(plan.ready).unwrap_or(i32::MAX),
        selector: Some(format!(
            "{}={},{}={}",
            labels::AGENT_UID,
            agent.uid().unwrap_or_default(),
            labels::ROLE,
            labels::HARNESS
        )),
        warm_pods: plan.pods.clone(),
        warm_generation: plan.generation,
        warm_failures: plan.failures.clone(),
        ..before
    }
}

/// A pod that was just made.
fn starting(name: &str, uid: String, now: Timestamp) -> WarmPod {
    WarmPod { name: name.to_owned(), uid, state: longhand_crds::agent::WarmState::Starting, since: now.into() }
}
