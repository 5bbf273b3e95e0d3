//! What an `Agent` without a credential of its own is run with.

use crate::agent::{CredentialRef, ModelSpec};
use crate::vault::CredentialSpec;

/// Where the model API is unless something else is said.
pub const BASE_URL: &str = "https://api.anthropic.com";

/// The installation's default: agents of the wire API have no way to name a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultModel {
    /// Where the model API is.
    pub base_url: String,
    /// A credential of a vault that each namespace has for itself.
    pub credential: CredentialRef,
}

/// How a model is reached, as far as the agent and the installation say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelAccess<'a> {
    /// What it is called with.
    pub credential: &'a CredentialRef,
    /// Where the agent says that the model API is.
    own: Option<&'a str>,
    /// Where it is if nobody says more.
    fallback: &'a str,
}

impl ModelAccess<'_> {
    /// Where the model API is; `found` is the credential. The agent's word comes first, then the credential's.
    #[must_use]
    pub fn base_url<'s>(&'s self, found: &'s CredentialSpec) -> &'s str {
        self.own.or(found.model_base_url.as_deref()).unwrap_or(self.fallback)
    }
}

impl ModelSpec {
    /// How the model is reached; `None` if neither the agent nor the installation names a credential.
    #[must_use]
    pub fn access<'a>(&'a self, default: Option<&'a DefaultModel>) -> Option<ModelAccess<'a>> {
        let own = self.base_url.as_deref();
        match (&self.credential, default) {
            (Some(credential), _) => Some(ModelAccess { credential, own, fallback: BASE_URL }),
            (None, Some(default)) => {
                Some(ModelAccess { credential: &default.credential, own, fallback: &default.base_url })
            }
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::DefaultModel;
    use crate::agent::{CredentialRef, ModelSpec};
    use crate::vault::CredentialSpec;

    #[rstest]
    #[case::nothing(json!({"id": "m"}), false, None, None)]
    #[case::default(json!({"id": "m"}), true, None, Some(("http://default.test", "models")))]
    #[case::own_url(json!({"id": "m", "baseURL": "http://own.test"}), true, None, Some(("http://own.test", "models")))]
    #[case::own_credential(json!({"id": "m", "credential": {"vault": "own", "name": "c"}}), true, None, Some(("https://api.anthropic.com", "own")))]
    #[case::both_own(json!({"id": "m", "baseURL": "http://own.test", "credential": {"vault": "own", "name": "c"}}), false, Some("http://vault.test"), Some(("http://own.test", "own")))]
    #[case::url_of_the_default_credential(json!({"id": "m"}), true, Some("http://vault.test"), Some(("http://vault.test", "models")))]
    #[case::url_of_the_credential(json!({"id": "m", "credential": {"vault": "own", "name": "c"}}), true, Some("http://vault.test"), Some(("http://vault.test", "own")))]
    fn the_agent_s_own_words_come_first(
        #[case] model: Value,
        #[case] default: bool,
        #[case] of_credential: Option<&str>,
        #[case] expected: Option<(&str, &str)>,
    ) {
        let model: ModelSpec = serde_json::from_value(model).unwrap();
        let default = default.then(|| DefaultModel {
            base_url: "http://default.test".to_owned(),
            credential: CredentialRef { vault: "models".to_owned(), name: "api-key".to_owned() },
        });
        let found: CredentialSpec = serde_json::from_value(json!({
            "name": "c", "secretRef": {"name": "s", "key": "k"}, "allow": {"hosts": ["h"]},
            "placement": {"type": "bearer"}, "modelBaseURL": of_credential,
        }))
        .unwrap();
        let access = model.access(default.as_ref());
        let reached = access.as_ref().map(|access| (access.base_url(&found), access.credential.vault.as_str()));
        assert_eq!(reached, expected);
    }
}
