//! `Vault`: accepted as it is. Whether its Secrets are there, and upstreams take what is in them, is seen by the credential
//! proxies that mount them, and told by the reconcile of the sessions that they serve: the operator has no verb on Secrets.

pub mod sightings;
mod usable;

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use longhand_crds::refresh::{RefreshRecord, RefreshState, UsedUp};
use longhand_crds::vault::CredentialSpec;
use longhand_crds::{Vault, VaultStatus};
use tokio_util::sync::CancellationToken;

use self::sightings::{News, Sighting, Sightings};
use crate::conditions::{Observation, READY, merge};
use crate::context::{Context, Guarded};
use crate::error::Error;
use crate::lists::Lists;
use crate::{drive, status};

/// The condition that says whether access tokens are good, or can be made so.
const TOKENS_VALID: &str = "TokensValid";

/// An access token that has expired for so long although it can be refreshed is said to have: nobody uses it, or nobody can
/// refresh it.
const REFRESHED_WITHIN: SignedDuration = SignedDuration::from_mins(15);
/// The longest wait for an expiry.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3_600);

/// What the reconcile of a vault looks at.
pub(crate) struct Vaults {
    pub(crate) context: Arc<Context>,
    pub(crate) sightings: Arc<Sightings>,
}

/// Reconciles every `Vault` until `token` is cancelled; those too that `news` names.
pub async fn run(context: Arc<Context>, sightings: Arc<Sightings>, news: News, token: CancellationToken) {
    let mut lists = Lists::default();
    let (store, vaults) = drive::watch::<Guarded<Vault>>(&context, &watcher::Config::default(), &mut lists);
    let (there, known) = (store.clone(), sightings.clone());
    let vaults = vaults.inspect_ok(move |vault| {
        if there.get(&ObjectRef::from_obj(vault)).is_none() {
            known.forget(&vault.namespace().unwrap_or_default(), &vault.name_any());
        }
    });
    let controller = Controller::for_stream(vaults, store).reconcile_on(news);
    drive::run(controller, lists, Arc::new(Vaults { context, sightings }), token, reconcile).await;
}

pub(crate) async fn reconcile(vault: Arc<Vault>, vaults: Arc<Vaults>) -> Result<Action, Error> {
    let now = Timestamp::now();
    let sightings = vaults.sightings.of(&vault.namespace().unwrap_or_default(), &vault.name_any(), now);
    let new = plan(&vault, &sightings, now);
    status::write(&vaults.context.client, &*vault, vault.status.as_ref(), &new).await?;
    Ok(next_expiry(&vault, now).map_or_else(Action::await_change, Action::requeue))
}

/// Credentials that are not archived.
fn in_use(vault: &Vault) -> impl Iterator<Item = &CredentialSpec> {
    vault.spec.credentials.iter().filter(|credential| credential.archived_at.is_none())
}

/// When the access token expires, if that is known and nothing refreshes it.
fn expires_at(credential: &CredentialSpec) -> Option<Timestamp> {
    if credential.refresh().is_some() {
        return None;
    }
    credential.oauth.as_ref()?.expires_at.as_ref().map(|time| time.0)
}

/// How long until the next access token expires: nothing that is watched changes then. At least a second, since a timer may
/// be early.
fn next_expiry(vault: &Vault, now: Timestamp) -> Option<Duration> {
    let looked_at = |credential| expires_at(credential).or_else(|| overdue_at(vault, credential));
    let next = in_use(vault).filter_map(looked_at).filter(|at| *at > now).min()?;
    let left = Duration::try_from(now.duration_until(next)).ok()?;
    Some(left.clamp(Duration::from_secs(1), LONGEST_WAIT))
}

/// From when on an access token that can be refreshed should have been. None if a provider has
/// refused, which is said in other words.
fn overdue_at(vault: &Vault, credential: &CredentialSpec) -> Option<Timestamp> {
    let refresh = credential.refresh()?;
    let expired = credential.oauth.as_ref()?.expires_at.as_ref()?.0;
    let overdue = expired.saturating_add(REFRESHED_WITHIN).unwrap_or(Timestamp::MAX);
    match RefreshRecord::of(&vault.metadata, &credential.name, refresh).map(|record| record.state) {
        Some(RefreshState::Failed { .. }) => None,
        // A claim is short, and says nothing of what comes of it.
        Some(RefreshState::Claimed { .. }) | None => Some(overdue),
    }
}

/// Whether the vault names a refresh token again that is used up, and where the one is that came last.
fn reverted(vault: &Vault, credential: &CredentialSpec) -> Option<String> {
    let named = &credential.refresh()?.refresh_token_ref.name;
    let used = UsedUp::of(&vault.metadata, &credential.name);
    used.includes(named).then(|| format!("{} (Secret {named}; the last one is in {})", credential.name, used.latest))
}

