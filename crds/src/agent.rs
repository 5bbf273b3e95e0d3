//! `Agent`: which model, with which instructions and tools.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent_context::{ContextSpec, PricesSpec};
use crate::model::{ContextManagement, FallbackSpec, ModelApi, ThinkingSpec};
use crate::patterns;
use crate::sandbox_template::Resources;
use crate::toolset::{PermissionPolicy, ToolSpec};
use crate::vault::PrivateAddresses;

/// Which model, with which instructions and tools. A running session keeps the agent as it was when the session began.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longhand.dev",
    version = "v1alpha1",
    kind = "Agent",
    namespaced,
    status = "AgentStatus",
    category = "longhand",
    scale(
        spec_replicas_path = ".spec.warm",
        status_replicas_path = ".status.warmReady",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.id"),
    printcolumn(name = "Version", type_ = "integer", json_path = ".status.version"),
    printcolumn(name = "Warm", type_ = "integer", json_path = ".status.warmReady"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.tools) || self.tools.all(t, !has(t.mcpServerName) || (has(self.mcpServers) && self.mcpServers.exists(s, s.name == t.mcpServerName)))")
        .message("mcpServerName of each tool of type mcp_toolset must be the name of one of mcpServers"),
    validation = Rule::new("!has(self.mcpServers) || self.mcpServers.all(s, has(self.tools) && self.tools.exists(t, has(t.mcpServerName) && t.mcpServerName == s.name))")
        .message("each of mcpServers must be named by a tool of type mcp_toolset"),
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// A name for people; the object's name if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub display_name: Option<String>,
    /// What the agent is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4_096))]
    pub description: Option<String>,
    /// The model and the credential that it is called with.
    pub model: ModelSpec,
    /// The system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100_000))]
    pub system: Option<String>,
    /// The tools that the model is offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(
        validation = Rule::new("self.filter(t, t.type == 'agent_toolset_20260401').size() <= 1")
            .message("tools may hold agent_toolset_20260401 once"),
        validation = Rule::new("self.all(t, !has(t.mcpServerName) || self.exists_one(other, has(other.mcpServerName) && other.mcpServerName == t.mcpServerName))")
            .message("tools may hold one mcp_toolset for each of mcpServers"),
        validation = Rule::new("self.all(t, !has(t.name) || self.exists_one(other, has(other.name) && other.name == t.name))")
            .message("tools may hold each name once"),
        validation = Rule::new(ONE_TOOL_OF_A_NAME)
            .message("a custom tool has the name of a tool of agent_toolset_20260401: switch that one off in its configs"),
    )]
    pub tools: Vec<ToolSpec>,
    /// Servers of tools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub mcp_servers: Vec<McpServerSpec>,
    /// How much the model is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextSpec>,
    /// Whether the model is offered the tool `handoff`, by which it hands a sandbox of its session to another session whose agent
    /// has it too, and who is asked before; not offered if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handoff: Option<PermissionPolicy>,
    /// Pairs that clients of the wire API keep with the agent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::metadata_schema")]
    pub metadata: BTreeMap<String, String>,
    /// The brain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harness: Option<HarnessSpec>,
    /// How many harness pods are kept ready for sessions that have no vaults and no overrides of their own.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub warm: i32,
}

/// The outer loop is over names, since the cost of the loops multiplies.
const ONE_TOOL_OF_A_NAME: &str = concat!(
    "['bash', 'edit', 'glob', 'grep', 'read', 'web_fetch', 'web_search', 'write'].all(n, ",
    "!self.exists(t, has(t.name) && t.name == n) || self.all(s, s.type != 'agent_toolset_20260401' || (",
    "has(s.configs) && s.configs.exists(c, c.name == n && has(c.enabled)) ",
    "? s.configs.exists(c, c.name == n && has(c.enabled) && !c.enabled) ",
    ": has(s.defaultConfig) && has(s.defaultConfig.enabled) && !s.defaultConfig.enabled)))",
);

/// A server of tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpServerSpec {
    /// What tools of type `mcp_toolset` call it.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Where it is.
    #[schemars(length(min = 8, max = 2_048), regex(pattern = "^https?://[^ ]+$"))]
    pub url: String,
    /// What the proxy puts into each request, unless a vault of the session has a credential for this URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialRef>,
    /// Whether it may have a private address where it is called without a credential; with one, the vault says so.
    #[serde(default, skip_serializing_if = "PrivateAddresses::are_refused")]
    pub private_addresses: PrivateAddresses,
}

impl McpServerSpec {
    /// A server at a public address, called without a credential.
    #[must_use]
    pub const fn new(name: String, url: String) -> Self {
        Self { name, url, credential: None, private_addresses: PrivateAddresses::Refuse }
    }

