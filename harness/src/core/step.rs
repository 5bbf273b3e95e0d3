//! The decisions of a brain.

use longhand_protocol::event::{EventBody, NewEvent, Usage};
use longhand_protocol::harness::{Inbox, InboxItem};
use longhand_protocol::{EventId, Record};

use super::state::{Effect, Input, Moved, Next, OwnRequest, Rest, State, Uncommitted};
use super::tools::ToolSet;
use super::transcript::Status;
use super::{commit, request};
use crate::model::{Failure, Reply};

/// What is taken up at once. A session store's transaction takes a little more than this, of events and of bytes.
const MAX_PROMOTED: usize = 32;
const MAX_PROMOTED_BYTES: usize = 1_000_000;

/// Takes in what came back from the last effect and decides what happens next.
#[must_use]
pub fn step(mut state: State, input: Input) -> (State, Next) {
    match input {
        Input::Claimed => {}
        Input::Records { records, head } => state.absorb(&records, head),
        Input::Released { records } => {
            let head = records.last().map_or(state.log.head(), |record| record.seq);
            state.absorb(&records, head);
            return (state, Next::Done);
        }
        Input::Moved(Moved::Head) => state.behind = true,
        Input::Moved(Moved::Wake) => state.inbox = None,
        Input::Moved(Moved::Queue) => {
            state.behind = true;
            state.inbox = None;
        }
        Input::Refused { reason } => {
            if let Err(reason) = state.replace_refused(reason) {
                return (state, Next::Fail { reason });
            }
        }
        Input::Inbox(inbox) => state.inbox = Some(inbox),
        Input::Interrupted(inbox) => {
            state.request = None;
            state.inbox = Some(inbox);
        }
        Input::Model(outcome) => state.take_outcome(outcome),
        Input::Executed { abandoned } => {
            state.abandoned.extend(abandoned);
            state.behind = true;
            state.inbox = None;
        }
        Input::Rested => {
            state.rest = None;
            state.inbox = None;
        }
        Input::Discovered(discoveries) => {
            state.mcp.discovered(state.log.mcp(), discoveries);
            state.inbox = None;
        }
        Input::Called { outcomes, cancelled } => {
            state.mcp.ended(state.log.mcp(), &cancelled, outcomes);
            state.inbox = None;
        }
    }
    let next = state.decide().map_or(Next::Done, Next::Do);
    (state, next)
}

/// Whether an interrupt is queued, which is not left to wait for the end of a model or tool call.
#[must_use]
pub fn has_interrupt(inbox: &Inbox) -> bool {
    inbox.items.iter().any(is_interrupt)
}

/// As many queued events as one transaction surely takes, but at least one.
fn batch<'a>(items: impl Iterator<Item = &'a InboxItem>) -> Vec<EventId> {
    let mut bytes = 0;
    let small = items.take(MAX_PROMOTED).enumerate().take_while(|(index, item)| {
        bytes += serde_json::to_vec(&item.event).map_or(0, |text| text.len());
        *index == 0 || bytes <= MAX_PROMOTED_BYTES
    });
    small.map(|(_, item)| item.event.id.clone()).collect()
}

fn is_interrupt(item: &InboxItem) -> bool {
    matches!(item.event.body, EventBody::UserInterrupt { .. })
}

impl State {
    fn absorb(&mut self, records: &[Record], head: u64) {
        let failures = self.log.failures();
        for record in records {
            if self.log.apply(record).is_err() {
                break;
            }
            let id = &record.event.id;
            self.mcp.appended(id);
            if matches!(record.event.body, EventBody::McpCatalog { .. }) {
                self.tools = ToolSet::of(&self.session, self.log.mcp());
            }
            if let Some(inbox) = &mut self.inbox {
                inbox.items.retain(|item| item.event.id != *id);
            }
            if self.uncommitted.as_ref().is_some_and(|batch| batch.events.iter().any(|event| event.id == *id)) {
                self.uncommitted = None;
            }
        }
        self.behind = head > self.log.head();
        if self.log.failures() > failures {
            let at_least = self.rest.and_then(|rest| rest.at_least);
            self.rest = Some(Rest { failures: self.log.failures(), at_least });
        }
    }

    fn take_outcome(&mut self, outcome: Result<Reply, Failure>) {
        self.inbox = None;
        let Some(OwnRequest { span, message }) = self.request.take() else { return };
        let events = match outcome {
            Ok(reply) => {
                let max_tokens = self.session.agent.model.max_tokens;
                commit::reply(&self.tools, max_tokens, span.clone(), message, reply)
            }
            Err(failure) => {
                self.rest = Some(Rest { failures: 0, at_least: failure.retry_after });
                commit::failure(span.clone(), self.log.failures(), failure)
            }
        };
        self.uncommitted = Some(Uncommitted { span, events, replaced: false });
    }

