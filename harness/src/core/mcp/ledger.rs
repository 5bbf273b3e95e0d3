//! What the log says of MCP servers and of calls that have no result yet.

use std::collections::BTreeMap;

use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, McpTool, Permission, Verdict};
use longhand_protocol::harness::McpServer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the log says. Two ledgers of the same log are equal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    catalogs: BTreeMap<String, Catalog>,
    /// Those without a result, in the order of the log.
    calls: Vec<(EventId, OpenCall)>,
}

/// The tools of a server as they were when it was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// Where it was asked.
    pub url: String,
    /// Its tools.
    pub tools: Vec<McpTool>,
    /// Why they are not known.
    pub problem: Option<String>,
}

/// A call that has no result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OpenCall {
    pub(super) server: String,
    pub(super) tool: String,
    pub(super) input: Value,
    pub(super) leave: Leave,
    /// How often it was about to be sent.
    pub(super) started: u32,
    /// The client has stopped the turn since.
    pub(super) stopped: bool,
}

/// Whether a call may be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Leave {
    /// It may.
    Given,
    /// The client has not been heard.
    Asked,
    /// It may not.
    Denied(Option<String>),
}

impl Ledger {
    /// Takes in the next event of the log.
    pub(in crate::core) fn take_in(&mut self, id: &EventId, body: &EventBody) {
        match body {
            EventBody::McpCatalog { mcp_server_name, url, tools, problem } => {
                let catalog = Catalog { url: url.clone(), tools: tools.clone(), problem: problem.clone() };
                self.catalogs.insert(mcp_server_name.clone(), catalog);
            }
            // What failed is tried anew.
            EventBody::UserMessage { .. } => self.catalogs.retain(|_, catalog| catalog.problem.is_none()),
            EventBody::AgentMcpToolUse { mcp_server_name, name, input, evaluated_permission } => {
                let leave = match evaluated_permission {
                    Permission::Allow => Leave::Given,
                    Permission::Ask => Leave::Asked,
                    Permission::Deny => Leave::Denied(None),
                };
                let call = OpenCall {
                    server: mcp_server_name.clone(),
                    tool: name.clone(),
                    input: input.clone(),
                    leave,
                    started: 0,
                    stopped: false,
                };
                self.calls.push((id.clone(), call));
            }
            EventBody::UserToolConfirmation { tool_use_id, result, deny_message } => {
                // The first word counts.
                if let Some(call) = self.call_mut(tool_use_id).filter(|call| call.leave == Leave::Asked) {
                    call.leave = match result {
                        Verdict::Allow => Leave::Given,
                        Verdict::Deny => Leave::Denied(deny_message.clone()),
                    };
                }
            }
            EventBody::UserInterrupt { .. } => self.calls.iter_mut().for_each(|(_, call)| call.stopped = true),
            EventBody::ToolStarted { tool_use_ids } => {
                for id in tool_use_ids {
                    if let Some(call) = self.call_mut(id) {
                        call.started = call.started.saturating_add(1);
                    }
                }
            }
            EventBody::AgentMcpToolResult { mcp_tool_use_id, .. } => {
                self.calls.retain(|(id, _)| id != mcp_tool_use_id);
            }
            // A result that comes from now on is too late for the model.
            EventBody::SpanModelRequestStart {} => self.calls.clear(),
            _ => {}
        }
    }

    fn call_mut(&mut self, id: &EventId) -> Option<&mut OpenCall> {
        self.calls.iter_mut().find_map(|(known, call)| (known == id).then_some(call))
    }

    /// Whether this is a call without a result that goes to an MCP server.
    pub(in crate::core) fn has(&self, id: &EventId) -> bool {
        self.calls.iter().any(|(known, _)| known == id)
    }

    /// Calls without a result, in the order of the log.
    pub(super) fn open(&self) -> impl Iterator<Item = (&EventId, &OpenCall)> {
        self.calls.iter().map(|(id, call)| (id, call))
    }

    /// What is known of a server; nothing if it was asked at another URL.
    #[must_use]
    pub fn catalog(&self, server: &McpServer) -> Option<&Catalog> {
        self.catalogs.get(server.name()).filter(|catalog| catalog.url == server.url())
    }

    /// A tool of a server.
    pub(super) fn tool(&self, server: &McpServer, name: &str) -> Option<&McpTool> {
        self.catalog(server)?.tools.iter().find(|tool| tool.name == name)
    }
}
