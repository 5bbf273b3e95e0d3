//! Vaults and their credentials: how they are shown, and what clients write. A value that was written is never shown.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::schema::DateTime;
use crate::secret::SecretValue;

/// A vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vault {
    /// Its identifier, `vlt_...`.
    pub id: String,
    /// Always `vault`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A name for people.
    pub display_name: String,
    /// Pairs that clients keep with it.
    pub metadata: BTreeMap<String, String>,
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

/// A credential, without its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Credential {
    /// Its identifier, `vcrd_...`.
    pub id: String,
    /// Always `vault_credential`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The vault that holds it.
    pub vault_id: String,
    /// A name for people.
    pub display_name: Option<String>,
    /// What it is, and where it may go.
    pub auth: CredentialAuth,
    /// Pairs that clients keep with it.
    pub metadata: BTreeMap<String, String>,
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

/// What a credential is, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CredentialAuth {
    /// An OAuth token for an MCP server.
    McpOauth {
        /// The MCP server.
        mcp_server_url: String,
        /// When the access token expires.
        #[schemars(with = "Option<DateTime>")]
        expires_at: Option<Timestamp>,
        /// How to get another one.
        refresh: Option<Refresh>,
    },
    /// A token for an MCP server.
    StaticBearer {
        /// The MCP server.
        mcp_server_url: String,
    },
    /// A variable of the sandbox's environment.
    EnvironmentVariable {
        /// The variable's name.
        secret_name: String,
        /// Where the value may go.
        networking: CredentialNetworking,
        /// Where in a request the placeholder becomes the value.
        injection_location: InjectionLocation,
    },
}

/// How to get another access token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refresh {
    /// The OAuth client.
    pub client_id: String,
    /// Where tokens are asked for.
    pub token_endpoint: String,
    /// How the client authenticates there.
    pub token_endpoint_auth: TokenEndpointAuth,
    /// The resource indicator.
    pub resource: Option<String>,
    /// The scope that is asked for.
    pub scope: Option<String>,
}

/// How an OAuth client authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenEndpointAuth {
    /// The way.
    #[serde(rename = "type")]
    pub kind: TokenEndpointAuthKind,
}

/// The ways in which an OAuth client authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenEndpointAuthKind {
    /// Not at all.
    None,
    /// By HTTP Basic.
    ClientSecretBasic,
    /// In the body.
    ClientSecretPost,
}

/// Where the value of a variable may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum CredentialNetworking {
    /// To any host that the sandbox may reach.
    Unrestricted {},
    /// To these hosts.
    Limited {
        /// Host names, IPv4 addresses, and `*.` with a host name.
        allowed_hosts: Vec<String>,
    },
}

/// Where in a request a placeholder becomes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InjectionLocation {
    /// In its body.
    pub body: bool,
    /// In the values of its headers.
    pub header: bool,
}

/// The answer to a deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deleted {
    /// What is gone.
    pub id: String,
    /// `vault_deleted`, `vault_credential_deleted` or `session_resource_deleted`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Whether a credential was accepted by its MCP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CredentialValidation {
    /// Always `vault_credential_validation`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The vault.
    pub vault_id: String,
    /// The credential.
    pub credential_id: String,
    /// Whether a refresh token was written.
    pub has_refresh_token: bool,
    /// The verdict. The service cannot read what it stored, so that it is `unknown`.
    pub status: ValidationStatus,
    /// Which step failed; null, since none was made.
    pub mcp_probe: Option<()>,
    /// How an exchange of tokens went; null, since none was made.
    pub refresh: Option<()>,
    /// When it was asked.
    #[schemars(with = "DateTime")]
    pub validated_at: Timestamp,
}

/// The verdict on a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidationStatus {
    /// It was not tried.
    Unknown,
}

/// A change of pairs: a text sets, null removes.
pub type MetadataPatch = BTreeMap<String, Option<String>>;

/// `POST /v1/vaults`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVault {
    /// A name for people.
    pub display_name: String,
    /// Pairs.
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// `POST /v1/vaults/{id}`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateVault {
    /// Another name.
    #[serde(default)]
    pub display_name: Option<String>,
    /// Changes of pairs.
    #[serde(default)]
    pub metadata: Option<MetadataPatch>,
}

