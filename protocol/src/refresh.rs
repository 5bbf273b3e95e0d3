//! What a credential proxy and the session service say to one another when an OAuth access token is refreshed.
//!
//! Providers hand out a new refresh token with each access token, and revoke both when an old one is used. So the proxy asks
//! before it asks the provider ([`RefreshStep::Begin`]), one at a time, and hands over what it was given afterwards.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::secret::SentValue;

/// Who was told to go ahead has so long to ask the provider and to hand over, in seconds. After that another may begin.
pub const CLAIM_SECONDS: u64 = 120;
/// The longest [`CredentialRefresh::attempt`].
pub const LONGEST_ATTEMPT: usize = 64;

/// `POST credential_refresh`, with the proxy's token. `S` is how a secret value is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialRefresh<S> {
    /// The vault's name.
    pub vault: String,
    /// The credential's name in it.
    pub credential: String,
    /// The Secret with the refresh token that the proxy has.
    pub secret: String,
    /// What it asks or tells.
    pub step: RefreshStep,
    /// Of `refreshed`: names this refresh; a request that is repeated has the same one, and is carried out once. 1 to
    /// [`LONGEST_ATTEMPT`] letters and digits.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// Of `refreshed`: the access token.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub access_token: Option<S>,
    /// Of `refreshed`: the refresh token, if there is another one.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<S>,
    /// Of `refreshed`: when the access token expires, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Of `failed`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<RefreshFailure>,
}

/// A default for fields of any type.
const fn none<T>() -> Option<T> {
    None
}

/// A request as a proxy sends it.
pub type SentRefresh<'a> = CredentialRefresh<SentValue<'a>>;

/// Where a refresh is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshStep {
    /// It is about to ask the provider.
    Begin,
    /// The provider gave new tokens.
    Refreshed,
    /// The provider refused, and would again.
    Failed,
}

/// Why a provider gives no new token, and would not if it were asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshFailure {
    /// The refresh token is expired, revoked or used up: somebody has to give consent anew.
    InvalidGrant,
    /// The client or what it asks for is wrong.
    Refused,
}

impl RefreshFailure {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidGrant => "invalid_grant",
            Self::Refused => "refused",
        }
    }
}

/// What the session service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum RefreshAnswer {
    /// `begin`: the provider may be asked, within [`CLAIM_SECONDS`].
    Go {},
    /// `begin`: another proxy is asking; ask again in a second.
    Busy {},
    /// `begin`: the provider has refused this refresh token of late.
    Failed {
        /// Why.
        failure: RefreshFailure,
    },
    /// The vault has another refresh token by now, or none: this one must not be used any more.
    Superseded {},
    /// `refreshed`: the tokens are in the vault.
    Stored {
        /// The Secret with the refresh token that is good now.
        secret: String,
    },
    /// `failed`: it is on record.
    Noted {},
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{CredentialRefresh, RefreshAnswer, RefreshStep, SentRefresh};
    use crate::secret::{SecretValue, SentValue};

    #[test]
    fn what_a_proxy_hands_over_the_service_reads() {
        let sent = SentRefresh {
            vault: "team".to_owned(),
            credential: "tickets".to_owned(),
            secret: "one".to_owned(),
            step: RefreshStep::Refreshed,
            attempt: Some("a1".to_owned()),
            access_token: Some(SentValue::new(b"at-\"1")),
            refresh_token: None,
            expires_at: Some("2030-01-01T00:00:00Z".parse().unwrap()),
            failure: None,
        };
        assert!(!format!("{sent:?}").contains("at-"), "{sent:?}");
        let text = serde_json::to_string(&sent).unwrap();
        let Ok(read) = serde_json::from_str::<CredentialRefresh<SecretValue>>(&text) else { panic!("{text}") };
        assert_eq!(read.access_token.unwrap().expose(), b"at-\"1");
        assert!(read.refresh_token.is_none() && read.failure.is_none() && read.expires_at == sent.expires_at);
    }

    #[test]
    fn an_answer_says_what_becomes_of_it() {
        let answer = serde_json::to_value(RefreshAnswer::Stored { secret: "two".to_owned() }).unwrap();
        assert_eq!(answer, json!({"outcome": "stored", "secret": "two"}));
        assert_eq!(serde_json::to_value(RefreshAnswer::Go {}).unwrap(), json!({"outcome": "go"}));
    }
}
