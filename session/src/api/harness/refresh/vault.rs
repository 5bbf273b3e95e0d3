//! What a refresh changes in a vault. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::Vault;
use longhand_crds::refresh::{RefreshRecord, RefreshState, UsedUp};
use longhand_crds::vault::{CredentialSpec, OAuth, SecretRef};
use longhand_protocol::refresh::{CLAIM_SECONDS, RefreshAnswer, RefreshFailure};

/// Keys of the Secrets that are made.
pub(super) const TOKEN: &str = "token";
pub(super) const REFRESH_TOKEN: &str = "refresh-token";

/// A refresh token that a provider has refused is not asked about for so long: a client that was set up wrongly may have been
/// corrected there, of which nothing here changes.
const REFUSED_FOR: SignedDuration = SignedDuration::from_mins(5);

/// A refresh token that a proxy has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held<'a> {
    /// The credential.
    pub(super) credential: &'a str,
    /// The Secret with the refresh token.
    pub(super) secret: &'a str,
    /// The UID of the proxy's pod.
    pub(super) pod: &'a str,
}

impl Held<'_> {
    /// The name of the Secret with the refresh token that the vault has now, if the credential is in use.
    fn present<'v>(&self, vault: &'v Vault) -> Option<&'v str> {
        let named = |credential: &&CredentialSpec| credential.name == self.credential;
        let credential = vault.spec.credentials.iter().find(named).filter(|found| found.archived_at.is_none())?;
        Some(&credential.refresh()?.refresh_token_ref.name)
    }

    /// Whether this refresh token is the credential's own.
    fn is_live(&self, vault: &Vault) -> bool {
        self.present(vault) == Some(self.secret)
    }

    fn used_up(&self, vault: &Vault) -> UsedUp {
        UsedUp::of(&vault.metadata, self.credential)
    }

    /// Whether the vault was set back to a used-up refresh token from this one, the last.
    fn is_set_back(&self, vault: &Vault) -> bool {
        let used = self.used_up(vault);
        used.latest == self.secret && self.present(vault).is_some_and(|secret| used.includes(secret))
    }

    /// What is on record of this refresh token, also if the vault was set back meanwhile.
    fn record(&self, vault: &Vault) -> Option<RefreshState> {
        Some(RefreshRecord::of_secret(&vault.metadata, self.credential, self.secret)?.state)
    }

    fn put(&self, vault: &mut Vault, state: RefreshState) {
        RefreshRecord { secret: self.secret.to_owned(), state }.put(&mut vault.metadata, self.credential);
    }

    /// Whether the pod was told to go ahead with this refresh token, and no other since.
    pub(super) fn is_claimed(&self, vault: &Vault) -> bool {
        matches!(self.record(vault), Some(RefreshState::Claimed { by, .. }) if by == self.pod)
    }

    /// What the proxy is told that wants to ask the provider; if it may, the vault says so.
    pub(super) fn begin(&self, vault: &mut Vault, now: Timestamp) -> RefreshAnswer {
        // Whoever set the vault back to a refresh token that is used up did not make that good again.
        if !self.is_live(vault) || self.used_up(vault).includes(self.secret) {
            return RefreshAnswer::Superseded {};
        }
        match self.record(vault) {
            Some(RefreshState::Claimed { by, until }) if by != self.pod && until > now => return RefreshAnswer::Busy {},
            Some(RefreshState::Failed { reason, at }) if at.saturating_add(REFUSED_FOR).is_ok_and(|end| end > now) => {
                return RefreshAnswer::Failed { failure: reason };
            }
            _ => {}
        }
        let seconds = i64::try_from(CLAIM_SECONDS).unwrap_or(i64::MAX);
        let until = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        self.put(vault, RefreshState::Claimed { by: self.pod.to_owned(), until });
        RefreshAnswer::Go {}
    }

    /// Has the vault point to the Secret `made`, which holds another refresh token too if it is `rotated`; and whether that
    /// changes it.
    pub(super) fn store(
        &self,
        vault: &mut Vault,
        made: &str,
        rotated: bool,
        expires_at: Option<Timestamp>,
    ) -> (RefreshAnswer, bool) {
        let named = |credential: &&mut CredentialSpec| credential.name == self.credential;
        // The answer to the same request was lost.
        if let Some(known) = vault.spec.credentials.iter().find(|found| found.name == self.credential)
            && known.secret_ref.name == made
            && let Some(refresh) = known.refresh()
        {
            return (RefreshAnswer::Stored { secret: refresh.refresh_token_ref.name.clone() }, false);
        }
        // What came of the last refresh token is kept, whatever the vault was set back to meanwhile.
        let is_set_back = self.is_set_back(vault);
        if !self.is_live(vault) && !is_set_back {
            return (RefreshAnswer::Superseded {}, false);
        }
        // Who was told to go ahead meanwhile, and has the same refresh token, is not disturbed.
        if self.is_claimed(vault) || rotated {
            RefreshRecord::remove(&mut vault.metadata, self.credential);
        }
        let credential = vault.spec.credentials.iter_mut().find(named);
        let Some(CredentialSpec {
            secret_ref, oauth: Some(OAuth { expires_at: expiry, refresh: Some(refresh) }), ..
        }) = credential
        else {
            return (RefreshAnswer::Superseded {}, false);
        };
        let reference = |name: &str, key: &str| SecretRef { name: name.to_owned(), key: key.to_owned() };
        *secret_ref = reference(made, TOKEN);
        *expiry = expires_at.map(Time);
        if rotated {
            refresh.refresh_token_ref = reference(made, REFRESH_TOKEN);
        } else if is_set_back {
            // The last one is a Secret that the service has made.
            refresh.refresh_token_ref = reference(self.secret, REFRESH_TOKEN);
        }
        let answer = RefreshAnswer::Stored { secret: refresh.refresh_token_ref.name.clone() };
        if rotated {
            let mut used = self.used_up(vault);
            used.exchange(self.secret, made);
            used.put(&mut vault.metadata, self.credential);
        }
        (answer, true)
    }

    /// Puts on record that the provider has refused.
    pub(super) fn fail(&self, vault: &mut Vault, reason: RefreshFailure, now: Timestamp) -> RefreshAnswer {
        if !self.is_live(vault) {
            return RefreshAnswer::Superseded {};
        }
        self.put(vault, RefreshState::Failed { reason, at: now });
        RefreshAnswer::Noted {}
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use longhand_crds::Vault;
    use longhand_protocol::refresh::{RefreshAnswer, RefreshFailure};
    use serde_json::json;

    use super::Held;

    fn vault() -> Vault {
        serde_json::from_value(json!({"metadata": {"name": "team"}, "spec": {"credentials": [{
            "name": "tickets", "secretRef": {"name": "one", "key": "token"}, "allow": {"hosts": ["mcp.example"]},
            "placement": {"type": "bearer"},
            "oauth": {"expiresAt": "2026-01-01T00:00:00Z", "refresh": {"clientID": "c", "tokenEndpoint": "https://t/x",
                "tokenEndpointAuth": "none", "refreshTokenRef": {"name": "one", "key": "refresh-token"}}},
        }]}}))
        .unwrap()
    }

    fn held(pod: &str) -> Held<'_> {
        Held { credential: "tickets", secret: "one", pod }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_800_000_000 + seconds)
    }

    fn stored(secret: &str) -> RefreshAnswer {
        RefreshAnswer::Stored { secret: secret.to_owned() }
    }

    #[test]
    fn one_asks_at_a_time_and_a_claim_lapses() {
        let mut vault = vault();
        assert_eq!(held("a").begin(&mut vault, at(0)), RefreshAnswer::Go {});
        assert_eq!(held("b").begin(&mut vault, at(119)), RefreshAnswer::Busy {});
        assert!(held("a").is_claimed(&vault) && !held("b").is_claimed(&vault));
        assert_eq!(held("a").begin(&mut vault, at(60)), RefreshAnswer::Go {}, "its container may have been restarted");
        assert_eq!(held("b").begin(&mut vault, at(180)), RefreshAnswer::Go {});
        assert!(held("b").is_claimed(&vault));
    }

    #[test]
    fn who_comes_late_never_uses_an_old_refresh_token() {
        let mut vault = vault();
        held("a").begin(&mut vault, at(0));
        assert_eq!(held("a").store(&mut vault, "two", true, Some(at(3_600))).0, stored("two"));
        let credential = &vault.spec.credentials[0];
        assert_eq!((credential.secret_ref.name.as_str(), credential.secret_ref.key.as_str()), ("two", "token"));
        let refresh = credential.refresh().unwrap();
        assert_eq!(refresh.refresh_token_ref.key, "refresh-token");
        assert_eq!(credential.oauth.as_ref().unwrap().expires_at.as_ref().unwrap().0, at(3_600));
        assert_eq!(held("b").begin(&mut vault, at(1)), RefreshAnswer::Superseded {});
        assert_eq!(held("b").store(&mut vault, "three", true, None).0, RefreshAnswer::Superseded {});
        assert_eq!(held("b").fail(&mut vault, RefreshFailure::InvalidGrant, at(1)), RefreshAnswer::Superseded {});
        assert_eq!(vault.spec.credentials[0].secret_ref.name, "two");
        assert_eq!(held("a").store(&mut vault, "two", true, None).0, stored("two"), "asked again");
    }

    #[test]
    fn a_vault_that_is_set_back_does_not_bring_a_used_up_refresh_token_to_a_provider() {
        let (mut vault, applied) = (vault(), vault());
        held("a").begin(&mut vault, at(0));
        held("a").store(&mut vault, "two", true, None);
        let two = Held { secret: "two", ..held("a") };
        assert_eq!(two.begin(&mut vault, at(1)), RefreshAnswer::Go {});
        two.store(&mut vault, "three", true, None);
        let three = Held { secret: "three", ..held("a") };
        assert_eq!(three.begin(&mut vault, at(2)), RefreshAnswer::Go {});
        vault.spec = applied.spec;
        assert_eq!(held("b").begin(&mut vault, at(1_000)), RefreshAnswer::Superseded {});
        assert!(three.is_claimed(&vault), "also for who has lost its session meanwhile");
        assert_eq!(three.store(&mut vault.clone(), "four", true, None).0, stored("four"), "and this is the only copy");
        let mut kept = vault.clone();
        assert_eq!(three.store(&mut kept, "four", false, None).0, stored("three"), "the last one is named again");
        assert_eq!(three.begin(&mut kept, at(3)), RefreshAnswer::Go {});
        assert_eq!(two.store(&mut vault, "four", true, None).0, RefreshAnswer::Superseded {});
        let by_hand = Held { secret: "by-hand", ..held("b") };
        vault.spec.credentials[0].oauth.as_mut().unwrap().refresh.as_mut().unwrap().refresh_token_ref.name =
            "by-hand".to_owned();
        assert_eq!(by_hand.begin(&mut vault, at(1_000)), RefreshAnswer::Go {});
    }

    #[test]
    fn a_refresh_token_that_stays_is_everybody_s() {
        let mut vault = vault();
        held("a").begin(&mut vault, at(0));
        held("b").begin(&mut vault, at(200));
        assert_eq!(held("a").store(&mut vault, "two", false, None).0, stored("one"), "late, and all the same");
        assert!(held("b").is_claimed(&vault));
        assert_eq!(held("b").store(&mut vault, "three", false, None).0, stored("one"));
        assert!(!held("b").is_claimed(&vault));
        assert_eq!(vault.spec.credentials[0].oauth.as_ref().unwrap().expires_at, None);
    }

    #[test]
    fn a_refused_token_is_left_alone_for_a_while() {
        let mut vault = vault();
        assert_eq!(held("a").fail(&mut vault, RefreshFailure::Refused, at(0)), RefreshAnswer::Noted {});
        let failed = RefreshAnswer::Failed { failure: RefreshFailure::Refused };
        assert_eq!(held("b").begin(&mut vault, at(299)), failed);
        assert_eq!(held("b").begin(&mut vault, at(300)), RefreshAnswer::Go {});
        held("a").fail(&mut vault, RefreshFailure::InvalidGrant, at(300));
        vault.spec.credentials[0].oauth.as_mut().unwrap().refresh.as_mut().unwrap().refresh_token_ref.name =
            "new".to_owned();
        let new = Held { secret: "new", ..held("b") };
        assert_eq!(new.begin(&mut vault, at(301)), RefreshAnswer::Go {}, "somebody wrote another one");
    }

    #[test]
    fn a_credential_that_is_not_in_use_is_not_refreshed() {
        let mut archived = vault();
        archived.spec.credentials[0].archived_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let mut gone = vault();
        gone.spec.credentials.clear();
        for mut vault in [archived, gone] {
            assert_eq!(held("a").begin(&mut vault, at(0)), RefreshAnswer::Superseded {});
            assert_eq!(held("a").store(&mut vault, "two", true, None).0, RefreshAnswer::Superseded {});
        }
    }
}
