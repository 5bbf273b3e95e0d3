//! Models of several kinds and several models of one agent, through the whole harness.

use longhand_harness::core::{Effect, Input, Next, State, Transcript, step};
use longhand_harness::model::Failure;
use longhand_protocol::event::{Event, EventBody, NewEvent, RetryStatus, StopReason};
use longhand_protocol::harness::{AgentSnapshot, HarnessSession, Inbox, Model, ModelApi};
use longhand_protocol::{EventId, Record};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::raw::{Answer, Asked, TOKEN, run};
use crate::support::{agent, check_request, kinds, last, session, store, text};

pub(crate) fn session_of(model: &Value) -> HarnessSession {
    let mut whole = serde_json::to_value(agent().model).unwrap();
    whole.as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
    let model: Model = serde_json::from_value(whole).unwrap();
    HarnessSession { agent: AgentSnapshot { model, ..agent() }, ..session() }
}

fn frames(frames: &[Value]) -> String {
    frames.iter().map(|frame| format!("data: {frame}\n\n")).collect()
}

/// An answer of a Messages API.
pub(crate) fn says(blocks: &[Value], stop_reason: &str) -> Answer {
    says_after(1, blocks, stop_reason)
}

/// The same after it has read so many tokens.
fn says_after(input_tokens: u64, blocks: &[Value], stop_reason: &str) -> Answer {
    let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": input_tokens}}});
    let blocks = blocks.iter().enumerate().flat_map(|(index, block)| {
        [
            json!({"type": "content_block_start", "index": index, "content_block": block}),
            json!({"type": "content_block_stop", "index": index}),
        ]
    });
    let end = json!({"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 1}});
    let all: Vec<Value> = [start].into_iter().chain(blocks).chain([end, json!({"type": "message_stop"})]).collect();
    Answer::events(frames(&all))
}

/// An answer of a chat completions server.
pub(crate) fn chats(deltas: &[Value], finish_reason: &str) -> Answer {
    let chunk =
        |delta: &Value, reason: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}});
    let all: Vec<Value> = deltas
        .iter()
        .map(|delta| chunk(delta, Value::Null))
        .chain([chunk(&json!({}), json!(finish_reason)), usage])
        .collect();
    Answer::events(frames(&all) + "data: [DONE]\n\n")
}

fn header<'a>(asked: &'a Asked, name: &str) -> &'a str {
    asked.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_chat_completions_server_serves_a_turn_with_tools() {
    let call = json!({"tool_calls": [
        {"index": 0, "id": "c1", "function": {"name": "bash", "arguments": "{\"command\": \"ls\"}"}},
        {"index": 1, "id": "c2", "function": {"name": "nonsense", "arguments": "{}"}},
    ]});
    let answers = [
        chats(&[json!({"reasoning_content": "hm"}), json!({"content": "Let me see."}), call], "tool_calls"),
        chats(&[json!({"content": "Done."})], "stop"),
    ];
    let session = session_of(&json!({"id": "qwen", "api": "openai", "effort": "low"}));
    let outcome = run(store(), session, [text("go")], answers).await;
    let kinds = kinds(&outcome.log);
    for kind in ["agent.thinking", "agent.message", "agent.tool_use", "agent.tool_result"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    assert!(matches!(last(&outcome.log), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
    let usage = outcome.log.iter().find_map(|record| match &record.event.body {
        EventBody::SessionUsage { usage } => Some((usage.tokens.input_tokens, usage.tokens.output_tokens)),
        _ => None,
    });
    assert_eq!(usage, Some((14, 4)));
    let asked = outcome.server.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    for asked in &asked {
        assert_eq!(asked.path, "/model/v1/chat/completions");
        let bearer = format!("Bearer {TOKEN}");
        assert_eq!((header(asked, "authorization"), header(asked, "x-api-key")), (bearer.as_str(), ""));
        assert_eq!((&asked.body["model"], &asked.body["reasoning_effort"]), (&json!("qwen"), &json!("low")));
        assert_eq!(asked.body["messages"][0], json!({"role": "system", "content": "Be brief."}));
    }
    let sent = asked[1].body["messages"].as_array().unwrap().clone();
    assert_eq!(sent[2]["tool_calls"].as_array().unwrap().len(), 2);
    assert_eq!(sent[2]["content"], "Let me see.", "what it thought is not sent back");
    assert_eq!((&sent[3]["tool_call_id"], &sent[3]["content"]), (&json!("c1"), &json!("done")));
    assert_eq!(sent[4]["tool_call_id"], "c2");
    assert!(sent[4]["content"].as_str().unwrap().starts_with("Error: This call was not run"), "{}", sent[4]);
}

#[tokio::test]
async fn what_the_agent_says_of_its_model_reaches_the_api() {
    let session = session_of(&json!({
        "effort": "high", "speed": "fast", "inference_geo": "eu", "thinking": {"type": "adaptive"}, "betas": ["b-1"],
        "context_edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}}],
    }));
    let outcome =
        run(store(), session, [text("go")], [says(&[json!({"type": "text", "text": "hi"})], "end_turn")]).await;
    let asked = outcome.server.asked.lock().unwrap()[0].clone();
    assert_eq!(asked.path, "/model/v1/messages");
    assert_eq!(header(&asked, "anthropic-beta"), "b-1,context-management-2025-06-27,fast-mode-2026-02-01");
    let fields = ["output_config", "speed", "inference_geo", "thinking", "context_management"];
    assert_eq!(
        fields.map(|field| asked.body[field].clone()),
        [
            json!({"effort": "high"}),
            json!("fast"),
            json!("eu"),
            json!({"type": "adaptive"}),
            json!({"edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}}]}),
        ]
    );
}

#[tokio::test]
async fn interleaved_thinking_and_blocks_of_the_server_go_back_as_they_came() {
    let thought =
        |number: u8| json!({"type": "thinking", "thinking": format!("{number}"), "signature": format!("s{number}")});
    let first = [
        json!({"type": "compaction", "content": "what was said", "encrypted_content": "e"}),
        thought(1),
        json!({"type": "text", "text": "a"}),
        json!({"type": "redacted_thinking", "data": "d"}),
        json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}),
        json!({"type": "of_tomorrow", "field": {"x": [1]}}),
    ];
    let second = [thought(2), json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}})];
    let answers = [
        says(&first, "pause_turn"),
        says(&second, "tool_use"),
        says(&[json!({"type": "text", "text": "b"})], "end_turn"),
    ];
    let outcome = run(store(), session(), [text("go")], answers).await;
    let bodies = outcome.server.bodies();
    assert_eq!(bodies.len(), 3);
    assert_eq!(bodies[1]["messages"][1], json!({"role": "assistant", "content": first}));
    let both: Vec<Value> = first.into_iter().chain(second).collect();
    assert_eq!(bodies[2]["messages"][1], json!({"role": "assistant", "content": both}));
    check_request(&bodies[2]);
}

