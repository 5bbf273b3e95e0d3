//! Tools and models of an `Agent` as the wire API has them, and back.

use longhand_protocol::wire::agents as wire;
use longhand_protocol::wire::toolsets as sets;
use serde_json::Value;

use crate::agent::{Effort, McpServerSpec, ModelSpec, Speed};
use crate::toolset::{
    PermissionPolicy, ToolConfig, ToolKind, ToolSpec, ToolsetDefaults, UrlFilter, UrlFilterKind, UrlSources,
    UserLocation, WebOptions,
};

/// `From` in both directions between enums whose variants have the same names.
macro_rules! same {
    ($ours:ty, $theirs:ty: $($variant:ident),+) => {
        impl From<$ours> for $theirs {
            fn from(value: $ours) -> Self {
                match value { $(<$ours>::$variant => Self::$variant),+ }
            }
        }
        impl From<$theirs> for $ours {
            fn from(value: $theirs) -> Self {
                match value { $(<$theirs>::$variant => Self::$variant),+ }
            }
        }
    };
}

same!(Effort, wire::Effort: Low, Medium, High, Xhigh, Max);
same!(Speed, wire::Speed: Standard, Fast);
same!(PermissionPolicy, sets::PermissionPolicy: AlwaysAllow, AlwaysAsk, Auto);

impl From<&ModelSpec> for wire::ModelConfig {
    fn from(model: &ModelSpec) -> Self {
        Self {
            id: model.id.clone(),
            effort: model.effort.map(|level| wire::EffortTag { level: level.into() }),
            speed: model.speed.map(Into::into),
            inference_geo: model.inference_geo.clone(),
        }
    }
}

impl From<wire::McpServer> for McpServerSpec {
    fn from(server: wire::McpServer) -> Self {
        let wire::McpServer::Url { name, url } = server;
        Self::new(name, url)
    }
}

impl From<&McpServerSpec> for wire::McpServer {
    fn from(server: &McpServerSpec) -> Self {
        Self::Url { name: server.name.clone(), url: server.url.clone() }
    }
}

impl From<sets::ToolParam> for ToolSpec {
    fn from(tool: sets::ToolParam) -> Self {
        let empty = |kind| Self {
            kind,
            default_config: None,
            configs: Vec::new(),
            mcp_server_name: None,
            name: None,
            description: None,
            input_schema: None,
        };
        match tool {
            sets::ToolParam::AgentToolset { default_config, configs } => Self {
                default_config: defaults(default_config),
                configs: configs.into_iter().flatten().map(builtin).collect(),
                ..empty(ToolKind::AgentToolset)
            },
            sets::ToolParam::McpToolset { mcp_server_name, default_config, configs } => Self {
                mcp_server_name: Some(mcp_server_name),
                default_config: defaults(default_config),
                configs: configs.into_iter().flatten().map(of_server).collect(),
                ..empty(ToolKind::McpToolset)
            },
            sets::ToolParam::Custom { name, description, input_schema } => Self {
                name: Some(name),
                description: Some(description),
                input_schema: Some(Value::Object(input_schema)),
                ..empty(ToolKind::Custom)
            },
        }
    }
}

fn defaults(given: Option<sets::ToolsetDefaults>) -> Option<ToolsetDefaults> {
    let given = given?;
    let permission_policy = given.permission_policy.map(Into::into);
    Some(ToolsetDefaults { enabled: given.enabled, permission_policy, on_unknown_outcome: None })
}

fn builtin(config: sets::BuiltinConfig<Option<bool>, Option<sets::PermissionPolicy>>) -> ToolConfig {
    let web = WebOptions {
        allowed_domains: config.web.allowed_domains,
        blocked_domains: config.web.blocked_domains,
        max_content_tokens: config.web.max_content_tokens.map(|most| i32::try_from(most).unwrap_or(i32::MAX)),
        url_sources: config.web.url_sources.map(|sources| UrlSources {
            client_tool_results: sources.client_tool_results.map(Into::into),
            server_tool_results: sources.server_tool_results.map(Into::into),
            user_input: sources.user_input.map(Into::into),
        }),
        user_location: config.web.user_location.map(Into::into),
    };
    ToolConfig {
        name: config.name.as_str().to_owned(),
        enabled: config.enabled,
        permission_policy: config.permission_policy.map(Into::into),
        on_unknown_outcome: None,
        web: Some(web).filter(|web| *web != WebOptions::default()),
    }
}

fn of_server(config: sets::McpConfig<Option<bool>, Option<sets::PermissionPolicy>>) -> ToolConfig {
    ToolConfig {
        name: config.name,
        enabled: config.enabled,
        permission_policy: config.permission_policy.map(Into::into),
        on_unknown_outcome: None,
        web: None,
    }
}

