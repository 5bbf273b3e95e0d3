//! What an agent names, and whether it exists.

use longhand_crds::agent::CredentialRef;
use longhand_crds::default_model::{DefaultModel, ModelAccess};
use longhand_crds::vault::CredentialSpec;
use longhand_crds::{Agent, Vault};
use reqwest::Url;

use super::fallbacks;

/// Something that an agent names and that it cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Neither the agent nor the installation names a credential.
    #[error(
        "spec.model.credential is absent, and the installation has no default model (session.defaultModel in the chart's values)"
    )]
    NoCredential,
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
    /// The credential is of a kind that is not for the model API.
    #[error("credential {name} of Vault {vault} is for sandboxes, and the model API is not called with it")]
    NotForModel {
        /// The vault.
        vault: String,
        /// The credential.
        name: String,
    },
    /// The credential is of a kind that is not for MCP servers.
    #[error("credential {name} of Vault {vault} is for sandboxes, and MCP server {server} is not called with it")]
    NotForMcp {
        /// The vault.
        vault: String,
        /// The credential.
        name: String,
        /// The server.
        server: String,
    },
    /// The URL of an MCP server cannot be called.
    #[error(
        "the URL of MCP server {0} is not one that a proxy calls: it needs http or https, no user, and a path that every server reads the same way"
    )]
    McpUrl(String),
    /// The access token cannot be refreshed as the credential says.
    #[error("credential {name} of Vault {vault} cannot be refreshed: {what}")]
    RefreshInvalid {
        /// The vault.
        vault: String,
        /// The credential.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The credential was archived.
    #[error("credential {name} of Vault {vault} was archived")]
    Archived {
        /// The vault.
        vault: String,
        /// The credential.
        name: String,
    },
}

impl Missing {
    /// One word for a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoCredential => "NoCredential",
            Self::Vault(_) => "VaultNotFound",
            Self::Credential { .. } => "CredentialNotFound",
            Self::NotAllowed { .. } => "CredentialNotAllowed",
            Self::NotForModel { .. } => "CredentialNotForModel",
            Self::NotForMcp { .. } => "CredentialNotForMCP",
            Self::McpUrl(_) => "MCPServerURLInvalid",
            Self::RefreshInvalid { .. } => "CredentialRefreshInvalid",
            Self::Archived { .. } => "CredentialArchived",
        }
    }
}

/// The vault that holds the credential of the agent's model.
#[must_use]
pub fn vault_of<'a>(agent: &'a Agent, default: Option<&'a DefaultModel>) -> Option<&'a str> {
    agent.spec.model.access(default).map(|access| access.credential.vault.as_str())
}

/// How the agent's model is reached, and the credential that it is called with; `vault` is that of [`vault_of`].
///
/// # Errors
/// [`Missing`], which names what is not there.
pub fn credential<'a, 'v>(
    agent: &'a Agent,
    vault: Option<&'v Vault>,
    default: Option<&'a DefaultModel>,
) -> Result<(ModelAccess<'a>, &'v CredentialSpec), Missing> {
    let access = agent.spec.model.access(default).ok_or(Missing::NoCredential)?;
    let wanted = access.credential;
    let found = find(wanted, vault)?;
    let (vault, name) = (wanted.vault.clone(), wanted.name.clone());
    if found.placement.kind.is_for_sandboxes() {
        return Err(Missing::NotForModel { vault, name });
    }
    let url = access.base_url(found);
    if may_go_to(found, url) {
        Ok((access, found))
    } else {
        Err(Missing::NotAllowed { vault, name, url: url.to_owned() })
    }
}

