//! What this brain does with calls of MCP servers. All of it may be lost at any time.

use std::collections::{BTreeSet, HashSet};

use longhand_protocol::EventId;
use longhand_protocol::event::without_result::{self, STOPPED_BEFORE};
use longhand_protocol::event::{EventBody, McpTool, NewEvent, RetryStatus, SessionError, SessionErrorType};
use longhand_protocol::harness::{AgentSnapshot, McpServer, Tool};
use serde_json::{Value, json};

use super::ledger::{Leave, Ledger, OpenCall};

/// A call that does no harm is sent no more often than this, in case that it is what kills the brain.
const MAX_STARTS: u32 = 3;
/// What goes on record at once. A session store's transaction takes a little more than this, of events and of bytes.
const MAX_EVENTS: usize = 40;
const MAX_BYTES: usize = 1_000_000;
/// The bytes of a larger event are stored elsewhere, but sent all the same.
const INLINE_BYTES: usize = 64 * 1024;
const MAX_SENT: usize = 4_000_000;
/// Why nobody knows how a call ended.
const BRAIN_LOST: &str = "the harness that had sent it was lost";

/// What this brain does with calls.
#[derive(Clone, Debug, Default)]
pub(in crate::core) struct Work {
    /// Events that must be appended before anything else is done; those of a group together.
    pending: Vec<Vec<NewEvent>>,
    /// Whether they already replace some that the log did not take.
    replaced: bool,
    /// Calls that this brain has put on record as started.
    started: HashSet<EventId>,
    /// Calls that were handed to the servers' clients.
    in_flight: BTreeSet<EventId>,
    /// Servers whose tools may be others by now.
    changed: BTreeSet<String>,
}

/// A call, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its event.
    pub event: EventId,
    /// Where it goes.
    pub server: McpServer,
    /// The tool, as the server calls it.
    pub tool: String,
    /// Its input.
    pub input: Value,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its event.
    pub call: EventId,
    /// What came of it.
    pub answer: Answer,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The server has answered.
    Result {
        /// Content blocks of the model API.
        content: Vec<Value>,
        /// Whether the tool failed.
        is_error: bool,
    },
    /// It was certainly not run; a sentence says why.
    NotRun(String),
    /// It was sent, and nobody knows what came of it; a clause says why.
    Unknown(String),
}

/// What a server said when it was asked for its tools.
#[derive(Clone, Debug, PartialEq)]
pub struct Discovery {
    /// The server.
    pub server: McpServer,
    /// Its tools, sorted by name.
    pub tools: Result<Vec<McpTool>, Unreachable>,
}

/// A server that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Whether it refused the credential, rather than not answering as it should.
    pub refused: bool,
    /// One sentence for a person.
    pub message: String,
}

impl Work {
    /// What must be appended now: as much as one transaction surely takes, but at least one group.
    pub(in crate::core) fn pending(&self) -> Option<Vec<NewEvent>> {
        let (mut events, mut stored, mut sent) = (Vec::new(), 0, 0);
        for group in &self.pending {
            for event in group {
                let bytes = serde_json::to_vec(event).map_or(0, |text| text.len());
                (stored, sent) = (stored + bytes.min(INLINE_BYTES), sent + bytes);
            }
            let fits = events.len() + group.len() <= MAX_EVENTS && stored <= MAX_BYTES && sent <= MAX_SENT;
            if !events.is_empty() && !fits {
                break;
            }
            events.extend(group.iter().cloned());
        }
        (!events.is_empty()).then_some(events)
    }

    /// An event is in the log.
    pub(in crate::core) fn appended(&mut self, id: &EventId) {
        let waiting = self.pending.len();
        self.pending.retain(|group| group.iter().all(|event| event.id != *id));
        if self.pending.len() < waiting {
            self.replaced = false;
        }
    }

