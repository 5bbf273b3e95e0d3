//! The decisions of a brain.

use longhand_protocol::event::{Event, EventBody, NewEvent, Spent, StopReason, Usage};
use longhand_protocol::harness::{Inbox, InboxItem, Model, Recall};
use longhand_protocol::{EventId, Record};

use super::context::Trim;
use super::state::{Effect, Input, Moved, Next, OwnRequest, Purpose, Rest, State, Uncommitted};
use super::tools::ToolSet;
use super::transcript::{Status, Transcript};
use super::{commit, context, request, summary};
use crate::model::{Failure, Reply, Target};

/// What is taken up at once. A session store's transaction takes a little more than this, of events and of bytes.
const MAX_PROMOTED: usize = 32;
const MAX_PROMOTED_BYTES: usize = 1_000_000;

/// Takes in what came back from the last effect and decides what happens next.
#[must_use]
pub fn step(mut state: State, input: Input) -> (State, Next) {
    let joined = std::mem::take(&mut state.joined);
    if joined && !matches!(input, Input::Records { .. }) {
        state.request = None;
    }
    match input {
        Input::Claimed => {}
        Input::Checkpoint(found) => {
            state.lost = false;
            // One that is not newer than what is known says nothing new.
            let restored = found.filter(|record| record.seq > state.log.head());
            state.log = restored.and_then(|record| Transcript::restored(&record)).unwrap_or(state.log);
        }
        Input::Records { records, head } => state.absorb(&records, head),
        Input::Page { records, head, inbox } => {
            if state.inbox.is_none() || state.inbox_is_old {
                state.look(inbox);
            }
            state.absorb(&records, head);
        }
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
        Input::Refused { .. } if joined => state.apart = true,
        Input::Refused { reason } => {
            if let Err(reason) = state.replace_refused(reason) {
                return (state, Next::Fail { reason });
            }
        }
        Input::Inbox(inbox) => state.look(inbox),
        Input::Interrupted(inbox) => {
            state.request = None;
            state.look(inbox);
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
    pub(super) fn absorb(&mut self, records: &[Record], head: u64) {
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
        self.inbox_is_old = true;
        let Some(OwnRequest { span, purpose }) = self.request.take() else { return };
        let mut checkpoint = None;
        let events = match (outcome, purpose) {
            (Ok(reply), Purpose::Answer(message)) => {
                let calls_left = self.log.used().calls_left(&self.session.limits);
                commit::reply(&self.offered(), self.model(), calls_left, span.clone(), message, reply)
            }
            (Ok(reply), Purpose::Summary) => match summary::take(&reply) {
                Ok(text) => {
                    checkpoint = Some((EventId::generate(), text));
                    commit::summary(span.clone(), reply.usage)
                }
                Err(reason) => commit::no_summary(span.clone(), self.log.compactions(), reply.usage, reason),
            },
            (Err(failure), Purpose::Answer(_)) if failure.is_too_long() => {
                let tokens = self.log.gauge().estimate(self.overhead());
                commit::overflow(span.clone(), failure.usage, tokens)
            }
            (Err(failure), Purpose::Summary) if failure.is_too_long() => {
                commit::no_summary(span.clone(), self.log.compactions(), failure.usage, &failure.message)
            }
            (Err(failure), _) => {
                self.rest = Some(Rest { failures: 0, at_least: failure.retry_after });
                commit::failure(span.clone(), self.log.failures(), failure, self.next_model())
            }
        };
        self.uncommitted = Some(Uncommitted { span, events, summary: checkpoint, replaced: false });
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
        self.uncommitted = Some(Uncommitted { span, events, summary: None, replaced: true });
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
        if self.lost {
            return Some(Effect::Restore);
        }
        if self.behind {
            return Some(Effect::Read { after: self.log.head() });
        }
        if let Some(batch) = &self.uncommitted {
            return Some(self.append(self.with_summary(batch)));
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
                Some(own) if self.log.open_span() == Some(&own.span) => self.call_model(&own.purpose),
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
        let asks = self.log.must_call_model() && !self.has_used_all();
        if self.inbox_is_old && (asks || !queued.is_empty()) {
            return Some(Effect::Look);
        }
        if !queued.is_empty() {
            return Some(self.take_up(queued));
        }
        if asks {
            return Some(match self.rest {
                Some(rest) if self.log.failures() > 0 => Effect::Rest(rest),
                _ => self.discover().unwrap_or_else(|| self.ask()),
            });
        }
        // Without a wake key the session was given up already.
        wake_revision.map(|wake_revision| Effect::Idle {
            expected_head: self.log.head(),
            wake_revision,
            events: self.last_events(),
        })
    }

    /// Takes queued events up. If the model is asked next, its request begins in the same transaction.
    fn take_up(&mut self, queued: Vec<EventId>) -> Effect {
        let mut then: Vec<NewEvent> = self.running().into_iter().collect();
        if let Some((request, start)) = self.request_after(&queued, &then) {
            self.request = Some(request);
            self.joined = true;
            then.push(start);
        }
        self.promote(queued, then)
    }

    /// The request that begins when these events are in the log, if nothing else comes before it. A checkpoint does: it says
    /// what the log's clock said.
    fn request_after(&self, queued: &[EventId], then: &[NewEvent]) -> Option<(OwnRequest, NewEvent)> {
        let items = &self.inbox.as_ref()?.items;
        if self.apart || queued.len() < items.len() {
            return None;
        }
        let mut after = self.clone();
        let taken = items.iter().map(|item| item.event.clone());
        let said =
            then.iter().map(|event| Event { id: event.id.clone(), body: event.body.clone(), processed_at: None });
        let records: Vec<Record> = (self.log.head() + 1..)
            .zip(taken.chain(said))
            .map(|(seq, event)| Record { seq, epoch: 0, prev_hash: String::new(), event })
            .collect();
        after.absorb(&records, records.last()?.seq);
        match after.decide()? {
            Effect::Append { events, .. } => {
                let request = after.request?;
                let start = <[NewEvent; 1]>::try_from(events).ok().map(|[start]| start)?;
                (start.id == request.span).then_some((request, start))
            }
            _ => None,
        }
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

    /// The events of a batch, and a checkpoint of what the log says after them, as it is now.
    fn with_summary(&self, batch: &Uncommitted) -> Vec<NewEvent> {
        let mut events = batch.events.clone();
        if let Some((id, text)) = &batch.summary {
            let mut log = self.log.clone();
            for event in &events {
                let event = Event { id: event.id.clone(), body: event.body.clone(), processed_at: None };
                let record = Record { seq: log.head() + 1, epoch: 0, prev_hash: String::new(), event };
                if log.apply(&record).is_err() {
                    break;
                }
            }
            log.compact(text.clone());
            events.extend(log.checkpoint().map(|body| NewEvent { id: id.clone(), body }));
            events.push(NewEvent::new(EventBody::AgentThreadContextCompacted {}));
        }
        events
    }

    /// The tools that the model is offered now.
    fn offered(&self) -> ToolSet {
        let tools = self.tools.clone();
        let recalls = self.session.agent.context.recall == Recall::WhenTrimmed && self.log.trimmed();
        if recalls { tools.with_recall() } else { tools }
    }

    fn overhead(&self) -> u64 {
        request::overhead(&self.session.agent, &self.offered())
    }

    fn has_used_all(&self) -> bool {
        self.log.used().is_all(&self.session)
    }

    fn call_model(&self, purpose: &Purpose) -> Effect {
        let (agent, model, tools) = (&self.session.agent, self.model(), self.offered());
        let (body, message) = match purpose {
            Purpose::Answer(message) => (request::build(agent, &model, &tools, &self.log), Some(message.clone())),
            Purpose::Summary => (summary::build(agent, &model, &tools, &self.log), None),
        };
        Effect::CallModel { target: Target::of(&model), body, message }
    }

    /// What comes before the model's next answer: the conversation is made shorter, or the request begins.
    fn ask(&mut self) -> Effect {
        match context::plan(&self.session.agent.context, &self.log, self.overhead()) {
            Trim::Nothing => self.begin_request(Purpose::Answer(EventId::generate())),
            Trim::Compact => self.begin_request(Purpose::Summary),
            Trim::Clear { kept } => self.append(vec![
                NewEvent::new(EventBody::ContextResultsCleared { kept }),
                NewEvent::new(EventBody::AgentThreadContextCompacted {}),
            ]),
            Trim::Exhausted => self.append(commit::too_long()),
        }
    }

    /// The model that is asked now.
    fn model(&self) -> Model {
        self.session.agent.model.at(usize::try_from(self.log.model_position()).unwrap_or(usize::MAX))
    }

    /// The model that is asked when that one is given up, and its position.
    fn next_model(&self) -> Option<(String, u32)> {
        let position = self.log.model_position();
        let next = self.session.agent.model.fallbacks.get(usize::try_from(position).ok()?)?;
        Some((next.id.clone(), position + 1))
    }

    fn begin_request(&mut self, purpose: Purpose) -> Effect {
        let start = NewEvent::new(EventBody::SpanModelRequestStart {});
        self.request = Some(OwnRequest { span: start.id.clone(), purpose });
        let checkpoint = self.log.due_checkpoint(self.interval);
        self.append(checkpoint.into_iter().chain(self.running()).chain([start]).collect())
    }

    fn last_events(&self) -> Vec<NewEvent> {
        let limited = self.log.must_call_model() && self.has_used_all();
        let stop_reason = if limited { StopReason::BudgetReached } else { self.log.stop_reason() };
        let (tokens, list_cost) = (self.log.used().tokens, self.log.used().list_cost(&self.session));
        let usage = NewEvent::new(EventBody::SessionUsage { usage: Spent { tokens, list_cost } });
        let idle = NewEvent::new(EventBody::SessionStatusIdle { stop_reason });
        self.log.due_checkpoint(self.interval).into_iter().chain([usage, idle]).collect()
    }
}
