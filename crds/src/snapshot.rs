//! An agent as a session keeps it.

use longhand_protocol::harness::AgentSnapshot;

use crate::agent::Agent;
use crate::toolset::{PermissionPolicy, ToolSpec};
use crate::wire_id::{prefix, wire_id};

impl Agent {
    /// The name that people know the agent by.
    #[must_use]
    pub fn display_name(&self) -> &str {
        let own = self.spec.display_name.as_deref();
        own.or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// The agent as a session that begins now keeps it, if this is its version.
    #[must_use]
    pub fn snapshot(&self, version: u64) -> AgentSnapshot {
        AgentSnapshot {
            id: wire_id(prefix::AGENT, &self.metadata),
            name: self.display_name().to_owned(),
            version,
            description: self.spec.description.clone(),
            model: self.spec.model.snapshot(),
            system: self.spec.system.clone(),
            tools: self.spec.tools.iter().map(Into::into).collect(),
            mcp_servers: self.spec.mcp_servers.iter().map(Into::into).collect(),
            context: self.spec.context.as_ref().map(Into::into).unwrap_or_default(),
            handoff: self.spec.handoff.map(PermissionPolicy::permission),
            on_unknown_outcome: self.spec.tools.iter().flat_map(ToolSpec::outcome_policies).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::harness::{Compaction, OutcomePolicy, Recall, SandboxTool};
    use longhand_protocol::wire::toolsets::PermissionPolicy;

    use crate::agent::Agent;

    #[test]
    fn a_session_keeps_what_its_agent_is() {
        let agent: Agent = serde_yaml::from_str(
            "apiVersion: longhand.dev/v1alpha1
kind: Agent
metadata: {name: a, uid: u1}
spec:
  model: {id: m, effort: high, prices: {input: '300', output: '1500', cacheRead: '30'}}
  context: {maxTokens: 9000, compaction: 'Off'}
  tools:
    - type: agent_toolset_20260401
      defaultConfig: {onUnknownOutcome: Retry}
      configs: [{name: bash, enabled: false}, {name: write, enabled: false}, {name: edit, onUnknownOutcome: Report}, {name: glob, onUnknownOutcome: Ask}]
    - {type: mcp_toolset, mcpServerName: s}
  mcpServers: [{name: s, url: 'https://s.test'}]
",
        )
        .unwrap();
        let snapshot = agent.snapshot(3);
        assert_eq!((snapshot.name.as_str(), snapshot.version), ("a", 3));
        assert!(snapshot.id.starts_with("agent_"), "{}", snapshot.id);
        let expected = [SandboxTool::Edit, SandboxTool::Glob, SandboxTool::Grep, SandboxTool::Read]
            .map(|tool| (tool, PermissionPolicy::AlwaysAllow));
        assert_eq!(snapshot.tools[0].sandbox_tools(), expected);
        assert_eq!(snapshot.mcp_servers[0].name(), "s");
        assert_eq!((snapshot.context.max_tokens, snapshot.context.keep_tool_results), (9_000, 5));
        assert_eq!((snapshot.context.compaction, snapshot.context.recall), (Compaction::Off, Recall::WhenTrimmed));
        let retried: Vec<&str> = snapshot.on_unknown_outcome.keys().map(String::as_str).collect();
        assert_eq!(retried, ["bash", "glob", "grep", "read", "write"]);
        assert_eq!(snapshot.on_unknown_outcome["glob"], OutcomePolicy::Ask);
        let prices = snapshot.model.prices.unwrap();
        assert_eq!(
            (prices.cache_read.as_str(), prices.cache_write.as_str(), prices.currency.as_str()),
            ("30", "300", "USD")
        );
    }
}