impl From<sets::UrlFilter> for UrlFilter {
    fn from(filter: sets::UrlFilter) -> Self {
        let names = |tools: Vec<sets::ToolReference>| {
            tools.into_iter().map(|sets::ToolReference::ToolReference { name }| name).collect()
        };
        let (kind, tools) = match filter {
            sets::UrlFilter::All => (UrlFilterKind::All, Vec::new()),
            sets::UrlFilter::None => (UrlFilterKind::None, Vec::new()),
            sets::UrlFilter::Only { tools } => (UrlFilterKind::Only, names(tools)),
            sets::UrlFilter::Except { tools } => (UrlFilterKind::Except, names(tools)),
        };
        Self { kind, tools }
    }
}

impl From<&UrlFilter> for sets::UrlFilter {
    fn from(filter: &UrlFilter) -> Self {
        let tools = filter.tools.iter().map(|name| sets::ToolReference::ToolReference { name: name.clone() }).collect();
        match filter.kind {
            UrlFilterKind::All => Self::All,
            UrlFilterKind::None => Self::None,
            UrlFilterKind::Only => Self::Only { tools },
            UrlFilterKind::Except => Self::Except { tools },
        }
    }
}

impl From<sets::UserLocation> for UserLocation {
    fn from(location: sets::UserLocation) -> Self {
        let sets::UserLocation::Approximate { city, country, region, timezone } = location;
        Self { city, country, region, timezone }
    }
}

impl From<&WebOptions> for sets::WebOptions {
    fn from(web: &WebOptions) -> Self {
        Self {
            allowed_domains: web.allowed_domains.clone(),
            blocked_domains: web.blocked_domains.clone(),
            max_content_tokens: web.max_content_tokens.and_then(|most| u32::try_from(most).ok()),
            url_sources: web.url_sources.as_ref().map(|sources| sets::UrlSources {
                client_tool_results: sources.client_tool_results.as_ref().map(Into::into),
                server_tool_results: sources.server_tool_results.as_ref().map(Into::into),
                user_input: sources.user_input.as_ref().map(Into::into),
            }),
            user_location: web.user_location.clone().map(|location| sets::UserLocation::Approximate {
                city: location.city,
                country: location.country,
                region: location.region,
                timezone: location.timezone,
            }),
        }
    }
}

impl From<&ToolSpec> for wire::Tool {
    /// With everything that was left open filled in.
    fn from(tool: &ToolSpec) -> Self {
        match tool.kind {
            ToolKind::AgentToolset => {
                let default_config = resolved(tool.default_config, PermissionPolicy::AlwaysAllow);
                // What CEL keeps out is not shown either.
                let known = |config: &ToolConfig| {
                    let name = sets::BuiltinTool::ALL.into_iter().find(|tool| tool.as_str() == config.name)?;
                    let set = of_tool(config, default_config);
                    let web = config.web.as_ref().map(Into::into).unwrap_or_default();
                    Some(sets::BuiltinConfig {
                        name,
                        enabled: set.enabled,
                        permission_policy: set.permission_policy,
                        web,
                    })
                };
                Self::AgentToolset { default_config, configs: tool.configs.iter().filter_map(known).collect() }
            }
            ToolKind::McpToolset => {
                // A server may change its tools at any time.
                let default_config = resolved(tool.default_config, PermissionPolicy::AlwaysAsk);
                let config = |config: &ToolConfig| {
                    let set = of_tool(config, default_config);
                    sets::McpConfig {
                        name: config.name.clone(),
                        enabled: set.enabled,
                        permission_policy: set.permission_policy,
                    }
                };
                Self::McpToolset {
                    mcp_server_name: tool.mcp_server_name.clone().unwrap_or_default(),
                    default_config,
                    configs: tool.configs.iter().map(config).collect(),
                }
            }
            ToolKind::Custom => Self::Custom {
                name: tool.name.clone().unwrap_or_default(),
                description: tool.description.clone().unwrap_or_default(),
                input_schema: tool.input_schema.clone().unwrap_or_else(|| serde_json::json!({ "type": "object" })),
            },
        }
    }
}

fn resolved(given: Option<ToolsetDefaults>, policy: PermissionPolicy) -> sets::ToolsetConfig {
    let given = given.unwrap_or_default();
    sets::ToolsetConfig {
        enabled: given.enabled.unwrap_or(true),
        permission_policy: given.permission_policy.unwrap_or(policy).into(),
    }
}

fn of_tool(config: &ToolConfig, default: sets::ToolsetConfig) -> sets::ToolsetConfig {
    sets::ToolsetConfig {
        enabled: config.enabled.unwrap_or(default.enabled),
        permission_policy: config.permission_policy.map_or(default.permission_policy, Into::into),
    }
}

#[cfg(test)]
#[path = "agent_wire_tests.rs"]
mod tests;
