//! `Agent`: which model, with which instructions and tools.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::patterns;
use crate::sandbox_template::Resources;

/// Which model, with which instructions and tools. A running session keeps the agent as it was when the session began.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longhand.dev",
    version = "v1alpha1",
    kind = "Agent",
    namespaced,
    status = "AgentStatus",
    category = "longhand",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.id"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// The model and the credential that it is called with.
    pub model: ModelSpec,
    /// The system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100_000))]
    pub system: Option<String>,
    /// The tools that the model is offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(
        validation = Rule::new("self.filter(t, t.type == 'agent_toolset_20260401').size() <= 1")
            .message("tools may hold agent_toolset_20260401 once"),
        validation = Rule::new("self.all(t, !has(t.name) || self.exists_one(other, has(other.name) && other.name == t.name))")
            .message("tools may hold each name once"),
        validation = Rule::new("self.all(set, set.type == 'custom' || self.all(t, !has(t.name) || !(t.name in ['bash', 'edit', 'glob', 'grep', 'read', 'write']) || (has(set.disabled) && t.name in set.disabled)))")
            .message("a custom tool has the name of a tool of agent_toolset_20260401: disable that one"),
    )]
    pub tools: Vec<ToolSpec>,
    /// The brain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harness: Option<HarnessSpec>,
}

/// A model and how it is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// The name that the model API knows.
    #[schemars(length(min = 1, max = 256))]
    pub id: String,
    /// Where the model API is, without `/v1/messages`.
    #[serde(default = "default_base_url", rename = "baseURL")]
    #[schemars(
        length(min = 8, max = 512),
        regex(pattern = patterns::BASE_URL)
    )]
    pub base_url: String,
    /// The most tokens that one answer may have.
    #[serde(default = "default_max_tokens")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_tokens: i32,
    /// The value of the `anthropic-version` header.
    #[serde(default = "default_api_version")]
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[!-~]+$"))]
    pub api_version: String,
    /// The credential that the proxy puts into each request.
    pub credential: CredentialRef,
}

fn default_base_url() -> String {
    "https://api.anthropic.com".to_owned()
}

const fn default_max_tokens() -> i32 {
    8_192
}

fn default_api_version() -> String {
    "2023-06-01".to_owned()
}

/// A credential of a vault in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRef {
    /// The `Vault`.
    #[schemars(length(min = 1, max = 253))]
    pub vault: String,
    /// The credential's name in it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// A tool, or a set of them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.type == 'custom' ? has(self.name) && has(self.description) && has(self.inputSchema) : !has(self.name) && !has(self.description) && !has(self.inputSchema)")
        .message("name, description and inputSchema belong to a tool of type custom, which needs all three"),
    validation = Rule::new("self.type == 'agent_toolset_20260401' || !has(self.disabled)")
        .message("disabled belongs to a tool of type agent_toolset_20260401"),
)]
#[serde(rename_all = "camelCase")]
pub struct ToolSpec {
    /// What kind of tool.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// Tools of the set that are switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 6))]
    pub disabled: Option<Vec<SandboxToolName>>,
    /// The name that the model uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-zA-Z0-9_-]+$"))]
    pub name: Option<String>,
    /// What the tool does, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4_096))]
    pub description: Option<String>,
    /// JSON schema of the tool's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub input_schema: Option<Value>,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true })
}

/// The kinds of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ToolKind {
    /// bash, edit, glob, grep, read and write in a sandbox.
    #[serde(rename = "agent_toolset_20260401")]
    AgentToolset,
    /// A tool that the client runs.
    #[serde(rename = "custom")]
    Custom,
}

/// The tools of the agent toolset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the tool of that name")]
pub enum SandboxToolName {
    Bash,
    Edit,
    Glob,
    Grep,
    Read,
    Write,
}

/// The brain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HarnessSpec {
    /// Image of the harness; the built-in one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024))]
    pub image: Option<String>,
    /// What the harness container needs and may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// What is known of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// A hash of what changes behaviour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}
