//! An agent as a session keeps it.

use longhand_protocol::harness::{AgentSnapshot, Model, SandboxTool, Tool};
use sha2::{Digest as _, Sha256};

use crate::agent::{Agent, SandboxToolName, ToolKind, ToolSpec};

impl From<SandboxToolName> for SandboxTool {
    fn from(name: SandboxToolName) -> Self {
        match name {
            SandboxToolName::Bash => Self::Bash,
            SandboxToolName::Edit => Self::Edit,
            SandboxToolName::Glob => Self::Glob,
            SandboxToolName::Grep => Self::Grep,
            SandboxToolName::Read => Self::Read,
            SandboxToolName::Write => Self::Write,
        }
    }
}

impl Agent {
    /// The agent as a session that begins now keeps it. The version is a hash of everything but the name, so that it
    /// changes exactly when behaviour does.
    #[must_use]
    pub fn snapshot(&self) -> AgentSnapshot {
        let model = &self.spec.model;
        let mut snapshot = AgentSnapshot {
            name: self.metadata.name.clone().unwrap_or_default(),
            version: String::new(),
            model: Model {
                id: model.id.clone(),
                max_tokens: u32::try_from(model.max_tokens).unwrap_or(1),
                api_version: model.api_version.clone(),
            },
            system: self.spec.system.clone(),
            tools: self.spec.tools.iter().map(tool).collect(),
        };
        let behaviour =
            serde_json::json!([snapshot.model, model.base_url, snapshot.system, snapshot.tools, self.spec.harness]);
        let digest = Sha256::digest(behaviour.to_string().as_bytes());
        snapshot.version = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        snapshot
    }
}

fn tool(spec: &ToolSpec) -> Tool {
    match spec.kind {
        ToolKind::AgentToolset => {
            let disabled: Vec<SandboxTool> = spec.disabled.iter().flatten().map(|name| (*name).into()).collect();
            Tool::AgentToolset {
                enabled: SandboxTool::ALL.into_iter().filter(|tool| !disabled.contains(tool)).collect(),
            }
        }
        ToolKind::Custom => Tool::Custom {
            name: spec.name.clone().unwrap_or_default(),
            description: spec.description.clone().unwrap_or_default(),
            input_schema: spec.input_schema.clone().unwrap_or_else(|| serde_json::json!({ "type": "object" })),
        },
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::harness::{SandboxTool, Tool};

    use crate::agent::Agent;

    fn agent(change: &str) -> Agent {
        let yaml = format!(
            "apiVersion: longhand.dev/v1alpha1\nkind: Agent\nmetadata: {{name: a}}\nspec:\n  model: {{id: m, credential: {{vault: v, name: c}}}}\n{change}"
        );
        serde_yaml::from_str(&yaml).unwrap()
    }

    #[test]
    fn the_toolset_holds_what_is_not_disabled() {
        let snapshot = agent("  tools: [{type: agent_toolset_20260401, disabled: [bash, write]}]").snapshot();
        let expected = vec![SandboxTool::Edit, SandboxTool::Glob, SandboxTool::Grep, SandboxTool::Read];
        assert_eq!(snapshot.tools, vec![Tool::AgentToolset { enabled: expected }]);
    }

    #[test]
    fn the_version_changes_with_behaviour_only() {
        let plain = agent("").snapshot().version;
        let mut renamed = agent("");
        renamed.metadata.name = Some("b".to_owned());
        assert_eq!(renamed.snapshot().version, plain);
        assert_ne!(agent("  system: be kind").snapshot().version, plain);
        assert_ne!(agent("  harness: {image: other}").snapshot().version, plain);
    }
}
