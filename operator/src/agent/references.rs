//! What an agent names, and whether it exists.

use longhand_crds::vault::CredentialSpec;
use longhand_crds::{Agent, Vault};
use reqwest::Url;

/// Something that an agent names and that it cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is no such vault.
    #[error("Vault {0} does not exist in this namespace")]
    Vault(String),
    /// The vault has no such credential.
    #[error("Vault {vault} has no credential {name}")]
    Credential {
        /// The vault.
        vault: String,
        /// The credential.
        name: String,
    },
    /// The credential may not be sent to the model API.
    #[error(
        "credential {name} of Vault {vault} may not go to {url}: its allow rule does not cover that scheme, host and port"
    )]
    NotAllowed {
        /// The vault.
        vault: String,
        /// The credential.
        name: String,
        /// Where the model API is.
        url: String,
    },
}

impl Missing {
    /// One word for a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Vault(_) => "VaultNotFound",
            Self::Credential { .. } => "CredentialNotFound",
            Self::NotAllowed { .. } => "CredentialNotAllowed",
        }
    }
}

/// The credential that the agent's model is called with; `vault` is the one that the agent names.
///
/// # Errors
/// [`Missing`], which names what is not there.
pub fn credential<'a>(agent: &Agent, vault: Option<&'a Vault>) -> Result<&'a CredentialSpec, Missing> {
    let wanted = &agent.spec.model.credential;
    let vault = vault.ok_or_else(|| Missing::Vault(wanted.vault.clone()))?;
    let found = vault.spec.credentials.iter().find(|credential| credential.name == wanted.name);
    let found = found.ok_or_else(|| Missing::Credential { vault: wanted.vault.clone(), name: wanted.name.clone() })?;
    let url = &agent.spec.model.base_url;
    if may_go_to(found, url) {
        Ok(found)
    } else {
        Err(Missing::NotAllowed { vault: wanted.vault.clone(), name: wanted.name.clone(), url: url.clone() })
    }
}

fn may_go_to(credential: &CredentialSpec, url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let allow = &credential.allow;
    let port = allow.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(allow.scheme.default_port());
    url.scheme() == allow.scheme.as_str()
        && url.port_or_known_default() == Some(port)
        && url.host_str().is_some_and(|host| allow.hosts.iter().any(|allowed| allowed == host))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Missing, credential};
    use crate::fixtures;

    #[rstest]
    #[case("http://model.test:8080", Some(8080), true)]
    #[case("http://model.test:8080/base", Some(8080), true)]
    #[case("http://model.test", None, true)]
    #[case("http://model.test:8080", None, false)]
    #[case("https://model.test", None, false)]
    #[case("http://other.test:8080", Some(8080), false)]
    #[case("nonsense", None, false)]
    fn a_credential_goes_where_its_rule_says(#[case] url: &str, #[case] port: Option<i32>, #[case] allowed: bool) {
        let (mut agent, mut vault) = (fixtures::agent(), fixtures::vault());
        agent.spec.model.base_url = url.to_owned();
        vault.spec.credentials[0].allow.port = port;
        assert_eq!(credential(&agent, Some(&vault)).is_ok(), allowed);
    }

    #[test]
    fn what_is_missing_is_named() {
        let (agent, mut vault) = (fixtures::agent(), fixtures::vault());
        assert_eq!(credential(&agent, None), Err(Missing::Vault("models".into())));
        vault.spec.credentials[0].name = "other".into();
        let error = credential(&agent, Some(&vault)).unwrap_err();
        assert_eq!(error.to_string(), "Vault models has no credential api-key");
    }
}
