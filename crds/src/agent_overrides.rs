//! What a session has otherwise than its agent.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::{AgentSpec, Effort, McpServerSpec, Speed};
use crate::toolset::ToolSpec;

/// What a session has otherwise than its agent. What is given replaces what the agent has, in full; the agent itself stays
/// as it is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentOverrides {
    /// Another model. It is called with the agent's credential, where the agent's is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelOverride>,
    /// Another system prompt; empty for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100_000))]
    pub system: Option<String>,
    /// Other tools, each as in an Agent; empty for none. What is wrong with them is said when the session is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "tools")]
    pub tools: Option<Vec<ToolSpec>>,
    /// Other servers of tools; empty for none. One that the agent has too, by name and URL, is called as the agent says; a
    /// credential for another is taken from the session's vaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "servers")]
    pub mcp_servers: Option<Vec<McpServerSpec>>,
}

/// Another model than the agent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelOverride {
    /// The name that the model API knows.
    #[schemars(length(min = 1, max = 256))]
    pub id: String,
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
}

/// The schema of tools is large, and there is one already: that of Agent.
fn tools(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 256,
        "items": {
            "type": "object",
            "required": ["type"],
            "properties": { "type": { "type": "string", "enum": ["agent_toolset_20260401", "mcp_toolset", "custom"] } },
            "x-kubernetes-preserve-unknown-fields": true,
        },
    })
}

/// How a server is called is the Agent's to say: who makes a session cannot name a credential here.
fn servers(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 20,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {
            "type": "object",
            "required": ["name", "url"],
            "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": 255 },
                "url": { "type": "string", "minLength": 8, "maxLength": 2048, "pattern": "^https?://[^ ]+$" },
            },
        },
    })
}

impl AgentOverrides {
    /// The agent as the session has it.
    #[must_use]
    pub fn apply(&self, mut spec: AgentSpec) -> AgentSpec {
        let Self { model, system, tools, mcp_servers } = self.clone();
        if let Some(ModelOverride { id, effort, speed, inference_geo }) = model {
            if id != spec.model.id {
                // Another model has other prices, which are not known.
                spec.model.prices = None;
            }
            (spec.model.id, spec.model.effort, spec.model.speed) = (id, effort, speed);
            spec.model.inference_geo = inference_geo;
        }
        spec.system = system.or(spec.system).filter(|text| !text.is_empty());
        spec.tools = tools.unwrap_or(spec.tools);
        if let Some(servers) = mcp_servers {
            spec.mcp_servers = McpServerSpec::completed(servers, &spec.mcp_servers);
        }
        spec
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::AgentOverrides;
    use crate::agent::AgentSpec;

    fn agent() -> Value {
        json!({
            "model": {"id": "m", "prices": {"input": "1", "output": "2", "currency": "USD"}, "maxTokens": 5, "apiVersion": "v", "effort": "high", "speed": "fast",
                "credential": {"vault": "v", "name": "c"}},
            "system": "be kind",
            "tools": [{"type": "agent_toolset_20260401"}, {"type": "mcp_toolset", "mcpServerName": "s"}],
            "mcpServers": [{"name": "s", "url": "https://s.test", "credential": {"vault": "v", "name": "s"}}],
        })
    }

    #[rstest]
    #[case(json!({}), &[])]
    #[case(json!({"model": {"id": "n", "effort": "low"}}),
        &[("model", json!({"id": "n", "maxTokens": 5, "apiVersion": "v", "effort": "low",
            "credential": {"vault": "v", "name": "c"}}))])]
    #[case(json!({"system": "be brief"}), &[("system", json!("be brief"))])]
    #[case(json!({"system": "", "tools": [], "mcpServers": []}),
        &[("system", Value::Null), ("tools", Value::Null), ("mcpServers", Value::Null)])]
    #[case(json!({"tools": [{"type": "mcp_toolset", "mcpServerName": "s"}]}),
        &[("tools", json!([{"type": "mcp_toolset", "mcpServerName": "s"}]))])]
    #[case(json!({"mcpServers": [{"name": "s", "url": "https://s.test"}, {"name": "t", "url": "https://t.test"}]}),
        &[("mcpServers", json!([
            {"name": "s", "url": "https://s.test", "credential": {"vault": "v", "name": "s"}},
            {"name": "t", "url": "https://t.test"},
        ]))])]
    #[case(json!({"mcpServers": [{"name": "s", "url": "https://other.test"}]}),
        &[("mcpServers", json!([{"name": "s", "url": "https://other.test"}]))])]
    fn what_is_given_replaces_what_the_agent_has(#[case] overrides: Value, #[case] changes: &[(&str, Value)]) {
        let overrides: AgentOverrides = serde_json::from_value(overrides).unwrap();
        let spec: AgentSpec = serde_json::from_value(agent()).unwrap();
        let mut expected = serde_json::to_value(&spec).unwrap();
        for (field, value) in changes {
            match value {
                Value::Null => expected.as_object_mut().unwrap().remove(*field).map(drop).unwrap(),
                value => expected[*field] = value.clone(),
            }
        }
        assert_eq!(serde_json::to_value(overrides.apply(spec)).unwrap(), expected);
    }
}
