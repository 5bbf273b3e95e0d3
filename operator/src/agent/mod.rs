//! `Agent`: ready when the credentials that its model and its MCP servers are called with exist and may go there. Its versions are recorded.

pub mod mcp;
pub mod references;
mod versions;

use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use longhand_crds::default_model::DefaultModel;
use longhand_crds::{Agent, AgentStatus, Vault};
use tokio_util::sync::CancellationToken;

use self::references::Missing;
use crate::conditions::{Observation, READY, merge};
use crate::context::{Context, Guarded, GuardedStore, first_list, lookup, synced};
use crate::error::Error;
use crate::{drive, status};

struct Agents {
    context: Arc<Context>,
    vaults: GuardedStore<Vault>,
}

/// Reconciles every `Agent` until `token` is cancelled.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let client = &context.client;
    let (agents, agent_stream) = drive::watch::<Guarded<Agent>>(Api::all(client.clone()), watcher::Config::default());
    let (vaults, vault_stream) = drive::watch::<Guarded<Vault>>(Api::all(client.clone()), watcher::Config::default());
    let users = agents.clone();
    let default = context.default_model.clone();
    let concerned = vault_stream
        .filter_map(async |vault| vault.ok())
        .flat_map(move |vault| futures::stream::iter(users_of(&users, &vault, default.as_ref())));
    let controller = Controller::for_stream(agent_stream, agents).reconcile_on(concerned);
    drive::run(controller, Arc::new(Agents { context, vaults }), token, reconcile).await;
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
        return Ok(Action::await_change());
    }
    synced(vec![first_list(&agents.vaults)]).await?;
    let Context { client, default_model, .. } = &*agents.context;
    let namespace = agent.namespace().unwrap_or_default();
    let vault = references::vault_of(&agent, default_model.as_ref());
    let vault = vault.and_then(|vault| lookup(&agents.vaults, &namespace, vault));
    let servers = || mcp::access(&agent.spec.mcp_servers, &[], |vault| lookup(&agents.vaults, &namespace, vault));
    let ready =
        references::credential(&agent, vault.as_ref(), default_model.as_ref()).and_then(|_| servers()).map(|_| ());
    let recorded = if is_recorded(&agent) { Ok(None) } else { versions::ensure(client, &agent).await };
    let new = plan(&agent, &ready, recorded.as_ref(), Timestamp::now());
    status::write(client, &*agent, agent.status.as_ref(), &new).await?;
    recorded.map(|_| Action::await_change())
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
    }
}

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
