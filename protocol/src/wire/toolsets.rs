//! Sets of tools: which are on, and who is asked before they run.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::event::Permission;

/// Who is asked before a tool runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
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

/// What holds for the tools of a set that are not named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolsetConfig {
    /// Whether they are offered.
    pub enabled: bool,
    /// Who is asked before they run.
    pub permission_policy: PermissionPolicy,
}

/// [`ToolsetConfig`] as a request gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolsetDefaults {
    /// Whether they are offered; they are unless this is false.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Who is asked before they run.
    #[serde(default)]
    pub permission_policy: Option<PermissionPolicy>,
}

/// A tool or a set of tools as a request gives it.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum ToolParam {
    /// The built-in tools.
    #[serde(rename = "agent_toolset_20260401")]
    AgentToolset {
        /// What holds for tools that `configs` does not name.
        #[serde(default)]
        default_config: Option<ToolsetDefaults>,
        /// What holds for the tools that are named.
        #[serde(default)]
        configs: Option<Vec<BuiltinConfig<Option<bool>, Option<PermissionPolicy>>>>,
    },
    /// The tools of a server.
    #[serde(rename = "mcp_toolset")]
    McpToolset {
        /// Which of `mcp_servers`.
        mcp_server_name: String,
        /// What holds for tools that `configs` does not name.
        #[serde(default)]
        default_config: Option<ToolsetDefaults>,
        /// What holds for the tools that are named.
        #[serde(default)]
        configs: Option<Vec<McpConfig<Option<bool>, Option<PermissionPolicy>>>>,
    },
    /// A tool that the client runs.
    #[serde(rename = "custom")]
    Custom {
        /// The name that the model uses.
        name: String,
        /// What the tool does, for the model.
        description: String,
        /// JSON schema of the input.
        input_schema: Map<String, Value>,
    },
}

/// A built-in tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the tool of that name")]
pub enum BuiltinTool {
    Bash,
    Edit,
    Glob,
    Grep,
    Read,
    WebFetch,
    WebSearch,
    Write,
}

impl BuiltinTool {
    /// Every tool, sorted by name.
    pub const ALL: [Self; 8] =
        [Self::Bash, Self::Edit, Self::Glob, Self::Grep, Self::Read, Self::WebFetch, Self::WebSearch, Self::Write];

    /// The name that the model uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Edit => "edit",
            Self::Glob => "glob",
            Self::Grep => "grep",
            Self::Read => "read",
            Self::WebFetch => "web_fetch",
            Self::WebSearch => "web_search",
            Self::Write => "write",
        }
    }
}

impl fmt::Display for BuiltinTool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What holds for a built-in tool. `E` and `P` are options in a request, and filled in in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltinConfig<E, P> {
    /// Which tool.
    pub name: BuiltinTool,
    /// Whether it is offered.
    pub enabled: E,
    /// Who is asked before it runs.
    pub permission_policy: P,
    /// What only tools of the web have.
    pub web: WebOptions,
}

/// What only `web_fetch` and `web_search` have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebOptions {
    /// The only domains, if any are named.
    pub allowed_domains: Option<Vec<String>>,
    /// Domains that are left out.
    pub blocked_domains: Option<Vec<String>>,
    /// The most tokens of a page (`web_fetch`).
    pub max_content_tokens: Option<u32>,
    /// Which addresses may be fetched (`web_fetch`).
    pub url_sources: Option<UrlSources>,
    /// Where a search is made from (`web_search`).
    pub user_location: Option<UserLocation>,
}

/// Which parts of the conversation give addresses that may be fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UrlSources {
    /// Results of custom tools.
    #[serde(default)]
    pub client_tool_results: Option<UrlFilter>,
    /// Results of the web tools.
    #[serde(default)]
    pub server_tool_results: Option<UrlFilter>,
    /// Messages of the user.
    #[serde(default)]
    pub user_input: Option<UrlFilter>,
}

/// Whose addresses may be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum UrlFilter {
    /// All.
    All,
    /// None.
    None,
    /// Those of these tools.
    Only {
        /// The tools.
        tools: Vec<ToolReference>,
    },
    /// Those of all other tools.
    Except {
        /// The tools.
        tools: Vec<ToolReference>,
    },
}

