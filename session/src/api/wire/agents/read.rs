//! Agents as requests describe them: checked, each error naming the field. Pure.

use std::collections::BTreeSet;

use longhand_crds::AgentSpec;
use longhand_crds::agent::{McpServerSpec, ModelSpec};
use longhand_crds::toolset::{ToolKind, ToolSpec, UrlFilter, UrlFilterKind, WebOptions};
use longhand_protocol::wire::Change;
use longhand_protocol::wire::agents::{CreateAgent, McpServer, ModelParam, UpdateAgent};
use longhand_protocol::wire::toolsets::ToolParam;
use serde_json::{Map, Value, json};

use crate::api::error::{ApiError, Result};
use crate::api::wire::checks::{at_most, count, metadata, one_to, patched, repeated};

const LONGEST_NAME: usize = 256;
const LONGEST_DESCRIPTION: usize = 4_096;
const LONGEST_SYSTEM: usize = 100_000;
const LONGEST_MODEL: usize = 256;
const LONGEST_GEO: usize = 64;
const LONGEST_TOOL_NAME: usize = 128;
const LONGEST_SERVER_NAME: usize = 255;
const LONGEST_URL: usize = 2_048;
const MOST_TOOLS: usize = 256;
const MOST_CONFIGS: usize = 64;
const MOST_SERVERS: usize = 20;
const MOST_DOMAINS: usize = 64;
const MOST_REFERENCES: usize = 128;
/// As many tools as the agent toolset has.
const BUILTIN: usize = 8;

/// The spec of a new agent.
pub(super) fn created(body: CreateAgent) -> Result<AgentSpec> {
    let CreateAgent {
        name,
        model,
        description,
        system,
        tools,
        mcp_servers,
        metadata,
        skills,
        multiagent,
        execution_identity,
    } = body;
    check_unserved(&skills.unwrap_or_default(), multiagent.as_ref(), execution_identity.as_ref())?;
    let spec = AgentSpec {
        display_name: Some(name),
        description: filled(description),
        model: new_model(model)?,
        system: filled(system),
        tools: tools.into_iter().flatten().map(Into::into).collect(),
        mcp_servers: mcp_servers.into_iter().flatten().map(Into::into).collect(),
        metadata: metadata.unwrap_or_default(),
        context: None,
        handoff: None,
        harness: None,
        warm: 0,
    };
    check(&spec)?;
    Ok(spec)
}

/// The spec of an agent after an update.
pub(super) fn updated(mut spec: AgentSpec, update: UpdateAgent) -> Result<AgentSpec> {
    let UpdateAgent {
        version: _,
        name,
        model,
        description,
        system,
        tools,
        mcp_servers,
        metadata: pairs,
        skills,
        multiagent,
        execution_identity,
    } = update;
    check_unserved(
        &skills.apply_or_default(Vec::new()),
        multiagent.apply(None).as_ref(),
        execution_identity.apply(None).as_ref(),
    )?;
    match name {
        Change::Keep => {}
        Change::Clear => return Err(ApiError::bad_request("`name` cannot be cleared")),
        Change::Set(name) => spec.display_name = Some(name),
    }
    match model {
        Change::Keep => {}
        Change::Clear => return Err(ApiError::bad_request("`model` cannot be cleared")),
        Change::Set(model) => set_model(&mut spec.model, model),
    }
    spec.description = filled(description.apply(spec.description));
    spec.system = filled(system.apply(spec.system));
    let tools = tools.map(|tools: Vec<ToolParam>| tools.into_iter().map(Into::into).collect());
    spec.tools = tools.apply_or_default(spec.tools);
    let servers = mcp_servers.map(|servers: Vec<McpServer>| servers.into_iter().map(Into::into).collect());
    let known = spec.mcp_servers.clone();
    spec.mcp_servers = McpServerSpec::completed(servers.apply_or_default(spec.mcp_servers), &known);
    spec.metadata = match pairs {
        Change::Keep => spec.metadata,
        Change::Clear => return Err(ApiError::bad_request("`metadata` is null: set each pair to null instead")),
        Change::Set(pairs) => patched(spec.metadata, pairs),
    };
    check(&spec)?;
    Ok(spec)
}

