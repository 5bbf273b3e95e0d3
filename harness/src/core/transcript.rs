//! What the log says, in the form in which decisions and model requests need it.

use std::collections::HashMap;

use longhand_protocol::event::{EventBody, Permission, RetryStatus, StopReason, ToolEvent, Usage};
use longhand_protocol::{EventId, Record};
use serde_json::{Value, json};

use super::mcp::Ledger;

/// The model reads this in place of a result that never came.
const INTERRUPTED: &str = "This call was interrupted before it had a result. Whether it took effect is not known.";
const CUT_OFF: &str = "This call was not run: the answer reached its token limit before the input was complete.";
const NOT_RUNNABLE: &str = "This call was not run: there is no such tool, or its input is not a JSON object.";

/// Everything that the log says so far. Two transcripts of the same log are equal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    head: u64,
    status: Status,
    items: Vec<Item>,
    /// What the calls of the answer that is being read wait for, where that is not a sandbox.
    asking: HashMap<EventId, Awaits>,
    open_span: Option<EventId>,
    usage: Usage,
    failures: u32,
    gave_up: bool,
    interrupted: bool,
    mcp: Ledger,
}

/// The last status event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// Or none yet.
    #[default]
    Idle,
    /// In a turn.
    Running,
    /// Between two tries.
    Rescheduled,
}

/// A part of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Content blocks of a client.
    User(Vec<Value>),
    /// What the model said.
    Answer(Answer),
}

/// An answer of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Content blocks as they came.
    pub content: Vec<Value>,
    /// Why it ended.
    pub stop: Stop,
    /// Its `tool_use` blocks, in order.
    pub calls: Vec<Call>,
}

/// A `tool_use` block.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The model's own identifier.
    pub model_id: String,
    /// What became of it.
    pub state: CallState,
}

/// What became of a tool call.
#[derive(Clone, Debug, PartialEq)]
pub enum CallState {
    /// It has no result yet.
    Open {
        /// Its event.
        event: EventId,
        /// What it waits for.
        awaits: Awaits,
    },
    /// The client has stopped the turn before it had a result. One that comes before the model is asked again counts.
    Stopped {
        /// Its event.
        event: EventId,
        /// What it waited for.
        awaits: Awaits,
    },
    /// It is answered.
    Answered {
        /// Content blocks.
        content: Vec<Value>,
        /// Whether it failed.
        is_error: bool,
    },
}

impl CallState {
    /// The event of a call that may still have a result.
    const fn waiting(&self) -> Option<&EventId> {
        match self {
            Self::Open { event, .. } | Self::Stopped { event, .. } => Some(event),
            Self::Answered { .. } => None,
        }
    }
}

/// What a tool call without a result waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaits {
    /// A sandbox, through the session service.
    Sandbox,
    /// The client's word whether it may run.
    Confirmation,
    /// The client, who runs it.
    Client,
    /// An MCP server.
    Mcp,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model is done.
    EndTurn,
    /// It wants tools.
    ToolUse,
    /// It wants to go on.
    PauseTurn,
    /// It reached its limit.
    MaxTokens,
    /// It refused.
    Refusal,
    /// Something that this build does not know.
    Other(String),
}

impl Stop {
    /// Reads `stop_reason` of the model API.
    #[must_use]
    pub fn parse(reason: Option<&str>) -> Self {
        match reason {
            Some("end_turn" | "stop_sequence") => Self::EndTurn,
            Some("tool_use") => Self::ToolUse,
            Some("pause_turn") => Self::PauseTurn,
            Some("max_tokens") => Self::MaxTokens,
            Some("refusal") => Self::Refusal,
            other => Self::Other(other.unwrap_or("none").to_owned()),
        }
    }

    /// Whether tools of such an answer may run.
    #[must_use]
    pub const fn permits_tools(&self) -> bool {
        !matches!(self, Self::Refusal | Self::Other(_))
    }
}

/// A record that does not follow the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {found} does not follow record {head}")]
pub struct Gap {
    /// The last record that was applied.
    pub head: u64,
    /// The record that came.
    pub found: u64,
}

fn text(text: &str) -> Vec<Value> {
    vec![json!({"type": "text", "text": text})]
}

impl Transcript {
    /// The sequence number of the last record.
    #[must_use]
    pub const fn head(&self) -> u64 {
        self.head
    }

    /// The last status.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// The conversation.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Tokens so far.
    #[must_use]
    pub const fn usage(&self) -> Usage {
        self.usage
    }

    /// The model request that began and has not ended.
    #[must_use]
    pub const fn open_span(&self) -> Option<&EventId> {
        self.open_span.as_ref()
    }

