//! The tools that the model is offered.

use std::collections::BTreeMap;

use longhand_protocol::event::{EventBody, Permission};
use longhand_protocol::harness::{HANDOFF, HarnessSession, RECALL, Recall, SandboxTool, Tool};
use longhand_protocol::sandbox_tools::take_sandbox;
use serde_json::{Value, json};

use super::mcp::{self, Ledger};

/// The tools of a session, by name, so that a request lists them in the same order every time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolSet {
    tools: BTreeMap<String, (Runner, Value)>,
    /// Among which the model chooses.
    sandboxes: Vec<String>,
}

/// Who runs a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Runner {
    /// A sandbox, through the session service.
    Sandbox(Permission),
    /// The session service itself.
    Service(Permission),
    /// The client.
    Client,
    /// An MCP server.
    Mcp {
        /// Which of the agent's servers.
        server: String,
        /// What it calls the tool.
        tool: String,
        permission: Permission,
    },
}

impl ToolSet {
    /// The tools of the session's agent; those of a sandbox only if the session has one, those of an MCP server as the log
    /// says.
    #[must_use]
    pub fn of(session: &HarnessSession, servers: &Ledger) -> Self {
        let mut tools = BTreeMap::new();
        for tool in &session.agent.tools {
            match tool {
                Tool::AgentToolset { .. } if !session.sandboxes.is_empty() => {
                    for (tool, policy) in tool.sandbox_tools() {
                        let runner = Runner::Sandbox(policy.permission());
                        tools.insert(tool.name().to_owned(), (runner, sandbox_tool(tool, &session.sandboxes)));
                    }
                }
                Tool::AgentToolset { .. } | Tool::McpToolset { .. } => {}
                Tool::Custom { name, description, input_schema } => {
                    let definition = json!({"name": name, "description": description, "input_schema": input_schema});
                    tools.entry(name.clone()).or_insert((Runner::Client, definition));
                }
            }
        }
        for (name, offered) in mcp::offered(&session.agent, servers, |name| tools.contains_key(name)) {
            let (description, input_schema) = (offered.tool.description, offered.tool.input_schema);
            let mut definition = json!({"name": name, "input_schema": input_schema});
            if !description.is_empty() {
                definition["description"] = json!(description);
            }
            let (server, permission) = (offered.server, offered.permission);
            tools.insert(name, (Runner::Mcp { server, tool: offered.tool.name, permission }, definition));
        }
        let tools = Self { tools, sandboxes: session.sandboxes.clone() };
        let tools = if session.agent.context.recall == Recall::Always { tools.with_recall() } else { tools };
        match session.agent.handoff {
            Some(permission) if !session.sandboxes.is_empty() => tools.with_handoff(permission),
            _ => tools,
        }
    }

    /// These, and the one that hands a sandbox to another session, unless the agent has its own of that name.
    fn with_handoff(mut self, permission: Permission) -> Self {
        let definition = handoff_tool(&self.sandboxes);
        self.tools.entry(HANDOFF.to_owned()).or_insert((Runner::Service(permission), definition));
        self
    }

    /// These, and the one that looks things up in the log, unless the agent has its own of that name.
    #[must_use]
    pub fn with_recall(mut self) -> Self {
        self.tools.entry(RECALL.to_owned()).or_insert_with(|| (Runner::Service(Permission::Allow), recall_tool()));
        self
    }

    /// The event of a call of the tool of this name, if there is one.
    #[must_use]
    pub fn call(&self, name: &str, mut input: Value) -> Option<EventBody> {
        let (runner, _) = self.tools.get(name)?;
        let name = name.to_owned();
        Some(match runner {
            Runner::Sandbox(permission) => {
                let sandbox = take_sandbox(&mut input, &self.sandboxes);
                EventBody::AgentToolUse { name, input, evaluated_permission: *permission, sandbox }
            }
            Runner::Service(permission) => {
                EventBody::AgentToolUse { name, input, evaluated_permission: *permission, sandbox: None }
            }
            Runner::Client => EventBody::AgentCustomToolUse { name, input },
            // The protocol knows no other arguments.
            Runner::Mcp { .. } if !input.is_object() => return None,
            Runner::Mcp { server, tool, permission } => EventBody::AgentMcpToolUse {
                mcp_server_name: server.clone(),
                name: tool.clone(),
                input,
                evaluated_permission: *permission,
            },
        })
    }

    /// As the model API takes them, sorted by name.
    #[must_use]
    pub fn definitions(&self) -> Vec<Value> {
        self.tools.values().map(|(_, definition)| definition.clone()).collect()
    }
}

fn recall_tool() -> Value {
    json!({
        "name": RECALL,
        "description": "Looks things up in the complete record of this session: messages, your answers, tool calls and \
            their results, those too that are not in the conversation any more. Gives the newest matches first, each with \
            its number; long entries are cut around the match. To read one in full, ask for its number alone by `after` \
            and `before`.",
        "input_schema": {"type": "object", "properties": {
            "query": {"type": "string", "description": "Only entries that contain this text; upper and lower case are the same."},
            "types": {"type": "array", "items": {"type": "string"},
                "description": "Only entries of these types, such as `user.message`, `agent.message`, `agent.tool_use`, `agent.tool_result`; `agent.*` is a family."},
            "after": {"type": "integer", "minimum": 0, "description": "Only entries with a higher number."},
            "before": {"type": "integer", "minimum": 1, "description": "Only entries with a lower number."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 100, "description": "At most so many entries; 20 unless given."},
        }, "required": []},
    })
}

fn handoff_tool(sandboxes: &[String]) -> Value {
    json!({
        "name": HANDOFF,
        "description": "Hands a sandbox of this session to another session: the files of its workspace go there, whatever runs in it \
            ends, and the next call here begins with an empty workspace. Call it when nothing else runs in the sandbox.",
        "input_schema": {"type": "object", "properties": {
            "session": {"type": "string", "description": "Identifier of the other session, `sesn_...`, as you were told it."},
            "sandbox": {"type": "string", "enum": sandboxes, "description": "Which sandbox; the first one unless given."},
            "to_sandbox": {"type": "string", "description": "Its name in the other session; the same unless given."},
        }, "required": ["session"]},
    })
}

fn sandbox_tool(tool: SandboxTool, among: &[String]) -> Value {
    json!({"name": tool.name(), "description": tool.description(), "input_schema": tool.input_schema_among(among)})
}