/// An empty text is none.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// With what the kind has as defaults for everything that the wire API does not know.
fn new_model(model: ModelParam) -> Result<ModelSpec> {
    let defaults = serde_json::from_value(json!({ "id": model.id }));
    let mut spec: ModelSpec = defaults.map_err(|error| ApiError::internal(error.to_string()))?;
    set_model(&mut spec, model);
    Ok(spec)
}

/// Effort stays unless it is given; the rest is replaced. Prices are those of the model.
fn set_model(spec: &mut ModelSpec, model: ModelParam) {
    if spec.id != model.id {
        spec.prices = None;
    }
    spec.id = model.id;
    spec.effort = model.effort.map(Into::into).or(spec.effort);
    spec.speed = model.speed.map(Into::into);
    spec.inference_geo = model.inference_geo;
}

fn check_unserved(skills: &[Value], multiagent: Option<&Value>, identity: Option<&Map<String, Value>>) -> Result<()> {
    let unserved = |field: &str, what: &str| Err(ApiError::bad_request(format!("`{field}`: {what} not served")));
    if !skills.is_empty() {
        return unserved("skills", "skills are");
    }
    if multiagent.is_some() {
        return unserved("multiagent", "sessions of several agents are");
    }
    match identity {
        Some(identity) if identity.get("type") != Some(&json!("service_account")) || identity.len() > 1 => {
            unserved("execution_identity", "another identity than {\"type\": \"service_account\"} is")
        }
        _ => Ok(()),
    }
}

/// What holds for every agent. CEL holds it too, and in words of the resource.
pub(crate) fn check(spec: &AgentSpec) -> Result<()> {
    one_to("name", spec.display_name.as_deref().unwrap_or("-"), LONGEST_NAME)?;
    at_most("description", spec.description.as_deref().unwrap_or_default(), LONGEST_DESCRIPTION)?;
    at_most("system", spec.system.as_deref().unwrap_or_default(), LONGEST_SYSTEM)?;
    one_to("model.id", &spec.model.id, LONGEST_MODEL)?;
    if let Some(geo) = &spec.model.inference_geo {
        one_to("model.inference_geo", geo, LONGEST_GEO)?;
    }
    metadata(&spec.metadata)?;
    check_tools(&spec.tools, &spec.mcp_servers)?;
    check_used(&spec.tools, &spec.mcp_servers)
}

fn check_used(tools: &[ToolSpec], servers: &[McpServerSpec]) -> Result<()> {
    let used = |server: &&McpServerSpec| tools.iter().any(|tool| tool.mcp_server_name.as_ref() == Some(&server.name));
    match servers.iter().find(|server| !used(server)) {
        Some(McpServerSpec { name, .. }) => Err(ApiError::bad_request(format!(
            "`mcp_servers`: the server `{name}` is named by no tool of type mcp_toolset in `tools`"
        ))),
        None => Ok(()),
    }
}

fn check_servers(servers: &[McpServerSpec]) -> Result<()> {
    count("mcp_servers", servers.len(), MOST_SERVERS)?;
    for (index, server) in servers.iter().enumerate() {
        one_to(&format!("mcp_servers[{index}].name"), &server.name, LONGEST_SERVER_NAME)?;
        at_most(&format!("mcp_servers[{index}].url"), &server.url, LONGEST_URL)?;
        let address = server.url.parse::<http::Uri>().ok();
        let web = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if !address.as_ref().is_some_and(web) {
            return Err(ApiError::bad_request(format!("`mcp_servers[{index}].url` is not the URL of a web server")));
        }
    }
    match repeated(servers.iter().map(|server| server.name.as_str())) {
        Some(name) => Err(ApiError::bad_request(format!("`mcp_servers` holds the name `{name}` twice"))),
        None => Ok(()),
    }
}

