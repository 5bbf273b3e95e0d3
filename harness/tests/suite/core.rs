//! What is decided on which log.

use longhand_harness::core::{Effect, Input, Moved, Next, State, Transcript, step};
use longhand_harness::model::{Failure, Reply};
use longhand_protocol::event::{
    Event, EventBody, NewEvent, Permission, RetryStatus, SessionError, SessionErrorType, StopReason, ToolEvent, Usage,
    Verdict,
};
use longhand_protocol::harness::{Inbox, InboxItem, Tool};
use longhand_protocol::{EventId, Record};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{check_request, interrupt, session, text};

fn id(name: &str) -> EventId {
    format!("sevt_{name}").parse().unwrap()
}

/// A log of these events, with the identifiers `sevt_1`, `sevt_2` and so on.
fn records(bodies: impl IntoIterator<Item = EventBody>) -> Vec<Record> {
    let record = |(index, body)| {
        let seq = u64::try_from(index).unwrap() + 1;
        let event = Event { id: id(&seq.to_string()), body, processed_at: None };
        Record { seq, epoch: 1, prev_hash: String::new(), event }
    };
    bodies.into_iter().enumerate().map(record).collect()
}

fn user(words: &str) -> EventBody {
    NewEvent::from(text(words)).body
}

fn interrupted() -> EventBody {
    NewEvent::from(interrupt()).body
}

fn running() -> EventBody {
    EventBody::SessionStatusRunning {}
}

fn start() -> EventBody {
    EventBody::SpanModelRequestStart {}
}

fn end(start: u64, is_error: bool) -> EventBody {
    EventBody::SpanModelRequestEnd {
        model_request_start_id: id(&start.to_string()),
        is_error,
        model_usage: Usage::default(),
    }
}

fn tool(name: &str, evaluated_permission: Permission) -> EventBody {
    EventBody::AgentToolUse { name: name.to_owned(), input: json!({}), evaluated_permission, sandbox: None }
}

fn bash() -> EventBody {
    tool("bash", Permission::Allow)
}

/// A call that may run when the client has said so.
fn edit() -> EventBody {
    tool("edit", Permission::Ask)
}

fn confirmed(call: u64, result: Verdict) -> EventBody {
    EventBody::UserToolConfirmation { tool_use_id: id(&call.to_string()), result, deny_message: None }
}

fn ask() -> EventBody {
    EventBody::AgentCustomToolUse { name: "ask".to_owned(), input: json!({}) }
}

/// An answer whose calls are the events of these numbers.
fn answer(stop_reason: &str, calls: &[u64]) -> EventBody {
    let model_id = |call: &u64| format!("toolu_{call}");
    let said = json!({"type": "text", "text": "said"});
    let blocks =
        calls.iter().map(|call| json!({"type": "tool_use", "id": model_id(call), "name": "bash", "input": {}}));
    EventBody::ModelResponse {
        content: std::iter::once(said).chain(blocks).collect(),
        stop_reason: Some(stop_reason.to_owned()),
        model: None,
        tool_events: calls
            .iter()
            .map(|call| ToolEvent { model_id: model_id(call), event_id: id(&call.to_string()) })
            .collect(),
        limited: false,
    }
}

fn result(call: u64) -> EventBody {
    EventBody::AgentToolResult { tool_use_id: id(&call.to_string()), content: None, is_error: None }
}

fn custom_result(call: u64) -> EventBody {
    EventBody::UserCustomToolResult { custom_tool_use_id: id(&call.to_string()), content: None, is_error: None }
}

fn failed(retry_status: RetryStatus) -> EventBody {
    let error = SessionError {
        kind: SessionErrorType::ModelRequestFailedError,
        mcp_server_name: None,
        message: "no".to_owned(),
        retry_status,
    };
    EventBody::SessionError { error }
}

fn inbox(events: &[EventBody]) -> Inbox {
    let items = events.iter().enumerate().map(|(index, body)| InboxItem {
        event: Event { id: id(&format!("queued{index}")), body: body.clone(), processed_at: None },
    });
    Inbox { wake_revision: Some(9), items: items.collect(), ..Inbox::default() }
}

