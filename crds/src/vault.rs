//! `Vault`: which Secrets may be used where. Never a value.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::patterns;

/// Credentials, each with the one place where it may go. The values are in Secrets, which only the credential proxy mounts.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longhand.dev",
    version = "v1alpha1",
    kind = "Vault",
    namespaced,
    status = "VaultStatus",
    category = "longhand",
    printcolumn(name = "Usable", type_ = "string", json_path = ".status.conditions[?(@.type=='Usable')].status"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct VaultSpec {
    /// The credentials.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub credentials: Vec<CredentialSpec>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub display_name: Option<String>,
    /// Pairs that clients of the wire API keep with the vault.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "metadata_schema")]
    pub metadata: BTreeMap<String, String>,
}

fn metadata_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 512 },
    })
}

/// A credential: where its value is, where it may go and how it is placed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.placement.type in ['environmentVariable', 'aws'] || !self.allow.hosts.exists(host, host.startsWith('*'))")
        .message("only a credential of type environmentVariable or aws may go to hosts with a wildcard"),
    validation = Rule::new("!has(self.oauth) || self.placement.type == 'bearer'")
        .message("an OAuth token is placed as a bearer"),
)]
#[serde(rename_all = "camelCase")]
pub struct CredentialSpec {
    /// Its name in the vault.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Its identifier in the wire API; one that is derived from the vault's UID and its name if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 6, max = 62), regex(pattern = "^vcrd_[A-Za-z0-9]+$"))]
    pub id: Option<String>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub display_name: Option<String>,
    /// Pairs that clients of the wire API keep with the credential.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "metadata_schema")]
    pub metadata: BTreeMap<String, String>,
    /// The Secret that holds the value.
    pub secret_ref: SecretRef,
    /// Where it may go; anything else is refused.
    pub allow: Allow,
    /// How it is put into a request.
    pub placement: Placement,
    /// The MCP server that it is for, as the client wrote it; `allow` says the same in terms of requests.
    #[serde(default, rename = "mcpServerURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2_048))]
    pub mcp_server_url: Option<String>,
    /// The model API that it is for, without `/v1/messages`: what an Agent without a `baseURL` calls with it. `allow` has to
    /// cover it.
    #[serde(default, rename = "modelBaseURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 512), regex(pattern = patterns::BASE_URL))]
    pub model_base_url: Option<String>,
    /// What is known of an OAuth access token besides its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth: Option<OAuth>,
    /// When it was made; when the vault was, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    /// When a client last changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Time>,
    /// When it was archived: it is shown, and no longer used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived_at: Option<Time>,
}

/// What is known of an OAuth access token besides its value. Without `refresh`, write a new one when it has expired.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OAuth {
    /// When it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// How to get another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refresh>,
}

/// How to get another access token. The credential proxies do, for calls of MCP servers; new tokens become a new Secret, which the
/// vault then names.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("(self.tokenEndpointAuth == 'none') == !has(self.clientSecretRef)")
        .message("clientSecretRef belongs to every tokenEndpointAuth but none"),
)]
#[serde(rename_all = "camelCase")]
pub struct Refresh {
    /// The OAuth client.
    #[serde(rename = "clientID")]
    #[schemars(length(min = 1, max = 1_024))]
    pub client_id: String,
    /// Where tokens are asked for; `https`, since the refresh token goes there.
    #[schemars(length(min = 1, max = 2_048), regex(pattern = "^https://"))]
    pub token_endpoint: String,
    /// How the client authenticates there.
    pub token_endpoint_auth: TokenEndpointAuth,
    /// The client's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<SecretRef>,
    /// The refresh token.
    pub refresh_token_ref: SecretRef,
    /// The resource indicator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2_048))]
    pub resource: Option<String>,
    /// The scope that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024))]
    pub scope: Option<String>,
}

/// How an OAuth client authenticates at a token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenEndpointAuth {
    /// Not at all.
    None,
    /// By HTTP Basic.
    ClientSecretBasic,
    /// In the body.
    ClientSecretPost,
}

/// A key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key.
    #[schemars(length(min = 1, max = 253), regex(pattern = patterns::SECRET_KEY))]
    pub key: String,
}

/// Where a credential may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Allow {
    /// `https`, unless the upstream is inside the cluster.
    #[serde(default)]
    pub scheme: Scheme,
    /// Host names, exactly as they are called; for the types `environmentVariable` and `aws` also `*.example.com` for any name below it, and
    /// `*` for any host that the sandbox may reach.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 253), regex(pattern = patterns::HOSTS))
    )]
    pub hosts: Vec<String>,
    /// The port; that of the scheme if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
    /// Methods; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9))]
    pub methods: Vec<Method>,
    /// What the path must begin with; anything if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = patterns::PATH)))]
    pub path_prefixes: Vec<String>,
    /// Whether the host may have a private address, as a service of the cluster has.
    #[serde(default)]
    pub private_addresses: PrivateAddresses,
}

/// The scheme of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the scheme of that name")]
pub enum Scheme {
    #[default]
    Https,
    Http,
}

impl Scheme {
    /// The value in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }

    /// The port that the scheme stands for.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Http => 80,
        }
    }
}

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

