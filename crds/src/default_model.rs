//! What an `Agent` without a credential of its own is run with.

use crate::agent::{CredentialRef, ModelSpec};

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

/// How a model is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelAccess<'a> {
    /// Where the model API is.
    pub base_url: &'a str,
    /// What it is called with.
    pub credential: &'a CredentialRef,
}

impl ModelSpec {
    /// How the model is reached; `None` if neither the agent nor the installation names a credential.
    #[must_use]
    pub fn access<'a>(&'a self, default: Option<&'a DefaultModel>) -> Option<ModelAccess<'a>> {
        let own = self.base_url.as_deref();
        match (&self.credential, default) {
            (Some(credential), _) => Some(ModelAccess { base_url: own.unwrap_or(BASE_URL), credential }),
            (None, Some(default)) => {
                Some(ModelAccess { base_url: own.unwrap_or(&default.base_url), credential: &default.credential })
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

    #[rstest]
    #[case(json!({"id": "m"}), false, None)]
    #[case(json!({"id": "m"}), true, Some(("http://default.test", "models")))]
    #[case(json!({"id": "m", "baseURL": "http://own.test"}), true, Some(("http://own.test", "models")))]
    #[case(json!({"id": "m", "credential": {"vault": "own", "name": "c"}}), true, Some(("https://api.anthropic.com", "own")))]
    #[case(json!({"id": "m", "baseURL": "http://own.test", "credential": {"vault": "own", "name": "c"}}), false, Some(("http://own.test", "own")))]
    fn the_agent_s_own_words_come_first(
        #[case] model: Value,
        #[case] default: bool,
        #[case] expected: Option<(&str, &str)>,
    ) {
        let model: ModelSpec = serde_json::from_value(model).unwrap();
        let default = default.then(|| DefaultModel {
            base_url: "http://default.test".to_owned(),
            credential: CredentialRef { vault: "models".to_owned(), name: "api-key".to_owned() },
        });
        let access = model.access(default.as_ref());
        assert_eq!(access.map(|access| (access.base_url, access.credential.vault.as_str())), expected);
    }
}