/// `POST /v1/vaults/{id}/credentials`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    /// What it is, with its values.
    pub auth: WrittenAuth,
    /// A name for people.
    #[serde(default)]
    pub display_name: Option<String>,
    /// Pairs.
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// `POST /v1/vaults/{id}/credentials/{id}`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateCredential {
    /// What changes in what it is.
    #[serde(default)]
    pub auth: Option<WrittenAuth>,
    /// Another name; null removes it.
    #[serde(default, deserialize_with = "given")]
    pub display_name: Option<Option<String>>,
    /// Changes of pairs.
    #[serde(default)]
    pub metadata: Option<MetadataPatch>,
}

/// The kinds of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthKind {
    /// See [`CredentialAuth::McpOauth`].
    McpOauth,
    /// See [`CredentialAuth::StaticBearer`].
    StaticBearer,
    /// See [`CredentialAuth::EnvironmentVariable`].
    EnvironmentVariable,
}

/// What a client writes of a credential: the fields of every kind. It is one type, and not one for each kind, because
/// serde keeps a copy of what it reads before it knows the kind, and the copy of a value would not be cleared.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenAuth {
    /// The kind.
    #[serde(rename = "type")]
    pub kind: AuthKind,
    /// `mcp_oauth`: the access token.
    #[serde(default)]
    pub access_token: Option<SecretValue>,
    /// `static_bearer`: the token.
    #[serde(default)]
    pub token: Option<SecretValue>,
    /// `environment_variable`: the value.
    #[serde(default)]
    pub secret_value: Option<SecretValue>,
    /// The MCP server.
    #[serde(default)]
    pub mcp_server_url: Option<String>,
    /// `mcp_oauth`: when the access token expires; null for unknown.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<DateTime>")]
    pub expires_at: Option<Option<Timestamp>>,
    /// `mcp_oauth`: how to get another one.
    #[serde(default)]
    pub refresh: Option<WrittenRefresh>,
    /// `environment_variable`: its name.
    #[serde(default)]
    pub secret_name: Option<String>,
    /// `environment_variable`: where it may go.
    #[serde(default)]
    pub networking: Option<WrittenNetworking>,
    /// `environment_variable`: where in a request.
    #[serde(default)]
    pub injection_location: Option<WrittenLocation>,
}

/// What a client writes of how to get another access token.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenRefresh {
    /// The OAuth client.
    #[serde(default)]
    pub client_id: Option<String>,
    /// The refresh token.
    #[serde(default)]
    pub refresh_token: Option<SecretValue>,
    /// Where tokens are asked for.
    #[serde(default)]
    pub token_endpoint: Option<String>,
    /// How the client authenticates there.
    #[serde(default)]
    pub token_endpoint_auth: Option<WrittenEndpointAuth>,
    /// The resource indicator.
    #[serde(default)]
    pub resource: Option<String>,
    /// The scope; an empty one removes it.
    #[serde(default)]
    pub scope: Option<String>,
}

/// What a client writes of how an OAuth client authenticates.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenEndpointAuth {
    /// The way.
    #[serde(rename = "type")]
    pub kind: TokenEndpointAuthKind,
    /// The client's secret.
    #[serde(default)]
    pub client_secret: Option<SecretValue>,
}

/// What a client writes of where a variable's value may go.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenNetworking {
    /// Whether to certain hosts only.
    #[serde(rename = "type")]
    pub kind: NetworkingKind,
    /// Which ones; with `limited` only.
    #[serde(default)]
    pub allowed_hosts: Option<Vec<String>>,
}

/// Whether a variable's value may go to certain hosts only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkingKind {
    /// To any that the sandbox may reach.
    Unrestricted,
    /// To those that are named.
    Limited,
}

/// What a client writes of where in a request a placeholder becomes the value.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenLocation {
    /// In its body.
    #[serde(default)]
    pub body: Option<bool>,
    /// In the values of its headers.
    #[serde(default)]
    pub header: Option<bool>,
}

/// Tells a field that is null from one that is absent.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}