/// Whether a provider has refused the refresh token that the vault has now.
fn refused(vault: &Vault, credential: &CredentialSpec) -> Option<String> {
    let record = RefreshRecord::of(&vault.metadata, &credential.name, credential.refresh()?)?;
    match record.state {
        RefreshState::Failed { reason, .. } => Some(format!("{} ({})", credential.name, reason.as_str())),
        RefreshState::Claimed { .. } => None,
    }
}

/// Whether an access token has expired, or cannot be refreshed: the server will refuse it. Names are bounded, so that the
/// message is.
fn tokens_valid(vault: &Vault, now: Timestamp) -> Observation {
    let refused: Vec<String> = in_use(vault).filter_map(|credential| refused(vault, credential)).collect();
    let expired = in_use(vault).filter(|credential| expires_at(credential).is_some_and(|at| at <= now));
    let expired: Vec<&str> = expired.map(|credential| credential.name.as_str()).collect();
    let reverted_all: Vec<String> = in_use(vault).filter_map(|credential| reverted(vault, credential)).collect();
    let overdue = in_use(vault)
        .filter(|credential| overdue_at(vault, credential).is_some_and(|at| at <= now))
        .filter(|credential| reverted(vault, credential).is_none());
    let overdue: Vec<&str> = overdue.map(|credential| credential.name.as_str()).collect();
    let (mut reasons, mut said) = (Vec::new(), Vec::new());
    if !reverted_all.is_empty() {
        reasons.push("RefreshTokenReverted");
        said.push(format!(
            "the vault was set back to refresh tokens that are used up: {}. Name the last ones (secretRef with the key token, \
             refreshTokenRef with the key refresh-token) or new ones in Secrets of other names, and have what applies the vault \
             leave these fields alone",
            reverted_all.join(", ")
        ));
    }
    if !refused.is_empty() {
        reasons.push("RefreshRefused");
        said.push(format!(
            "the provider refused to refresh the access tokens of {}: give consent anew and write new refresh tokens",
            refused.join(", ")
        ));
    }
    if !expired.is_empty() {
        reasons.push("Expired");
        said.push(format!("the access tokens of {} have expired: write new ones", expired.join(", ")));
    }
    if !overdue.is_empty() {
        reasons.push("ExpiredNotRefreshed");
        said.push(format!(
            "the access tokens of {} have expired more than {} minutes ago and are not refreshed: that is done when a session \
             calls an MCP server with one, and for nothing else",
            overdue.join(", "),
            REFRESHED_WITHIN.as_mins()
        ));
    }
    match reasons.first() {
        Some(reason) => Observation::no(TOKENS_VALID, *reason, said.join("; ")),
        None => Observation::yes(TOKENS_VALID, "NotExpired", "no access token is known to have expired for good"),
    }
}

