//! The agent of a session: which one it begins with and what it has otherwise, and what changes while it rests.

use longhand_crds::AgentSpec;
use longhand_crds::agent::McpServerSpec;
use longhand_crds::agent_overrides::{AgentOverrides, ModelOverride};
use longhand_crds::agent_session::AgentRef;
use longhand_crds::toolset::ToolSpec;
use longhand_protocol::fields::{Fields, InvalidField};
use longhand_protocol::harness::AgentSnapshot;
use longhand_protocol::wire::agents::{McpServer, ModelParam};
use longhand_protocol::wire::toolsets::ToolParam;
use longhand_protocol::wire::{AgentWithOverrides, Change, UpdateSessionAgent};
use serde_json::Value;

use super::agents::read;
use crate::api::error::{ApiError, Result};

/// The agent that a new session shall have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    /// Its identifier or name.
    pub(super) agent: String,
    /// Which version; the latest without.
    pub(super) version: Option<i64>,
    /// What the session has otherwise.
    pub(super) overrides: Option<AgentOverrides>,
}

impl Choice {
    /// Reads the field `agent`.
    pub(super) fn read(fields: &mut Fields) -> Result<Self> {
        let agent = match fields.required("agent")? {
            Value::String(agent) => return Ok(Self { agent, version: None, overrides: None }),
            Value::Object(agent) => agent,
            _ => return Err(InvalidField::new("agent", "must be an identifier or an object").into()),
        };
        if agent.get("type").is_some_and(|kind| kind == "agent_with_overrides") {
            return Self::with_overrides(Value::Object(agent));
        }
        let mut agent = Fields::of("agent", Value::Object(agent))?;
        if agent.text("type")? != "agent" {
            return Err(agent.wrong("type", "must be `agent` or `agent_with_overrides`").into());
        }
        let id = agent.nonempty_text("id")?;
        let version = agent.optional_number("version", 1..=i64::MAX)?;
        agent.end()?;
        Ok(Self { agent: id, version, overrides: None })
    }

    fn with_overrides(agent: Value) -> Result<Self> {
        let agent: AgentWithOverrides = serde_json::from_value(agent).map_err(|error| wrong(&error))?;
        let AgentWithOverrides { kind: _, id, version, model, system, tools, mcp_servers, skills } = agent;
        if !skills.apply_or_default(Vec::new()).is_empty() {
            return Err(InvalidField::new("agent.skills", "skills are not served").into());
        }
        let version = version.map(|version| i64::try_from(version).ok().filter(|version| *version > 0));
        if version == Some(None) {
            return Err(InvalidField::new("agent.version", "is not the number of a version").into());
        }
        let model = match model {
            Change::Keep => None,
            Change::Clear => return Err(InvalidField::new("agent.model", "cannot be cleared").into()),
            Change::Set(ModelParam { id, effort, speed, inference_geo }) => {
                let (effort, speed) = (effort.map(Into::into), speed.map(Into::into));
                Some(ModelOverride { id, effort, speed, inference_geo })
            }
        };
        let overrides = AgentOverrides {
            model,
            system: given(system),
            tools: given(tools).map(specs),
            mcp_servers: given(mcp_servers).map(servers),
        };
        Ok(Self { agent: id, version: version.flatten(), overrides: Some(overrides) })
    }

    /// Checks the agent of this spec with what the session has otherwise.
    pub(super) fn check(&self, spec: AgentSpec) -> Result<()> {
        let Some(overrides) = &self.overrides else { return Ok(()) };
        read::check(&overrides.apply(spec)).map_err(|error| wrong(&error))
    }

    /// As the session's resource names it.
    pub(super) fn reference(self, name: String) -> AgentRef {
        AgentRef { name, version: self.version, overrides: self.overrides }
    }
}

/// What is null is empty.
fn given<T: Default>(change: Change<T>) -> Option<T> {
    match change {
        Change::Keep => None,
        Change::Clear => Some(T::default()),
        Change::Set(value) => Some(value),
    }
}

fn specs(tools: Vec<ToolParam>) -> Vec<ToolSpec> {
    tools.into_iter().map(Into::into).collect()
}

fn servers(servers: Vec<McpServer>) -> Vec<McpServerSpec> {
    servers.into_iter().map(Into::into).collect()
}

/// The agent of a session after an update, if that changes it. Other than an agent, a session may have a server that none
/// of its tools is of.
pub(super) fn updated(agent: &AgentSnapshot, update: Value) -> Result<Option<AgentSnapshot>> {
    let update: UpdateSessionAgent = serde_json::from_value(update).map_err(|error| wrong(&error))?;
    let tools = match update.tools {
        Some(tools) => tools,
        // What is shown can be written back.
        None => serde_json::to_value(&agent.tools)
            .and_then(serde_json::from_value)
            .map_err(|error| ApiError::internal(format!("the session's tools cannot be read: {error}")))?,
    };
    let tools = specs(tools);
    let servers = servers(update.mcp_servers.unwrap_or_else(|| agent.mcp_servers.clone()));
    read::check_tools(&tools, &servers).map_err(|error| wrong(&error))?;
    let changed = AgentSnapshot {
        tools: tools.iter().map(Into::into).collect(),
        mcp_servers: servers.iter().map(Into::into).collect(),
        ..agent.clone()
    };
    Ok(Some(changed).filter(|changed| changed != agent))
}

