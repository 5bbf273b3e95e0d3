//! What the log says, in the form in which decisions and model requests need it.

use std::collections::BTreeMap;

use longhand_protocol::event::{EventBody, Permission, RetryStatus, SessionErrorType, StopReason, ToolEvent, Usage};
use longhand_protocol::{EventId, Record};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::MAX_CALLS;
use super::context::{self, Gauge};
pub use super::conversation::{Answer, Awaits, Call, CallState, Item, Stop};
use super::conversation::{json_bytes, length, weight};
use super::limits::Used;
use super::mcp::Ledger;

/// The model reads this in place of a result that never came.
const INTERRUPTED: &str = "This call was interrupted before it had a result. Whether it took effect is not known.";
const TOO_MANY: &str = "This call was not run: an answer may have 32 calls. Make it again if it is still needed.";
const CUT_OFF: &str = "This call was not run: the answer reached its token limit before the input was complete.";
const OVER_LIMIT: &str = "This call was not run: the session has made as many tool calls as it may.";
const NOT_RUNNABLE: &str = "This call was not run: there is no such tool, or its input is not a JSON object.";

/// Everything that the log says so far. Two transcripts of the same log are equal, from wherever they were read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    #[serde(skip)]
    pub(super) head: u64,
    /// The last record that holds all that came before it; 0 while there is none.
    #[serde(skip)]
    pub(super) checkpoint: u64,
    /// About how many bytes the conversation takes in a checkpoint: the sum of [`Item::bytes`].
    #[serde(skip)]
    bytes: u64,
    status: Status,
    items: Vec<Item>,
    /// What the calls of the answer that is being read wait for, where that is not a sandbox.
    asking: BTreeMap<EventId, Awaits>,
    open_span: Option<EventId>,
    used: Used,
    gauge: Gauge,
    /// Something of the conversation is not sent to the model any more.
    trimmed: bool,
    /// How often the conversation was made shorter, or that failed, since the model last came to an end.
    compactions: u32,
    /// The answer that is being read has filled the model's window.
    filled: bool,
    failures: u32,
    model_position: u32,
    gave_up: bool,
    interrupted: bool,
    mcp: Ledger,
}

