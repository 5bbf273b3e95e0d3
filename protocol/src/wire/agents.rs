//! Agents on the wire.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::Change;
use super::toolsets::{BuiltinConfig, McpConfig, PermissionPolicy, ToolParam, ToolsetConfig};
use crate::harness::SandboxTool;
use crate::schema::DateTime;

/// An agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// Its identifier.
    pub id: String,
    /// Always `agent`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Counts its changes, from 1.
    pub version: u64,
    /// A name for people.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// The model.
    pub model: ModelConfig,
    /// The system prompt.
    pub system: Option<String>,
    /// The tools that the model is offered.
    pub tools: Vec<Tool>,
    /// Servers that toolsets may name.
    pub mcp_servers: Vec<McpServer>,
    /// Always empty: skills are not served.
    pub skills: Vec<Value>,
    /// Always null: one agent a session.
    pub multiagent: Option<Value>,
    /// Pairs that a client keeps with it.
    pub metadata: BTreeMap<String, String>,
    /// Who its runs are.
    pub execution_identity: ExecutionIdentity,
    /// When it was made.
    #[schemars(with = "DateTime")]
    pub created_at: Timestamp,
    /// When this version was made.
    #[schemars(with = "DateTime")]
    pub updated_at: Timestamp,
    /// When it was archived.
    #[schemars(with = "Option<DateTime>")]
    pub archived_at: Option<Timestamp>,
}

/// Who the runs of an agent are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecutionIdentity {
    /// The ServiceAccount of the session's pods.
    #[default]
    ServiceAccount,
}

/// A model and how hard it works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelConfig {
    /// The name that the model API knows.
    pub id: String,
    /// How hard it works.
    pub effort: Option<EffortTag>,
    /// How fast it answers.
    pub speed: Option<Speed>,
    /// Where it is run.
    pub inference_geo: Option<String>,
}

/// How hard a model works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the model API's own words")]
pub enum Effort {
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// [`Effort`] in the shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EffortTag {
    /// The level.
    #[serde(rename = "type")]
    pub level: Effort,
}

/// How fast a model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the model API's own words")]
pub enum Speed {
    Standard,
    Fast,
}

/// A server of tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum McpServer {
    /// Reached by its address.
    Url {
        /// What toolsets call it.
        name: String,
        /// Where it is.
        url: String,
    },
}

impl McpServer {
    /// What toolsets call it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Url { name, .. } => name,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        match self {
            Self::Url { url, .. } => url,
        }
    }
}

/// A tool, or a set of them, with everything that was left open filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
pub enum Tool {
    /// The built-in tools.
    #[serde(rename = "agent_toolset_20260401")]
    AgentToolset {
        /// What holds for tools that `configs` does not name.
        default_config: ToolsetConfig,
        /// What holds for the tools that are named.
        configs: Vec<BuiltinConfig<bool, PermissionPolicy>>,
    },
    /// The tools of a server.
    #[serde(rename = "mcp_toolset")]
    McpToolset {
        /// Which of `mcp_servers`.
        mcp_server_name: String,
        /// What holds for tools that `configs` does not name.
        default_config: ToolsetConfig,
        /// What holds for the tools that are named.
        configs: Vec<McpConfig<bool, PermissionPolicy>>,
    },
    /// A tool that the client runs; the session waits for its result.
    #[serde(rename = "custom")]
    Custom {
        /// The name that the model uses.
        name: String,
        /// What the tool does, for the model.
        description: String,
        /// JSON schema of the input.
        input_schema: Value,
    },
}

impl Tool {
    /// The agent toolset with every tool on and allowed.
    #[must_use]
    pub const fn agent_toolset() -> Self {
        let default_config = ToolsetConfig { enabled: true, permission_policy: PermissionPolicy::AlwaysAllow };
        Self::AgentToolset { default_config, configs: Vec::new() }
    }

    /// The tools of a sandbox that are on, sorted by name, and who is asked before they run; none unless this is the agent
    /// toolset.
    #[must_use]
    pub fn sandbox_tools(&self) -> Vec<(SandboxTool, PermissionPolicy)> {
        let Self::AgentToolset { default_config, configs } = self else { return Vec::new() };
        let config = |tool: SandboxTool| {
            let named = configs.iter().find(|config| config.name.as_str() == tool.name());
            named.map_or(*default_config, |config| ToolsetConfig {
                enabled: config.enabled,
                permission_policy: config.permission_policy,
            })
        };
        let tools = SandboxTool::ALL.into_iter().map(|tool| (tool, config(tool)));
        tools.filter(|(_, config)| config.enabled).map(|(tool, config)| (tool, config.permission_policy)).collect()
    }
}

/// `POST /v1/agents`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each is the field of Agent of that name")]
pub struct CreateAgent {
    pub name: String,
    pub model: ModelParam,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub system: Option<String>,
    #[serde(default)]
    pub tools: Option<Vec<ToolParam>>,
    #[serde(default)]
    pub mcp_servers: Option<Vec<McpServer>>,
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub skills: Option<Vec<Value>>,
    #[serde(default)]
    pub multiagent: Option<Value>,
    #[serde(default)]
    pub execution_identity: Option<Map<String, Value>>,
}