impl<'de> Deserialize<'de> for UrlFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
        enum Long {
            All,
            None,
            Only { tools: Vec<ToolReference> },
            Except { tools: Vec<ToolReference> },
        }
        let long = match Value::deserialize(deserializer)? {
            Value::String(short) => serde_json::json!({ "type": short }),
            long => long,
        };
        Ok(match serde_json::from_value(long).map_err(serde::de::Error::custom)? {
            Long::All => Self::All,
            Long::None => Self::None,
            Long::Only { tools } => Self::Only { tools },
            Long::Except { tools } => Self::Except { tools },
        })
    }
}

impl JsonSchema for UrlFilter {
    fn schema_name() -> Cow<'static, str> {
        "UrlFilter".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let tools = generator.subschema_for::<Vec<ToolReference>>();
        let plain = json_schema!({
            "type": "object", "required": ["type"], "additionalProperties": false,
            "properties": { "type": { "type": "string", "enum": ["all", "none"] } },
        });
        let of_tools = json_schema!({
            "type": "object", "required": ["type", "tools"], "additionalProperties": false,
            "properties": { "type": { "type": "string", "enum": ["only", "except"] }, "tools": tools },
        });
        if generator.contract().is_serialize() {
            return json_schema!({ "anyOf": [plain, of_tools] });
        }
        json_schema!({ "anyOf": [{ "type": "string", "enum": ["all", "none"] }, plain, of_tools] })
    }
}

/// Names a tool in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToolReference {
    /// By its name.
    ToolReference {
        /// The name.
        name: String,
    },
}

/// Where a search is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum UserLocation {
    /// More or less.
    Approximate {
        /// City.
        #[serde(default)]
        city: Option<String>,
        /// Country, in two letters.
        #[serde(default)]
        country: Option<String>,
        /// Region.
        #[serde(default)]
        region: Option<String>,
        /// Time zone.
        #[serde(default)]
        timezone: Option<String>,
    },
}

/// What holds for a tool of a server. `E` and `P` are options in a request, and filled in in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct McpConfig<E, P> {
    /// Which tool.
    pub name: String,
    /// Whether it is offered.
    pub enabled: E,
    /// Who is asked before it runs.
    pub permission_policy: P,
}

/// The flat form of [`BuiltinConfig`].
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Flat<E, P> {
    #[serde(rename = "type", default)]
    kind: Option<BuiltinTool>,
    name: BuiltinTool,
    enabled: E,
    permission_policy: P,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allowed_domains: Option<Option<Vec<String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocked_domains: Option<Option<Vec<String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_content_tokens: Option<Option<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url_sources: Option<Option<UrlSources>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user_location: Option<Option<UserLocation>>,
}

impl<E: Serialize + Clone, P: Serialize + Clone> Serialize for BuiltinConfig<E, P> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (fetch, search) = (self.name == BuiltinTool::WebFetch, self.name == BuiltinTool::WebSearch);
        let web = &self.web;
        let flat = Flat {
            kind: Some(self.name),
            name: self.name,
            enabled: self.enabled.clone(),
            permission_policy: self.permission_policy.clone(),
            allowed_domains: (fetch || search).then(|| web.allowed_domains.clone()),
            blocked_domains: (fetch || search).then(|| web.blocked_domains.clone()),
            max_content_tokens: fetch.then_some(web.max_content_tokens),
            url_sources: fetch.then(|| web.url_sources.clone()),
            user_location: search.then(|| web.user_location.clone()),
        };
        flat.serialize(serializer)
    }
}

impl<'de, E: Deserialize<'de>, P: Deserialize<'de>> Deserialize<'de> for BuiltinConfig<E, P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let flat = Flat::<E, P>::deserialize(deserializer)?;
        let wrong = |what: String| Err(serde::de::Error::custom(what));
        if let Some(kind) = flat.kind.filter(|kind| *kind != flat.name) {
            return wrong(format!("`type` is `{kind}` and `name` is `{}`", flat.name));
        }
        let web = WebOptions {
            allowed_domains: flat.allowed_domains.flatten(),
            blocked_domains: flat.blocked_domains.flatten(),
            max_content_tokens: flat.max_content_tokens.flatten(),
            url_sources: flat.url_sources.flatten(),
            user_location: flat.user_location.flatten(),
        };
        if let Some(field) = web.foreign(flat.name) {
            return wrong(format!("`{field}` does not belong to the tool `{}`", flat.name));
        }
        Ok(Self { name: flat.name, enabled: flat.enabled, permission_policy: flat.permission_policy, web })
    }
}