/// A new brain that has read the log and is about to look at the inbox.
fn brain(log: Vec<Record>) -> State {
    let head = u64::try_from(log.len()).unwrap();
    let (state, next) = step(State::claimed(session(), Transcript::default()), Input::Claimed);
    assert_eq!(next, Next::Do(Effect::Read { after: 0 }));
    let (state, next) = step(state, Input::Records { records: log, head });
    assert_eq!(next, Next::Do(Effect::Look));
    state
}

/// What a new brain does first, in short.
fn first(log: Vec<EventBody>, queued: &[EventBody]) -> String {
    brief(&step(brain(records(log)), Input::Inbox(inbox(queued))).1)
}

fn brief(next: &Next) -> String {
    let kinds = |events: &[NewEvent]| events.iter().map(|event| event.body.kind()).collect::<Vec<_>>().join(" ");
    let ids = |ids: &[EventId]| ids.iter().map(EventId::as_str).collect::<Vec<_>>().join(" ");
    match next {
        Next::Done => "done".to_owned(),
        Next::Fail { .. } => "fail".to_owned(),
        Next::Do(Effect::Restore) => "restore".to_owned(),
        Next::Do(Effect::Read { after }) => format!("read {after}"),
        Next::Do(Effect::Look) => "look".to_owned(),
        Next::Do(Effect::Append { events, .. }) => format!("append {}", kinds(events)),
        Next::Do(Effect::Promote { inbox, then, .. }) => format!("promote {} then {}", ids(inbox), kinds(then)),
        Next::Do(Effect::Idle { events, .. }) => {
            let EventBody::SessionStatusIdle { stop_reason } = &events.last().unwrap().body else { panic!() };
            assert_eq!(kinds(events), "session.usage session.status_idle");
            match stop_reason {
                StopReason::EndTurn => "idle end_turn".to_owned(),
                StopReason::RequiresAction { event_ids } => format!("idle requires {}", ids(event_ids)),
                StopReason::RetriesExhausted => "idle retries_exhausted".to_owned(),
                StopReason::BudgetReached => "idle budget_reached".to_owned(),
                StopReason::Refusal => "idle refusal".to_owned(),
            }
        }
        Next::Do(Effect::CallModel { .. }) => "call".to_owned(),
        Next::Do(Effect::Execute { calls }) => format!("execute {}", ids(calls)),
        Next::Do(Effect::Stop { calls }) => format!("stop {}", ids(calls)),
        Next::Do(Effect::Rest(rest)) => format!("rest {}", rest.failures),
        Next::Do(Effect::Discover { .. }) => "discover".to_owned(),
        Next::Do(Effect::SendMcp { calls }) => format!("send {}", calls.len()),
        Next::Do(Effect::AwaitMcp) => "await".to_owned(),
        Next::Do(Effect::CancelMcp { calls }) => format!("cancel {}", ids(calls)),
    }
}

const START: &str = "append span.model_request_start";
const CLOSE: &str = "append span.model_request_end";

