//! `Agent`: ready when the credentials that its model and its MCP servers are called with exist and may go there. Its versions are
//! recorded, and harness pods are kept ready for its sessions.

pub mod fallbacks;
pub mod mcp;
mod pool;
pub mod references;
mod versions;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use longhand_crds::agent::{WarmPod, WarmState};
use longhand_crds::default_model::DefaultModel;
use longhand_crds::{Agent, AgentSession, AgentStatus, Vault, labels};
use tokio_util::sync::CancellationToken;

use self::references::Missing;
use crate::agent_session::observe::References;
use crate::conditions::{Observation, READY, merge};
use crate::context::{Context, Guarded, GuardedStore};
use crate::error::Error;
use crate::lists::Lists;
use crate::{drive, metrics, status};

/// What the reconcile of an agent looks at.
struct Agents {
    context: Arc<Context>,
    vaults: GuardedStore<Vault>,
    sessions: GuardedStore<AgentSession>,
    /// Harness pods that belong to no session.
    pods: Store<Pod>,
    counts: Mutex<Counts>,
}

/// How many pods of each agent do what.
type Counts = HashMap<(String, String), Vec<WarmState>>;

/// Reconciles every `Agent` until `token` is cancelled; `taken` are those of which a session has got a pod, or given it back.
pub async fn run(
    context: Arc<Context>,
    (sessions, listed): (GuardedStore<AgentSession>, Lists),
    taken: impl Stream<Item = ObjectRef<Guarded<Agent>>> + Send + 'static,
    token: CancellationToken,
) {
    let (everything, mut lists) = (watcher::Config::default, Lists::default());
    lists.wait_for(&listed);
    let (agents, agent_stream) = drive::watch::<Guarded<Agent>>(&context, &everything(), &mut lists);
    let (vaults, vault_stream) = drive::watch::<Guarded<Vault>>(&context, &everything(), &mut lists);
    let warm = format!(
        "{}={},{}={},{}",
        labels::MANAGED_BY,
        labels::LONGHAND,
        labels::ROLE,
        labels::HARNESS,
        labels::AGENT_UID
    );
    let (pods, pod_stream) = drive::watch::<Pod>(&context, &everything().labels(&warm), &mut lists);
    let users = agents.clone();
    let default = context.default_model.clone();
    let concerned = vault_stream
        .filter_map(async |vault| vault.ok())
        .flat_map(move |vault| futures::stream::iter(users_of(&users, &vault, default.as_ref())));
    let controller = Controller::for_stream(agent_stream, agents)
        .owns_stream(pod_stream)
        .reconcile_on(concerned)
        .reconcile_on(taken)
        .reconcile_all_on(listed.again());
    let agents = Agents { context, vaults, sessions, pods, counts: Mutex::default() };
    drive::run(controller, lists, Arc::new(agents), token, reconcile).await;
}

/// The agents that name a credential of this vault.
fn users_of(
    agents: &GuardedStore<Agent>,
    vault: &Guarded<Vault>,
    default: Option<&DefaultModel>,
) -> Vec<ObjectRef<Guarded<Agent>>> {
    let (namespace, name) = (vault.namespace(), vault.name_any());
    let uses = |agent: &Guarded<Agent>| {
        agent.namespace() == namespace && agent.0.as_ref().is_ok_and(|agent| references::uses(agent, default, &name))
    };
    agents.state_filter(uses).iter().map(|agent| ObjectRef::from_obj(&**agent)).collect()
}

async fn reconcile(agent: Arc<Agent>, agents: Arc<Agents>) -> Result<Action, Error> {
    if agent.metadata.deletion_timestamp.is_some() {
        agents.count(&agent, &[]);
        return Ok(Action::await_change());
    }
    let Agents { context, vaults, .. } = &*agents;
    let client = &context.client;
    let references = References::resolve((*agent).clone(), context.default_model.as_ref(), vaults);
    let recorded = if is_recorded(&agent) { Ok(None) } else { versions::ensure(client, &agent).await };
    let ready = references.as_ref().map(|_| ()).map_err(Clone::clone);
    let mut new = plan(&agent, &ready, recorded.as_ref(), Timestamp::now());
    let pooled = keep_warm(&agent, references.as_ref(), &agents, &mut new).await;
    status::write(client, &*agent, agent.status.as_ref(), &new).await?;
    agents.count(&agent, &new.warm_pods);
    recorded?;
    Ok(drive::action(pooled?))
}

