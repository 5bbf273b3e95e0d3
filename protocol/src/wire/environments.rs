//! Environments on the wire.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Change;
use crate::schema::DateTime;

/// An environment: where the tools of sessions run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// Its identifier.
    pub id: String,
    /// Always `environment`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A name for people, which no other environment of the namespace has.
    pub name: String,
    /// What it is for; null unless given.
    pub description: Option<String>,
    /// How its sandboxes are made.
    pub config: EnvironmentConfig,
    /// Pairs that a client keeps with it.
    pub metadata: BTreeMap<String, String>,
    /// Who sees it.
    pub scope: Option<Scope>,
    /// When it was made.
    #[schemars(with = "DateTime")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schemars(with = "DateTime")]
    pub updated_at: Timestamp,
    /// When it was archived.
    #[schemars(with = "Option<DateTime>")]
    pub archived_at: Option<Timestamp>,
}

/// Who sees an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everybody whom RBAC lets see the namespace's.
    Organization,
    /// Only who made it. Not served.
    Account,
}

/// How the sandboxes of an environment are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EnvironmentConfig {
    /// By Longhand.
    Cloud {
        /// What they may reach.
        networking: Networking,
        /// What is installed in them.
        packages: Packages,
    },
    /// By a worker of the customer.
    SelfHosted,
}

/// What a sandbox may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Networking {
    /// Every public host.
    Unrestricted,
    /// These hosts.
    Limited {
        /// Host names.
        allowed_hosts: Vec<String>,
        /// And the MCP servers of the agent.
        allow_mcp_servers: bool,
        /// And public package registries.
        allow_package_managers: bool,
    },
}

/// What is installed, by package manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "each is the package manager of that name")]
pub struct Packages {
    /// Always `packages`.
    #[serde(rename = "type")]
    pub kind: PackagesTag,
    pub apt: Vec<String>,
    pub cargo: Vec<String>,
    pub gem: Vec<String>,
    pub go: Vec<String>,
    pub npm: Vec<String>,
    pub pip: Vec<String>,
}

/// The constant `packages`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PackagesTag {
    /// `packages`
    #[default]
    Packages,
}

/// `POST /v1/environments`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each is the field of Environment of that name")]
pub struct CreateEnvironment {
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub config: Option<ConfigParam>,
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub scope: Option<Scope>,
}

/// `POST /v1/environments/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each is the field of Environment of that name")]
pub struct UpdateEnvironment {
    /// Null keeps it, since it cannot be cleared.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub description: Change<String>,
    #[serde(default)]
    pub config: Option<ConfigParam>,
    /// A pair whose value is null or empty is taken out; pairs that are not named stay.
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, Option<String>>>,
    #[serde(default)]
    pub scope: Option<Scope>,
}

/// [`EnvironmentConfig`] as a request gives it: what is left out is kept on an update.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConfigParam {
    /// By Longhand.
    Cloud {
        /// What the sandboxes may reach.
        #[serde(default)]
        networking: Option<NetworkingParam>,
        /// What is installed in them.
        #[serde(default)]
        packages: Option<PackagesParam>,
    },
    /// By a worker of the customer.
    SelfHosted {},
}

/// [`Networking`] as a request gives it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum NetworkingParam {
    /// Every public host.
    Unrestricted {},
    /// These hosts.
    Limited {
        /// Host names.
        #[serde(default)]
        allowed_hosts: Option<Vec<String>>,
        /// And the MCP servers of the agent.
        #[serde(default)]
        allow_mcp_servers: Option<bool>,
        /// And public package registries.
        #[serde(default)]
        allow_package_managers: Option<bool>,
    },
}

/// [`Packages`] as a request gives them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each is the package manager of that name")]
pub struct PackagesParam {
    #[serde(rename = "type", default)]
    pub kind: Option<PackagesTag>,
    #[serde(default)]
    pub apt: Option<Vec<String>>,
    #[serde(default)]
    pub cargo: Option<Vec<String>>,
    #[serde(default)]
    pub gem: Option<Vec<String>>,
    #[serde(default)]
    pub go: Option<Vec<String>>,
    #[serde(default)]
    pub npm: Option<Vec<String>>,
    #[serde(default)]
    pub pip: Option<Vec<String>>,
}

/// The answer to `DELETE /v1/environments/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvironmentDeleted {
    /// The environment that is gone.
    pub id: String,
    /// Always `environment_deleted`.
    #[serde(rename = "type")]
    pub kind: String,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{ConfigParam, EnvironmentConfig, Networking, Packages};

    #[test]
    fn an_answer_has_every_key() {
        let config = EnvironmentConfig::Cloud { networking: Networking::Unrestricted, packages: Packages::default() };
        let expected = json!({"type": "cloud", "networking": {"type": "unrestricted"},
            "packages": {"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": []}});
        assert_eq!(serde_json::to_value(config).unwrap(), expected);
        assert_eq!(serde_json::to_value(EnvironmentConfig::SelfHosted).unwrap(), json!({"type": "self_hosted"}));
    }

    #[rstest]
    #[case(json!({"type": "cloud"}), true)]
    #[case(json!({"type": "self_hosted"}), true)]
    #[case(json!({"type": "cloud", "networking": null, "packages": {"type": "packages", "pip": ["a"], "npm": null}}), true)]
    #[case(json!({"type": "cloud", "networking": {"type": "limited", "allow_mcp_servers": null}}), true)]
    #[case(json!({"type": "self_hosted", "networking": null}), false)]
    #[case(json!({"type": "cloud", "networking": {"type": "unrestricted", "allowed_hosts": []}}), false)]
    #[case(json!({"type": "cloud", "packages": {"brew": []}}), false)]
    #[case(json!({"type": "moon"}), false)]
    fn requests_are_read_strictly(#[case] config: Value, #[case] understood: bool) {
        assert_eq!(serde_json::from_value::<ConfigParam>(config).is_ok(), understood);
    }
}