    /// These servers, each with what `known` has for the same name and URL: what the wire API does not show is kept.
    #[must_use]
    pub fn completed(servers: Vec<Self>, known: &[Self]) -> Vec<Self> {
        let complete = |server: Self| {
            let same = known.iter().find(|known| known.name == server.name && known.url == server.url);
            same.cloned().unwrap_or(Self::new(server.name, server.url))
        };
        servers.into_iter().map(complete).collect()
    }
}

/// A model and how it is called.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.api) || self.api == 'Anthropic' || !(has(self.thinking) || has(self.contextManagement) || has(self.betas))")
        .message("thinking, contextManagement and betas are for models of the Anthropic API"),
    validation = Rule::new("!has(self.thinking) || (self.thinking.type == 'enabled') == has(self.thinking.budgetTokens)")
        .message("thinking.budgetTokens is given with type enabled, and with no other"),
    validation = Rule::new("!has(self.fallbacks) || self.fallbacks.all(f, !has(f.prices) || (has(self.prices) && f.prices.currency == self.prices.currency))")
        .message("prices of fallbacks need prices of the first model, in the same currency"),
)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// The name that the model API knows.
    #[schemars(length(min = 1, max = 256))]
    pub id: String,
    /// Which API is spoken to it; `Anthropic` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ModelApi>,
    /// Where the model API is, without `/v1/messages` or `/v1/chat/completions`. If absent, where the credential says; if that says nothing either, where
    /// the installation's default model is for an agent without a credential of its own, else `https://api.anthropic.com`.
    #[serde(default, rename = "baseURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 512), regex(pattern = patterns::BASE_URL))]
    pub base_url: Option<String>,
    /// The most tokens that one answer may have.
    #[serde(default = "default_max_tokens")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_tokens: i32,
    /// The value of the `anthropic-version` header.
    #[serde(default = "default_api_version")]
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[!-~]+$"))]
    pub api_version: String,
    /// The credential that the proxy puts into each request; that of the installation's default model if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialRef>,
    /// How hard the model works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// How fast it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// Where it is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub inference_geo: Option<String>,
    /// What its tokens cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<PricesSpec>,
    /// How long it thinks; as the model has it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<ThinkingSpec>,
    /// What the model API does to a context that grows; nothing if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_management: Option<ContextManagement>,
    /// Values of the `anthropic-beta` header, beside those that the fields here need.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::model::betas")]
    pub betas: Vec<String>,
    /// Models that are asked when this one fails, in order. Each turn begins with this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub fallbacks: Vec<FallbackSpec>,
}

/// How hard a model works, in the model API's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the model API's own words")]
pub enum Effort {
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// How fast a model answers, in the model API's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the model API's own words")]
pub enum Speed {
    Standard,
    Fast,
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

/// The brain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HarnessSpec {
    /// Image of the harness; the built-in one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024))]
    pub image: Option<String>,
    /// What the harness container needs and may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// How many sessions one of the pods that `warm` keeps ready serves at once.
    #[serde(default = "default_sessions_per_pod", skip_serializing_if = "is_default_sessions_per_pod")]
    #[schemars(range(min = 1, max = 64))]
    pub sessions_per_pod: i32,
}

impl Default for HarnessSpec {
    fn default() -> Self {
        Self { image: None, resources: None, sessions_per_pod: default_sessions_per_pod() }
    }
}

const fn default_sessions_per_pod() -> i32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_default_sessions_per_pod(sessions: &i32) -> bool {
    *sessions == default_sessions_per_pod()
}

/// What is known of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Counts the changes of the spec, from 1. Each is kept as a ControllerRevision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// How many of `warmPods` have room for another session.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub warm_ready: i32,
    /// Selects the pods of `warmPods`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The only pods that may take sessions of the agent that they were not made for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub warm_pods: Vec<WarmPod>,
    /// How many there have been.
    #[serde(default, skip_serializing_if = "is_zero_64")]
    pub warm_generation: i64,
    /// Those that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_failures: Option<WarmFailures>,
    /// `Ready`, and `WarmReady` if `spec.warm` was ever set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_zero(count: &i32) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_zero_64(count: &i64) -> bool {
    *count == 0
}

/// A harness pod that belongs to no session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What it does.
    pub state: WarmState,
    /// Since when.
    pub since: Time,
}

/// What a harness pod does that belongs to no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WarmState {
    /// It does not run yet.
    Starting,
    /// It waits for a session.
    Parked,
    /// It serves at least one.
    Taken,
    /// It gets no more sessions and goes when it serves none.
    Retiring,
}

/// Harness pods that failed before one was ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmFailures {
    /// How many in a row.
    pub count: i64,
    /// When the last one was seen.
    pub at: Time,
}
