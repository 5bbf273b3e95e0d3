//! A brain without a shell: what it decides on a log that a test writes.

use longhand_harness::core::{Effect, Input, Next, State, Transcript, step};
use longhand_protocol::event::{Event, EventBody, NewEvent, StopReason, Usage};
use longhand_protocol::harness::{HarnessSession, Inbox};
use longhand_protocol::wire::Money;
use longhand_protocol::{EventId, Record};
use serde_json::{Value, json};

use super::{check_request, text};

pub(crate) const START: &str = "span.model_request_start";

/// A brain, and the log that it writes to.
pub(crate) struct Brain {
    pub(crate) session: HarnessSession,
    pub(crate) state: State,
    pub(crate) log: Vec<Record>,
}

impl Brain {
    pub(crate) fn new(session: HarnessSession) -> Self {
        Self { state: State::claimed(session.clone(), Transcript::default()), session, log: Vec::new() }
    }

    /// Another brain, which knows nothing but the log.
    pub(crate) fn clone_of_log(&self) -> Self {
        Self { log: self.log.clone(), ..Self::new(self.session.clone()) }
    }

    pub(crate) fn push(&mut self, body: EventBody) -> EventId {
        let seq = u64::try_from(self.log.len()).unwrap() + 1;
        let id: EventId = format!("sevt_{seq}").parse().unwrap();
        let processed_at = Some(jiff::Timestamp::from_second(i64::try_from(seq).unwrap()).unwrap());
        let event = Event { id: id.clone(), body, processed_at };
        self.log.push(Record { seq, epoch: 1, prev_hash: String::new(), event });
        id
    }

    pub(crate) fn user(&mut self, words: &str) {
        self.push(NewEvent::from(text(words)).body);
    }

    /// A whole request and its answer, with one call of bash if there is a result.
    pub(crate) fn answer(&mut self, usage: u64, stop: &str, result: Option<&str>) {
        let span = self.push(EventBody::SpanModelRequestStart {});
        let mut content = vec![json!({"type": "text", "text": "said"})];
        let call = result.map(|_| {
            let call = self.push(EventBody::AgentToolUse {
                name: "bash".to_owned(),
                input: json!({}),
                evaluated_permission: longhand_protocol::event::Permission::Allow,
                sandbox: None,
            });
            content.push(json!({"type": "tool_use", "id": call.as_str(), "name": "bash", "input": {}}));
            call
        });
        let tool_event =
            |call: &EventId| longhand_protocol::event::ToolEvent { model_id: call.to_string(), event_id: call.clone() };
        self.push(EventBody::ModelResponse {
            content,
            stop_reason: Some(stop.to_owned()),
            model: None,
            tool_events: call.iter().map(tool_event).collect(),
            limited: false,
        });
        let model_usage = Usage { input_tokens: usage, ..Usage::default() };
        self.push(EventBody::SpanModelRequestEnd { model_request_start_id: span, is_error: false, model_usage });
        if let (Some(call), Some(result)) = (call, result) {
            self.push(crate::support::service::result(&call, result).body);
        }
    }

    /// What a new brain does on this log once it has looked at an empty inbox.
    pub(crate) fn wake(&mut self) -> Next {
        let state = State::claimed(self.session.clone(), Transcript::default());
        let (state, _) = step(state, Input::Claimed);
        self.give(state, Input::Records { records: self.log.clone(), head: self.head() })
    }

    pub(crate) fn head(&self) -> u64 {
        u64::try_from(self.log.len()).unwrap()
    }

    pub(crate) fn give(&mut self, state: State, input: Input) -> Next {
        let (state, mut next) = step(state, input);
        self.state = state;
        if next == Next::Do(Effect::Look) {
            next = self.input(Input::Inbox(Inbox { wake_revision: Some(9), ..Inbox::default() }));
        }
        next
    }

    pub(crate) fn input(&mut self, input: Input) -> Next {
        let state = self.state.clone();
        self.give(state, input)
    }

    /// Appends what is to be appended, and gives its types and what comes next.
    pub(crate) fn appended(&mut self, next: Next) -> (String, Next) {
        let Next::Do(Effect::Append { events, expected_head }) = next else { panic!("{next:?}") };
        assert_eq!(expected_head, self.head());
        let kinds = events.iter().map(|event| event.body.kind().to_owned()).collect::<Vec<_>>().join(" ");
        let mut records = Vec::new();
        for event in events {
            let seq = self.head() + 1;
            let processed_at = Some(jiff::Timestamp::from_second(i64::try_from(seq).unwrap()).unwrap());
            let event = Event { id: event.id, body: event.body, processed_at };
            let record = Record { seq, epoch: 1, prev_hash: String::new(), event };
            self.log.push(record.clone());
            records.push(record);
        }
        let head = self.head();
        (kinds, self.input(Input::Records { records, head }))
    }

    /// What another brain knows that reads all of the log.
    pub(crate) fn whole(&self) -> Transcript {
        let mut whole = Transcript::default();
        self.log.iter().for_each(|record| whole.apply(record).unwrap());
        whole
    }
}

pub(crate) fn body(next: &Next) -> (&Value, bool) {
    let Next::Do(Effect::CallModel { body, message, .. }) = next else { panic!("{next:?}") };
    check_request(body);
    (body, message.is_some())
}

/// Why a turn ends, and what the session has cost.
pub(crate) fn idle(next: &Next) -> (StopReason, Option<Money>) {
    let Next::Do(Effect::Idle { events, .. }) = next else { panic!("{next:?}") };
    let [.., usage, idle] = events.as_slice() else { panic!("{events:?}") };
    let EventBody::SessionUsage { usage } = &usage.body else { panic!("{events:?}") };
    let EventBody::SessionStatusIdle { stop_reason } = &idle.body else { panic!("{events:?}") };
    (stop_reason.clone(), usage.list_cost.clone())
}