#[rstest]
#[case::nothing(vec![], "idle end_turn")]
#[case::message(vec![user("a"), running()], START)]
#[case::message_before_running(vec![user("a")], "append session.status_running span.model_request_start")]
#[case::dangling_request(vec![user("a"), running(), start()], CLOSE)]
#[case::closed_request(vec![user("a"), running(), start(), end(3, true)], START)]
#[case::answered(vec![user("a"), running(), start(), answer("end_turn", &[]), end(3, false)], "idle end_turn")]
#[case::refused(vec![user("a"), start(), answer("refusal", &[]), end(2, false)], "idle refusal")]
#[case::paused(vec![user("a"), running(), start(), answer("pause_turn", &[]), end(3, false)], START)]
#[case::cut_off(vec![user("a"), start(), answer("max_tokens", &[]), end(2, false)], "idle end_turn")]
#[case::unknown_stop(vec![user("a"), start(), answer("new", &[]), end(2, false)], "idle retries_exhausted")]
#[case::tools(vec![user("a"), start(), bash(), bash(), answer("tool_use", &[3, 4]), end(2, false)], "execute sevt_3 sevt_4")]
#[case::one_result(vec![user("a"), start(), bash(), bash(), answer("tool_use", &[3, 4]), end(2, false), result(3)], "execute sevt_4")]
#[case::all_results(vec![user("a"), running(), start(), bash(), answer("tool_use", &[4]), end(3, false), result(4)], START)]
#[case::custom_tool(vec![user("a"), start(), ask(), answer("tool_use", &[3]), end(2, false)], "idle requires sevt_3")]
#[case::both_kinds(vec![user("a"), start(), ask(), bash(), answer("tool_use", &[3, 4]), end(2, false)], "execute sevt_4")]
#[case::both_kinds_half(vec![user("a"), start(), ask(), bash(), answer("tool_use", &[3, 4]), end(2, false), result(4)], "idle requires sevt_3")]
#[case::custom_half(vec![user("a"), start(), ask(), ask(), answer("tool_use", &[3, 4]), end(2, false), custom_result(4)], "idle requires sevt_3")]
#[case::custom_answered(vec![user("a"), running(), start(), ask(), answer("tool_use", &[4]), end(3, false), custom_result(4)], START)]
#[case::message_while_custom(vec![user("a"), start(), ask(), answer("tool_use", &[3]), end(2, false), user("b")], "idle requires sevt_3")]
#[case::interrupted(vec![user("a"), running(), interrupted()], "idle end_turn")]
#[case::asks(vec![user("a"), start(), edit(), answer("tool_use", &[3]), end(2, false)], "idle requires sevt_3")]
#[case::asks_beside_one_that_runs(vec![user("a"), start(), edit(), bash(), answer("tool_use", &[3, 4]), end(2, false)], "execute sevt_4")]
#[case::asks_then(vec![user("a"), start(), edit(), bash(), answer("tool_use", &[3, 4]), end(2, false), result(4)], "idle requires sevt_3")]
#[case::asks_beside_custom(vec![user("a"), start(), edit(), ask(), answer("tool_use", &[3, 4]), end(2, false), confirmed(3, Verdict::Allow), result(3)], "idle requires sevt_4")]
#[case::allowed(vec![user("a"), start(), edit(), edit(), answer("tool_use", &[3, 4]), end(2, false), confirmed(4, Verdict::Allow)], "execute sevt_4")]
#[case::denied(vec![user("a"), start(), edit(), answer("tool_use", &[3]), end(2, false), confirmed(3, Verdict::Deny)], "execute sevt_3")]
#[case::denied_and_answered(vec![user("a"), running(), start(), edit(), answer("tool_use", &[4]), end(3, false), confirmed(4, Verdict::Deny), result(4)], START)]
#[case::confirmed_without_need(vec![user("a"), start(), ask(), answer("tool_use", &[3]), end(2, false), confirmed(3, Verdict::Allow)], "idle requires sevt_3")]
#[case::interrupted_tool(vec![user("a"), start(), bash(), answer("tool_use", &[3]), end(2, false), interrupted()], "stop sevt_3")]
#[case::interrupted_question(vec![user("a"), start(), edit(), answer("tool_use", &[3]), end(2, false), interrupted()], "stop sevt_3")]
#[case::interrupted_half(vec![user("a"), start(), bash(), bash(), ask(), answer("tool_use", &[3, 4, 5]), end(2, false), result(3), interrupted()], "stop sevt_4")]
#[case::interrupted_then_confirmed(vec![user("a"), start(), edit(), answer("tool_use", &[3]), end(2, false), interrupted(), confirmed(3, Verdict::Allow)], "stop sevt_3")]
#[case::stopped(vec![user("a"), start(), bash(), answer("tool_use", &[3]), end(2, false), interrupted(), result(3)], "idle end_turn")]
#[case::stopped_before_the_next_message(vec![user("a"), start(), bash(), answer("tool_use", &[3]), end(2, false), interrupted(), user("b")], "stop sevt_3")]
#[case::interrupted_custom(vec![user("a"), start(), ask(), answer("tool_use", &[3]), end(2, false), interrupted(), custom_result(3)], "idle end_turn")]
#[case::after_interrupt(vec![user("a"), running(), start(), ask(), answer("tool_use", &[4]), end(3, false), interrupted(), user("b")], START)]
#[case::late_result(vec![user("a"), running(), start(), bash(), answer("tool_use", &[4]), end(3, false), interrupted(), result(4)], "idle end_turn")]
#[case::failed_once(vec![user("a"), running(), start(), end(3, true), failed(RetryStatus::Retrying), EventBody::SessionStatusRescheduled {}], "rest 1")]
#[case::given_up(vec![user("a"), running(), start(), end(3, true), failed(RetryStatus::Exhausted)], "idle retries_exhausted")]
#[case::terminal(vec![user("a"), running(), start(), end(3, true), failed(RetryStatus::Terminal)], "idle retries_exhausted")]
#[case::given_up_then_message(vec![user("a"), running(), start(), end(3, true), failed(RetryStatus::Exhausted), user("b")], START)]
#[case::cut_off_with_error(vec![user("a"), start(), answer("max_tokens", &[]), end(2, false), failed(RetryStatus::Terminal)], "idle end_turn")]
#[case::unknown_types(vec![EventBody::Other { kind: "x.new".to_owned(), fields: serde_json::Map::default() }], "idle end_turn")]
fn a_new_brain_goes_on_from_any_log(#[case] log: Vec<EventBody>, #[case] expected: &str) {
    assert_eq!(first(log, &[]), expected);
}

