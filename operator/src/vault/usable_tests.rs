use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use longhand_crds::Vault;
use longhand_crds::refresh::{RefreshRecord, RefreshState, UsedUp};
use longhand_protocol::refresh::RefreshFailure;
use rstest::rstest;
use serde_json::json;

use crate::conditions::find;
use crate::fixtures;
use crate::vault::plan;
use crate::vault::sightings::{Place, Seen, Sighting, Sightings, State};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn sighting(secret: &str, key: &str, state: State) -> Vec<Sighting> {
    let (sightings, _news) = Sightings::new();
    let place = Place { credential: "api-key".into(), secret: secret.into(), key: key.into() };
    sightings.note("team", "demo", vec![Seen { vault: "models".into(), place, state, answered_at: None }], at(900));
    sightings.of("team", "models", at(900))
}

/// A vault whose credential is an access token that expired at second 1; it is refreshed, if that is so.
fn token(refreshed: bool) -> Vault {
    let mut vault = fixtures::vault();
    let refresh = json!({ "clientID": "c", "tokenEndpoint": "https://t", "tokenEndpointAuth": "none",
        "refreshTokenRef": { "name": "first", "key": "k" } });
    let oauth = json!({ "expiresAt": "1970-01-01T00:00:01Z", "refresh": refreshed.then_some(refresh) });
    vault.spec.credentials[0].oauth = serde_json::from_value(oauth).unwrap();
    vault
}

fn usable(vault: &Vault, sightings: &[Sighting], second: i64) -> Condition {
    let status = plan(vault, sightings, at(second));
    find(&status.credentials[0].conditions, "Usable").unwrap().clone()
}

#[rstest]
#[case::missing(
    State::Missing,
    "False",
    "SecretMissing",
    "session demo has no Secret model-key with the key token: make it"
)]
#[case::unusable(State::Unusable("the file is empty".into()), "False", "ValueUnusable", "session demo cannot use Secret model-key with the key token: the file is empty")]
#[case::refused(State::Refused, "False", "RefusedUpstream", "answered 401 when session demo last used it")]
#[case::usable(State::Usable, "True", "Usable", "a proxy could use it, as that of session demo has it")]
fn what_a_proxy_saw_is_said(#[case] state: State, #[case] status: &str, #[case] reason: &str, #[case] message: &str) {
    let seen = sighting("model-key", "token", state);
    let condition = usable(&fixtures::vault(), &seen, 901);
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), (status, reason));
    assert!(condition.message.contains(message), "{}", condition.message);
    let status = plan(&fixtures::vault(), &seen, at(901));
    let all = find(&status.conditions, "Usable").unwrap();
    assert_eq!((&all.status, &all.reason), (&condition.status, &condition.reason), "the vault says the same");
    assert_eq!(find(&status.conditions, "Ready").unwrap().status, "True", "it is well-formed all the same");
}

#[rstest]
#[case::expired(token(false), "Expired")]
#[case::not_refreshed(token(true), "ExpiredNotRefreshed")]
#[case::refused(with_refusal(), "RefreshRefused")]
#[case::reverted(with_revert(with_refusal()), "RefreshTokenReverted")]
fn what_the_vault_itself_says_comes_first(#[case] vault: Vault, #[case] reason: &str) {
    for seen in [vec![], sighting("model-key", "token", State::Usable), sighting("model-key", "token", State::Missing)]
    {
        let condition = usable(&vault, &seen, 901);
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", reason));
    }
}

fn with_refusal() -> Vault {
    let mut vault = token(true);
    let state = RefreshState::Failed { reason: RefreshFailure::InvalidGrant, at: Timestamp::UNIX_EPOCH };
    RefreshRecord { secret: "first".to_owned(), state }.put(&mut vault.metadata, "api-key");
    vault
}

fn with_revert(mut vault: Vault) -> Vault {
    let mut used = UsedUp::default();
    used.exchange("first", "made-1");
    used.put(&mut vault.metadata, "api-key");
    vault
}

#[rstest]
#[case::nobody(vec![], false, "NotSeen")]
#[case::another_secret(sighting("old", "token", State::Missing), false, "NotSeen")]
#[case::another_key(sighting("model-key", "old", State::Missing), false, "NotSeen")]
#[case::another_secret_is_good(sighting("old", "token", State::Usable), false, "NotSeen")]
#[case::before_a_refresh(sighting("old", "token", State::Usable), true, "Usable")]
#[case::superseded(sighting("old", "token", State::Unusable("x".into())), true, "NotSeen")]
fn a_secret_that_the_vault_does_not_name_says_nothing(
    #[case] seen: Vec<Sighting>,
    #[case] refreshed: bool,
    #[case] reason: &str,
) {
    let mut vault = if refreshed { token(true) } else { fixtures::vault() };
    if let Some(oauth) = &mut vault.spec.credentials[0].oauth {
        oauth.expires_at = Some(Time(at(1_000)));
    }
    let condition = usable(&vault, &seen, 901);
    assert_eq!(condition.reason, reason);
    assert_eq!(condition.status, if reason == "NotSeen" { "Unknown" } else { "True" });
}

#[test]
fn what_was_seen_is_remembered_by_the_status_until_the_vault_changes() {
    let mut vault = fixtures::vault();
    let seen = sighting("model-key", "token", State::Missing);
    let first = plan(&vault, &seen, at(901));
    vault.status = Some(first.clone());
    assert_eq!(plan(&vault, &seen, at(902)), first, "it is written once");
    assert_eq!(plan(&vault, &[], at(902)), first, "another leader has seen nothing");
    vault.metadata.generation = Some(2);
    assert_eq!(usable(&vault, &seen, 903).reason, "SecretMissing");
    assert_eq!(usable(&vault, &[], 903).reason, "NotSeen");
}

#[test]
fn one_that_is_archived_is_not_spoken_of() {
    let mut vault = fixtures::vault();
    vault.spec.credentials[0].archived_at = Some(Time(at(1)));
    let status = plan(&vault, &sighting("model-key", "token", State::Missing), at(901));
    assert_eq!(status.credentials, []);
    assert_eq!(find(&status.conditions, "Usable").unwrap().status, "True");
}

#[test]
fn the_vault_names_those_that_cannot_be_used() {
    let mut vault = fixtures::vault();
    for name in ["other", "third"] {
        let mut credential = vault.spec.credentials[0].clone();
        credential.name = name.to_owned();
        vault.spec.credentials.push(credential);
    }
    let seen = sighting("model-key", "token", State::Usable);
    let status = plan(&vault, &seen, at(901));
    let all = find(&status.conditions, "Usable").unwrap();
    assert_eq!((all.status.as_str(), all.reason.as_str()), ("Unknown", "NotSeen"));
    assert!(all.message.ends_with("other (NotSeen), third (NotSeen)"), "{}", all.message);
    let status = plan(&vault, &sighting("model-key", "token", State::Refused), at(901));
    let all = find(&status.conditions, "Usable").unwrap();
    assert_eq!((all.status.as_str(), all.reason.as_str()), ("False", "RefusedUpstream"));
    assert!(all.message.ends_with("api-key (RefusedUpstream)"), "{}", all.message);
}

#[test]
fn every_key_of_aws_is_named() {
    let mut vault = fixtures::vault();
    vault.spec.credentials[0].placement = serde_json::from_value(
        json!({ "type": "aws", "aws": { "accessKeyIDKey": "id", "sessionTokenKey": "session" } }),
    )
    .unwrap();
    let condition = usable(&vault, &sighting("model-key", "token", State::Missing), 901);
    assert!(condition.message.contains("the keys token, id, session"), "{}", condition.message);
}
