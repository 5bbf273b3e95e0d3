//! Under which names a model is offered the tools of MCP servers.

use std::collections::BTreeMap;

use longhand_protocol::event::{McpTool, Permission};
use longhand_protocol::harness::{AgentSnapshot, Tool};

use super::ledger::Ledger;

/// The longest name that the model API takes.
const LONGEST: usize = 128;

/// A tool as a model is offered it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::core) struct Offered {
    /// Which of the agent's servers.
    pub(in crate::core) server: String,
    /// The tool.
    pub(in crate::core) tool: McpTool,
    /// What a call is evaluated to.
    pub(in crate::core) permission: Permission,
}

/// The tools that the agent's toolsets switch on, by the names that the model uses: `mcp__server__tool`, of the characters
/// that the model API takes. Two that would have the same name are told apart by a number; `is_taken` says which names
/// other tools have.
pub(in crate::core) fn offered(
    agent: &AgentSnapshot,
    ledger: &Ledger,
    is_taken: impl Fn(&str) -> bool,
) -> BTreeMap<String, Offered> {
    let mut tools = BTreeMap::new();
    for toolset in &agent.tools {
        let Tool::McpToolset { mcp_server_name, default_config, configs } = toolset else { continue };
        let server = agent.mcp_servers.iter().find(|server| server.name() == mcp_server_name);
        let Some(catalog) = server.and_then(|server| ledger.catalog(server)) else { continue };
        for tool in &catalog.tools {
            let config = configs.iter().find(|config| config.name == tool.name);
            if !config.map_or(default_config.enabled, |config| config.enabled) {
                continue;
            }
            let policy = config.map_or(default_config.permission_policy, |config| config.permission_policy);
            let wanted = format!("mcp__{}__{}", plain(mcp_server_name), plain(&tool.name));
            let name = free(&wanted, |name| tools.contains_key(name) || is_taken(name));
            let offered =
                Offered { server: mcp_server_name.clone(), tool: tool.clone(), permission: policy.permission() };
            tools.insert(name, offered);
        }
    }
    tools
}

/// Only characters that the model API takes.
fn plain(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    text.chars().map(|c| if fits(c) { c } else { '_' }).collect()
}

/// The name itself, or the first with a number that nobody has.
fn free(wanted: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let cut = |room: usize| wanted.get(..room.min(wanted.len())).unwrap_or(wanted);
    let numbered = (2_u32..).map(|number| {
        let suffix = format!("_{number}");
        format!("{}{suffix}", cut(LONGEST - suffix.len()))
    });
    let names = std::iter::once(cut(LONGEST).to_owned()).chain(numbered);
    names.into_iter().find(|name| !is_taken(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, free, plain};

    #[test]
    fn names_are_what_the_model_api_takes() {
        assert_eq!(plain("a b/c.d-é"), "a_b_c_d-_");
        assert_eq!(free("mcp__s__t", |_| false), "mcp__s__t");
        let long = "x".repeat(200);
        assert_eq!(free(&long, |_| false), "x".repeat(LONGEST));
        let second = free(&long, |name| name == "x".repeat(LONGEST));
        assert_eq!((second.len(), second.ends_with("x_2")), (LONGEST, true));
    }
}
