//! Which credentials of a vault a proxy could use.

use jiff::Timestamp;
use longhand_crds::Vault;
use longhand_crds::vault::{CredentialSpec, CredentialStatus};

use super::sightings::{Sighting, State};
use super::{expires_at, in_use, overdue_at, refused, reverted};
use crate::conditions::{Observation, find, merge};

/// The condition that says whether a proxy could use a credential, or each of a vault.
pub(super) const USABLE: &str = "Usable";

const SECRET_MISSING: &str = "SecretMissing";
const VALUE_UNUSABLE: &str = "ValueUnusable";
const REFUSED_UPSTREAM: &str = "RefusedUpstream";
const NOT_SEEN: &str = "NotSeen";
/// What only a proxy knows.
const BY_PROXIES: [&str; 4] = [SECRET_MISSING, VALUE_UNUSABLE, REFUSED_UPSTREAM, USABLE];

/// What is said of each credential that is not archived.
pub(super) fn credentials(vault: &Vault, sightings: &[Sighting], now: Timestamp) -> Vec<CredentialStatus> {
    let (before, generation) = (vault.status.as_ref(), vault.metadata.generation);
    let status = |credential: &CredentialSpec| {
        let name = credential.name.clone();
        let before = before.and_then(|before| before.credentials.iter().find(|before| before.name == name));
        let before = before.map(|before| before.conditions.as_slice()).unwrap_or_default();
        // After a change of leader nothing is known but what the status says, if it is of the same spec.
        let stays = find(before, USABLE).is_some_and(|before| {
            before.observed_generation == generation && BY_PROXIES.contains(&before.reason.as_str())
        });
        let seen = known(vault, credential, now).or_else(|| by_proxies(credential, sightings));
        let seen = seen.or_else(|| (!stays).then(not_seen));
        CredentialStatus { conditions: merge(before, seen.as_slice(), generation, now), name }
    };
    in_use(vault).map(status).collect()
}

/// The same of all of them.
pub(super) fn summary(credentials: &[CredentialStatus]) -> Observation {
    let with = |status: &str| {
        let condition = |credential: &CredentialStatus| {
            let usable = find(&credential.conditions, USABLE).filter(|usable| usable.status == status)?;
            Some((usable.reason.clone(), format!("{} ({})", credential.name, usable.reason)))
        };
        let (reasons, named): (Vec<_>, Vec<_>) = credentials.iter().filter_map(condition).unzip();
        reasons.into_iter().next().map(|reason| (reason, named.join(", ")))
    };
    if let Some((reason, named)) = with("False") {
        return Observation::no(USABLE, reason, format!("cannot be used, as status.credentials says: {named}"));
    }
    if let Some((reason, named)) = with("Unknown") {
        return Observation::unknown(USABLE, reason, format!("not known before a session uses them: {named}"));
    }
    Observation::yes(USABLE, USABLE, "every credential that is not archived could be used")
}

fn not_seen() -> Observation {
    let message =
        "no proxy has mounted it since the vault was written: whether its Secret exists is seen when a session uses it";
    Observation::unknown(USABLE, NOT_SEEN, message)
}

/// What the vault itself says against a credential.
fn known(vault: &Vault, credential: &CredentialSpec, now: Timestamp) -> Option<Observation> {
    let no = |reason: &str, message: String| Some(Observation::no(USABLE, reason, message));
    if let Some(reverted) = reverted(vault, credential) {
        return no(
            "RefreshTokenReverted",
            format!(
                "the vault was set back to a refresh token that is used up: {reverted}: name the last one or a new one"
            ),
        );
    }
    if let Some(refused) = refused(vault, credential) {
        return no(
            "RefreshRefused",
            format!(
                "the provider refused to refresh the access token of {refused}: give consent anew and write a new refresh token"
            ),
        );
    }
    if expires_at(credential).is_some_and(|at| at <= now) {
        return no("Expired", "the access token has expired: write a new one".to_owned());
    }
    if overdue_at(vault, credential).is_some_and(|at| at <= now) {
        let message = "the access token has expired and is not refreshed: that is done when a session calls an MCP server with it";
        return no("ExpiredNotRefreshed", message.to_owned());
    }
    None
}

/// What proxies say of a credential.
fn by_proxies(credential: &CredentialSpec, sightings: &[Sighting]) -> Option<Observation> {
    let seen = sightings.iter().filter(|sighting| sighting.place.credential == credential.name);
    let named = seen.clone().find(|sighting| {
        (&sighting.place.secret, &sighting.place.key) == (&credential.secret_ref.name, &credential.secret_ref.key)
    });
    // A pod that has refreshed a token keeps what it has mounted, and needs that no more.
    let refreshed = || seen.clone().find(|sighting| credential.refresh().is_some() && sighting.state == State::Usable);
    let Sighting { state, session, .. } = named.or_else(refreshed)?;
    let (secret, keys) = (&credential.secret_ref.name, keys(credential));
    Some(match state {
        State::Missing => Observation::no(
            USABLE,
            SECRET_MISSING,
            format!("session {session} has no Secret {secret} with {keys}: make it, or name another one in the vault"),
        ),
        State::Unusable(detail) => Observation::no(
            USABLE,
            VALUE_UNUSABLE,
            format!("session {session} cannot use Secret {secret} with {keys}: {detail}"),
        ),
        State::Refused => Observation::no(
            USABLE,
            REFUSED_UPSTREAM,
            format!(
                "the upstream answered 401 when session {session} last used it: see whether Secret {secret} with {keys} holds what \
                 it takes; it is known to when a request with it succeeds"
            ),
        ),
        State::Usable => {
            Observation::yes(USABLE, USABLE, format!("a proxy could use it, as that of session {session} has it"))
        }
    })
}

/// The keys of its Secret.
fn keys(credential: &CredentialSpec) -> String {
    let first = [&credential.secret_ref.key];
    let aws = credential.placement.aws.iter();
    let aws = aws.flat_map(|aws| std::iter::once(&aws.access_key_id_key).chain(&aws.session_token_key));
    let keys: Vec<&str> = first.into_iter().chain(aws).map(String::as_str).collect();
    format!("{} {}", if keys.len() == 1 { "the key" } else { "the keys" }, keys.join(", "))
}

#[cfg(test)]
#[path = "usable_tests.rs"]
mod tests;
