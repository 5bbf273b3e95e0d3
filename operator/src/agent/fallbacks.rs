//! How the fallbacks of an agent's model are reached, as far as they say it themselves.

use longhand_crds::default_model::DefaultModel;
use longhand_crds::model::FallbackSpec;
use longhand_crds::vault::CredentialSpec;
use longhand_crds::{Agent, Vault};

use super::references::{self, Missing};

/// How a fallback is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct FallbackAccess {
    /// The name of its route.
    pub route: String,
    /// Where its model API is.
    pub base_url: String,
    /// What it is called with.
    pub credential: CredentialSpec,
    /// The vault that holds that.
    pub vault: String,
}

/// How the fallbacks with an address or a credential of their own are reached, each route once; `vault` finds one by name.
///
/// # Errors
/// [`Missing`], which names what is not there.
pub fn access(
    agent: &Agent,
    default: Option<&DefaultModel>,
    vault: impl Fn(&str) -> Option<Vault>,
) -> Result<Vec<FallbackAccess>, Missing> {
    let mut all: Vec<FallbackAccess> = Vec::new();
    for (route, agent) in apart(agent) {
        if all.iter().any(|known| known.route == route) {
            continue;
        }
        let vault = references::vault_of(&agent, default).and_then(&vault);
        let (access, credential) = references::credential(&agent, vault.as_ref(), default)?;
        let base_url = access.base_url(credential).to_owned();
        let vault = access.credential.vault.clone();
        all.push(FallbackAccess { route, base_url, credential: credential.clone(), vault });
    }
    Ok(all)
}

/// Whether a fallback is called with a credential of this vault.
pub(super) fn uses(agent: &Agent, default: Option<&DefaultModel>, vault: &str) -> bool {
    apart(agent).any(|(_, agent)| references::vault_of(&agent, default) == Some(vault))
}

/// The fallbacks that are reached otherwise than the first model: the route, and the agent as it would be with that model first.
fn apart(agent: &Agent) -> impl Iterator<Item = (String, Agent)> + '_ {
    agent.spec.model.fallbacks.iter().filter_map(|fallback: &FallbackSpec| {
        let route = fallback.route()?;
        let mut agent = agent.clone();
        let model = &mut agent.spec.model;
        match (&fallback.base_url, &fallback.credential) {
            (base_url, Some(credential)) => {
                (model.base_url, model.credential) = (base_url.clone(), Some(credential.clone()));
            }
            (base_url, None) => model.base_url.clone_from(base_url),
        }
        Some((route, agent))
    })
}

#[cfg(test)]
mod tests {
    use longhand_crds::{Agent, Vault};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{access, uses};
    use crate::fixtures;

    fn agent(fallbacks: &Value) -> Agent {
        let mut agent = fixtures::agent();
        agent.spec.model.fallbacks = serde_json::from_value(fallbacks.clone()).unwrap();
        agent
    }

    /// The fixture's vault, and one of another provider.
    fn vault(name: &str) -> Option<Vault> {
        let mut vault = fixtures::vault();
        if name == "other" {
            vault.spec.credentials[0].allow.hosts = vec!["other.test".to_owned()];
            vault.spec.credentials[0].model_base_url = Some("http://other.test:8080/of-the-vault".to_owned());
        }
        ["models", "other"].contains(&name).then_some(vault)
    }

    #[rstest]
    #[case::as_the_first(json!([{"id": "a"}, {"id": "b", "api": "OpenAI"}]), Ok(vec![]))]
    #[case::another_path(json!([{"id": "a", "baseURL": "http://model.test:8080/x"}]), Ok(vec!["http://model.test:8080/x"]))]
    #[case::one_route_once(
        json!([{"id": "a", "baseURL": "http://model.test:8080/x"}, {"id": "b", "baseURL": "http://model.test:8080/x"}]),
        Ok(vec!["http://model.test:8080/x"]))]
    #[case::another_provider(
        json!([{"id": "a", "credential": {"vault": "other", "name": "api-key"}},
            {"id": "b", "baseURL": "http://other.test:8080", "credential": {"vault": "other", "name": "api-key"}}]),
        Ok(vec!["http://other.test:8080/of-the-vault", "http://other.test:8080"]))]
    #[case::where_the_credential_may_not_go(json!([{"id": "a", "baseURL": "http://other.test:8080"}]), Err("CredentialNotAllowed"))]
    #[case::no_vault(json!([{"id": "a", "credential": {"vault": "none", "name": "api-key"}}]), Err("VaultNotFound"))]
    fn a_fallback_is_reached_as_it_says(#[case] fallbacks: Value, #[case] expected: Result<Vec<&str>, &str>) {
        let found = access(&agent(&fallbacks), None, vault);
        let found = found.as_ref().map(|all| all.iter().map(|one| one.base_url.as_str()).collect::<Vec<_>>());
        assert_eq!(found.map_err(super::Missing::reason), expected);
    }

    #[test]
    fn a_change_of_a_vault_concerns_those_whose_fallbacks_use_it() {
        let own = agent(&json!([{"id": "a", "credential": {"vault": "other", "name": "api-key"}}]));
        assert!(uses(&own, None, "other") && !uses(&own, None, "models"));
        assert!(!uses(&fixtures::agent(), None, "models"), "that is the model's own");
    }
}