#[rstest]
#[case::first_message(vec![], &[user("a")], "promote sevt_queued0 then session.status_running span.model_request_start")]
#[case::two_messages(vec![], &[user("a"), user("b")], "promote sevt_queued0 sevt_queued1 then session.status_running span.model_request_start")]
#[case::while_running(vec![user("a"), running()], &[user("b")], "promote sevt_queued0 then span.model_request_start")]
#[case::dangling_first(vec![user("a"), running(), start()], &[user("b")], CLOSE)]
#[case::tools_first(vec![user("a"), start(), bash(), answer("tool_use", &[3]), end(2, false)], &[user("b")], "execute sevt_3")]
#[case::interrupt_jumps(vec![user("a"), running()], &[user("b"), interrupted()], "promote sevt_queued1 then ")]
#[case::interrupt_closes(vec![user("a"), running(), start()], &[interrupted()], "promote sevt_queued0 then span.model_request_end")]
#[case::interrupt_when_idle(vec![], &[interrupted()], "promote sevt_queued0 then ")]
#[case::confirmation_wakes(vec![user("a"), start(), edit(), answer("tool_use", &[3]), end(2, false)], &[confirmed(3, Verdict::Allow)], "promote sevt_queued0 then session.status_running")]
#[case::stopped_first(vec![user("a"), start(), bash(), answer("tool_use", &[3]), end(2, false), interrupted()], &[user("b")], "stop sevt_3")]
#[case::result_wakes(vec![user("a"), start(), ask(), answer("tool_use", &[3]), end(2, false)], &[custom_result(3)], "promote sevt_queued0 then session.status_running span.model_request_start")]
fn what_is_queued_is_taken_up_between_answers(
    #[case] log: Vec<EventBody>,
    #[case] queued: &[EventBody],
    #[case] expected: &str,
) {
    assert_eq!(first(log, queued), expected);
}

#[test]
fn an_inbox_that_one_transaction_does_not_take_is_taken_up_in_parts() {
    let many: Vec<EventBody> = (0..100).map(|_| user("a")).collect();
    let large: Vec<EventBody> = (0..3).map(|_| user(&"x".repeat(600_000))).collect();
    for (queued, expected) in [(many, 32), (large, 1)] {
        let (_, next) = step(brain(vec![]), Input::Inbox(inbox(&queued)));
        let Next::Do(Effect::Promote { inbox, .. }) = next else { panic!("{next:?}") };
        assert_eq!(inbox.len(), expected);
    }
}

/// The log takes a message and not the request that answers it: it is asked for them one after the other.
#[test]
fn what_the_log_does_not_take_together_it_takes_apart() {
    let (state, next) = step(brain(vec![]), Input::Inbox(inbox(&[user("a")])));
    assert_eq!(brief(&next), "promote sevt_queued0 then session.status_running span.model_request_start");
    let (state, next) = step(state, Input::Refused { reason: "it is full".to_owned() });
    assert_eq!(brief(&next), "promote sevt_queued0 then session.status_running");
    let event = |name: &str, body| Event { id: id(name), body, processed_at: None };
    let records = vec![
        Record { seq: 1, epoch: 1, prev_hash: String::new(), event: event("queued0", user("a")) },
        Record { seq: 2, epoch: 1, prev_hash: String::new(), event: event("running", running()) },
    ];
    let (_, next) = step(state, Input::Records { records, head: 2 });
    assert_eq!(brief(&next), START);
}

