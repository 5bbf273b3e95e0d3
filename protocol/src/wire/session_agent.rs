//! The agent of a session: which one a client chooses, and how it is shown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Change;
use super::agents::{EffortTag, ExecutionIdentity, McpServer, ModelConfig, ModelParam, Tool};
use super::toolsets::ToolParam;
use crate::harness::AgentSnapshot;

/// An agent as a session has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionAgent {
    /// Its identifier.
    pub id: String,
    /// Always `agent`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which of its versions.
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
    /// Who its runs are.
    pub execution_identity: ExecutionIdentity,
}

impl From<&AgentSnapshot> for SessionAgent {
    fn from(agent: &AgentSnapshot) -> Self {
        let model = &agent.model;
        Self {
            id: agent.id.clone(),
            kind: "agent".to_owned(),
            version: agent.version,
            name: agent.name.clone(),
            description: agent.description.clone(),
            model: ModelConfig {
                id: model.id.clone(),
                effort: model.effort.map(|level| EffortTag { level }),
                speed: model.speed,
                inference_geo: model.inference_geo.clone(),
            },
            system: agent.system.clone(),
            tools: agent.tools.clone(),
            mcp_servers: agent.mcp_servers.clone(),
            skills: Vec::new(),
            multiagent: None,
            execution_identity: ExecutionIdentity::default(),
        }
    }
}

/// Which agent a new session has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AgentChoice {
    /// Its identifier or name.
    Name(String),
    /// One of its versions, or the latest.
    Agent {
        /// Always `agent`.
        #[serde(rename = "type")]
        kind: AgentTag,
        /// Its identifier or name.
        id: String,
        /// The version; the latest without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
    },
    /// With changes for this session alone: an [`AgentWithOverrides`].
    Overridden(#[schemars(with = "AgentWithOverrides")] Map<String, Value>),
}

/// The constant `agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentTag {
    /// `agent`
    Agent,
}

/// An agent with changes for one session. What is given replaces what the agent has in full, and null clears it; the agent
/// itself stays as it is.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentWithOverrides {
    /// Always `agent_with_overrides`.
    #[serde(rename = "type")]
    pub kind: OverridesTag,
    /// Its identifier or name.
    pub id: String,
    /// The version; the latest without.
    #[serde(default)]
    pub version: Option<u64>,
    /// Another model, which the agent's own credential is good for.
    #[serde(default)]
    pub model: Change<ModelParam>,
    /// Another system prompt.
    #[serde(default)]
    pub system: Change<String>,
    /// Other tools.
    #[serde(default)]
    pub tools: Change<Vec<ToolParam>>,
    /// Other servers of tools.
    #[serde(default)]
    pub mcp_servers: Change<Vec<McpServer>>,
    /// Not served, so that it may only be empty.
    #[serde(default)]
    pub skills: Change<Vec<Value>>,
}

/// The constant `agent_with_overrides`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OverridesTag {
    /// `agent_with_overrides`
    AgentWithOverrides,
}

/// What may change in the agent of a session that has begun. What is absent or null stays; what is given replaces all.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSessionAgent {
    /// Other tools.
    #[serde(default)]
    pub tools: Option<Vec<ToolParam>>,
    /// Other servers of tools.
    #[serde(default)]
    pub mcp_servers: Option<Vec<McpServer>>,
}