#[tokio::test]
async fn a_full_context_window_is_compacted_and_the_turn_goes_on() {
    let answers = [
        says_after(8_000, &[json!({"type": "text", "text": "a"})], "model_context_window_exceeded"),
        says(&[json!({"type": "text", "text": "what was said"})], "end_turn"),
        says(&[json!({"type": "text", "text": "b"})], "end_turn"),
    ];
    let outcome = run(store(), session(), [text("go")], answers).await;
    assert!(errors(&outcome.log).is_empty(), "{:?}", errors(&outcome.log));
    let bodies = outcome.server.bodies();
    assert_eq!(bodies.len(), 3);
    assert!(bodies[2]["messages"][0].to_string().contains("what was said"), "{}", bodies[2]);
    check_request(&bodies[2]);
}

pub(crate) fn errors(log: &[Record]) -> Vec<(String, RetryStatus)> {
    let error = |record: &Record| match &record.event.body {
        EventBody::SessionError { error } => Some((error.message.clone(), error.retry_status)),
        _ => None,
    };
    log.iter().filter_map(error).collect()
}

#[tokio::test]
async fn the_next_model_is_asked_until_the_end_of_the_turn() {
    let thought = json!({"type": "thinking", "thinking": "hm", "signature": "s"});
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "bash", "input": {"command": "ls"}});
    let missing =
        || Answer::status(404, r#"{"type": "error", "error": {"type": "not_found_error", "message": "model: first"}}"#);
    let tool = json!({"index": 0, "id": "functions.bash:0", "function": {"name": "bash", "arguments": "{}"}});
    let answers = [
        says(&[thought.clone(), call("toolu_1")], "tool_use"),
        missing(),
        chats(&[json!({"tool_calls": [tool]})], "tool_calls"),
        chats(&[json!({"content": "Done."})], "stop"),
        says(&[json!({"type": "text", "text": "Again."})], "end_turn"),
    ];
    let session =
        session_of(&json!({"id": "first", "fallbacks": [{"id": "second", "api": "openai"}, {"id": "third"}]}));
    let outcome = run(store(), session, [text("go"), text("on")], answers).await;
    let asked: Vec<Value> = outcome.server.bodies().iter().map(|body| body["model"].clone()).collect();
    assert_eq!(asked, ["first", "first", "second", "second", "first"]);
    let (message, status) = errors(&outcome.log).remove(0);
    assert!(message.contains("model: first") && message.contains("`second`"), "{message}");
    assert_eq!(status, RetryStatus::Retrying);
    assert_eq!(kinds(&outcome.log).iter().filter(|kind| **kind == "x.model.fallback").count(), 1);
    let models: Vec<String> = outcome
        .log
        .iter()
        .filter_map(|record| match &record.event.body {
            EventBody::ModelResponse { model, .. } => model.clone(),
            _ => None,
        })
        .collect();
    assert_eq!(models, ["first", "second", "second", "first"]);
    let bodies = outcome.server.bodies();
    let last = &bodies[4];
    let blocks = check_request(last);
    assert!(blocks.contains(&("assistant".to_owned(), thought)), "its own thinking: {blocks:?}");
    let ids: Vec<&Value> = blocks.iter().map(|(_, block)| &block["id"]).filter(|id| !id.is_null()).collect();
    assert_eq!(ids, ["toolu_1", "call_2"], "identifiers that the Messages API takes");
    assert!(matches!(
        crate::support::last(&outcome.log),
        EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }
    ));
}