    /// How many tries in a row have failed.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// What it says of MCP servers.
    #[must_use]
    pub const fn mcp(&self) -> &Ledger {
        &self.mcp
    }

    /// Whether the client stopped the turn.
    #[must_use]
    pub const fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// Takes in a record; one that was taken in before changes nothing.
    ///
    /// # Errors
    /// When records between the last one and this are missing.
    pub fn apply(&mut self, record: &Record) -> Result<(), Gap> {
        if record.seq <= self.head {
            return Ok(());
        }
        if record.seq != self.head + 1 {
            return Err(Gap { head: self.head, found: record.seq });
        }
        self.head = record.seq;
        self.take_in(&record.event.id, &record.event.body);
        Ok(())
    }

    fn take_in(&mut self, id: &EventId, body: &EventBody) {
        self.mcp.take_in(id, body);
        match body {
            EventBody::UserMessage { content } => {
                self.items.push(Item::User(content.clone()));
                self.interrupted = false;
                self.gave_up = false;
                self.failures = 0;
            }
            EventBody::UserInterrupt { .. } => {
                self.interrupted = true;
                self.stop_calls();
            }
            EventBody::UserToolConfirmation { tool_use_id: call, .. } => self.confirm(call),
            EventBody::UserCustomToolResult { custom_tool_use_id: call, content, is_error }
            | EventBody::UserToolResult { tool_use_id: call, content, is_error }
            | EventBody::AgentToolResult { tool_use_id: call, content, is_error }
            | EventBody::AgentMcpToolResult { mcp_tool_use_id: call, content, is_error } => {
                self.answer_call(call, content.as_deref().unwrap_or_default(), is_error.unwrap_or(false));
            }
            EventBody::AgentCustomToolUse { .. } => {
                self.asking.insert(id.clone(), Awaits::Client);
            }
            EventBody::AgentToolUse { evaluated_permission: Permission::Ask, .. }
            | EventBody::AgentMcpToolUse { evaluated_permission: Permission::Ask, .. } => {
                self.asking.insert(id.clone(), Awaits::Confirmation);
            }
            EventBody::AgentMcpToolUse { .. } => {
                self.asking.insert(id.clone(), Awaits::Mcp);
            }
            EventBody::ModelResponse { content, stop_reason, tool_events } => {
                let answer = self.answer(content, Stop::parse(stop_reason.as_deref()), tool_events);
                self.items.push(Item::Answer(answer));
                self.asking.clear();
                self.failures = 0;
            }
            EventBody::SessionStatusRunning {} => self.status = Status::Running,
            EventBody::SessionStatusRescheduled {} => self.status = Status::Rescheduled,
            EventBody::SessionStatusIdle { .. } => self.status = Status::Idle,
            // The turn goes on.
            EventBody::SessionError { error } if error.kind.is_partial() => {}
            EventBody::SessionError { error } => match error.retry_status {
                RetryStatus::Retrying => self.failures = self.failures.saturating_add(1),
                RetryStatus::Exhausted | RetryStatus::Terminal => self.gave_up = true,
            },
            EventBody::SpanModelRequestStart {} => {
                self.open_span = Some(id.clone());
                // What the request says of these calls is what every later request says: the prefix stays the same.
                self.settle();
            }
            EventBody::SpanModelRequestEnd { model_request_start_id, model_usage, .. } => {
                if self.open_span.as_ref() == Some(model_request_start_id) {
                    self.open_span = None;
                }
                self.usage += *model_usage;
            }
            _ => {}
        }
    }

    fn answer(&self, content: &[Value], stop: Stop, tool_events: &[ToolEvent]) -> Answer {
        let calls = content
            .iter()
            .filter(|block| block["type"] == "tool_use")
            .filter_map(|block| block["id"].as_str())
            .map(|model_id| {
                let event = tool_events.iter().find(|tool| tool.model_id == model_id).map(|tool| tool.event_id.clone());
                let state = match event {
                    Some(event) => {
                        let awaits = self.asking.get(&event).copied().unwrap_or(Awaits::Sandbox);
                        CallState::Open { event, awaits }
                    }
                    None => {
                        let reason = if stop == Stop::MaxTokens { CUT_OFF } else { NOT_RUNNABLE };
                        CallState::Answered { content: text(reason), is_error: true }
                    }
                };
                Call { model_id: model_id.to_owned(), state }
            })
            .collect();
        Answer { content: content.to_vec(), stop, calls }
    }

