//! Who refreshes an OAuth access token, or why nobody can, as a `Vault` says in an annotation for each of its credentials.
//!
//! The session service writes it for the credential proxies, one of which asks the provider at a time; the operator makes a
//! condition of a failure.

use jiff::Timestamp;
use kube::api::ObjectMeta;
use longhand_protocol::refresh::RefreshFailure;
use serde::{Deserialize, Serialize};

use crate::vault::{CredentialSpec, Refresh};

/// What annotations with used-up refresh tokens begin with; the credential's name follows.
const USED_UP: &str = "used.oauth.longhand.dev/";
/// So many names of each kind are kept.
const MOST: usize = 8;

/// What annotations of this kind begin with; the credential's name follows.
const PREFIX: &str = "oauth.longhand.dev/";

/// What is on record of a credential's refresh token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefreshRecord {
    /// The Secret with that refresh token. Of another one it says nothing.
    pub secret: String,
    /// What there is to say.
    #[serde(flatten)]
    pub state: RefreshState,
}

/// What there is to say of a refresh token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum RefreshState {
    /// A proxy uses it.
    Claimed {
        /// The UID of its pod.
        by: String,
        /// Until when another may not.
        until: Timestamp,
    },
    /// The provider has refused it.
    Failed {
        /// Why.
        reason: RefreshFailure,
        /// When.
        at: Timestamp,
    },
}

impl RefreshRecord {
    /// What is on record of a credential's present refresh token; nothing if what is there cannot be read.
    #[must_use]
    pub fn of(vault: &ObjectMeta, credential: &str, refresh: &Refresh) -> Option<Self> {
        Self::of_secret(vault, credential, &refresh.refresh_token_ref.name)
    }

    /// What is on record of the refresh token in this Secret; nothing if what is there cannot be read.
    #[must_use]
    pub fn of_secret(vault: &ObjectMeta, credential: &str, secret: &str) -> Option<Self> {
        let text = vault.annotations.as_ref()?.get(&annotation(credential))?;
        let record: Self = serde_json::from_str(text).ok()?;
        (record.secret == secret).then_some(record)
    }

    /// Puts it on record.
    pub fn put(&self, vault: &mut ObjectMeta, credential: &str) {
        let Ok(text) = serde_json::to_string(self) else { unreachable!("texts and times have a form in JSON") };
        vault.annotations.get_or_insert_default().insert(annotation(credential), text);
    }

    /// Takes what there is off the record.
    pub fn remove(vault: &mut ObjectMeta, credential: &str) {
        if let Some(annotations) = &mut vault.annotations {
            annotations.remove(&annotation(credential));
        }
    }
}

/// The Secrets whose refresh tokens were exchanged for others, of one credential. Whoever applies an older form of the vault
/// has it name one of them again; a provider revokes all tokens when such a one is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UsedUp {
    /// The Secret with the refresh token that came last.
    pub latest: String,
    /// Those that people wrote, the oldest first: what an older form of the vault names.
    written: Vec<String>,
    /// Those that refreshes made, the oldest first.
    made: Vec<String>,
}