/// `POST /v1/agents/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each is the field of Agent of that name")]
pub struct UpdateAgent {
    /// If given, the version that the agent must have.
    #[serde(default)]
    pub version: Option<u64>,
    #[serde(default)]
    pub name: Change<String>,
    #[serde(default)]
    pub model: Change<ModelParam>,
    #[serde(default)]
    pub description: Change<String>,
    #[serde(default)]
    pub system: Change<String>,
    #[serde(default)]
    pub tools: Change<Vec<ToolParam>>,
    #[serde(default)]
    pub mcp_servers: Change<Vec<McpServer>>,
    /// A pair whose value is null is taken out; pairs that are not named stay.
    #[serde(default)]
    pub metadata: Change<BTreeMap<String, Option<String>>>,
    #[serde(default)]
    pub skills: Change<Vec<Value>>,
    #[serde(default)]
    pub multiagent: Change<Value>,
    #[serde(default)]
    pub execution_identity: Change<Map<String, Value>>,
}

/// A model as a request names it: by its name, or with how hard it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelParam {
    /// The name that the model API knows.
    pub id: String,
    /// Kept on an update unless given.
    pub effort: Option<Effort>,
    /// How fast it answers.
    pub speed: Option<Speed>,
    /// Where it is run.
    pub inference_geo: Option<String>,
}

impl<'de> Deserialize<'de> for ModelParam {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Config {
            id: String,
            #[serde(default)]
            effort: Option<Value>,
            #[serde(default)]
            speed: Option<Speed>,
            #[serde(default)]
            inference_geo: Option<String>,
        }
        // By hand, since an untagged enum would not say what is wrong.
        let config = match Value::deserialize(deserializer)? {
            Value::String(id) => return Ok(Self { id, effort: None, speed: None, inference_geo: None }),
            value => serde_json::from_value::<Config>(value).map_err(custom("model"))?,
        };
        let effort = match config.effort {
            None => None,
            Some(level @ Value::String(_)) => Some(serde_json::from_value(level).map_err(custom("model.effort"))?),
            Some(tag) => Some(serde_json::from_value::<EffortTag>(tag).map_err(custom("model.effort"))?.level),
        };
        Ok(Self { id: config.id, effort, speed: config.speed, inference_geo: config.inference_geo })
    }
}

impl JsonSchema for ModelParam {
    fn schema_name() -> Cow<'static, str> {
        "ModelParam".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (level, tag) = (generator.subschema_for::<Effort>(), generator.subschema_for::<EffortTag>());
        let speed = generator.subschema_for::<Option<Speed>>();
        json_schema!({ "anyOf": [
            { "type": "string" },
            { "type": "object", "required": ["id"], "additionalProperties": false, "properties": {
                "id": { "type": "string" },
                "effort": { "anyOf": [level, tag, { "type": "null" }] },
                "speed": speed,
                "inference_geo": { "type": ["string", "null"] },
            } },
        ] })
    }
}

fn custom<E: serde::de::Error>(field: &'static str) -> impl FnOnce(serde_json::Error) -> E {
    move |error| E::custom(format!("`{field}`: {error}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{CreateAgent, Effort, ModelParam, PermissionPolicy, Tool};
    use crate::harness::SandboxTool;

    #[rstest]
    #[case(json!("m"), None)]
    #[case(json!({"id": "m"}), None)]
    #[case(json!({"id": "m", "effort": "xhigh"}), Some(Effort::Xhigh))]
    #[case(json!({"id": "m", "effort": {"type": "low"}, "speed": null}), Some(Effort::Low))]
    fn a_model_is_a_name_or_an_object(#[case] json: Value, #[case] effort: Option<Effort>) {
        let model: ModelParam = serde_json::from_value(json).unwrap();
        assert_eq!((model.id.as_str(), model.effort), ("m", effort));
    }

    #[rstest]
    #[case(json!({"effort": "low"}), "missing field `id`")]
    #[case(json!({"id": "m", "effort": "extreme"}), "`model.effort`: unknown variant `extreme`")]
    #[case(json!({"id": "m", "temperature": 1}), "unknown field `temperature`")]
    #[case(json!(7), "`model`: ")]
    fn a_wrong_model_is_explained(#[case] json: Value, #[case] part: &str) {
        let error = serde_json::from_value::<ModelParam>(json).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn a_field_that_nobody_knows_is_named() {
        let body = json!({"name": "n", "model": "m", "temperature": 1});
        let error = serde_json::from_value::<CreateAgent>(body).unwrap_err().to_string();
        assert!(error.contains("`temperature`"), "{error}");
    }

    #[test]
    fn tools_that_are_on() {
        let all = SandboxTool::ALL.map(|tool| (tool, PermissionPolicy::AlwaysAllow));
        assert_eq!(Tool::agent_toolset().sandbox_tools(), all);
        let some: Tool = serde_json::from_value(json!({
            "type": "agent_toolset_20260401",
            "default_config": {"enabled": false, "permission_policy": {"type": "always_ask"}},
            "configs": [{"type": "bash", "name": "bash", "enabled": true, "permission_policy": {"type": "auto"}}],
        }))
        .unwrap();
        assert_eq!(some.sandbox_tools(), [(SandboxTool::Bash, PermissionPolicy::Auto)]);
    }
}
