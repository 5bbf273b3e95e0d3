//! What a session has used, and whether that is all that it may use.

use std::collections::BTreeMap;

use longhand_protocol::Record;
use longhand_protocol::event::{EventBody, StopReason, Usage};
use longhand_protocol::harness::{HarnessSession, Limits};
use longhand_protocol::wire::Money;
use serde::{Deserialize, Serialize};

use super::cost::{self, Amount};
use super::transcript::Status;

/// What a session has used so far, as its log says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// Turns, with the one that is open.
    pub turns: u64,
    /// Tool calls that were permitted to be made.
    pub tool_calls: u64,
    /// Tokens.
    pub tokens: Usage,
    /// What the last `session.usage` says of their cost.
    list_cost: Option<Money>,
    /// Tokens since then, which have no price yet, by the model's position among the agent's.
    unpriced: BTreeMap<u32, Usage>,
    /// The last turn has ended at a limit: what follows goes on with it.
    #[serde(default)]
    stopped: bool,
    /// Turns that have ended, in milliseconds.
    ended_ms: i64,
    /// Since when the open turn runs, in milliseconds since 1970.
    since_ms: Option<i64>,
    /// When the last record was made: the log's clock is the only one that every brain of a session agrees on.
    now_ms: i64,
}

impl Used {
    /// Takes in the next record; before it, the log said that the session's status was `status`, and that the model at this
    /// position was asked.
    pub(super) fn take(&mut self, record: &Record, status: Status, position: u32) {
        if let Some(at) = record.event.processed_at {
            self.now_ms = self.now_ms.max(at.as_millisecond());
        }
        match &record.event.body {
            EventBody::SessionStatusRunning {} => {
                self.turns = self.turns.saturating_add(u64::from(status == Status::Idle && !self.stopped));
                self.since_ms = self.since_ms.or(Some(self.now_ms));
            }
            EventBody::SessionStatusRescheduled {} => self.rest(),
            EventBody::SessionStatusIdle { stop_reason } => {
                self.stopped = *stop_reason == StopReason::BudgetReached;
                self.rest();
            }
            EventBody::ModelResponse { tool_events, .. } => {
                let calls = u64::try_from(tool_events.len()).unwrap_or(u64::MAX);
                self.tool_calls = self.tool_calls.saturating_add(calls);
            }
            EventBody::SpanModelRequestEnd { model_usage, .. } => {
                self.tokens += *model_usage;
                *self.unpriced.entry(position).or_default() += *model_usage;
            }
            EventBody::SessionUsage { usage } => {
                self.unpriced.clear();
                if usage.list_cost.is_some() {
                    self.list_cost.clone_from(&usage.list_cost);
                }
            }
            _ => {}
        }
    }

    fn rest(&mut self) {
        self.ended_ms = self.active_ms();
        self.since_ms = None;
    }

    /// For how long the session ran, in milliseconds, up to the last record.
    #[must_use]
    pub fn active_ms(&self) -> i64 {
        let open = self.since_ms.map_or(0, |since| self.now_ms.saturating_sub(since).max(0));
        self.ended_ms.saturating_add(open)
    }

    /// What the tokens cost at the prices of the models that they are of, if the agent knows some.
    #[must_use]
    pub fn list_cost(&self, session: &HarnessSession) -> Option<Money> {
        let model = &session.agent.model;
        let first = self.unpriced.get(&0).copied().unwrap_or_default();
        let first = cost::total(model.prices.as_ref(), self.list_cost.as_ref(), first);
        let fallbacks = self.unpriced.iter().filter(|(position, _)| **position > 0);
        fallbacks.fold(first, |spent, (position, tokens)| {
            let model = model.at(usize::try_from(*position).unwrap_or(usize::MAX));
            cost::total(model.prices.as_ref(), spent.as_ref(), *tokens)
        })
    }

    /// Whether the model may not be asked any more.
    pub(super) fn is_all(&self, session: &HarnessSession) -> bool {
        let Limits { turns, tool_calls, tokens, active_seconds } = session.limits;
        let Usage { input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens } = self.tokens;
        let used = [input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens];
        let active = u64::try_from(self.active_ms() / 1_000).unwrap_or_default();
        // The turn that asks is counted already.
        turns.is_some_and(|most| self.turns > most)
            || tool_calls.is_some_and(|most| self.tool_calls >= most)
            || tokens.is_some_and(|most| used.into_iter().fold(0, u64::saturating_add) >= most)
            || active_seconds.is_some_and(|most| active >= most)
            || self.is_spent(session)
    }

    /// Prices of another currency than the budget's say nothing of it.
    fn is_spent(&self, session: &HarnessSession) -> bool {
        let (Some(budget), Some(cost)) = (&session.budget, self.list_cost(session)) else { return false };
        let (may, has) = (Amount::parse(&budget.amount), Amount::parse(&cost.amount));
        budget.currency == cost.currency && may.is_some() && has >= may
    }

    /// How many tool calls may still be made.
    pub(super) fn calls_left(&self, limits: &Limits) -> u64 {
        limits.tool_calls.map_or(u64::MAX, |most| most.saturating_sub(self.tool_calls))
    }
}