impl UsedUp {
    /// What is on record of a credential; nothing if what is there cannot be read.
    #[must_use]
    pub fn of(vault: &ObjectMeta, credential: &str) -> Self {
        let text = vault.annotations.as_ref().and_then(|all| all.get(&format!("{USED_UP}{credential}")));
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// Whether the refresh token in this Secret is used up.
    #[must_use]
    pub fn includes(&self, secret: &str) -> bool {
        self.written.iter().chain(&self.made).any(|used| used == secret)
    }

    /// Puts on record that the refresh token in a Secret was exchanged for the one in `latest`. Of the names that people wrote
    /// and of those that refreshes made the oldest are dropped, each for themselves: the latter are many.
    pub fn exchange(&mut self, secret: &str, latest: &str) {
        let names = if secret == self.latest { &mut self.made } else { &mut self.written };
        names.retain(|known| known != secret);
        names.push(secret.to_owned());
        names.drain(..names.len().saturating_sub(MOST));
        latest.clone_into(&mut self.latest);
    }

    /// Puts it on record.
    pub fn put(&self, vault: &mut ObjectMeta, credential: &str) {
        let Ok(text) = serde_json::to_string(self) else { unreachable!("texts have a form in JSON") };
        vault.annotations.get_or_insert_default().insert(format!("{USED_UP}{credential}"), text);
    }

    /// Takes what there is off the record.
    pub fn remove(vault: &mut ObjectMeta, credential: &str) {
        if let Some(annotations) = &mut vault.annotations {
            annotations.remove(&format!("{USED_UP}{credential}"));
        }
    }
}

fn annotation(credential: &str) -> String {
    format!("{PREFIX}{credential}")
}

impl CredentialSpec {
    /// How its access token is refreshed, if it is.
    #[must_use]
    pub fn refresh(&self) -> Option<&Refresh> {
        self.oauth.as_ref()?.refresh.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;
    use longhand_protocol::refresh::RefreshFailure;
    use rstest::rstest;
    use serde_json::json;

    use super::{MOST, RefreshRecord, RefreshState, UsedUp};
    use crate::vault::Refresh;

    fn refresh(secret: &str) -> Refresh {
        serde_json::from_value(json!({"clientID": "c", "tokenEndpoint": "https://t", "tokenEndpointAuth": "none",
            "refreshTokenRef": {"name": secret, "key": "k"}}))
        .unwrap()
    }

    #[rstest]
    #[case(RefreshState::Claimed { by: "u".to_owned(), until: "2026-01-01T00:00:00Z".parse().unwrap() },
        r#"{"secret":"one","state":"claimed","by":"u","until":"2026-01-01T00:00:00Z"}"#)]
    #[case(RefreshState::Failed { reason: RefreshFailure::InvalidGrant, at: "2026-01-01T00:00:00Z".parse().unwrap() },
        r#"{"secret":"one","state":"failed","reason":"invalid_grant","at":"2026-01-01T00:00:00Z"}"#)]
    fn a_record_is_of_one_refresh_token(#[case] state: RefreshState, #[case] text: &str) {
        let record = RefreshRecord { secret: "one".to_owned(), state };
        let mut vault = ObjectMeta::default();
        record.put(&mut vault, "tickets");
        assert_eq!(vault.annotations.as_ref().unwrap()["oauth.longhand.dev/tickets"], text);
        assert_eq!(RefreshRecord::of(&vault, "tickets", &refresh("one")), Some(record));
        assert_eq!(RefreshRecord::of(&vault, "tickets", &refresh("two")), None);
        assert_eq!(RefreshRecord::of(&vault, "other", &refresh("one")), None);
        RefreshRecord::remove(&mut vault, "tickets");
        assert_eq!(RefreshRecord::of(&vault, "tickets", &refresh("one")), None);
    }

    #[test]
    fn used_up_refresh_tokens_are_kept_in_mind_those_that_people_wrote_the_longest() {
        let mut vault = ObjectMeta::default();
        let mut names = vec!["by-hand".to_owned()];
        names.extend((0..30).map(|number| format!("made-{number}")));
        for pair in names.windows(2) {
            let mut used = UsedUp::of(&vault, "tickets");
            used.exchange(&pair[0], &pair[1]);
            used.put(&mut vault, "tickets");
        }
        let used = UsedUp::of(&vault, "tickets");
        assert_eq!((used.latest.as_str(), used.made.len(), used.written.len()), ("made-29", MOST, 1));
        let known = ["by-hand", "made-20", "made-21", "made-28", "made-29"].map(|name| used.includes(name));
        assert_eq!(known, [true, false, true, true, false]);
        assert_eq!(UsedUp::of(&vault, "other"), UsedUp::default());
        UsedUp::remove(&mut vault, "tickets");
        assert_eq!(UsedUp::of(&vault, "tickets"), UsedUp::default());
    }

    #[test]
    fn what_somebody_else_wrote_is_nothing() {
        let annotations = [("oauth.longhand.dev/tickets".to_owned(), "{".to_owned())];
        let vault = ObjectMeta { annotations: Some(annotations.into()), ..ObjectMeta::default() };
        assert_eq!(RefreshRecord::of(&vault, "tickets", &refresh("one")), None);
    }
}