    /// An answer that the log does not take, or a request that it does not let begin, is replaced by an error that says so,
    /// once: a log that is full takes that, and the end of the turn.
    fn replace_refused(&mut self, reason: String) -> Result<(), String> {
        if self.uncommitted.is_none() && self.mcp.refused(&reason) {
            return Ok(());
        }
        let (span, events) = match (self.uncommitted.take(), self.request.take()) {
            (Some(batch), _) if !batch.replaced => (batch.span.clone(), commit::refused(batch.span, &reason)),
            (None, Some(own)) if self.log.open_span() != Some(&own.span) => (own.span, commit::not_begun(&reason)),
            _ => return Err(reason),
        };
        self.uncommitted = Some(Uncommitted { span, events, replaced: true });
        Ok(())
    }

    fn append(&self, events: Vec<NewEvent>) -> Effect {
        Effect::Append { expected_head: self.log.head(), events }
    }

    fn promote(&self, inbox: Vec<EventId>, then: Vec<NewEvent>) -> Effect {
        Effect::Promote { expected_head: self.log.head(), inbox, then }
    }

    /// The next effect; none when there is nothing left to do.
    fn decide(&mut self) -> Option<Effect> {
        if self.behind {
            return Some(Effect::Read { after: self.log.head() });
        }
        if let Some(batch) = &self.uncommitted {
            return Some(self.append(batch.events.clone()));
        }
        if let Some(events) = self.mcp.pending() {
            return Some(self.append(events));
        }
        let Some(inbox) = &self.inbox else { return Some(Effect::Look) };
        let wake_revision = inbox.wake_revision;
        let interrupts = batch(inbox.items.iter().filter(|item| is_interrupt(item)));
        let queued = batch(inbox.items.iter().filter(|item| !is_interrupt(item)));
        let close_span = self.log.open_span().map(|span| commit::span_end(span.clone(), true, Usage::default()));
        if !interrupts.is_empty() {
            return Some(self.promote(interrupts, close_span.into_iter().collect()));
        }
        if let Some(end) = close_span {
            return Some(match &self.request {
                Some(own) if self.log.open_span() == Some(&own.span) => Effect::CallModel {
                    body: request::build(&self.session.agent, &self.tools, &self.log),
                    message: own.message.clone(),
                },
                _ => self.append(vec![end]),
            });
        }
        if let Some(effect) = self.send_mcp() {
            return Some(effect);
        }
        let stopped = self.not_abandoned(self.log.stopped());
        if !stopped.is_empty() {
            return Some(Effect::Stop { calls: stopped });
        }
        let runnable = self.not_abandoned(self.log.runnable());
        if !runnable.is_empty() {
            return Some(Effect::Execute { calls: runnable });
        }
        if self.mcp.is_waiting() {
            return Some(Effect::AwaitMcp);
        }
        if !queued.is_empty() {
            return Some(self.promote(queued, self.running().into_iter().collect()));
        }
        if self.log.must_call_model() {
            return Some(match self.rest {
                Some(rest) if self.log.failures() > 0 => Effect::Rest(rest),
                _ => self.discover().unwrap_or_else(|| self.begin_request()),
            });
        }
        // Without a wake key the session was given up already.
        wake_revision.map(|wake_revision| Effect::Idle {
            expected_head: self.log.head(),
            wake_revision,
            events: self.last_events(),
        })
    }

    /// What is to be done for calls of MCP servers before a sandbox is waited for.
    fn send_mcp(&mut self) -> Option<Effect> {
        let (agent, ledger) = (&self.session.agent, self.log.mcp());
        let cancelled = self.mcp.to_cancel(ledger);
        if !cancelled.is_empty() {
            return Some(Effect::CancelMcp { calls: cancelled });
        }
        if self.mcp.settle(agent, ledger) || self.mcp.start(ledger) {
            return self.mcp.pending().map(|events| self.append(events));
        }
        let calls = self.mcp.hand_over(agent, ledger);
        (!calls.is_empty()).then_some(Effect::SendMcp { calls })
    }

    /// Tools of MCP servers have to be known before the model is asked, and on record.
    fn discover(&self) -> Option<Effect> {
        let servers = self.mcp.to_discover(&self.session.agent, self.log.mcp());
        (!servers.is_empty()).then_some(Effect::Discover { servers })
    }

    fn not_abandoned<'a>(&self, calls: impl Iterator<Item = &'a EventId>) -> Vec<EventId> {
        calls.filter(|call| !self.abandoned.contains(*call)).cloned().collect()
    }

    fn running(&self) -> Option<NewEvent> {
        (self.log.status() != Status::Running).then(|| NewEvent::new(EventBody::SessionStatusRunning {}))
    }

    fn begin_request(&mut self) -> Effect {
        let start = NewEvent::new(EventBody::SpanModelRequestStart {});
        self.request = Some(OwnRequest { span: start.id.clone(), message: EventId::generate() });
        self.append(self.running().into_iter().chain([start]).collect())
    }

    fn last_events(&self) -> Vec<NewEvent> {
        vec![
            NewEvent::new(EventBody::SessionUsage { usage: self.log.usage() }),
            NewEvent::new(EventBody::SessionStatusIdle { stop_reason: self.log.stop_reason() }),
        ]
    }
}