fn plan(vault: &Vault, sightings: &[Sighting], now: Timestamp) -> VaultStatus {
    let old = vault.status.clone().unwrap_or_default();
    let generation = vault.metadata.generation;
    let message = format!(
        "{} credentials, which are well-formed; Usable says whether they can be used, as far as it was seen",
        vault.spec.credentials.len()
    );
    let credentials = usable::credentials(vault, sightings, now);
    let observed =
        [Observation::yes(READY, "Accepted", message), tokens_valid(vault, now), usable::summary(&credentials)];
    let conditions = merge(&old.conditions, &observed, generation, now);
    VaultStatus { observed_generation: generation, conditions, credentials }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use longhand_crds::Vault;
    use longhand_crds::refresh::{RefreshRecord, RefreshState, UsedUp};
    use longhand_crds::vault::OAuth;
    use longhand_protocol::refresh::RefreshFailure;
    use rstest::rstest;
    use serde_json::json;

    use super::{next_expiry, plan};
    use crate::fixtures;

    /// A vault with one credential that is refreshed, whose access token has expired.
    fn refreshing() -> Vault {
        let mut vault = fixtures::vault();
        vault.spec.credentials[0].name = "tickets".to_owned();
        vault.spec.credentials[0].oauth =
            serde_json::from_value(json!({"expiresAt": "1970-01-01T00:00:01Z", "refresh": {
            "clientID": "c", "tokenEndpoint": "https://t", "tokenEndpointAuth": "none",
            "refreshTokenRef": {"name": "first", "key": "k"}}}))
            .unwrap();
        vault
    }

    #[rstest]
    #[case::never_tried(None, "first", false, "NotExpired")]
    #[case::at_work(Some(RefreshState::Claimed { by: "u".to_owned(), until: Timestamp::MAX }), "first", false, "NotExpired")]
    #[case::refused(Some(failed()), "first", false, "RefreshRefused")]
    #[case::another_since(Some(failed()), "second", false, "NotExpired")]
    #[case::archived(Some(failed()), "first", true, "NotExpired")]
    fn a_refusal_to_refresh_is_said(
        #[case] state: Option<RefreshState>,
        #[case] now: &str,
        #[case] archived: bool,
        #[case] reason: &str,
    ) {
        let mut vault = refreshing();
        if let Some(state) = state {
            RefreshRecord { secret: "first".to_owned(), state }.put(&mut vault.metadata, "tickets");
        }
        let credential = &mut vault.spec.credentials[0];
        credential.oauth.as_mut().unwrap().refresh.as_mut().unwrap().refresh_token_ref.name = now.to_owned();
        credential.archived_at = archived.then_some(Time(Timestamp::UNIX_EPOCH));
        let status = plan(&vault, &[], Timestamp::from_second(100).unwrap());
        let valid = status.conditions.iter().find(|condition| condition.type_ == "TokensValid").unwrap();
        assert_eq!(valid.reason, reason);
        assert_eq!(valid.message.contains("tickets (invalid_grant)"), reason == "RefreshRefused", "{}", valid.message);
    }

    #[rstest]
    #[case::not_yet(None, 900, "NotExpired")]
    #[case::nobody_uses_it(None, 901, "ExpiredNotRefreshed")]
    #[case::tried_in_vain(Some(claimed(1_000)), 901, "ExpiredNotRefreshed")]
    #[case::refused(Some(failed()), 1_000, "RefreshRefused")]
    fn a_token_that_nothing_refreshes_is_said(
        #[case] state: Option<RefreshState>,
        #[case] now: i64,
        #[case] reason: &str,
    ) {
        let mut vault = refreshing();
        if let Some(state) = state {
            RefreshRecord { secret: "first".to_owned(), state }.put(&mut vault.metadata, "tickets");
        }
        let status = plan(&vault, &[], Timestamp::from_second(now).unwrap());
        let valid = status.conditions.iter().find(|condition| condition.type_ == "TokensValid").unwrap();
        assert_eq!(valid.reason, reason);
        assert_eq!(
            valid.message.contains("tickets have expired"),
            reason == "ExpiredNotRefreshed",
            "{}",
            valid.message
        );
    }

    #[rstest]
    #[case(None, Some(901))]
    #[case(Some(claimed(950)), Some(901))]
    #[case(Some(failed()), None)]
    fn it_is_looked_again_when_a_refresh_is_overdue(#[case] state: Option<RefreshState>, #[case] seconds: Option<u64>) {
        let mut vault = refreshing();
        if let Some(state) = state {
            RefreshRecord { secret: "first".to_owned(), state }.put(&mut vault.metadata, "tickets");
        }
        assert_eq!(next_expiry(&vault, Timestamp::UNIX_EPOCH), seconds.map(Duration::from_secs));
    }

    #[test]
    fn a_vault_that_was_set_back_says_where_the_last_refresh_token_is() {
        let mut vault = refreshing();
        let reason = |vault: &Vault| {
            let status = plan(vault, &[], Timestamp::from_second(5_000).unwrap());
            let valid = status.conditions.into_iter().find(|condition| condition.type_ == "TokensValid").unwrap();
            (valid.reason, valid.message)
        };
        let mut used = UsedUp::default();
        used.exchange("first", "made-1");
        used.put(&mut vault.metadata, "tickets");
        let (said, message) = reason(&vault);
        assert_eq!(said, "RefreshTokenReverted");
        assert!(message.contains("tickets (Secret first; the last one is in made-1)"), "{message}");
        assert!(!message.contains("have expired"), "{message}");
        let refresh = vault.spec.credentials[0].oauth.as_mut().unwrap().refresh.as_mut().unwrap();
        refresh.refresh_token_ref.name = "made-1".to_owned();
        assert_eq!(reason(&vault).0, "ExpiredNotRefreshed");
    }

    fn claimed(until: i64) -> RefreshState {
        RefreshState::Claimed { by: "u".to_owned(), until: Timestamp::from_second(until).unwrap() }
    }

    fn failed() -> RefreshState {
        RefreshState::Failed { reason: RefreshFailure::InvalidGrant, at: Timestamp::UNIX_EPOCH }
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
        let status = plan(&with_tokens(expiries), &[], Timestamp::from_second(100).unwrap());
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
        let first = plan(&vault, &[], Timestamp::from_second(1).unwrap());
        let ready = first.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!((first.observed_generation, ready.reason.as_str()), (Some(1), "Accepted"));
        vault.status = Some(first.clone());
        assert_eq!(plan(&vault, &[], Timestamp::from_second(2).unwrap()), first);
    }
}
