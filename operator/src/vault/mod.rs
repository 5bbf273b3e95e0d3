//! `Vault`: accepted as it is. Whether its Secrets are there is seen by the credential proxies that mount them, and shown
//! by the sessions that they serve: the operator has no verb on Secrets.

use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use longhand_crds::{Vault, VaultStatus};
use tokio_util::sync::CancellationToken;

use crate::conditions::{Observation, READY, merge};
use crate::context::{Context, Guarded};
use crate::error::Error;
use crate::{drive, status};

/// The condition that says whether the proxies of today can place what the vault holds.
const PLACED: &str = "Placed";

/// Reconciles every `Vault` until `token` is cancelled.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let (store, vaults) = drive::watch::<Guarded<Vault>>(&context, &watcher::Config::default());
    drive::run(Controller::for_stream(vaults, store), context, token, reconcile).await;
}

async fn reconcile(vault: Arc<Vault>, context: Arc<Context>) -> Result<Action, Error> {
    let new = plan(&vault, Timestamp::now());
    status::write(&context.client, &*vault, vault.status.as_ref(), &new).await?;
    Ok(Action::await_change())
}

/// Whether a proxy can place every credential. Names are bounded, so that the message is.
fn placed(vault: &Vault) -> Observation {
    let in_use = vault.spec.credentials.iter().filter(|credential| credential.archived_at.is_none());
    let refreshed = in_use.filter(|credential| credential.oauth.as_ref().is_some_and(|oauth| oauth.refresh.is_some()));
    let refreshed: Vec<&str> = refreshed.map(|credential| credential.name.as_str()).collect();
    if !refreshed.is_empty() {
        let message = format!(
            "access tokens are not refreshed yet: write new ones when those of {} expire",
            refreshed.join(", ")
        );
        return Observation::no(PLACED, "NotRefreshedYet", message);
    }
    Observation::yes(PLACED, "Placeable", "every credential is of a kind that a proxy places")
}

fn plan(vault: &Vault, now: Timestamp) -> VaultStatus {
    let old = vault.status.clone().unwrap_or_default();
    let generation = vault.metadata.generation;
    let message = format!(
        "{} credentials; sessions that use them show whether their Secrets exist",
        vault.spec.credentials.len()
    );
    let observed = [Observation::yes(READY, "Accepted", message), placed(vault)];
    VaultStatus { observed_generation: generation, conditions: merge(&old.conditions, &observed, generation, now) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rstest::rstest;
    use serde_json::json;

    use super::plan;
    use crate::fixtures;

    #[rstest]
    #[case(json!({}), "Placeable")]
    #[case(json!({"placement": {"type": "environmentVariable", "variable": {"name": "A", "locations": ["header"]}}}), "Placeable")]
    #[case(json!({"placement": {"type": "environmentVariable", "variable": {"name": "A", "locations": ["header"]}},
        "archivedAt": "2026-01-01T00:00:00Z"}), "Placeable")]
    #[case(json!({"oauth": {"expiresAt": "2026-01-01T00:00:00Z"}}), "Placeable")]
    #[case(json!({"oauth": {"refresh": {"clientID": "c", "tokenEndpoint": "https://t", "tokenEndpointAuth": "none",
        "refreshTokenRef": {"name": "s", "key": "k"}}}}), "NotRefreshedYet")]
    fn what_no_proxy_places_is_said(#[case] changes: serde_json::Value, #[case] reason: &str) {
        let mut vault = fixtures::vault();
        let mut credential = serde_json::to_value(&vault.spec.credentials[0]).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            credential[key] = value.clone();
        }
        vault.spec.credentials = vec![serde_json::from_value(credential).unwrap()];
        let status = plan(&vault, Timestamp::from_second(1).unwrap());
        let placed = status.conditions.iter().find(|condition| condition.type_ == "Placed").unwrap();
        assert_eq!(placed.reason, reason);
    }

    #[test]
    fn a_status_is_written_once() {
        let mut vault = fixtures::vault();
        let first = plan(&vault, Timestamp::from_second(1).unwrap());
        let ready = first.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!((first.observed_generation, ready.reason.as_str()), (Some(1), "Accepted"));
        vault.status = Some(first.clone());
        assert_eq!(plan(&vault, Timestamp::from_second(2).unwrap()), first);
    }
}
