//! The tools that the model is offered.

use std::collections::BTreeMap;

use longhand_protocol::event::{EventBody, Permission};
use longhand_protocol::harness::{HarnessSession, SandboxTool, Tool};
use serde_json::{Value, json};

use super::mcp::{self, Ledger};

/// The tools of a session, by name, so that a request lists them in the same order every time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolSet(BTreeMap<String, (Runner, Value)>);

/// Who runs a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Runner {
    /// A sandbox, through the session service.
    Sandbox(Permission),
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
        for (name, offered) in mcp::offered(&session.agent, servers, |name| tools.contains_key(name)) {
            let (description, input_schema) = (offered.tool.description, offered.tool.input_schema);
            let mut definition = json!({"name": name, "input_schema": input_schema});
            if !description.is_empty() {
                definition["description"] = json!(description);
            }
            let (server, permission) = (offered.server, offered.permission);
            tools.insert(name, (Runner::Mcp { server, tool: offered.tool.name, permission }, definition));
        }
        Self(tools)
    }

    /// The event of a call of the tool of this name, if there is one.
    #[must_use]
    pub fn call(&self, name: &str, input: Value) -> Option<EventBody> {
        let (runner, _) = self.0.get(name)?;
        let name = name.to_owned();
        Some(match runner {
            Runner::Sandbox(permission) => {
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
        self.0.values().map(|(_, definition)| definition.clone()).collect()
    }
}

fn sandbox_tool(tool: SandboxTool) -> Value {
    let (description, properties, required): (&str, Value, &[&str]) = match tool {
        SandboxTool::Bash => (
            "Runs a command in a bash shell inside the sandbox and returns what it printed and its exit code. The shell \
             keeps its working directory and variables from call to call; `restart` starts a new one. Calls that \
             need no input from a terminal work best. Long output is cut: redirect it to a file and read parts of it.",
            json!({
                "command": {"type": "string", "description": "The command to run."},
                "restart": {"type": "boolean", "description": "Start a new shell; `command` is not needed then."},
                "timeout_ms": {"type": "integer", "minimum": 1,
                    "description": "End the command after so many milliseconds; 120000 unless given."},
            }),
            &[],
        ),
        SandboxTool::Read => (
            "Reads a text file of the sandbox and returns its lines with their numbers. Give `view_range` to read a part \
             of a large file.",
            json!({
                "file_path": {"type": "string", "description": "The file, absolute or relative to the workspace."},
                "view_range": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                    "description": "First and last line, counted from 1; -1 as the last means the end of the file."},
            }),
            &["file_path"],
        ),
        SandboxTool::Write => (
            "Writes a text file in the sandbox; directories are made as needed and a file that exists is replaced.",
            json!({
                "file_path": {"type": "string", "description": "The file, absolute or relative to the workspace."},
                "content": {"type": "string", "description": "The whole content of the file."},
            }),
            &["file_path", "content"],
        ),
        SandboxTool::Edit => (
            "Replaces a string in a file of the sandbox. `old_string` must occur in it exactly once, with the same white \
             space, unless `replace_all` is true.",
            json!({
                "file_path": {"type": "string", "description": "The file, absolute or relative to the workspace."},
                "old_string": {"type": "string", "description": "What to replace."},
                "new_string": {"type": "string", "description": "What to put in its place."},
                "replace_all": {"type": "boolean", "description": "Replace every occurrence."},
            }),
            &["file_path", "old_string", "new_string"],
        ),
        SandboxTool::Glob => (
            "Finds files of the sandbox whose path matches a pattern such as `**/*.rs`, the most recently changed first.",
            json!({
                "pattern": {"type": "string", "description": "The pattern."},
                "path": {"type": "string", "description": "The directory to search; the workspace unless given."},
            }),
            &["pattern"],
        ),
        SandboxTool::Grep => (
            "Finds lines that match a regular expression in files of the sandbox, and returns them with file and line \
             number. Files that version control ignores are left out.",
            json!({
                "pattern": {"type": "string", "description": "The regular expression."},
                "path": {"type": "string", "description": "The file or directory to search; the workspace unless given."},
            }),
            &["pattern"],
        ),
    };
    json!({
        "name": tool.name(),
        "description": description,
        "input_schema": {"type": "object", "properties": properties, "required": required},
    })
}