fn wrong(error: &impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("`agent`: {error}"))
}

#[cfg(test)]
mod tests {
    use longhand_protocol::fields::Fields;
    use longhand_protocol::harness::AgentSnapshot;
    use longhand_protocol::wire::agents::{McpServer, Tool};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Choice, updated};

    fn read(agent: &Value) -> Result<Choice, String> {
        let mut fields = Fields::of("", json!({ "agent": agent })).unwrap();
        Choice::read(&mut fields).map_err(|error| error.to_string())
    }

    #[rstest]
    #[case(json!({}), json!({}))]
    #[case(json!({"model": "n"}), json!({"model": {"id": "n"}}))]
    #[case(json!({"model": {"id": "n", "effort": {"type": "low"}, "speed": "fast"}}),
        json!({"model": {"id": "n", "effort": "low", "speed": "fast"}}))]
    #[case(json!({"system": null, "tools": null, "mcp_servers": null, "skills": null}),
        json!({"system": "", "tools": [], "mcpServers": []}))]
    #[case(json!({"system": "s", "tools": [{"type": "agent_toolset_20260401"}]}),
        json!({"system": "s", "tools": [{"type": "agent_toolset_20260401"}]}))]
    fn an_override_replaces_null_clears_and_silence_inherits(#[case] given: Value, #[case] overrides: Value) {
        let mut agent = json!({"type": "agent_with_overrides", "id": "helper", "version": 3});
        agent.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
        let choice = read(&agent).unwrap();
        assert_eq!((choice.agent.as_str(), choice.version), ("helper", Some(3)));
        assert_eq!(serde_json::to_value(choice.overrides.unwrap()).unwrap(), overrides);
    }

    #[rstest]
    #[case(json!(1), "`agent`: must be an identifier")]
    #[case(json!({"type": "agent", "id": "helper", "version": 0}), "`agent.version`")]
    #[case(json!({"type": "agent", "id": "helper", "system": "a"}), "`agent.system`")]
    #[case(json!({"type": "team", "id": "helper"}), "`agent.type`")]
    #[case(json!({"type": "agent_with_overrides"}), "missing field `id`")]
    #[case(json!({"type": "agent_with_overrides", "id": "a", "version": 0}), "`agent.version`")]
    #[case(json!({"type": "agent_with_overrides", "id": "a", "model": null}), "`agent.model`")]
    #[case(json!({"type": "agent_with_overrides", "id": "a", "skills": [{}]}), "`agent.skills`")]
    #[case(json!({"type": "agent_with_overrides", "id": "a", "name": "b"}), "unknown field `name`")]
    fn what_is_wrong_is_named(#[case] agent: Value, #[case] part: &str) {
        let message = read(&agent).unwrap_err();
        assert!(message.contains(part), "{message}");
    }

    fn snapshot() -> AgentSnapshot {
        let server = McpServer::Url { name: "s".to_owned(), url: "https://s.test".to_owned() };
        let toolset = json!({"type": "mcp_toolset", "mcp_server_name": "s", "configs": [],
            "default_config": {"enabled": true, "permission_policy": {"type": "always_ask"}}});
        AgentSnapshot {
            name: "helper".to_owned(),
            tools: vec![Tool::agent_toolset(), serde_json::from_value(toolset).unwrap()],
            mcp_servers: vec![server],
            ..AgentSnapshot::default()
        }
    }

    #[test]
    fn a_session_gets_other_tools_and_keeps_the_rest() {
        let fewer = json!({"tools": [{"type": "agent_toolset_20260401"}], "mcp_servers": []});
        let changed = updated(&snapshot(), fewer).unwrap().unwrap();
        let expected = AgentSnapshot { tools: vec![Tool::agent_toolset()], mcp_servers: Vec::new(), ..snapshot() };
        assert_eq!(changed, expected);
        let unused = updated(&snapshot(), json!({"tools": []})).unwrap().unwrap();
        assert_eq!(unused.mcp_servers, snapshot().mcp_servers);
        let shown = serde_json::to_value(snapshot()).unwrap();
        for same in
            [json!({}), json!({"tools": null}), json!({"tools": shown["tools"], "mcp_servers": shown["mcp_servers"]})]
        {
            assert_eq!(updated(&snapshot(), same).unwrap(), None);
        }
    }

    #[rstest]
    #[case(json!({"mcp_servers": []}), "no server `s`")]
    #[case(json!({"system": "s"}), "unknown field `system`")]
    #[case(json!({"tools": [{"type": "bash"}]}), "`agent`")]
    fn what_cannot_be_is_named(#[case] update: Value, #[case] part: &str) {
        let message = updated(&snapshot(), update).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