/// Whether a host may have a private address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PrivateAddresses {
    /// Addresses of private networks (also carrier-grade NAT and unique local ones) and of the pod itself are refused.
    #[default]
    Refuse,
    /// They are allowed. Link-local, metadata and multicast addresses are refused all the same.
    Allow,
}

impl PrivateAddresses {
    /// Whether they are refused.
    #[must_use]
    pub const fn are_refused(&self) -> bool {
        matches!(self, Self::Refuse)
    }
}

/// How a credential is put into a request.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("(self.type == 'header') == has(self.header)").message("header belongs to a placement of type header, which needs it"),
    validation = Rule::new(patterns::NO_RESERVED_HEADER)
        .message("header frames or routes the request: a credential cannot be placed there"),
    validation = Rule::new("(self.type == 'environmentVariable') == has(self.variable)")
        .message("variable belongs to a placement of type environmentVariable, which needs it"),
    validation = Rule::new("(self.type == 'basic') == has(self.username)").message("username belongs to a placement of type basic, which needs it"),
    validation = Rule::new("(self.type == 'aws') == has(self.aws)").message("aws belongs to a placement of type aws, which needs it"),
)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// `bearer`: `Authorization: Bearer <value>`; `basic`: HTTP Basic, the value is the password; `header`: the value alone in
    /// the header that `header` names; `environmentVariable`: the sandboxes of sessions that name the vault see a placeholder,
    /// which becomes the value on the way out; `aws`: they see placeholders of AWS keys, and what they sign with them is signed
    /// anew on the way out. The value is the secret access key then.
    #[serde(rename = "type")]
    pub kind: PlacementKind,
    /// The header's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9-]+$"))]
    pub header: Option<String>,
    /// The user name of HTTP Basic; it may be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), regex(pattern = "^[!-9;-~]*$"))]
    pub username: Option<String>,
    /// The variable of the sandbox's environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variable: Option<Variable>,
    /// What AWS keys may sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsKeys>,
}

impl Placement {
    /// A placement of a kind that needs nothing else.
    #[must_use]
    pub const fn of(kind: PlacementKind) -> Self {
        Self { kind, header: None, username: None, variable: None, aws: None }
    }

    /// The variables of a sandbox's environment that hold the credential's placeholder.
    #[must_use]
    pub fn variables(&self) -> Vec<&str> {
        match (self.kind, &self.variable) {
            (PlacementKind::EnvironmentVariable, Some(variable)) => vec![&variable.name],
            (PlacementKind::Aws, _) if self.aws.is_some() => AWS_VARIABLES.to_vec(),
            _ => Vec::new(),
        }
    }
}

/// Where every AWS SDK looks for keys.
const AWS_VARIABLES: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];

/// AWS keys: the other keys of the Secret, and what may be signed with them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AwsKeys {
    /// The key of the same Secret with the access key id.
    #[serde(rename = "accessKeyIDKey")]
    #[schemars(length(min = 1, max = 253), regex(pattern = patterns::SECRET_KEY))]
    pub access_key_id_key: String,
    /// The key of the same Secret with the session token of temporary keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = patterns::SECRET_KEY))]
    pub session_token_key: Option<String>,
    /// The services, by the names that signatures have (`s3`, `dynamodb`); any if empty. Those that hand out keys are refused
    /// all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 64), regex(pattern = patterns::AWS_SCOPE)))]
    pub services: Vec<String>,
    /// The regions (`eu-central-1`); any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 64), regex(pattern = patterns::AWS_SCOPE)))]
    pub regions: Vec<String>,
}

/// A variable of the sandbox's environment that stands for a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Variable {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Where in a request the placeholder becomes the value. Query and path are in the logs of many servers, so that a value
    /// belongs there only where its upstream takes it nowhere else.
    #[schemars(length(min = 1, max = 4))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub locations: Vec<InjectionLocation>,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InjectionLocation {
    /// The values of its headers, and user name and password of HTTP Basic.
    Header,
    /// Its body, which may then have 1 MiB at most.
    Body,
    /// Its query.
    Query,
    /// Its path.
    Path,
}

/// The ways to place a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PlacementKind {
    /// `Authorization: Bearer <value>`.
    Bearer,
    /// `Authorization: Basic <user name and value>`.
    Basic,
    /// The value alone in a header.
    Header,
    /// A placeholder in the environment of the sandbox.
    EnvironmentVariable,
    /// Placeholders of AWS keys in the environment of the sandbox.
    Aws,
}

impl PlacementKind {
    /// Whether it is for what sandboxes send, and neither for the model nor for MCP servers.
    #[must_use]
    pub const fn is_for_sandboxes(self) -> bool {
        matches!(self, Self::EnvironmentVariable | Self::Aws)
    }
}

/// What is known of a vault.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the vault is well-formed. `TokensValid`: no access token is known to have expired that nothing refreshes, or to
    /// be refused a refresh by its provider. `Usable`: so is each credential that is not archived, as `credentials` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// What is known of each credential that is not archived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub credentials: Vec<CredentialStatus>,
}

/// What is known of a credential.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialStatus {
    /// Its name in the vault.
    pub name: String,
    /// `Usable`: a credential proxy could use it, as far as the proxies of sessions have seen; unknown before one has mounted it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}