/// The request that was to go with what is queued is forgotten when that was taken up by somebody else.
#[rstest]
#[case(Moved::Head, "read 0")]
#[case(Moved::Queue, "read 0")]
fn a_request_that_did_not_begin_is_not_called(#[case] moved: Moved, #[case] expected: &str) {
    let (state, _) = step(brain(vec![]), Input::Inbox(inbox(&[user("a")])));
    let (state, next) = step(state, Input::Moved(moved));
    assert_eq!(brief(&next), expected);
    let log = records([user("a"), running(), start()]);
    let (_, next) = step(state, Input::Page { records: log, head: 3, inbox: inbox(&[]) });
    assert_eq!(brief(&next), CLOSE, "it was begun by another brain");
}

/// A claim that brings the log and the inbox leaves nothing to ask for.
#[test]
fn a_claim_that_brings_everything_is_enough_to_begin() {
    let log = records([user("a"), running(), start(), answer("end_turn", &[]), end(3, false)]);
    let state = State::claimed(session(), Transcript::default()).with_head(5);
    let (_, next) = step(state.with_page(&log, 5, inbox(&[user("b")])), Input::Claimed);
    assert_eq!(brief(&next), "promote sevt_queued0 then span.model_request_start");
    // What others have appended in the same moment is read, and the inbox is still good.
    let state = State::claimed(session(), Transcript::default()).with_head(5);
    let (state, next) = step(state.with_page(&log[..4], 5, inbox(&[user("b")])), Input::Claimed);
    assert_eq!(brief(&next), "read 4");
    let (_, next) = step(state, Input::Records { records: log[4..].to_vec(), head: 5 });
    assert_eq!(brief(&next), "promote sevt_queued0 then span.model_request_start");
}

/// A message that came while the model spoke is looked for before it is asked again, and not before a tool runs.
#[test]
fn a_tool_does_not_wait_for_a_look_and_the_model_does() {
    let (state, _) = calling();
    let (state, next) = step(state, Input::Model(Ok(reply(vec![tool_use("t1", "bash")], "tool_use"))));
    let Next::Do(Effect::Append { events, .. }) = next else { panic!("{next:?}") };
    let taken = |events: &[NewEvent], head: u64| {
        let records: Vec<Record> = (head + 1..)
            .zip(events)
            .map(|(seq, event)| {
                let event = Event { id: event.id.clone(), body: event.body.clone(), processed_at: None };
                Record { seq, epoch: 1, prev_hash: String::new(), event }
            })
            .collect();
        let head = records.last().unwrap().seq;
        Input::Records { records, head }
    };
    let (_, next) = step(state, taken(&events, 3));
    assert!(matches!(next, Next::Do(Effect::Execute { .. })), "{next:?}");
    let (state, _) = calling();
    let (state, next) = step(state, Input::Model(Ok(reply(vec![], "pause_turn"))));
    let Next::Do(Effect::Append { events, .. }) = next else { panic!("{next:?}") };
    let (_, next) = step(state, taken(&events, 3));
    assert_eq!(next, Next::Do(Effect::Look));
}

/// A brain whose own model request has begun, and the log up to there.
fn calling() -> (State, Vec<Record>) {
    let mut log = records([user("a"), running()]);
    let (state, next) = step(brain(log.clone()), Input::Inbox(inbox(&[])));
    let Next::Do(Effect::Append { events, expected_head: 2 }) = next else { panic!("{next:?}") };
    let event = Event { id: events[0].id.clone(), body: events[0].body.clone(), processed_at: None };
    let record = Record { seq: 3, epoch: 1, prev_hash: String::new(), event };
    log.push(record.clone());
    let (state, next) = step(state, Input::Records { records: vec![record], head: 3 });
    assert_eq!(brief(&next), "call");
    (state, log)
}

fn reply(content: Vec<Value>, stop_reason: &str) -> Reply {
    Reply { content, stop_reason: Some(stop_reason.to_owned()), ..Reply::default() }
}

fn tool_use(id: &str, name: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": {}})
}

