//! `Vault`: accepted as it is. Whether its Secrets are there is seen by the credential proxies that mount them, and shown
//! by the sessions that they serve: the operator has no verb on Secrets.

use std::sync::Arc;

use jiff::Timestamp;
use kube::Api;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use longhand_crds::{Vault, VaultStatus};
use tokio_util::sync::CancellationToken;

use crate::conditions::{Observation, READY, merge};
use crate::context::{Context, Guarded};
use crate::error::Error;
use crate::{drive, status};

/// Reconciles every `Vault` until `token` is cancelled.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let (store, vaults) = drive::watch::<Guarded<Vault>>(Api::all(context.client.clone()), watcher::Config::default());
    drive::run(Controller::for_stream(vaults, store), context, token, reconcile).await;
}

async fn reconcile(vault: Arc<Vault>, context: Arc<Context>) -> Result<Action, Error> {
    let new = plan(&vault, Timestamp::now());
    status::write(&context.client, &*vault, vault.status.as_ref(), &new).await?;
    Ok(Action::await_change())
}

fn plan(vault: &Vault, now: Timestamp) -> VaultStatus {
    let old = vault.status.clone().unwrap_or_default();
    let generation = vault.metadata.generation;
    let message = format!(
        "{} credentials; sessions that use them show whether their Secrets exist",
        vault.spec.credentials.len()
    );
    let ready = Observation::yes(READY, "Accepted", message);
    VaultStatus { observed_generation: generation, conditions: merge(&old.conditions, &[ready], generation, now) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::plan;
    use crate::fixtures;

    #[test]
    fn a_status_is_written_once() {
        let mut vault = fixtures::vault();
        let first = plan(&vault, Timestamp::from_second(1).unwrap());
        assert_eq!((first.observed_generation, first.conditions[0].reason.as_str()), (Some(1), "Accepted"));
        vault.status = Some(first.clone());
        assert_eq!(plan(&vault, Timestamp::from_second(2).unwrap()), first);
    }
}