    /// The last answer; calls of earlier ones were settled when it was asked for.
    fn last_answer(&self) -> Option<&Answer> {
        self.items.iter().rev().find_map(|item| match item {
            Item::Answer(answer) => Some(answer),
            Item::User(_) => None,
        })
    }

    fn last_answer_mut(&mut self) -> Option<&mut Answer> {
        self.items.iter_mut().rev().find_map(|item| match item {
            Item::Answer(answer) => Some(answer),
            Item::User(_) => None,
        })
    }

    fn last_calls(&self) -> &[Call] {
        self.last_answer().map(|answer| answer.calls.as_slice()).unwrap_or_default()
    }

    fn last_calls_mut(&mut self) -> &mut [Call] {
        self.last_answer_mut().map(|answer| answer.calls.as_mut_slice()).unwrap_or_default()
    }

    fn answer_call(&mut self, id: &EventId, content: &[Value], is_error: bool) {
        if let Some(call) = self.last_calls_mut().iter_mut().find(|call| call.state.waiting() == Some(id)) {
            call.state = CallState::Answered { content: content.to_vec(), is_error };
        }
    }

    /// The client has said whether a call may run. Both are told to the service, which knows what it has said.
    fn confirm(&mut self, id: &EventId) {
        let runner = if self.mcp.has(id) { Awaits::Mcp } else { Awaits::Sandbox };
        for call in self.last_calls_mut() {
            if let CallState::Open { event, awaits: awaits @ Awaits::Confirmation } = &mut call.state
                && event == id
            {
                *awaits = runner;
            }
        }
    }

    fn stop_calls(&mut self) {
        for call in self.last_calls_mut() {
            if let CallState::Open { event, awaits } = &call.state {
                call.state = CallState::Stopped { event: event.clone(), awaits: *awaits };
            }
        }
    }

    /// A result that comes from now on is too late for the model.
    fn settle(&mut self) {
        for call in self.last_calls_mut() {
            if call.state.waiting().is_some() {
                call.state = CallState::Answered { content: text(INTERRUPTED), is_error: true };
            }
        }
    }

    /// Calls that a sandbox runs, or that were denied: the service gives their results.
    pub fn runnable(&self) -> impl Iterator<Item = &EventId> {
        self.last_calls().iter().filter_map(|call| match &call.state {
            CallState::Open { event, awaits: Awaits::Sandbox } => Some(event),
            _ => None,
        })
    }

    /// Calls that the client has to answer or confirm.
    pub fn asking(&self) -> impl Iterator<Item = &EventId> {
        self.last_calls().iter().filter_map(|call| match &call.state {
            CallState::Open { event, awaits: Awaits::Client | Awaits::Confirmation } => Some(event),
            _ => None,
        })
    }

    /// Calls of a turn that the client has stopped whose results the service gives.
    pub fn stopped(&self) -> impl Iterator<Item = &EventId> {
        self.last_calls().iter().filter_map(|call| match &call.state {
            CallState::Stopped { event, awaits: Awaits::Sandbox | Awaits::Confirmation } if !self.mcp.has(event) => {
                Some(event)
            }
            _ => None,
        })
    }

    /// Whether the conversation waits for the model: the last word is a client's or a tool's.
    fn awaits_model(&self) -> bool {
        match self.items.last() {
            None => false,
            Some(Item::User(_)) => true,
            Some(Item::Answer(answer)) => match answer.stop {
                Stop::PauseTurn => true,
                Stop::EndTurn | Stop::ToolUse | Stop::MaxTokens => !answer.calls.is_empty(),
                Stop::Refusal | Stop::Other(_) => false,
            },
        }
    }

    /// Whether the model is to be called once the calls that a sandbox runs have ended.
    #[must_use]
    pub fn must_call_model(&self) -> bool {
        !self.interrupted && !self.gave_up && self.awaits_model() && self.asking().next().is_none()
    }

    /// Why the session is idle, when nothing is left to do.
    #[must_use]
    pub fn stop_reason(&self) -> StopReason {
        if self.interrupted {
            return StopReason::EndTurn;
        }
        let waiting: Vec<EventId> = self.asking().cloned().collect();
        if !waiting.is_empty() {
            return StopReason::RequiresAction { event_ids: waiting };
        }
        if self.gave_up && self.awaits_model() {
            return StopReason::RetriesExhausted;
        }
        match self.items.last() {
            Some(Item::Answer(Answer { stop: Stop::Refusal, .. })) => StopReason::Refusal,
            Some(Item::Answer(Answer { stop: Stop::Other(_), .. })) => StopReason::RetriesExhausted,
            _ => StopReason::EndTurn,
        }
    }
}