#[rstest]
#[case::text(vec![json!({"type": "text", "text": "a"})], "end_turn", "agent.message x.model_response span.model_request_end")]
#[case::silence(vec![], "end_turn", "x.model_response span.model_request_end")]
#[case::empty_text(vec![json!({"type": "text", "text": ""})], "end_turn", "x.model_response span.model_request_end")]
#[case::thinking(vec![json!({"type": "thinking", "thinking": "h"})], "end_turn", "agent.thinking x.model_response span.model_request_end")]
#[case::tools(vec![tool_use("t1", "bash"), tool_use("t2", "ask"), tool_use("t3", "edit")], "tool_use", "agent.tool_use agent.custom_tool_use agent.tool_use x.model_response span.model_request_end")]
#[case::no_such_tool(vec![tool_use("t1", "nonesuch")], "tool_use", "x.model_response span.model_request_end")]
#[case::refusal(vec![tool_use("t1", "bash")], "refusal", "x.model_response span.model_request_end")]
#[case::cut_off(vec![json!({"type": "text", "text": "a"})], "max_tokens", "agent.message x.model_response span.model_request_end session.error")]
#[case::cut_off_call(vec![tool_use("t1", "bash")], "max_tokens", "agent.tool_use x.model_response span.model_request_end")]
#[case::unknown(vec![], "of_tomorrow", "x.model_response span.model_request_end session.error")]
fn an_answer_is_written_down_in_one_batch(#[case] content: Vec<Value>, #[case] stop: &str, #[case] expected: &str) {
    let (state, _) = calling();
    let (_, next) = step(state, Input::Model(Ok(reply(content, stop))));
    assert_eq!(brief(&next), format!("append {expected}"));
}

#[test]
fn a_call_whose_input_is_cut_off_never_runs_and_the_model_is_told() {
    let (state, mut log) = calling();
    let reply = Reply {
        incomplete: vec!["t2".to_owned()],
        ..reply(vec![tool_use("t1", "bash"), tool_use("t2", "bash")], "max_tokens")
    };
    let (_, next) = step(state, Input::Model(Ok(reply)));
    let Next::Do(Effect::Append { events, .. }) = next else { panic!("{next:?}") };
    let call = events[0].id.clone();
    for event in events {
        let seq = u64::try_from(log.len()).unwrap() + 1;
        let event = Event { id: event.id, body: event.body, processed_at: None };
        log.push(Record { seq, epoch: 1, prev_hash: String::new(), event });
    }
    let (state, next) = step(brain(log), Input::Inbox(inbox(&[])));
    assert_eq!(next, Next::Do(Effect::Execute { calls: vec![call.clone()] }));
    // The service cannot answer the other one: the turn goes on all the same.
    let (state, next) = step(state, Input::Executed { abandoned: vec![call] });
    assert_eq!(brief(&next), "read 6");
    let (state, _) = step(state, Input::Records { records: vec![], head: 6 });
    let (state, next) = step(state, Input::Inbox(inbox(&[])));
    let Next::Do(Effect::Append { events, .. }) = next else { panic!("{next:?}") };
    let event = Event { id: events[0].id.clone(), body: events[0].body.clone(), processed_at: None };
    let record = Record { seq: 7, epoch: 1, prev_hash: String::new(), event };
    let (_, next) = step(state, Input::Records { records: vec![record], head: 7 });
    let Next::Do(Effect::CallModel { body, .. }) = next else { panic!("{next:?}") };
    check_request(&body);
    let results = body["messages"][2]["content"].as_array().unwrap();
    assert!(results[0]["content"][0]["text"].as_str().unwrap().contains("interrupted"));
    assert!(results[1]["content"][0]["text"].as_str().unwrap().contains("token limit"));
    assert!(results.iter().all(|result| result["is_error"] == true));
}

#[test]
fn a_call_asks_where_its_policy_says_so() {
    let (state, _) = calling();
    let (_, next) =
        step(state, Input::Model(Ok(reply(vec![tool_use("t1", "bash"), tool_use("t2", "edit")], "tool_use"))));
    let Next::Do(Effect::Append { events, .. }) = next else { panic!("{next:?}") };
    let permissions: Vec<Permission> = events
        .iter()
        .filter_map(|event| match event.body {
            EventBody::AgentToolUse { evaluated_permission, .. } => Some(evaluated_permission),
            _ => None,
        })
        .collect();
    assert_eq!(permissions, [Permission::Allow, Permission::Ask]);
}

