//! `Agent`: ready when the credential that its model is called with exists and may go there.

pub mod references;

use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use longhand_crds::{Agent, AgentStatus, Vault};
use tokio_util::sync::CancellationToken;

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
    let concerned = vault_stream
        .filter_map(async |vault| vault.ok())
        .flat_map(move |vault| futures::stream::iter(users_of(&users, &vault)));
    let controller = Controller::for_stream(agent_stream, agents).reconcile_on(concerned);
    drive::run(controller, Arc::new(Agents { context, vaults }), token, reconcile).await;
}

/// The agents that name this vault.
fn users_of(agents: &GuardedStore<Agent>, vault: &Guarded<Vault>) -> Vec<ObjectRef<Guarded<Agent>>> {
    let (namespace, name) = (vault.namespace(), vault.name_any());
    let uses = |agent: &Guarded<Agent>| {
        agent.namespace() == namespace && agent.0.as_ref().is_ok_and(|agent| agent.spec.model.credential.vault == name)
    };
    agents.state_filter(uses).iter().map(|agent| ObjectRef::from_obj(&**agent)).collect()
}

async fn reconcile(agent: Arc<Agent>, agents: Arc<Agents>) -> Result<Action, Error> {
    synced(vec![first_list(&agents.vaults)]).await?;
    let namespace = agent.namespace().unwrap_or_default();
    let vault = lookup(&agents.vaults, &namespace, &agent.spec.model.credential.vault);
    let new = plan(&agent, vault.as_ref(), Timestamp::now());
    status::write(&agents.context.client, &*agent, agent.status.as_ref(), &new).await?;
    Ok(Action::await_change())
}

fn plan(agent: &Agent, vault: Option<&Vault>, now: Timestamp) -> AgentStatus {
    let old = agent.status.clone().unwrap_or_default();
    let generation = agent.metadata.generation;
    let ready = match references::credential(agent, vault) {
        Ok(_) => Observation::yes(READY, "Resolved", "everything that the agent names exists"),
        Err(missing) => Observation::no(READY, missing.reason(), missing.to_string()),
    };
    AgentStatus {
        observed_generation: generation,
        version: Some(agent.snapshot().version),
        conditions: merge(&old.conditions, &[ready], generation, now),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::plan;
    use crate::fixtures;

    #[test]
    fn an_agent_is_ready_when_its_vault_appears() {
        let mut agent = fixtures::agent();
        let before = plan(&agent, None, Timestamp::from_second(1).unwrap());
        assert_eq!(
            (before.conditions[0].status.as_str(), before.conditions[0].reason.as_str()),
            ("False", "VaultNotFound")
        );
        assert!(before.conditions[0].message.contains("models"), "{}", before.conditions[0].message);
        agent.status = Some(before.clone());
        let after = plan(&agent, Some(&fixtures::vault()), Timestamp::from_second(2).unwrap());
        assert_eq!((after.conditions[0].status.as_str(), after.conditions[0].reason.as_str()), ("True", "Resolved"));
        assert_eq!(after.version, before.version);
    }
}
