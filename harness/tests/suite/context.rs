//! What is done with a conversation that becomes long, and with a session that has used what it may.

use longhand_harness::core::transcript::Item;
use longhand_harness::core::{Effect, Input, Next, State, Transcript, step};
use longhand_harness::model::{Failure, Reply};
use longhand_protocol::event::{Event, EventBody, NewEvent, RetryStatus, SessionErrorType, StopReason, Usage};
use longhand_protocol::harness::{Compaction, HarnessSession, Inbox, Limits, Prices, Recall};
use longhand_protocol::wire::Money;
use longhand_protocol::{EventId, Record};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{check_request, session, text};

/// A brain, and the log that it writes to.
struct Brain {
    session: HarnessSession,
    state: State,
    log: Vec<Record>,
}

impl Brain {
    fn new(session: HarnessSession) -> Self {
        Self { state: State::claimed(session.clone(), Transcript::default()), session, log: Vec::new() }
    }

    fn push(&mut self, body: EventBody) -> EventId {
        let seq = u64::try_from(self.log.len()).unwrap() + 1;
        let id: EventId = format!("sevt_{seq}").parse().unwrap();
        let processed_at = Some(jiff::Timestamp::from_second(i64::try_from(seq).unwrap()).unwrap());
        let event = Event { id: id.clone(), body, processed_at };
        self.log.push(Record { seq, epoch: 1, prev_hash: String::new(), event });
        id
    }

    fn user(&mut self, words: &str) {
        self.push(NewEvent::from(text(words)).body);
    }

    /// A whole request and its answer, with one call of bash if there is a result.
    fn answer(&mut self, usage: u64, stop: &str, result: Option<&str>) {
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
    fn wake(&mut self) -> Next {
        let state = State::claimed(self.session.clone(), Transcript::default());
        let (state, _) = step(state, Input::Claimed);
        self.give(state, Input::Records { records: self.log.clone(), head: self.head() })
    }

    fn head(&self) -> u64 {
        u64::try_from(self.log.len()).unwrap()
    }

    fn give(&mut self, state: State, input: Input) -> Next {
        let (state, mut next) = step(state, input);
        self.state = state;
        if next == Next::Do(Effect::Look) {
            next = self.input(Input::Inbox(Inbox { wake_revision: Some(9), items: vec![] }));
        }
        next
    }

    fn input(&mut self, input: Input) -> Next {
        let state = self.state.clone();
        self.give(state, input)
    }

    /// Appends what is to be appended, and gives its types and what comes next.
    fn appended(&mut self, next: Next) -> (String, Next) {
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
    fn whole(&self) -> Transcript {
        let mut whole = Transcript::default();
        self.log.iter().for_each(|record| whole.apply(record).unwrap());
        whole
    }
}

fn small(max_tokens: u64) -> HarnessSession {
    let mut session = session();
    session.agent.context.max_tokens = max_tokens;
    session.agent.context.keep_tool_results = 1;
    session
}

fn body(next: &Next) -> (&Value, bool) {
    let Next::Do(Effect::CallModel { body, message, .. }) = next else { panic!("{next:?}") };
    check_request(body);
    (body, message.is_some())
}

fn said(words: &str) -> Input {
    let content = vec![json!({"type": "text", "text": words})];
    Input::Model(Ok(Reply { content, stop_reason: Some("end_turn".to_owned()), ..Reply::default() }))
}

const START: &str = "span.model_request_start";
const CLEARED: &str = "x.context.results_cleared agent.thread_context_compacted";
const COMPACTED: &str = "span.model_request_end x.context.checkpoint agent.thread_context_compacted";

fn tool_names(body: &Value) -> Vec<&str> {
    body["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

fn idle(next: &Next) -> (StopReason, Option<Money>) {
    let Next::Do(Effect::Idle { events, .. }) = next else { panic!("{next:?}") };
    let [.., usage, idle] = events.as_slice() else { panic!("{events:?}") };
    let EventBody::SessionUsage { usage } = &usage.body else { panic!("{events:?}") };
    let EventBody::SessionStatusIdle { stop_reason } = &idle.body else { panic!("{events:?}") };
    (stop_reason.clone(), usage.list_cost.clone())
}

#[test]
fn old_results_are_cleared_in_steps_and_can_be_recalled() {
    let mut brain = Brain::new(small(3_000));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    for _ in 0..3 {
        brain.answer(0, "tool_use", Some(&"long ".repeat(1_000)));
    }
    let next = brain.wake();
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, CLEARED);
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, START);
    let (request, _) = body(&next);
    let results: Vec<&str> = request["messages"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|message| message["content"].as_array().unwrap())
        .filter(|block| block["type"] == "tool_result")
        .map(|block| block["content"][0]["text"].as_str().unwrap())
        .collect();
    let result = brain.log.iter().find(|record| record.event.body.kind() == "agent.tool_result").unwrap().seq;
    assert!(results[0].contains(&format!("{{\"after\": {}, \"before\": {}}}", result - 1, result + 1)), "{results:?}");
    assert_eq!(results.iter().map(|text| text.len() > 1_000).collect::<Vec<_>>(), [false, false, true]);
    assert!(tool_names(request).contains(&"recall"));
    assert_eq!(brain.whole(), *brain.state.transcript());
    // The next request begins with this one.
    let before = check_request(request);
    let next = brain.input(said("done"));
    let (_, _) = brain.appended(next);
    brain.user("more");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert!(check_request(body(&next).0).starts_with(&before));
}

#[rstest]
#[case(Recall::WhenTrimmed, false)]
#[case(Recall::Never, false)]
#[case(Recall::Always, true)]
fn recall_is_offered_as_the_agent_says(#[case] recall: Recall, #[case] offered: bool) {
    let mut brain = Brain::new(small(3_000));
    brain.session.agent.context.recall = recall;
    brain.user("go");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert_eq!(tool_names(body(&next).0).contains(&"recall"), offered);
}

#[test]
fn a_conversation_that_is_too_long_is_summarised_by_the_model() {
    let mut brain = Brain::new(small(1_000));
    brain.user("the first wish");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(5_000, "end_turn", None);
    brain.user("the second wish");
    let next = brain.wake();
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, START);
    let (request, shown) = body(&next);
    assert!(!shown && request["tool_choice"]["type"] == "none", "{request}");
    assert!(request.to_string().contains("the first wish") && !request.to_string().contains("the second wish"));
    let next = brain.input(said("a summary"));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, COMPACTED);
    assert!(matches!(brain.state.transcript().items(), [Item::Summary(text), Item::User(_)] if text == "a summary"));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, START);
    let (request, shown) = body(&next);
    let request_text = request["messages"].to_string();
    assert!(shown && request_text.contains("a summary") && request_text.contains("the second wish"), "{request_text}");
    assert!(!request_text.contains("the first wish") && tool_names(request).contains(&"recall"));
    assert_eq!(brain.whole(), *brain.state.transcript());
    // A brain that begins with the checkpoint knows as much as one that reads everything.
    let at = brain.log.iter().position(|record| record.event.body.kind() == "x.context.checkpoint").unwrap();
    let mut restored = Transcript::restored(&brain.log[at]).unwrap();
    brain.log[at + 1..].iter().for_each(|record| restored.apply(record).unwrap());
    assert_eq!(restored, brain.whole());
}