/// What the model reads of a call that was interrupted: what it came to, if that is known before the model is asked.
#[rstest]
#[case::in_time(&[result(4), user("b")], None)]
#[case::after_the_next_message(&[user("b"), result(4)], None)]
#[case::never(&[user("b")], Some("interrupted"))]
fn the_model_is_told_what_an_interrupted_call_came_to(#[case] then: &[EventBody], #[case] told: Option<&str>) {
    let mut log = vec![user("a"), running(), start(), bash(), answer("tool_use", &[4]), end(3, false), interrupted()];
    log.extend_from_slice(then);
    let head = u64::try_from(log.len()).unwrap();
    let (mut state, mut next) = step(brain(records(log)), Input::Inbox(inbox(&[])));
    if told.is_some() {
        let Next::Do(Effect::Stop { calls }) = next else { panic!("{next:?}") };
        (state, next) = step(state, Input::Executed { abandoned: calls });
        assert_eq!(brief(&next), format!("read {head}"));
        (state, _) = step(state, Input::Records { records: vec![], head });
        (state, next) = step(state, Input::Inbox(inbox(&[])));
    }
    let Next::Do(Effect::Append { events, .. }) = next else { panic!("{next:?}") };
    let event = Event { id: events[0].id.clone(), body: events[0].body.clone(), processed_at: None };
    let record = Record { seq: head + 1, epoch: 1, prev_hash: String::new(), event };
    let (_, next) = step(state, Input::Records { records: vec![record], head: head + 1 });
    let Next::Do(Effect::CallModel { body, .. }) = next else { panic!("{next:?}") };
    check_request(&body);
    let read = body["messages"][2]["content"][0]["content"][0]["text"].as_str();
    assert_eq!(read.is_some(), told.is_some(), "{read:?}");
    assert!(read.unwrap_or_default().contains(told.unwrap_or_default()), "{read:?}");
}

#[test]
fn an_answer_is_appended_again_where_the_log_has_grown() {
    let (state, _) = calling();
    let (state, next) = step(state, Input::Model(Ok(reply(vec![], "end_turn"))));
    let Next::Do(Effect::Append { events, expected_head: 3 }) = next else { panic!("{next:?}") };
    let (state, next) = step(state, Input::Moved(Moved::Head));
    assert_eq!(brief(&next), "read 3");
    let other = Record {
        seq: 4,
        ..records([EventBody::Other { kind: "x.a".to_owned(), fields: serde_json::Map::default() }]).remove(0)
    };
    let (_, next) = step(state, Input::Records { records: vec![other], head: 4 });
    assert_eq!(next, Next::Do(Effect::Append { events, expected_head: 4 }));
}

#[test]
fn an_answer_that_was_appended_after_all_is_not_appended_again() {
    let (state, _) = calling();
    let (state, next) = step(state, Input::Model(Ok(reply(vec![], "end_turn"))));
    let Next::Do(Effect::Append { events, .. }) = next else { panic!("{next:?}") };
    let (state, _) = step(state, Input::Moved(Moved::Head));
    let records: Vec<Record> = (4..)
        .zip(events)
        .map(|(seq, event)| Record {
            seq,
            epoch: 1,
            prev_hash: String::new(),
            event: Event { id: event.id, body: event.body, processed_at: None },
        })
        .collect();
    let (_, next) = step(state, Input::Records { records, head: 5 });
    assert_eq!(brief(&next), "idle end_turn");
}

#[test]
fn an_answer_that_the_log_does_not_take_is_replaced_by_an_error_once() {
    let (state, _) = calling();
    let (state, _) = step(state, Input::Model(Ok(reply(vec![], "end_turn"))));
    let (state, next) = step(state, Input::Refused { reason: "too large".to_owned() });
    assert_eq!(brief(&next), "append span.model_request_end session.error");
    let (_, next) = step(state, Input::Refused { reason: "still".to_owned() });
    assert_eq!(next, Next::Fail { reason: "still".to_owned() });
}

