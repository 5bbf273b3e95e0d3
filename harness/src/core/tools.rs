//! The tools that the model is offered.

use std::collections::BTreeMap;

use longhand_protocol::event::{EventBody, Permission};
use longhand_protocol::harness::{HarnessSession, SandboxTool, Tool};
use serde_json::{Value, json};

/// The tools of a session, by name, so that a request lists them in the same order every time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolSet(BTreeMap<String, (Runner, Value)>);

/// Who runs a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    /// A sandbox, through the session service.
    Sandbox(Permission),
    /// The client.
    Client,
}

impl ToolSet {
    /// The tools of the session's agent; those of a sandbox only if the session has one.
    #[must_use]
    pub fn of(session: &HarnessSession) -> Self {
        let mut tools = BTreeMap::new();
        for tool in &session.agent.tools {
            match tool {
                Tool::AgentToolset { .. } if !session.sandboxes.is_empty() => {
                    for (tool, policy) in tool.sandbox_tools() {
                        let runner = Runner::Sandbox(policy.permission());
                        tools.insert(tool.name().to_owned(), (runner, sandbox_tool(tool)));
                    }
                }
                Tool::AgentToolset { .. } | Tool::McpToolset { .. } => {}
                Tool::Custom { name, description, input_schema } => {
                    let definition = json!({"name": name, "description": description, "input_schema": input_schema});
                    tools.entry(name.clone()).or_insert((Runner::Client, definition));
                }
            }
        }
        Self(tools)
    }

    /// The event of a call of the tool of this name, if there is one.
    #[must_use]
    pub fn call(&self, name: &str, input: Value) -> Option<EventBody> {
        let (runner, _) = self.0.get(name)?;
        let name = name.to_owned();
        Some(match *runner {
            Runner::Sandbox(evaluated_permission) => {
                EventBody::AgentToolUse { name, input, evaluated_permission, sandbox: None }
            }
            Runner::Client => EventBody::AgentCustomToolUse { name, input },
        })
    }

    /// As the model API takes them, sorted by name.
    #[must_use]
    pub fn definitions(&self) -> Vec<Value> {
        self.0.values().map(|(_, definition)| definition.clone()).collect()
    }
}

fn sandbox_tool(tool: SandboxTool) -> Value {
    json!({"name": tool.name(), "description": tool.description(), "input_schema": tool.input_schema()})
}