/// Keeps harness pods ready, and says in the status which; when to look again. Whatever fails, the status says so.
async fn keep_warm(
    agent: &Agent,
    references: Result<&References, &Missing>,
    agents: &Agents,
    new: &mut AgentStatus,
) -> Result<Option<Duration>, Error> {
    let Some(observed) = pool::observe(agent, references, agents).await? else { return Ok(None) };
    let mut plan = pool::plan(&observed, Timestamp::now());
    let applied = pool::apply(&mut plan, agent, references.ok(), &agents.context).await;
    if let Err(error) = &applied {
        plan.condition = Observation::no(pool::WARM_READY, error.reason(), error.to_string());
    }
    pool::tell(&plan, agent, &agents.context).await;
    let mut status = pool::status(agent, std::mem::take(new), &plan);
    let generation = agent.metadata.generation;
    status.conditions = merge(&status.conditions, std::slice::from_ref(&plan.condition), generation, Timestamp::now());
    *new = status;
    applied.map(|()| plan.requeue)
}

impl Agents {
    /// Takes in what the pods of an agent do.
    fn count(&self, agent: &Agent, pods: &[WarmPod]) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (agent.namespace().unwrap_or_default(), agent.name_any());
        if pods.is_empty() {
            counts.remove(&key);
        } else {
            counts.insert(key, pods.iter().map(|pod| pod.state).collect());
        }
        for (state, word) in [
            (WarmState::Starting, "starting"),
            (WarmState::Parked, "parked"),
            (WarmState::Taken, "taken"),
            (WarmState::Retiring, "retiring"),
        ] {
            metrics::warm_pods(word, counts.values().flatten().filter(|of| **of == state).count());
        }
    }
}

/// Whether the status names the version that the spec is.
fn is_recorded(agent: &Agent) -> bool {
    agent
        .status
        .as_ref()
        .is_some_and(|status| status.version.is_some() && status.observed_generation == agent.metadata.generation)
}

/// The status; `recorded` is the version if it was looked for, and was not outdated.
fn plan(
    agent: &Agent,
    ready: &Result<(), Missing>,
    recorded: Result<&Option<u64>, &Error>,
    now: Timestamp,
) -> AgentStatus {
    let old = agent.status.clone().unwrap_or_default();
    let generation = agent.metadata.generation;
    let (version, observation) = match (ready, recorded) {
        // The generation is not observed before its version is recorded, so that the next reconcile looks again.
        (_, Err(error)) => {
            let ready = Observation::no(READY, error.reason(), error.to_string());
            return AgentStatus { conditions: merge(&old.conditions, &[ready], generation, now), ..old };
        }
        (Err(missing), Ok(version)) => (version, Observation::no(READY, missing.reason(), missing.to_string())),
        (Ok(()), Ok(version)) => {
            (version, Observation::yes(READY, "Resolved", "everything that the agent names exists"))
        }
    };
    AgentStatus {
        observed_generation: generation,
        version: version.and_then(|version| i64::try_from(version).ok()).or(old.version),
        conditions: merge(&old.conditions, &[observation], generation, now),
        ..old
    }
}

#[cfg(test)]
mod driver_tests;

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use longhand_crds::AgentStatus;

    use super::references::Missing;
    use super::{is_recorded, plan};
    use crate::error::Error;
    use crate::fixtures;

    fn ready(status: &AgentStatus) -> (&str, &str) {
        let condition = &status.conditions[0];
        (condition.status.as_str(), condition.reason.as_str())
    }

    #[test]
    fn an_agent_is_ready_when_its_vault_appears() {
        let mut agent = fixtures::agent();
        assert!(!is_recorded(&agent));
        let missing = Err(Missing::Vault("models".into()));
        let before = plan(&agent, &missing, Ok(&Some(1)), Timestamp::from_second(1).unwrap());
        assert_eq!((ready(&before), before.version), (("False", "VaultNotFound"), Some(1)));
        assert!(before.conditions[0].message.contains("models"), "{}", before.conditions[0].message);
        agent.status = Some(before);
        assert!(is_recorded(&agent));
        let after = plan(&agent, &Ok(()), Ok(&None), Timestamp::from_second(2).unwrap());
        assert_eq!((ready(&after), after.version), (("True", "Resolved"), Some(1)));
    }

    #[test]
    fn a_generation_without_a_version_is_not_observed() {
        let mut agent = fixtures::agent();
        agent.status = Some(plan(&agent, &Ok(()), Ok(&Some(4)), Timestamp::UNIX_EPOCH));
        agent.metadata.generation = Some(2);
        assert!(!is_recorded(&agent));
        let error = Error::VersionTaken { namespace: "team".into(), name: "coder".into() };
        let status = plan(&agent, &Ok(()), Err(&error), Timestamp::UNIX_EPOCH);
        assert_eq!((status.observed_generation, status.version), (Some(1), Some(4)));
        assert_eq!(ready(&status), ("False", "VersionTaken"));
        agent.status = Some(status);
        assert!(!is_recorded(&agent));
    }
}