/// Checks tools and the servers that they may name.
pub(in crate::api::wire) fn check_tools(tools: &[ToolSpec], servers: &[McpServerSpec]) -> Result<()> {
    check_servers(servers)?;
    let size = |tool: &ToolSpec| match tool.kind {
        ToolKind::AgentToolset => BUILTIN,
        ToolKind::McpToolset => tool.configs.len().max(1),
        ToolKind::Custom => 1,
    };
    count("tools", tools.iter().map(size).sum(), MOST_TOOLS)?;
    let wrong = |index: usize, what: String| Err(ApiError::bad_request(format!("`tools[{index}]`: {what}")));
    let names_of_servers: BTreeSet<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    let mut names = BTreeSet::new();
    let mut used = BTreeSet::new();
    for (index, tool) in tools.iter().enumerate() {
        let field = format!("tools[{index}]");
        match (tool.kind, tool.name.as_deref(), tool.mcp_server_name.as_deref()) {
            (ToolKind::Custom, Some(name), _) => {
                check_custom(&field, name, tool)?;
                if !names.insert(name) {
                    return wrong(index, format!("there are two tools with the name `{name}`"));
                }
            }
            (ToolKind::McpToolset, _, Some(server)) => {
                if !names_of_servers.contains(server) {
                    return wrong(index, format!("`mcp_server_name`: no server `{server}` is in `mcp_servers`"));
                }
                if !used.insert(server) {
                    return wrong(index, format!("there are two toolsets of the server `{server}`"));
                }
            }
            _ => {}
        }
        check_configs(&field, tool)?;
    }
    if tools.iter().filter(|tool| tool.kind == ToolKind::AgentToolset).count() > 1 {
        return Err(ApiError::bad_request("`tools` holds agent_toolset_20260401 twice"));
    }
    Ok(())
}

fn check_custom(field: &str, name: &str, tool: &ToolSpec) -> Result<()> {
    one_to(&format!("{field}.name"), name, LONGEST_TOOL_NAME)?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
        let message = format!("`{field}.name` has other characters than letters, digits, `_` and `-`");
        return Err(ApiError::bad_request(message));
    }
    one_to(&format!("{field}.description"), tool.description.as_deref().unwrap_or_default(), LONGEST_DESCRIPTION)?;
    if tool.input_schema.as_ref().and_then(|schema| schema.get("type")) != Some(&json!("object")) {
        return Err(ApiError::bad_request(format!("`{field}.input_schema.type` is not `object`")));
    }
    Ok(())
}

fn check_configs(field: &str, tool: &ToolSpec) -> Result<()> {
    let field = format!("{field}.configs");
    count(&field, tool.configs.len(), MOST_CONFIGS)?;
    if let Some(name) = repeated(tool.configs.iter().map(|config| config.name.as_str())) {
        return Err(ApiError::bad_request(format!("`{field}` holds the tool `{name}` twice")));
    }
    for (index, config) in tool.configs.iter().enumerate() {
        let field = format!("{field}[{index}]");
        one_to(&format!("{field}.name"), &config.name, LONGEST_TOOL_NAME)?;
        if let Some(web) = &config.web {
            check_web(&field, web)?;
        }
    }
    Ok(())
}

fn check_web(field: &str, web: &WebOptions) -> Result<()> {
    for (name, domains) in [("allowed_domains", &web.allowed_domains), ("blocked_domains", &web.blocked_domains)] {
        let Some(domains) = domains else { continue };
        let field = format!("{field}.{name}");
        if domains.is_empty() {
            return Err(ApiError::bad_request(format!("`{field}` is empty: leave it out instead")));
        }
        count(&field, domains.len(), MOST_DOMAINS)?;
        domains.iter().try_for_each(|domain| one_to(&field, domain, 512))?;
    }
    if web.allowed_domains.is_some() && web.blocked_domains.is_some() {
        let message = format!("`{field}`: allowed_domains and blocked_domains exclude each other");
        return Err(ApiError::bad_request(message));
    }
    if web.max_content_tokens.is_some_and(|most| !(1..=10_000_000).contains(&most)) {
        return Err(ApiError::bad_request(format!("`{field}.max_content_tokens` is not 1 to 10000000")));
    }
    let Some(sources) = &web.url_sources else { return Ok(()) };
    let all = [
        ("client_tool_results", &sources.client_tool_results),
        ("server_tool_results", &sources.server_tool_results),
        ("user_input", &sources.user_input),
    ];
    for (name, filter) in all {
        let Some(UrlFilter { kind: UrlFilterKind::Only | UrlFilterKind::Except, tools }) = filter else { continue };
        let field = format!("{field}.url_sources.{name}");
        if name == "user_input" {
            return Err(ApiError::bad_request(format!("`{field}` is neither all nor none")));
        }
        if tools.is_empty() {
            return Err(ApiError::bad_request(format!("`{field}.tools` is empty")));
        }
        count(&format!("{field}.tools"), tools.len(), MOST_REFERENCES)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
