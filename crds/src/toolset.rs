//! The tools of an `Agent`.

use kube::KubeSchema;
use longhand_protocol::event::Permission;
use longhand_protocol::harness;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A tool, or a set of them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.type == 'custom' ? has(self.name) && has(self.description) && has(self.inputSchema) : !has(self.name) && !has(self.description) && !has(self.inputSchema)")
        .message("name, description and inputSchema belong to a tool of type custom, which needs all three"),
    validation = Rule::new("(self.type == 'mcp_toolset') == has(self.mcpServerName)")
        .message("mcpServerName belongs to a tool of type mcp_toolset, which needs it"),
    validation = Rule::new("self.type != 'custom' || (!has(self.defaultConfig) && !has(self.configs))")
        .message("defaultConfig and configs belong to toolsets"),
    validation = Rule::new("self.type != 'agent_toolset_20260401' || !has(self.configs) || self.configs.all(c, c.name in ['bash', 'edit', 'glob', 'grep', 'read', 'web_fetch', 'web_search', 'write'])")
        .message("agent_toolset_20260401 has the tools bash, edit, glob, grep, read, web_fetch, web_search and write"),
    validation = Rule::new("self.type == 'agent_toolset_20260401' || ((!has(self.defaultConfig) || !has(self.defaultConfig.onUnknownOutcome)) && (!has(self.configs) || self.configs.all(c, !has(c.onUnknownOutcome))))")
        .message("onUnknownOutcome belongs to agent_toolset_20260401"),
)]
#[serde(rename_all = "camelCase")]
pub struct ToolSpec {
    /// What kind of tool.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// What holds for tools of the set that `configs` does not name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_config: Option<ToolsetDefaults>,
    /// What holds for the tools of the set that are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub configs: Vec<ToolConfig>,
    /// Which of `mcpServers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub mcp_server_name: Option<String>,
    /// The name that the model uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[a-zA-Z0-9_-]+$"))]
    pub name: Option<String>,
    /// What the tool does, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4_096))]
    pub description: Option<String>,
    /// JSON schema of the tool's input, whose `type` is `object`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "input_schema")]
    pub input_schema: Option<Value>,
}

fn input_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "type": "string", "enum": ["object"] } },
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// The kinds of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ToolKind {
    /// bash, edit, glob, grep, read and write in a sandbox; `web_fetch` and `web_search`.
    #[serde(rename = "agent_toolset_20260401")]
    AgentToolset,
    /// The tools of one of `mcpServers`.
    #[serde(rename = "mcp_toolset")]
    McpToolset,
    /// A tool that the client runs.
    #[serde(rename = "custom")]
    Custom,
}

/// Who is asked before a tool runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PermissionPolicy {
    /// Nobody.
    AlwaysAllow,
    /// The client, each time.
    AlwaysAsk,
    /// The client where a call looks dangerous. Nobody judges that yet, so every call may be, and asks.
    Auto,
}

impl PermissionPolicy {
    /// What a call of the tool is evaluated to.
    #[must_use]
    pub const fn permission(self) -> Permission {
        match self {
            Self::AlwaysAllow => Permission::Allow,
            Self::AlwaysAsk | Self::Auto => Permission::Ask,
        }
    }
}

/// What becomes of a call whose sandbox was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OutcomePolicy {
    /// The model is told.
    Report,
    /// It is run again, twice at most.
    Retry,
    /// The client is asked whether it is run again.
    Ask,
}

impl ToolSpec {
    /// The tools of a sandbox for which more is done than to tell the model where their outcome is unknown.
    pub(crate) fn outcome_policies(&self) -> Vec<(String, harness::OutcomePolicy)> {
        if self.kind != ToolKind::AgentToolset {
            return Vec::new();
        }
        let default = self.default_config.and_then(|config| config.on_unknown_outcome);
        let policy = |name: &str| {
            let named = self.configs.iter().find(|config| config.name == name);
            named.and_then(|config| config.on_unknown_outcome).or(default)
        };
        let names = harness::SandboxTool::ALL.map(harness::SandboxTool::name);
        let wanted = names.into_iter().filter_map(|name| match policy(name)? {
            OutcomePolicy::Report => None,
            OutcomePolicy::Retry => Some((name.to_owned(), harness::OutcomePolicy::Retry)),
            OutcomePolicy::Ask => Some((name.to_owned(), harness::OutcomePolicy::Ask)),
        });
        wanted.collect()
    }
}

/// What holds for tools that are not named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolsetDefaults {
    /// Whether they are offered; they are unless this is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Who is asked before they run. If absent, nobody for the agent toolset, and the client for tools of MCP servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_policy: Option<PermissionPolicy>,
    /// If a call's sandbox is lost; `Report` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown_outcome: Option<OutcomePolicy>,
}

/// What holds for one tool.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.web) || (self.name == 'web_fetch' ? !has(self.web.userLocation) : self.name == 'web_search' && !has(self.web.maxContentTokens) && !has(self.web.urlSources))")
        .message("web belongs to web_fetch and web_search, maxContentTokens and urlSources to web_fetch, userLocation to web_search"),
    validation = Rule::new("!has(self.web) || !has(self.web.allowedDomains) || !has(self.web.blockedDomains)")
        .message("allowedDomains and blockedDomains exclude each other"),
)]
#[serde(rename_all = "camelCase")]
pub struct ToolConfig {
    /// Which tool.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Whether it is offered; as `defaultConfig` says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Who is asked before it runs; as `defaultConfig` says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_policy: Option<PermissionPolicy>,
    /// If a call's sandbox is lost; as `defaultConfig` says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown_outcome: Option<OutcomePolicy>,
    /// What only `web_fetch` and `web_search` have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web: Option<WebOptions>,
}

/// What only `web_fetch` and `web_search` have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebOptions {
    /// The only domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 512)))]
    pub allowed_domains: Option<Vec<String>>,
    /// Domains that are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 512)))]
    pub blocked_domains: Option<Vec<String>>,
    /// The most tokens of a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_content_tokens: Option<i32>,
    /// Which parts of the conversation give addresses that may be fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_sources: Option<UrlSources>,
    /// Where a search is made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_location: Option<UserLocation>,
}

/// Which parts of the conversation give addresses that may be fetched; all do unless something is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UrlSources {
    /// Results of custom tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_tool_results: Option<UrlFilter>,
    /// Results of the web tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_tool_results: Option<UrlFilter>,
    /// Messages of the user: `All` or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_input: Option<UrlFilter>,
}

/// Whose addresses may be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UrlFilter {
    /// All, none, those of the named tools, or those of the others.
    #[serde(rename = "type")]
    pub kind: UrlFilterKind,
    /// Names of tools, for `Only` and `Except`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 128)))]
    pub tools: Vec<String>,
}

/// The kinds of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "said at the field")]
pub enum UrlFilterKind {
    All,
    None,
    Only,
    Except,
}

/// Where a search is made from, more or less.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserLocation {
    /// City.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub city: Option<String>,
    /// Country, in two capital letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub country: Option<String>,
    /// Region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub region: Option<String>,
    /// Time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub timezone: Option<String>,
}