/// The credential that is meant, unless it was archived.
pub(super) fn find<'v>(wanted: &CredentialRef, vault: Option<&'v Vault>) -> Result<&'v CredentialSpec, Missing> {
    let vault = vault.ok_or_else(|| Missing::Vault(wanted.vault.clone()))?;
    let found = vault.spec.credentials.iter().find(|credential| credential.name == wanted.name);
    let (vault, name) = (wanted.vault.clone(), wanted.name.clone());
    match found {
        None => Err(Missing::Credential { vault, name }),
        Some(found) if found.archived_at.is_some() => Err(Missing::Archived { vault, name }),
        Some(found) => Ok(found),
    }
}

/// Whether the agent names a credential of this vault, for whichever of its models and servers.
#[must_use]
pub fn uses(agent: &Agent, default: Option<&DefaultModel>, vault: &str) -> bool {
    let of_servers = agent.spec.mcp_servers.iter().filter_map(|server| server.credential.as_ref());
    vault_of(agent, default) == Some(vault)
        || fallbacks::uses(agent, default, vault)
        || of_servers.into_iter().any(|credential| credential.vault == vault)
}

pub(super) fn may_go_to(credential: &CredentialSpec, url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let allow = &credential.allow;
    let port = allow.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(allow.scheme.default_port());
    url.scheme() == allow.scheme.as_str()
        && url.port_or_known_default() == Some(port)
        && url.host_str().is_some_and(|host| allow.hosts.iter().any(|allowed| allowed == host))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use longhand_crds::default_model::DefaultModel;
    use longhand_crds::vault::PlacementKind;
    use rstest::rstest;

    use super::{Missing, credential, vault_of};
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
        agent.spec.model.base_url = Some(url.to_owned());
        vault.spec.credentials[0].allow.port = port;
        assert_eq!(credential(&agent, Some(&vault), None).is_ok(), allowed);
    }

    #[test]
    fn neither_an_archived_credential_nor_a_variable_is_for_the_model() {
        let (agent, mut vault) = (fixtures::agent(), fixtures::vault());
        vault.spec.credentials[0].placement.kind = PlacementKind::EnvironmentVariable;
        assert_eq!(credential(&agent, Some(&vault), None).unwrap_err().reason(), "CredentialNotForModel");
        vault.spec.credentials[0].archived_at = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(credential(&agent, Some(&vault), None).unwrap_err().reason(), "CredentialArchived");
    }

    #[test]
    fn what_is_missing_is_named() {
        let (agent, mut vault) = (fixtures::agent(), fixtures::vault());
        assert_eq!(credential(&agent, None, None), Err(Missing::Vault("models".into())));
        vault.spec.credentials[0].name = "other".into();
        let error = credential(&agent, Some(&vault), None).unwrap_err();
        assert_eq!(error.to_string(), "Vault models has no credential api-key");
    }

    #[test]
    fn the_installation_s_default_is_used_where_the_agent_names_no_credential() {
        let (mut agent, vault) = (fixtures::agent(), fixtures::vault());
        let own = agent.spec.model.credential.take().unwrap();
        let base_url = agent.spec.model.base_url.take().unwrap();
        assert_eq!(credential(&agent, Some(&vault), None).unwrap_err().reason(), "NoCredential");
        let default = DefaultModel { base_url, credential: own };
        assert_eq!(vault_of(&agent, Some(&default)), Some("models"));
        let (access, found) = credential(&agent, Some(&vault), Some(&default)).unwrap();
        assert_eq!((access.base_url(found), found.name.as_str()), ("http://model.test:8080", "api-key"));
    }

    #[test]
    fn the_url_of_a_credential_has_to_be_one_that_it_may_go_to() {
        let (mut agent, mut vault) = (fixtures::agent(), fixtures::vault());
        vault.spec.credentials[0].model_base_url = agent.spec.model.base_url.take();
        let (access, found) = credential(&agent, Some(&vault), None).unwrap();
        assert_eq!(access.base_url(found), "http://model.test:8080");
        vault.spec.credentials[0].model_base_url = Some("http://other.test".to_owned());
        assert_eq!(credential(&agent, Some(&vault), None).unwrap_err().reason(), "CredentialNotAllowed");
    }
}