#[test]
fn a_window_that_is_full_in_the_middle_of_an_answer_is_compacted() {
    let mut brain = Brain::new(small(150_000));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(8_000, "model_context_window_exceeded", None);
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert!(!body(&next).1);
    let next = brain.input(said("a summary"));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, COMPACTED);
    let (_, next) = brain.appended(next);
    assert!(body(&next).1, "the model goes on");
}

#[test]
fn what_the_model_does_not_take_is_not_sent_again() {
    let mut brain = Brain::new(small(150_000));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(9_000, "end_turn", None);
    brain.user("more");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert!(body(&next).1);
    let next = brain.input(Input::Model(Err(Failure::protocol("prompt is too long: 9000 tokens > 8000 maximum"))));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, "span.model_request_end x.context.overflow");
    let (_, next) = brain.appended(next);
    assert!(!body(&next).1, "a summary is asked for");
}

#[rstest]
#[case::off(Compaction::Off)]
#[case::nothing_but_a_message(Compaction::Summary)]
fn what_cannot_be_made_shorter_ends_the_turn_with_a_clear_error(#[case] compaction: Compaction) {
    let mut brain = Brain::new(small(1_000));
    brain.session.agent.context.compaction = compaction;
    brain.user(&"long ".repeat(2_000));
    brain.push(EventBody::SessionStatusRunning {});
    let next = brain.wake();
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, START, "the model may take more than the agent wishes");
    assert!(body(&next).1);
    let next = brain.input(Input::Model(Err(Failure::protocol("prompt is too long"))));
    let (_, next) = brain.appended(next);
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, "session.error");
    let EventBody::SessionError { error } = &brain.log.last().unwrap().event.body else { panic!() };
    assert_eq!(error.kind, SessionErrorType::CompactionLimitReachedError);
    assert_eq!(idle(&next).0, StopReason::RetriesExhausted);
}

#[test]
fn a_summary_that_never_comes_is_asked_for_three_times() {
    let mut brain = Brain::new(small(1_000));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(5_000, "end_turn", None);
    brain.user("more");
    let mut next = brain.wake();
    for status in [RetryStatus::Retrying, RetryStatus::Retrying, RetryStatus::Exhausted] {
        let begun = brain.appended(next).1;
        assert!(!body(&begun).1);
        let outcome = brain.input(said(" "));
        next = brain.appended(outcome).1;
        let errors = brain.log.iter().rev().find_map(|record| match &record.event.body {
            EventBody::SessionError { error } => Some(error.clone()),
            _ => None,
        });
        let error = errors.unwrap();
        assert_eq!((error.kind, error.retry_status), (SessionErrorType::CompactionLimitReachedError, status));
        if let Next::Do(Effect::Rest(_)) = next {
            next = brain.input(Input::Rested);
        }
    }
    assert_eq!(idle(&next).0, StopReason::RetriesExhausted);
    brain.user("again");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert!(!body(&next).1, "the next message tries anew");
}