#[tokio::test]
async fn a_fallback_with_an_address_of_its_own_is_asked_by_its_route() {
    let answers = [Answer::status(404, "no such model"), says(&[json!({"type": "text", "text": "hi"})], "end_turn")];
    let session = session_of(&json!({"id": "first", "fallbacks": [{"id": "second", "route": "0a1b"}]}));
    let outcome = run(store(), session, [text("go")], answers).await;
    let paths: Vec<String> = outcome.server.asked.lock().unwrap().iter().map(|asked| asked.path.clone()).collect();
    assert_eq!(paths, ["/model/v1/messages", "/model-fallbacks/0a1b/v1/messages"]);
}

/// Each is a log of these events, with the identifiers `sevt_1`, `sevt_2` and so on.
fn brain(model: &Value, bodies: Vec<EventBody>) -> (State, Next) {
    let record = |(index, body): (usize, EventBody)| {
        let seq = u64::try_from(index).unwrap() + 1;
        let id: EventId = format!("sevt_{seq}").parse().unwrap();
        Record { seq, epoch: 1, prev_hash: String::new(), event: Event { id, body, processed_at: None } }
    };
    let records: Vec<Record> = bodies.into_iter().enumerate().map(record).collect();
    let head = u64::try_from(records.len()).unwrap();
    let (state, _) = step(State::claimed(session_of(model), Transcript::default()), Input::Claimed);
    let (state, _) = step(state, Input::Records { records, head });
    step(state, Input::Inbox(Inbox { wake_revision: Some(1), ..Inbox::default() }))
}

/// What the brain does once what it appends is in the log.
fn appended(state: State, next: Next) -> (State, Next) {
    let Next::Do(Effect::Append { expected_head, events }) = next else { panic!("{next:?}") };
    let records: Vec<Record> = events
        .into_iter()
        .zip(expected_head + 1..)
        .map(|(event, seq)| {
            let event = Event { id: event.id, body: event.body, processed_at: None };
            Record { seq, epoch: 1, prev_hash: String::new(), event }
        })
        .collect();
    let head = records.last().unwrap().seq;
    let (state, next) = step(state, Input::Records { records, head });
    match next {
        Next::Do(Effect::Look) => step(state, Input::Inbox(Inbox { wake_revision: Some(1), ..Inbox::default() })),
        _ => (state, next),
    }
}

fn user() -> EventBody {
    NewEvent::from(text("go")).body
}

fn failed() -> [EventBody; 3] {
    let error = serde_json::from_value(json!({
        "type": "model_overloaded_error", "message": "m", "retry_status": {"type": "retrying"},
    }));
    let start: EventId = "sevt_3".parse().unwrap();
    [
        EventBody::SpanModelRequestEnd {
            model_request_start_id: start,
            is_error: true,
            model_usage: Default::default(),
        },
        EventBody::SessionError { error: error.unwrap() },
        EventBody::SessionStatusRescheduled {},
    ]
}

fn fallback(position: u32) -> EventBody {
    EventBody::ModelFallback { model: "x".to_owned(), position }
}

fn idle() -> EventBody {
    EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }
}

/// The model that is asked follows from the log: a brain that knows nothing else asks the same.
#[rstest]
#[case::first(vec![user(), EventBody::SessionStatusRunning {}], "first", ModelApi::Anthropic)]
#[case::second(vec![user(), EventBody::SessionStatusRunning {}, fallback(1)], "second", ModelApi::OpenAi)]
#[case::third(vec![user(), EventBody::SessionStatusRunning {}, fallback(1), fallback(2)], "third", ModelApi::Anthropic)]
#[case::more_than_there_are(vec![user(), EventBody::SessionStatusRunning {}, fallback(9)], "third", ModelApi::Anthropic)]
#[case::another_message(vec![user(), EventBody::SessionStatusRunning {}, fallback(1), user()], "second", ModelApi::OpenAi)]
#[case::another_turn(vec![user(), fallback(1), idle(), user(), EventBody::SessionStatusRunning {}], "first", ModelApi::Anthropic)]
fn which_model_is_asked(#[case] log: Vec<EventBody>, #[case] expected: &str, #[case] api: ModelApi) {
    let model = json!({"id": "first", "fallbacks": [{"id": "second", "api": "openai"}, {"id": "third"}]});
    let (state, next) = brain(&model, log);
    let (_, next) = appended(state, next);
    let Next::Do(Effect::CallModel { target, body, .. }) = next else { panic!("{next:?}") };
    assert_eq!((body["model"].as_str(), target.api), (Some(expected), api));
}