/// The last status event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Or none yet.
    #[default]
    Idle,
    /// In a turn.
    Running,
    /// Between two tries.
    Rescheduled,
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

    /// What the session has used so far.
    #[must_use]
    pub const fn used(&self) -> &Used {
        &self.used
    }

    /// Whether something of the conversation is not sent to the model any more.
    #[must_use]
    pub const fn trimmed(&self) -> bool {
        self.trimmed
    }

    /// How many records came since the last one that holds all that came before it.
    #[must_use]
    pub const fn since_checkpoint(&self) -> u64 {
        self.head.saturating_sub(self.checkpoint)
    }

    pub(super) const fn gauge(&self) -> &Gauge {
        &self.gauge
    }

    pub(super) const fn compactions(&self) -> u32 {
        self.compactions
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

    /// Which of the agent's models is asked: 0 is the first, and each turn begins with it.
    #[must_use]
    pub const fn model_position(&self) -> u32 {
        self.model_position
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
        if self.restore(record) {
            return Ok(());
        }
        self.head = record.seq;
        self.used.take(record, self.status);
        self.take_in(record.seq, &record.event.id, &record.event.body);
        Ok(())
    }

    fn take_in(&mut self, seq: u64, id: &EventId, body: &EventBody) {
        self.mcp.take_in(id, body);
        match body {
            EventBody::UserMessage { content } => {
                self.gauge.add(weight(content));
                self.push(Item::User(content.clone()));
                self.interrupted = false;
                self.gave_up = false;
                self.failures = 0;
                self.compactions = 0;
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
                self.answer_call(seq, call, content.as_deref().unwrap_or_default(), is_error.unwrap_or(false));
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
            EventBody::ModelResponse { content, stop_reason, model, tool_events, limited } => {
                let stop = Stop::parse(stop_reason.as_deref());
                self.filled = stop == Stop::ContextWindowExceeded;
                if !self.filled {
                    self.compactions = 0;
                }
                self.gauge.add(weight(content));
                let answer = self.answer(content, stop, tool_events, *limited);
                self.push(Item::Answer(Answer { model: model.clone(), ..answer }));
                self.asking.clear();
                self.failures = 0;
            }
            EventBody::ContextResultsCleared { kept } => self.clear_results(*kept),
            EventBody::ContextOverflow { tokens } => self.gauge.overflow(*tokens),
            EventBody::SessionUpdated { agent: Some(_), .. } => self.gauge.forget_ceiling(),
            EventBody::SessionStatusRunning {} => self.status = Status::Running,
            EventBody::SessionStatusRescheduled {} => self.status = Status::Rescheduled,
            EventBody::SessionStatusIdle { .. } => {
                self.status = Status::Idle;
                self.model_position = 0;
            }
            EventBody::ModelFallback { position, .. } => {
                self.model_position = *position;
                self.failures = 0;
            }
            // The turn goes on.
            EventBody::SessionError { error } if error.kind.is_partial() => {}
            EventBody::SessionError { error } => {
                if error.kind == SessionErrorType::CompactionLimitReachedError {
                    self.compactions = self.compactions.saturating_add(1);
                }
                match error.retry_status {
                    RetryStatus::Retrying => self.failures = self.failures.saturating_add(1),
                    RetryStatus::Exhausted | RetryStatus::Terminal => self.gave_up = true,
                }
            }
            EventBody::SpanModelRequestStart {} => {
                self.open_span = Some(id.clone());
                // What the request says of these calls is what every later request says: the prefix stays the same.
                self.settle();
            }
            EventBody::SpanModelRequestEnd { model_request_start_id, model_usage, is_error }
                if self.open_span.as_ref() == Some(model_request_start_id) =>
            {
                self.open_span = None;
                if !is_error {
                    self.count(*model_usage);
                }
            }
            _ => {}
        }
    }

    fn push(&mut self, item: Item) {
        self.bytes = self.bytes.saturating_add(item.bytes());
        self.items.push(item);
    }

    /// Counts the bytes of a conversation that has become another one.
    pub(super) fn weigh(&mut self) {
        self.bytes = self.items.iter().map(Item::bytes).fold(0, u64::saturating_add);
    }

    /// About how many bytes a checkpoint takes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The model has counted what it read and wrote. Where that filled its window, it is known how large that is.
    fn count(&mut self, usage: Usage) {
        self.gauge.count(usage);
        // Not by the request for a summary that follows, which is shorter.
        if std::mem::take(&mut self.filled) {
            self.gauge.overflow(self.gauge.estimate(0));
        }
    }

    fn clear_results(&mut self, kept: u32) {
        let found: Vec<((usize, usize), u64)> = context::clearable(&self.items, kept).collect();
        for ((item, call), bytes) in found {
            if let Some(Item::Answer(answer)) = self.items.get_mut(item)
                && let Some(call) = answer.calls.get_mut(call)
                && let CallState::Answered { content, .. } = &mut call.state
            {
                content.clear();
                call.cleared = Some(bytes);
                self.gauge.subtract(bytes);
                self.trimmed = true;
            }
        }
        self.weigh();
    }

    /// A summary takes the place of what came before what clients have said since the model spoke.
    pub(super) fn compact(&mut self, summary: String) {
        let said = context::split(&self.items).1.to_vec();
        self.items = std::iter::once(Item::Summary(summary)).chain(said).collect();
        self.gauge.restart(self.items.iter().map(Item::weight).fold(0, u64::saturating_add));
        self.weigh();
        self.trimmed = true;
        self.compactions = self.compactions.saturating_add(1);
        self.failures = 0;
    }

    fn answer(&self, content: &[Value], stop: Stop, tool_events: &[ToolEvent], limited: bool) -> Answer {
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
                        let reason = match stop {
                            _ if limited => OVER_LIMIT,
                            Stop::MaxTokens | Stop::ContextWindowExceeded => CUT_OFF,
                            _ if tool_events.len() >= MAX_CALLS => TOO_MANY,
                            _ => NOT_RUNNABLE,
                        };
                        CallState::Answered { content: text(reason), is_error: true }
                    }
                };
                Call { model_id: model_id.to_owned(), state, seq: 0, cleared: None }
            })
            .collect();
        Answer { content: content.to_vec(), model: None, stop, calls }
    }

    /// The last answer; calls of earlier ones were settled when it was asked for.
    fn last_answer(&self) -> Option<&Answer> {
        self.items.iter().rev().find_map(|item| match item {
            Item::Answer(answer) => Some(answer),
            Item::Summary(_) | Item::User(_) => None,
        })
    }

    fn last_answer_mut(&mut self) -> Option<&mut Answer> {
        self.items.iter_mut().rev().find_map(|item| match item {
            Item::Answer(answer) => Some(answer),
            Item::Summary(_) | Item::User(_) => None,
        })
    }

    fn last_calls(&self) -> &[Call] {
        self.last_answer().map(|answer| answer.calls.as_slice()).unwrap_or_default()
    }

    fn last_calls_mut(&mut self) -> &mut [Call] {
        self.last_answer_mut().map(|answer| answer.calls.as_mut_slice()).unwrap_or_default()
    }

    fn answer_call(&mut self, seq: u64, id: &EventId, content: &[Value], is_error: bool) {
        if let Some(call) = self.last_calls_mut().iter_mut().find(|call| call.state.waiting() == Some(id)) {
            call.state = CallState::Answered { content: content.to_vec(), is_error };
            call.seq = seq;
            self.gauge.add(weight(content));
            self.bytes = self.bytes.saturating_add(json_bytes(content));
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
        let mut settled = 0;
        for call in self.last_calls_mut() {
            if call.state.waiting().is_some() {
                call.state = CallState::Answered { content: text(INTERRUPTED), is_error: true };
                settled += 1;
            }
        }
        self.gauge.add(length(INTERRUPTED.len()).saturating_mul(settled));
        self.bytes = self.bytes.saturating_add(json_bytes(&text(INTERRUPTED)).saturating_mul(settled));
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
            Some(Item::Summary(_) | Item::User(_)) => true,
            Some(Item::Answer(answer)) => match answer.stop {
                Stop::PauseTurn | Stop::ContextWindowExceeded => true,
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
