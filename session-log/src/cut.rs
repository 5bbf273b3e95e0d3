//! What a history leaves open when it is cut off at some record, and what closes it. Pure.

use std::collections::HashSet;

use longhand_protocol::event::{EventBody, NewEvent, Spent, StopReason, Usage};
use longhand_protocol::wire::{Money, SessionStatus};
use longhand_protocol::{EventId, Record, SessionId};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::objects::payload;
use crate::record::status_of;
use crate::store::{Result, StoreError};

/// A call that was left running by an interrupt may be answered in the turn after its own.
const TURNS: usize = 2;
/// More open calls and model requests are not closed in one transaction.
pub(crate) const MOST_OPEN: usize = 40;

/// Why a history was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It goes on as a fork.
    Fork,
    /// It goes on in another store.
    Import,
}

/// A look at the end of a history, from the last record backwards.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    status: Option<SessionStatus>,
    usage: Option<Spent>,
    turns: usize,
    answered: HashSet<EventId>,
    /// The last one first.
    open_calls: Vec<EventId>,
    /// Those of them that go to MCP servers.
    mcp_calls: HashSet<EventId>,
    ended_spans: HashSet<EventId>,
    open_spans: Vec<EventId>,
}

impl Cut {
    /// Takes the record before those that were taken.
    pub(crate) fn take(&mut self, record: &Record) {
        let id = &record.event.id;
        if self.status.is_none() {
            self.status = status_of(&record.event.body);
        }
        match &record.event.body {
            EventBody::SessionStatusIdle { .. } => self.turns += 1,
            EventBody::SessionUsage { usage } if self.usage.is_none() => self.usage = Some(usage.clone()),
            body if is_call(body) => {
                if !self.answered.contains(id) {
                    self.open_calls.push(id.clone());
                    self.mcp_calls.extend(is_mcp_call(body).then(|| id.clone()));
                }
            }
            EventBody::SpanModelRequestEnd { model_request_start_id, .. } => {
                self.ended_spans.insert(model_request_start_id.clone());
            }
            EventBody::SpanModelRequestStart {} if !self.ended_spans.contains(id) => self.open_spans.push(id.clone()),
            body => self.answered.extend(payload::answered(body)),
        }
    }

    /// Takes the record after those that were taken: a look from the first record forwards.
    pub(crate) fn take_next(&mut self, record: &Record) {
        let id = &record.event.id;
        self.status = status_of(&record.event.body).or(self.status);
        match &record.event.body {
            EventBody::SessionUsage { usage } => self.usage = Some(usage.clone()),
            body if is_call(body) => {
                // More than can be closed are not worth remembering.
                if self.open_calls.len() <= MOST_OPEN {
                    self.open_calls.insert(0, id.clone());
                    self.mcp_calls.extend(is_mcp_call(body).then(|| id.clone()));
                }
            }
            EventBody::SpanModelRequestEnd { model_request_start_id, .. } => {
                self.open_spans.retain(|span| span != model_request_start_id);
            }
            EventBody::SpanModelRequestStart {} if self.open_spans.len() <= MOST_OPEN => {
                self.open_spans.insert(0, id.clone());
            }
            body => {
                if let Some(answered) = payload::answered(body) {
                    self.open_calls.retain(|call| *call != answered);
                    self.mcp_calls.remove(&answered);
                }
            }
        }
    }

    /// Whether older records would change nothing.
    pub(crate) fn is_complete(&self) -> bool {
        self.turns >= TURNS && self.usage.is_some() && self.status.is_some()
    }

    /// Takes a call that is known to have no result in this history, wherever it is.
    pub(crate) fn take_open(&mut self, call: EventId) {
        if !self.answered.contains(&call) && !self.open_calls.contains(&call) {
            self.open_calls.push(call);
        }
    }

    /// As the last status event says.
    pub(crate) fn status(&self) -> Option<SessionStatus> {
        self.status
    }

    /// As the last usage event says.
    pub(crate) fn usage(&self) -> Usage {
        self.usage.as_ref().map(|spent| spent.tokens).unwrap_or_default()
    }

    /// What that costs, as the same event says.
    pub(crate) fn list_cost(&self) -> Option<Money> {
        self.usage.as_ref().and_then(|spent| spent.list_cost.clone())
    }