fn most(limits: Limits) -> HarnessSession {
    HarnessSession { limits, ..session() }
}

/// Two turns, of which the second waits for the model: 100 tokens, a tool call and a few seconds are used.
fn used(session: HarnessSession) -> Brain {
    let mut brain = Brain::new(session);
    brain.user("one");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(60, "tool_use", Some("done"));
    brain.answer(40, "end_turn", None);
    brain.push(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn });
    brain.user("two");
    brain.push(EventBody::SessionStatusRunning {});
    brain
}

#[rstest]
#[case::none(Limits::default(), false)]
#[case::turns(Limits { turns: Some(1), ..Limits::default() }, true)]
#[case::turns_left(Limits { turns: Some(2), ..Limits::default() }, false)]
#[case::calls(Limits { tool_calls: Some(1), ..Limits::default() }, true)]
#[case::calls_left(Limits { tool_calls: Some(2), ..Limits::default() }, false)]
#[case::tokens(Limits { tokens: Some(100), ..Limits::default() }, true)]
#[case::tokens_left(Limits { tokens: Some(101), ..Limits::default() }, false)]
#[case::time(Limits { active_seconds: Some(9), ..Limits::default() }, true)]
#[case::time_left(Limits { active_seconds: Some(10), ..Limits::default() }, false)]
fn at_a_limit_the_model_is_not_asked(#[case] limits: Limits, #[case] reached: bool) {
    let mut brain = used(most(limits));
    let next = brain.wake();
    if reached {
        assert_eq!(idle(&next).0, StopReason::BudgetReached);
        brain.session.limits = Limits::default();
        let raised = brain.wake();
        assert_eq!(brain.appended(raised).0, START, "it goes on when the limit is raised");
    } else {
        assert_eq!(brain.appended(next).0, START);
    }
}

fn priced(budget: Option<&str>, currency: &str) -> HarnessSession {
    let mut session = session();
    let price = |price: &str| price.to_owned();
    session.agent.model.prices = Some(Prices {
        input: price("1000000"),
        output: price("0"),
        cache_read: price("0"),
        cache_write: price("0"),
        currency: "USD".to_owned(),
    });
    session.budget = budget.map(|amount| Money { amount: amount.to_owned(), currency: currency.to_owned() });
    session
}

#[rstest]
#[case::none(None, "USD", false)]
#[case::left(Some("100.5"), "USD", false)]
#[case::spent(Some("100"), "USD", true)]
#[case::another_currency(Some("1"), "EUR", false)]
fn a_budget_is_what_may_be_spent(#[case] budget: Option<&str>, #[case] currency: &str, #[case] reached: bool) {
    let mut brain = used(priced(budget, currency));
    let next = brain.wake();
    if reached {
        let (reason, cost) = idle(&next);
        assert_eq!(reason, StopReason::BudgetReached);
        assert_eq!(cost, Some(Money { amount: "100".to_owned(), currency: "USD".to_owned() }));
    } else {
        assert_eq!(brain.appended(next).0, START);
    }
}

#[test]
fn what_was_paid_keeps_the_prices_of_its_time() {
    let mut brain = Brain::new(priced(None, "USD"));
    brain.user("one");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(100, "end_turn", None);
    let next = brain.wake();
    let Next::Do(Effect::Idle { events, .. }) = &next else { panic!("{next:?}") };
    events.iter().for_each(|event| drop(brain.push(event.body.clone())));
    brain.user("two");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(7, "end_turn", None);
    brain.session.agent.model.prices.as_mut().unwrap().input = "2000000".to_owned();
    let next = brain.wake();
    assert_eq!(idle(&next).1.unwrap().amount, "114");
}

#[test]
fn calls_beyond_the_limit_are_not_made_and_the_model_is_told() {
    let mut brain = Brain::new(most(Limits { tool_calls: Some(1), ..Limits::default() }));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    let next = brain.wake();
    brain.appended(next);
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "bash", "input": {}});
    let content = vec![call("a"), call("b"), call("c")];
    let reply = Reply { content, stop_reason: Some("tool_use".to_owned()), ..Reply::default() };
    let next = brain.input(Input::Model(Ok(reply)));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, "agent.tool_use x.model_response span.model_request_end");
    let Next::Do(Effect::Execute { calls }) = &next else { panic!("{next:?}") };
    let result = crate::support::service::result(&calls[0], "done").body;
    brain.push(result);
    let next = brain.wake();
    assert_eq!(idle(&next).0, StopReason::BudgetReached);
    brain.session.limits.tool_calls = Some(2);
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    let results = body(&next).0["messages"][2]["content"].clone();
    assert_eq!(results[0]["content"][0]["text"], "done");
    for beyond in [&results[1], &results[2]] {
        assert!(beyond["content"][0]["text"].as_str().unwrap().contains("as many tool calls as it may"), "{beyond}");
    }
}