    /// The log does not take what is pending: errors take its place, once. Says whether that was possible.
    pub(in crate::core) fn refused(&mut self, reason: &str) -> bool {
        if self.pending.is_empty() || self.replaced {
            return false;
        }
        let mut groups = Vec::new();
        for event in std::mem::take(&mut self.pending).into_iter().flatten() {
            match event.body {
                EventBody::ToolStarted { tool_use_ids } => {
                    let text = format!("This call was not run: it cannot be recorded: {reason}");
                    groups.extend(tool_use_ids.iter().map(|call| vec![result(call, text_block(&text), true)]));
                }
                EventBody::AgentMcpToolResult { mcp_tool_use_id, .. } => {
                    let text = format!("The tool has answered, and its result cannot be recorded: {reason}");
                    groups.push(vec![result(&mcp_tool_use_id, text_block(&text), true)]);
                }
                EventBody::McpCatalog { mcp_server_name, url, .. } => {
                    let problem = Some(format!("Its tools cannot be recorded: {reason}"));
                    let body = EventBody::McpCatalog { mcp_server_name, url, tools: Vec::new(), problem };
                    groups.push(vec![NewEvent::new(body)]);
                }
                // It would stand without its result.
                EventBody::ToolOutcomeUnknown { .. } => {}
                _ => groups.push(vec![event]),
            }
        }
        (self.pending, self.replaced) = (groups, true);
        true
    }

    /// Servers say that they have other tools, or were not asked for long.
    pub(in crate::core) fn note_changed(&mut self, servers: impl IntoIterator<Item = String>) {
        self.changed.extend(servers);
    }

    /// Calls that were handed over and that nobody waits for any more.
    pub(in crate::core) fn to_cancel(&self, ledger: &Ledger) -> Vec<EventId> {
        let waiting = |id: &EventId| ledger.open().any(|(open, call)| open == id && !call.stopped);
        self.in_flight.iter().filter(|id| !waiting(id)).cloned().collect()
    }

    /// Whether calls were handed over that have not ended.
    pub(in crate::core) fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Calls have ended, or are over because they were cancelled.
    pub(in crate::core) fn ended(&mut self, ledger: &Ledger, cancelled: &[EventId], outcomes: Vec<Outcome>) {
        for id in cancelled.iter().chain(outcomes.iter().map(|outcome| &outcome.call)) {
            self.in_flight.remove(id);
        }
        for Outcome { call, answer } in outcomes {
            if !ledger.has(&call) {
                continue;
            }
            match answer {
                Answer::Result { content, is_error } => self.pending.push(vec![result(&call, content, is_error)]),
                Answer::NotRun(why) => self.pending.push(vec![result(&call, text_block(&why), true)]),
                Answer::Unknown(cause) => self.pending.push(unknown(&call, &cause)),
            }
        }
    }

    /// Puts results of calls on record that are not sent, or not again. Says whether there are any.
    pub(in crate::core) fn settle(&mut self, agent: &AgentSnapshot, ledger: &Ledger) -> bool {
        let settled = ledger.open().filter(|(id, _)| !self.in_flight.contains(id));
        let settled = settled.filter_map(|(id, call)| self.verdict(agent, ledger, id, call));
        let groups: Vec<Vec<NewEvent>> = settled.collect();
        self.pending.extend(groups);
        !self.pending.is_empty()
    }

    fn verdict(&self, agent: &AgentSnapshot, ledger: &Ledger, id: &EventId, call: &OpenCall) -> Option<Vec<NewEvent>> {
        let not_run = |why: String| Some(vec![result(id, text_block(&why), true)]);
        let sent = call.started > 0;
        match &call.leave {
            Leave::Denied(message) => not_run(without_result::denied(message.as_deref())),
            _ if call.stopped && sent => Some(unknown(id, "the user stopped the turn, and the call was cancelled")),
            _ if call.stopped => not_run(STOPPED_BEFORE.to_owned()),
            Leave::Asked => None,
            Leave::Given if sent && !self.started.contains(id) => {
                let tool = server(agent, &call.server).and_then(|server| ledger.tool(server, &call.tool));
                let again = tool.is_some_and(|tool| tool.repeatable) && call.started < MAX_STARTS;
                (!again).then(|| unknown(id, BRAIN_LOST))
            }
            Leave::Given if server(agent, &call.server).is_none() => {
                not_run(format!("The call was not run: the agent has no MCP server {} any more.", call.server))
            }
            Leave::Given => None,
        }
    }