    /// The events after which nothing is open in the history of `session`: the same each time, with the same
    /// identifiers.
    pub(crate) fn closing(&self, session: &SessionId, cause: Cause) -> Result<Vec<NewEvent>> {
        let open = self.open_calls.len() + self.open_spans.len();
        if open > MOST_OPEN {
            return Err(StoreError::TooLarge(format!(
                "it leaves more than {MOST_OPEN} tool calls or model requests open, which cannot be closed at once"
            )));
        }
        let event = |what: &str, body| NewEvent { id: derived(session, what), body };
        let ends = self.open_spans.iter().rev().map(|span| {
            let end = EventBody::SpanModelRequestEnd {
                model_request_start_id: span.clone(),
                is_error: true,
                model_usage: Usage::default(),
            };
            event(&format!("end/{span}"), end)
        });
        let results = self.open_calls.iter().rev().map(|call| {
            let content = Some(vec![json!({"type": "text", "text": cut_off(cause)})]);
            let (call_id, is_error) = (call.clone(), Some(true));
            let result = match self.mcp_calls.contains(call) {
                true => EventBody::AgentMcpToolResult { mcp_tool_use_id: call_id, content, is_error },
                false => EventBody::AgentToolResult { tool_use_id: call_id, content, is_error },
            };
            event(&format!("result/{call}"), result)
        });
        let goes_on = match self.status {
            None | Some(SessionStatus::Idle) => false,
            Some(SessionStatus::Running | SessionStatus::Rescheduling) => true,
            // A fork is a new beginning.
            Some(SessionStatus::Terminated) => cause == Cause::Fork,
        };
        let idle = goes_on.then(|| event("idle", EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
        Ok(results.chain(ends).chain(idle).collect())
    }
}

/// Whether an event opens a call. By its name: the body of a large one is elsewhere.
fn is_call(body: &EventBody) -> bool {
    body.kind() == "agent.tool_use" || is_mcp_call(body)
}

fn is_mcp_call(body: &EventBody) -> bool {
    body.kind() == "agent.mcp_tool_use"
}

/// The model reads this in place of a result.
fn cut_off(cause: Cause) -> &'static str {
    match cause {
        Cause::Fork => {
            "This session was forked before the call had a result. Whether and how it ended is not known here."
        }
        Cause::Import => {
            "This session was moved to another place before the call had a result. Whether and how it ended is not \
             known here."
        }
    }
}

fn derived(session: &SessionId, what: &str) -> EventId {
    EventId::from_digest(&Sha256::digest(format!("cut/{session}/{what}").as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use longhand_protocol::event::{Event, EventBody, NewEvent, Permission, StopReason, Usage};
    use longhand_protocol::wire::SessionStatus;
    use longhand_protocol::{EventId, Record, SessionId};

    use super::{Cause, Cut};

    fn event(id: &str) -> EventId {
        format!("sevt_{id}").parse().unwrap()
    }

    /// Of a look from the end, after which one from the start has found the same.
    fn cut(history: &[(&str, EventBody)]) -> Cut {
        let records = (1..).zip(history).map(|(seq, (id, body))| {
            let event = Event { id: event(id), body: body.clone(), processed_at: None };
            Record { seq, epoch: 1, prev_hash: String::new(), event }
        });
        let records: Vec<Record> = records.collect();
        let (mut cut, mut forwards) = (Cut::default(), Cut::default());
        records.iter().rev().for_each(|record| cut.take(record));
        records.iter().for_each(|record| forwards.take_next(record));
        assert_eq!(closing(&forwards), closing(&cut));
        assert_eq!((forwards.status(), forwards.usage()), (cut.status(), cut.usage()));
        cut
    }

    fn call() -> EventBody {
        let input = serde_json::Value::Null;
        EventBody::AgentToolUse { name: "bash".into(), input, evaluated_permission: Permission::Allow, sandbox: None }
    }

    fn result(call: &str) -> EventBody {
        EventBody::AgentToolResult { tool_use_id: event(call), content: None, is_error: None }
    }

    fn closing(cut: &Cut) -> Vec<NewEvent> {
        let session: SessionId = "sesn_1".parse().unwrap();
        let closing = cut.closing(&session, Cause::Fork).unwrap();
        assert_eq!(cut.closing(&session, Cause::Fork).unwrap(), closing);
        closing
    }

    const IDLE: EventBody = EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn };

    #[test]
    fn what_is_at_rest_needs_no_closing() {
        let usage = Usage { input_tokens: 7, ..Usage::default() };
        let cut = cut(&[
            ("a", EventBody::SessionStatusRunning {}),
            ("b", call()),
            ("c", result("b")),
            ("d", EventBody::SessionUsage { usage: usage.into() }),
            ("e", IDLE),
        ]);
        assert_eq!(closing(&cut), []);
        assert_eq!((cut.status(), cut.usage()), (Some(SessionStatus::Idle), usage));
        assert!(!cut.is_complete(), "an interrupt may have left a call of the turn before");
    }

    #[test]
    fn what_is_open_is_closed_in_its_order() {
        let cut = cut(&[
            ("a", EventBody::SessionStatusRunning {}),
            ("s", EventBody::SpanModelRequestStart {}),
            ("b", call()),
            ("c", call()),
            ("d", call()),
            ("e", result("c")),
        ]);
        let closing = closing(&cut);
        let answered: Vec<&EventId> = closing
            .iter()
            .filter_map(|event| match &event.body {
                EventBody::AgentToolResult { tool_use_id, is_error: Some(true), .. } => Some(tool_use_id),
                _ => None,
            })
            .collect();
        assert_eq!(answered, [&event("b"), &event("d")]);
        let kinds: Vec<&str> = closing.iter().map(|event| event.body.kind()).collect();
        let result = "agent.tool_result";
        assert_eq!(kinds, [result, result, "span.model_request_end", "session.status_idle"]);
    }

    #[test]
    fn a_call_of_an_mcp_server_is_closed_by_a_result_of_its_kind() {
        let mcp_call = || EventBody::AgentMcpToolUse {
            mcp_server_name: "s".into(),
            name: "t".into(),
            input: serde_json::Value::Null,
            evaluated_permission: Permission::Allow,
        };
        let mcp_result =
            |call: &str| EventBody::AgentMcpToolResult { mcp_tool_use_id: event(call), content: None, is_error: None };
        let cut = cut(&[("a", mcp_call()), ("b", mcp_call()), ("c", call()), ("d", mcp_result("a"))]);
        let closing = closing(&cut);
        assert_eq!(closing.len(), 2);
        assert!(
            matches!(&closing[0].body, EventBody::AgentMcpToolResult { mcp_tool_use_id, is_error: Some(true), .. } if *mcp_tool_use_id == event("b"))
        );
        assert!(
            matches!(&closing[1].body, EventBody::AgentToolResult { tool_use_id, .. } if *tool_use_id == event("c"))
        );
    }

    #[test]
    fn a_call_that_is_known_to_be_open_is_closed_once() {
        let mut cut = cut(&[("b", call()), ("c", call()), ("d", result("c"))]);
        cut.take_open(event("b"));
        cut.take_open(event("c"));
        cut.take_open(event("old"));
        assert_eq!(closing(&cut).len(), 2);
    }

    #[test]
    fn what_cannot_be_closed_at_once_is_refused() {
        let ids: Vec<String> = (0..=super::MOST_OPEN).map(|number| number.to_string()).collect();
        let mut cut = Cut::default();
        ids.iter().for_each(|id| cut.take_open(event(id)));
        assert!(cut.closing(&"sesn_1".parse().unwrap(), Cause::Fork).is_err());
    }

    #[test]
    fn only_a_fork_begins_anew_after_the_end() {
        let cut = cut(&[("a", EventBody::SessionStatusTerminated {})]);
        let session: SessionId = "sesn_1".parse().unwrap();
        assert_eq!(cut.closing(&session, Cause::Fork).unwrap().len(), 1);
        assert_eq!(cut.closing(&session, Cause::Import).unwrap(), []);
    }

    #[test]
    fn two_turns_are_enough() {
        let turn = [("u", EventBody::SessionUsage { usage: Usage::default().into() }), ("i", IDLE)];
        assert!(!cut(&turn).is_complete());
        assert!(cut(&[turn.clone(), turn].concat()).is_complete());
        assert!(!cut(&[("i", IDLE), ("j", IDLE)]).is_complete(), "the usage is not known yet");
    }
}
