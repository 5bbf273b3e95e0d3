//! `Vault`: accepted as it is. Whether its Secrets are there is seen by the credential proxies that mount them, and shown
//! by the sessions that they serve: the operator has no verb on Secrets.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use longhand_crds::vault::CredentialSpec;
use longhand_crds::{Vault, VaultStatus};
use tokio_util::sync::CancellationToken;

use crate::conditions::{Observation, READY, merge};
use crate::context::{Context, Guarded};
use crate::error::Error;
use crate::{drive, status};

/// The condition that says whether the proxies of today can place what the vault holds.
const PLACED: &str = "Placed";
/// The condition that says whether access tokens have expired.
const TOKENS_VALID: &str = "TokensValid";

/// Reconciles every `Vault` until `token` is cancelled.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let (store, vaults) = drive::watch::<Guarded<Vault>>(&context, &watcher::Config::default());
    drive::run(Controller::for_stream(vaults, store), context, token, reconcile).await;
}

async fn reconcile(vault: Arc<Vault>, context: Arc<Context>) -> Result<Action, Error> {
    let now = Timestamp::now();
    let new = plan(&vault, now);
    status::write(&context.client, &*vault, vault.status.as_ref(), &new).await?;
    Ok(next_expiry(&vault, now).map_or_else(Action::await_change, Action::requeue))
}

/// Credentials that are not archived.
fn in_use(vault: &Vault) -> impl Iterator<Item = &CredentialSpec> {
    vault.spec.credentials.iter().filter(|credential| credential.archived_at.is_none())
}

/// When the access token expires, if that is known.
fn expires_at(credential: &CredentialSpec) -> Option<Timestamp> {
    credential.oauth.as_ref()?.expires_at.as_ref().map(|time| time.0)
}

/// How long until the next access token expires: nothing that is watched changes then. At least a second, since a timer may
/// be early.
fn next_expiry(vault: &Vault, now: Timestamp) -> Option<Duration> {
    let next = in_use(vault).filter_map(expires_at).filter(|at| *at > now).min()?;
    Duration::try_from(now.duration_until(next)).ok().map(|left| left.max(Duration::from_secs(1)))
}

/// Whether an access token has expired: the server will refuse it. Names are bounded, so that the message is.
fn tokens_valid(vault: &Vault, now: Timestamp) -> Observation {
    let expired = in_use(vault).filter(|credential| expires_at(credential).is_some_and(|at| at <= now));
    let expired: Vec<&str> = expired.map(|credential| credential.name.as_str()).collect();
    if expired.is_empty() {
        return Observation::yes(TOKENS_VALID, "NotExpired", "no access token is known to have expired");
    }
    let message = format!("the access tokens of {} have expired: write new ones", expired.join(", "));
    Observation::no(TOKENS_VALID, "Expired", message)
}

/// Whether a proxy can place every credential. Names are bounded, so that the message is.
fn placed(vault: &Vault) -> Observation {
    let refreshed =
        in_use(vault).filter(|credential| credential.oauth.as_ref().is_some_and(|oauth| oauth.refresh.is_some()));
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
    let observed = [Observation::yes(READY, "Accepted", message), placed(vault), tokens_valid(vault, now)];
    VaultStatus { observed_generation: generation, conditions: merge(&old.conditions, &observed, generation, now) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use longhand_crds::Vault;
    use longhand_crds::vault::OAuth;
    use rstest::rstest;
    use serde_json::json;

    use super::{next_expiry, plan};
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

    /// A vault whose credentials have these expiries, in seconds; a negative one is of an archived credential.
    fn with_tokens(expiries: &[i64]) -> Vault {
        let mut vault = fixtures::vault();
        let credential = vault.spec.credentials.remove(0);
        let token = |(index, expiry): (usize, &i64)| {
            let mut token = credential.clone();
            token.name = format!("token-{index}");
            let expires_at = Some(Time(Timestamp::from_second(expiry.abs()).unwrap()));
            token.oauth = Some(OAuth { expires_at, refresh: None });
            token.archived_at = (*expiry < 0).then_some(Time(Timestamp::UNIX_EPOCH));
            token
        };
        vault.spec.credentials = expiries.iter().enumerate().map(token).collect();
        vault
    }

    #[rstest]
    #[case(&[], "NotExpired", "")]
    #[case(&[101], "NotExpired", "")]
    #[case(&[-50], "NotExpired", "")]
    #[case(&[100], "Expired", "token-0")]
    #[case(&[99, 200, -50, 98], "Expired", "token-0, token-3")]
    fn an_expired_token_is_named(#[case] expiries: &[i64], #[case] reason: &str, #[case] named: &str) {
        let status = plan(&with_tokens(expiries), Timestamp::from_second(100).unwrap());
        let valid = status.conditions.iter().find(|condition| condition.type_ == "TokensValid").unwrap();
        assert_eq!(valid.reason, reason);
        assert!(valid.message.contains(named), "{}", valid.message);
    }

    #[rstest]
    #[case(&[], None)]
    #[case(&[99, 100, -150], None)]
    #[case(&[300, 99, 160, -150], Some(60))]
    fn it_is_looked_again_when_the_next_token_expires(#[case] expiries: &[i64], #[case] seconds: Option<u64>) {
        let next = next_expiry(&with_tokens(expiries), Timestamp::from_second(100).unwrap());
        assert_eq!(next, seconds.map(Duration::from_secs));
    }

    #[test]
    fn a_token_that_expires_at_once_is_not_looked_for_in_a_loop() {
        let now = Timestamp::from_millisecond(99_999).unwrap();
        assert_eq!(next_expiry(&with_tokens(&[100]), now), Some(Duration::from_secs(1)));
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