    /// Puts on record that calls are about to be sent. Says whether there are any.
    pub(in crate::core) fn start(&mut self, ledger: &Ledger) -> bool {
        let ready = ledger.open().filter(|(_, call)| call.leave == Leave::Given && !call.stopped);
        let new = ready.map(|(id, _)| id).filter(|id| !self.started.contains(*id));
        let tool_use_ids: Vec<EventId> = new.cloned().collect();
        if tool_use_ids.is_empty() {
            return false;
        }
        self.started.extend(tool_use_ids.iter().cloned());
        self.pending.push(vec![NewEvent::new(EventBody::ToolStarted { tool_use_ids })]);
        true
    }

    /// Calls that are on record as started by this brain, and now handed over.
    pub(in crate::core) fn hand_over(&mut self, agent: &AgentSnapshot, ledger: &Ledger) -> Vec<Call> {
        let ready = ledger.open().filter(|(id, call)| {
            call.started > 0 && !call.stopped && self.started.contains(*id) && !self.in_flight.contains(*id)
        });
        let calls: Vec<Call> = ready
            .filter_map(|(id, call)| {
                let server = server(agent, &call.server)?.clone();
                Some(Call { event: id.clone(), server, tool: call.tool.clone(), input: call.input.clone() })
            })
            .collect();
        self.in_flight.extend(calls.iter().map(|call| call.event.clone()));
        calls
    }

    /// Servers that a toolset names and that have to be asked for their tools before the model is.
    pub(in crate::core) fn to_discover(&self, agent: &AgentSnapshot, ledger: &Ledger) -> Vec<McpServer> {
        let named = agent.tools.iter().filter_map(|tool| match tool {
            Tool::McpToolset { mcp_server_name, .. } => server(agent, mcp_server_name),
            _ => None,
        });
        let wanted = |server: &&McpServer| match ledger.catalog(server) {
            None => true,
            Some(catalog) => catalog.problem.is_none() && self.changed.contains(server.name()),
        };
        named.filter(wanted).cloned().collect()
    }

    /// What servers said goes on record, where it is news.
    pub(in crate::core) fn discovered(&mut self, ledger: &Ledger, discoveries: Vec<Discovery>) {
        for Discovery { server, tools } in discoveries {
            self.changed.remove(server.name());
            let (tools, problem) = match tools {
                Ok(tools) => (tools, None),
                // What it offered before is still the best guess.
                Err(_) if ledger.catalog(&server).is_some_and(|catalog| catalog.problem.is_none()) => continue,
                Err(unreachable) => {
                    self.pending.push(vec![complaint(&server, &unreachable)]);
                    (Vec::new(), Some(unreachable.message))
                }
            };
            if ledger.catalog(&server).is_some_and(|catalog| catalog.tools == tools && catalog.problem == problem) {
                continue;
            }
            let (mcp_server_name, url) = (server.name().to_owned(), server.url().to_owned());
            self.pending.push(vec![NewEvent::new(EventBody::McpCatalog { mcp_server_name, url, tools, problem })]);
        }
    }
}

fn server<'a>(agent: &'a AgentSnapshot, name: &str) -> Option<&'a McpServer> {
    agent.mcp_servers.iter().find(|server| server.name() == name)
}

fn complaint(server: &McpServer, unreachable: &Unreachable) -> NewEvent {
    let kind = match unreachable.refused {
        true => SessionErrorType::McpAuthenticationFailedError,
        false => SessionErrorType::McpConnectionFailedError,
    };
    let mcp_server_name = Some(server.name().to_owned());
    let message = unreachable.message.clone();
    let error = SessionError { kind, mcp_server_name, message, retry_status: RetryStatus::Exhausted };
    NewEvent::new(EventBody::SessionError { error })
}

fn text_block(text: &str) -> Vec<Value> {
    vec![json!({"type": "text", "text": text})]
}

fn result(call: &EventId, content: Vec<Value>, is_error: bool) -> NewEvent {
    let (mcp_tool_use_id, content, is_error) = (call.clone(), Some(content), Some(is_error));
    NewEvent::new(EventBody::AgentMcpToolResult { mcp_tool_use_id, content, is_error })
}

fn unknown(call: &EventId, cause: &str) -> Vec<NewEvent> {
    let text = without_result::outcome_unknown(cause);
    let body = EventBody::ToolOutcomeUnknown { tool_use_id: call.clone(), cause: cause.to_owned() };
    vec![NewEvent::new(body), result(call, text_block(&text), true)]
}