impl<E: JsonSchema, P: JsonSchema> JsonSchema for BuiltinConfig<E, P> {
    fn schema_name() -> Cow<'static, str> {
        "BuiltinConfig".into()
    }

    fn schema_id() -> Cow<'static, str> {
        format!("BuiltinConfig<{}, {}>", E::schema_id(), P::schema_id()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Flat::<E, P>::json_schema(generator)
    }
}

impl WebOptions {
    /// An option that a tool does not have.
    fn foreign(&self, tool: BuiltinTool) -> Option<&'static str> {
        let (fetch, search) = (tool == BuiltinTool::WebFetch, tool == BuiltinTool::WebSearch);
        [
            ("allowed_domains", self.allowed_domains.is_some(), fetch || search),
            ("blocked_domains", self.blocked_domains.is_some(), fetch || search),
            ("max_content_tokens", self.max_content_tokens.is_some(), fetch),
            ("url_sources", self.url_sources.is_some(), fetch),
            ("user_location", self.user_location.is_some(), search),
        ]
        .into_iter()
        .find_map(|(field, given, belongs)| (given && !belongs).then_some(field))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{BuiltinConfig, PermissionPolicy, ToolParam};
    use crate::event::Permission;

    #[rstest]
    #[case(json!({"type": "bash", "name": "bash", "enabled": true, "permission_policy": {"type": "always_ask"}}))]
    #[case(json!({"type": "web_search", "name": "web_search", "enabled": false, "permission_policy": {"type": "auto"},
        "allowed_domains": ["a.test"], "blocked_domains": null,
        "user_location": {"type": "approximate", "city": "Bern", "country": "CH", "region": null, "timezone": null}}))]
    #[case(json!({"type": "web_fetch", "name": "web_fetch", "enabled": true, "permission_policy": {"type": "auto"},
        "allowed_domains": null, "blocked_domains": null, "max_content_tokens": 7, "url_sources": {
            "client_tool_results": {"type": "only", "tools": [{"type": "tool_reference", "name": "t"}]},
            "server_tool_results": {"type": "none"}, "user_input": null}}))]
    fn a_config_is_written_as_it_is_read(#[case] json: Value) {
        let config: BuiltinConfig<bool, PermissionPolicy> = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(config).unwrap(), json);
    }

    #[rstest]
    #[case(PermissionPolicy::AlwaysAllow, Permission::Allow)]
    #[case(PermissionPolicy::AlwaysAsk, Permission::Ask)]
    #[case(PermissionPolicy::Auto, Permission::Ask)]
    fn what_nobody_has_judged_asks(#[case] policy: PermissionPolicy, #[case] permission: Permission) {
        assert_eq!(policy.permission(), permission);
    }

    fn toolset(config: &Value) -> Result<ToolParam, serde_json::Error> {
        serde_json::from_value(json!({"type": "agent_toolset_20260401", "configs": [config]}))
    }

    #[rstest]
    #[case(json!({"name": "bash"}))]
    #[case(json!({"name": "bash", "enabled": null, "permission_policy": null}))]
    #[case(json!({"name": "web_fetch", "url_sources": {"user_input": "none"}}))]
    #[case(json!({"name": "web_search", "user_location": null, "blocked_domains": ["b.test"]}))]
    fn what_is_left_open_is_understood(#[case] config: Value) {
        toolset(&config).unwrap();
    }

    #[rstest]
    #[case(json!({"name": "rm"}), "unknown variant `rm`")]
    #[case(json!({"type": "read", "name": "bash"}), "`type` is `read`")]
    #[case(json!({"name": "bash", "allowed_domains": ["a"]}), "`allowed_domains`")]
    #[case(json!({"name": "web_search", "url_sources": {}}), "`url_sources`")]
    #[case(json!({"name": "bash", "timeout": 1}), "unknown field `timeout`")]
    #[case(json!({"name": "bash", "permission_policy": {"type": "never"}}), "unknown variant `never`")]
    fn what_is_wrong_is_named(#[case] config: Value, #[case] part: &str) {
        let error = toolset(&config).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
