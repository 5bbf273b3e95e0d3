//! Who refreshes an OAuth access token, or why nobody can, as a `Vault` says in an annotation for each of its credentials.
//!
//! The session service writes it for the credential proxies, one of which asks the provider at a time; the operator makes a
//! condition of a failure.

use jiff::Timestamp;
use kube::api::ObjectMeta;
use longhand_protocol::refresh::RefreshFailure;
use serde::{Deserialize, Serialize};

use crate::vault::{CredentialSpec, Refresh};

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
        let text = vault.annotations.as_ref()?.get(&annotation(credential))?;
        let record: Self = serde_json::from_str(text).ok()?;
        (record.secret == refresh.refresh_token_ref.name).then_some(record)
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

    use super::{RefreshRecord, RefreshState};
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
    fn what_somebody_else_wrote_is_nothing() {
        let annotations = [("oauth.longhand.dev/tickets".to_owned(), "{".to_owned())];
        let vault = ObjectMeta { annotations: Some(annotations.into()), ..ObjectMeta::default() };
        assert_eq!(RefreshRecord::of(&vault, "tickets", &refresh("one")), None);
    }
}