/// Thinking goes back to the model that signed it, and to no other; what has no signature goes to none.
#[rstest]
#[case::its_own(Some("first"), 0, &["thinking", "redacted_thinking", "text"])]
#[case::of_another(Some("first"), 1, &["text"])]
#[case::of_one_that_was_not_noted(None, 1, &["thinking", "redacted_thinking", "text"])]
fn thinking_is_for_the_model_that_signed_it(#[case] by: Option<&str>, #[case] position: u32, #[case] sent: &[&str]) {
    let answer = EventBody::ModelResponse {
        content: vec![
            json!({"type": "thinking", "thinking": "hm", "signature": "s"}),
            json!({"type": "thinking", "thinking": "of a chat"}),
            json!({"type": "redacted_thinking", "data": "d"}),
            json!({"type": "text", "text": "a"}),
        ],
        stop_reason: Some("end_turn".to_owned()),
        model: by.map(ToOwned::to_owned),
        tool_events: vec![],
        limited: false,
    };
    let model = json!({"id": "first", "fallbacks": [{"id": "second"}]});
    let log = vec![user(), EventBody::SessionStatusRunning {}, answer, user(), fallback(position)];
    let (state, next) = brain(&model, log);
    let (_, next) = appended(state, next);
    let Next::Do(Effect::CallModel { body, .. }) = next else { panic!("{next:?}") };
    let content = body["messages"][1]["content"].as_array().unwrap();
    let kinds: Vec<&str> = content.iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, sent);
}

/// After so many failures in a row: what is said when another comes.
#[rstest]
#[case::again(0, true, 0, "retrying", None)]
#[case::next_at_last(4, true, 0, "retrying", Some(1))]
#[case::next_at_once(0, false, 0, "retrying", Some(1))]
#[case::second_again(0, true, 1, "retrying", None)]
#[case::third(4, true, 1, "retrying", Some(2))]
#[case::exhausted(4, true, 2, "exhausted", None)]
#[case::terminal(0, false, 2, "terminal", None)]
fn a_failure_is_repeated_or_passed_on(
    #[case] failures: usize,
    #[case] retryable: bool,
    #[case] position: u32,
    #[case] status: &str,
    #[case] next_position: Option<u32>,
) {
    let model = json!({"id": "first", "fallbacks": [{"id": "second"}, {"id": "third"}]});
    let mut log = vec![user(), EventBody::SessionStatusRunning {}];
    log.extend((position > 0).then(|| fallback(position)));
    log.extend((0..failures).flat_map(|_| failed()));
    let (state, next) = brain(&model, log);
    let (state, next) = match next {
        Next::Do(Effect::Rest(rest)) => {
            assert_eq!(usize::try_from(rest.failures).unwrap(), failures);
            let (state, next) = step(state, Input::Rested);
            assert!(matches!(next, Next::Do(Effect::Look)));
            step(state, Input::Inbox(Inbox { wake_revision: Some(1), ..Inbox::default() }))
        }
        next => (state, next),
    };
    let (state, next) = appended(state, next);
    assert!(matches!(next, Next::Do(Effect::CallModel { .. })), "{next:?}");
    let failure = Failure { retryable, ..Failure::transport("no") };
    let (state, next) = step(state, Input::Model(Err(failure)));
    let Next::Do(Effect::Append { events, .. }) = &next else { panic!("{next:?}") };
    let found = events.iter().find_map(|event| match &event.body {
        EventBody::SessionError { error } => Some(serde_json::to_value(error.retry_status).unwrap()["type"].clone()),
        _ => None,
    });
    assert_eq!(found, Some(json!(status)));
    let found = events.iter().find_map(|event| match &event.body {
        EventBody::ModelFallback { position, .. } => Some(*position),
        _ => None,
    });
    assert_eq!(found, next_position);
    let (_, next) = appended(state, next);
    match (status, next_position) {
        // The next model has done nothing yet for which it would have to be waited for.
        ("retrying", Some(_)) => assert!(matches!(next, Next::Do(Effect::Append { .. })), "{next:?}"),
        ("retrying", None) => assert!(matches!(next, Next::Do(Effect::Rest(_))), "{next:?}"),
        _ => assert!(matches!(next, Next::Do(Effect::Idle { .. })), "{next:?}"),
    }
}