/// As it is at the limit of a log.
#[test]
fn a_request_that_the_log_does_not_let_begin_ends_the_turn() {
    let (state, next) = step(brain(records(vec![user("a"), running()])), Input::Inbox(inbox(&[])));
    assert_eq!(brief(&next), "append span.model_request_start");
    let (state, next) = step(state, Input::Refused { reason: "it is full".to_owned() });
    let Next::Do(Effect::Append { events, expected_head }) = next else { panic!("{next:?}") };
    let EventBody::SessionError { error } = &events[0].body else { panic!("{events:?}") };
    assert_eq!((events.len(), error.retry_status), (1, RetryStatus::Terminal));
    assert!(error.message.ends_with("it is full"), "{error:?}");
    let event = Event { id: events[0].id.clone(), body: events[0].body.clone(), processed_at: None };
    let record = Record { seq: expected_head + 1, epoch: 1, prev_hash: String::new(), event };
    let taken = Input::Records { records: vec![record], head: expected_head + 1 };
    let (ended, _) = step(state.clone(), taken);
    let (_, next) = step(ended, Input::Inbox(inbox(&[])));
    let Next::Do(Effect::Idle { events, .. }) = next else { panic!("{next:?}") };
    let last = &events.last().unwrap().body;
    assert_eq!(*last, EventBody::SessionStatusIdle { stop_reason: StopReason::RetriesExhausted });
    // What does not even take that is given up.
    let (_, next) = step(state, Input::Refused { reason: "still".to_owned() });
    assert_eq!(next, Next::Fail { reason: "still".to_owned() });
}

#[rstest]
#[case(0, true, "append span.model_request_end session.error session.status_rescheduled")]
#[case(3, true, "append span.model_request_end session.error session.status_rescheduled")]
#[case(4, true, "append span.model_request_end session.error")]
#[case(0, false, "append span.model_request_end session.error")]
fn a_failure_is_retried_five_times_in_all(#[case] failures: usize, #[case] retryable: bool, #[case] expected: &str) {
    let mut log = vec![user("a"), running()];
    log.extend(std::iter::repeat_n(failed(RetryStatus::Retrying), failures));
    let (mut state, mut next) = step(brain(records(log)), Input::Inbox(inbox(&[])));
    if failures > 0 {
        assert_eq!(brief(&next), format!("rest {failures}"));
        (state, next) = step(state, Input::Rested);
        assert_eq!(next, Next::Do(Effect::Look));
        (state, next) = step(state, Input::Inbox(inbox(&[])));
    }
    let Next::Do(Effect::Append { events, expected_head }) = next else { panic!("{next:?}") };
    let event = Event { id: events[0].id.clone(), body: events[0].body.clone(), processed_at: None };
    let record = Record { seq: expected_head + 1, epoch: 1, prev_hash: String::new(), event };
    let (state, next) = step(state, Input::Records { records: vec![record], head: expected_head + 1 });
    assert_eq!(brief(&next), "call");
    let (_, next) = step(state, Input::Model(Err(Failure { retryable, ..Failure::transport("away") })));
    assert_eq!(brief(&next), expected);
}

#[test]
fn a_session_that_was_given_up_is_left_alone() {
    let done = Inbox::default();
    let log = records([user("a"), start(), answer("end_turn", &[]), end(2, false)]);
    assert_eq!(step(brain(log), Input::Inbox(done)).1, Next::Done);
}

#[test]
fn a_gap_is_read_again() {
    let log = records([user("a"), running(), start()]);
    let (state, _) = step(State::claimed(session(), Transcript::default()), Input::Claimed);
    let (_, next) = step(state, Input::Records { records: vec![log[0].clone(), log[2].clone()], head: 3 });
    assert_eq!(next, Next::Do(Effect::Read { after: 1 }));
}

#[test]
fn without_a_sandbox_only_custom_tools_are_offered() {
    let mut session = session();
    session.sandboxes.clear();
    assert!(session.agent.tools.iter().any(|tool| matches!(tool, Tool::AgentToolset { .. })));
    let tools = longhand_harness::core::tools::ToolSet::of(&session, &longhand_harness::core::mcp::Ledger::default());
    let names: Vec<Value> = tools.definitions().iter().map(|tool| tool["name"].clone()).collect();
    assert_eq!(names, ["ask"]);
}
