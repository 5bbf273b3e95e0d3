//! A model, or whatever answers in its place, that says what it should not: the session says what happened, holds no more
//! memory than it should, and lives on.

use std::sync::atomic::Ordering;

use longhand_harness::core::MAX_CALLS;
use longhand_protocol::event::{EventBody, RetryStatus, StopReason};
use longhand_protocol::harness::{AgentSnapshot, HarnessSession, Model, ModelApi};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::raw::{Answer, Outcome, run};
use crate::support::{agent, check_request, kinds, last, session, store, text};

/// No more is read of an answer than this, and what the sockets hold.
const MOST_READ: usize = 24 * 1024 * 1024;

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn started(block: &Value) -> String {
    event(&json!({"type": "message_start", "message": {"usage": {"input_tokens": 1}}}))
        + &event(&json!({"type": "content_block_start", "index": 0, "content_block": block}))
}

fn delta(delta: &Value) -> String {
    event(&json!({"type": "content_block_delta", "index": 0, "delta": delta}))
}

fn end(reason: &str) -> String {
    event(&json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 1}}))
        + &event(&json!({"type": "message_stop"}))
}

/// An answer of one block.
fn block(block: &Value, deltas: &str, reason: &str) -> Answer {
    let stop = event(&json!({"type": "content_block_stop", "index": 0}));
    Answer::events([started(block), deltas.to_owned(), stop, end(reason)].concat())
}

fn fine() -> Answer {
    block(&json!({"type": "text", "text": "fine"}), "", "end_turn")
}

fn tool(name: &str, input: &str) -> Answer {
    let call = json!({"type": "tool_use", "id": "toolu_1", "name": name, "input": {}});
    block(&call, &delta(&json!({"type": "input_json_delta", "partial_json": input})), "tool_use")
}

fn deep(levels: usize) -> String {
    format!("{{\"command\": {}1{}}}", "[".repeat(levels), "]".repeat(levels))
}

fn errors(outcome: &Outcome) -> Vec<(String, RetryStatus)> {
    let errors = outcome.log.iter().filter_map(|record| match &record.event.body {
        EventBody::SessionError { error } => Some((error.message.clone(), error.retry_status)),
        _ => None,
    });
    errors.collect()
}

/// The session has answered the last message, and every request was one that the model API takes.
fn check_alive(outcome: &Outcome) {
    assert!(matches!(last(&outcome.log), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
    let answer = outcome.log.iter().rev().find_map(|record| match &record.event.body {
        EventBody::AgentMessage { content } => Some(content[0]["text"].clone()),
        _ => None,
    });
    assert_eq!(answer, Some(json!("fine")), "{:?}", kinds(&outcome.log));
    let count = |kind: &str| kinds(&outcome.log).iter().filter(|found| **found == kind).count();
    assert_eq!(count("agent.tool_use"), count("agent.tool_result"));
    assert_eq!(count("span.model_request_start"), count("span.model_request_end"));
    for body in outcome.server.bodies() {
        check_request(&body);
    }
    let read = outcome.server.sent.load(Ordering::Relaxed);
    assert!(read <= MOST_READ, "{read} bytes were read");
}

/// The model is told that its call was not run, and goes on.
#[rstest]
#[case::broken_json(tool("bash", "{\"command\": \"ls\""))]
#[case::no_object(tool("bash", "[\"ls\"]"))]
#[case::an_unknown_tool(tool("rm_rf", "{}"))]
#[case::a_name_that_is_none(tool("\u{0}/../\n", "{}"))]
#[case::half_a_character(tool("bash", "{\"command\": \"\\ud800\"}"))]
#[case::nested_too_deep(tool("bash", &deep(100)))]
#[case::nested_deeper_than_the_stack(tool("bash", &deep(1_000_000)))]
#[tokio::test]
async fn a_call_that_cannot_run_is_answered(#[case] answer: Answer) {
    let outcome = run(store(), session(), [text("go")], [answer, fine()]).await;
    check_alive(&outcome);
    assert!(errors(&outcome).is_empty());
    assert!(outcome.service.runs.lock().unwrap().is_empty());
    let result = outcome.server.bodies()[1]["messages"][2]["content"][0].clone();
    assert_eq!((&result["tool_use_id"], &result["is_error"]), (&json!("toolu_1"), &json!(true)));
    assert!(result["content"][0]["text"].as_str().unwrap().starts_with("This call was not run"), "{result}");
}

/// What happened is said once, the turn is over, and the next message is answered.
#[rstest]
#[case::ten_megabytes_of_input(tool("bash", &format!("{{\"command\": \"{}\"}}", "x".repeat(10_000_000))), "4194304 bytes")]
#[case::ten_megabytes_in_pieces(
    Answer::events(started(&json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}})))
        .for_ever(delta(&json!({"type": "input_json_delta", "partial_json": "x".repeat(100_000)}))),
    "8388608 bytes")]
#[case::text_without_end(
    Answer::events(started(&json!({"type": "text", "text": ""}))).for_ever(delta(&json!({"type": "text_delta", "text": "x".repeat(100_000)}))),
    "8388608 bytes")]
#[case::an_event_without_end(Answer::events("data: ").for_ever("x".repeat(100_000)), "4194304 bytes")]
#[case::blocks_without_end(
    Answer::events((0..5_000).map(|index| event(&json!({"type": "content_block_start", "index": index, "content_block": {}}))).collect::<String>()),
    "1024 content blocks")]
#[case::a_block_out_of_order(
    Answer::events(event(&json!({"type": "content_block_start", "index": 7, "content_block": {"type": "text"}}))), "out of order")]
#[case::a_delta_of_tomorrow(Answer::events(started(&json!({})) + &delta(&json!({"type": "of_tomorrow"}))), "`of_tomorrow`")]
#[case::a_delta_of_a_long_name(
    Answer::events(started(&json!({})) + &delta(&json!({"type": "x".repeat(1_000_000)}))),
    "xxx"
)]
#[case::a_long_reason(block(&json!({"type": "text", "text": "a"}), "", &"x".repeat(1_000_000)), "xxx")]
#[case::an_error_of_a_long_name(
    Answer::events(event(&json!({"type": "error", "error": {"type": "invalid_request_error", "message": "x".repeat(1_000_000)}}))),
    "xxx"
)]
#[case::a_call_without_identifier(
    block(&json!({"type": "tool_use", "name": "bash", "input": {}}), "", "tool_use"), "without an identifier")]
#[case::a_packed_body(Answer::events("\u{1f}\u{8b}\u{8}").header("content-encoding", "gzip"), "content-encoding: gzip")]
#[case::an_error_without_end(Answer::status(400, "").for_ever("x".repeat(100_000)), "400 Bad Request: xxx")]
#[case::a_redirect(Answer::status(307, "").header("location", "http://127.0.0.1:1/steal"), "307 Temporary Redirect")]
#[case::a_reason_of_tomorrow(block(&json!({"type": "text", "text": "a"}), "", "of_tomorrow"), "of_tomorrow")]
#[tokio::test]
async fn an_answer_that_is_none_ends_the_turn(#[case] answer: Answer, #[case] said: &str) {
    let outcome = run(store(), session(), [text("go"), text("on")], [answer, fine()]).await;
    check_alive(&outcome);
    let errors = errors(&outcome);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].0.contains(said) && errors[0].0.len() < 2_000,
        "{}",
        &errors[0].0[..errors[0].0.len().min(2_000)]
    );
    assert_eq!(errors[0].1, RetryStatus::Terminal);
    let idle = outcome.log.iter().find_map(|record| match &record.event.body {
        EventBody::SessionStatusIdle { stop_reason } => Some(stop_reason.clone()),
        _ => None,
    });
    assert_eq!(idle, Some(StopReason::RetriesExhausted));
}

/// What may be a fault of the way is tried again.
#[rstest]
#[case::garbage(Answer::events("data: {garbage\n\n"), "cannot be read")]
#[case::no_text(Answer::events("data: \u{0}\u{1}\n\n"), "cannot be read")]
#[case::a_page(Answer::status(200, "<html>").header("content-type", "text/html"), "`text/html`")]
#[case::no_stream(Answer::status(200, "{\"id\": \"msg_1\"}").header("content-type", "application/json"), "`application/json`")]
#[case::nothing(Answer::events(""), "in the middle")]
#[case::half(Answer::events(started(&json!({"type": "text", "text": "a"}))), "in the middle")]
#[case::overloaded(Answer::events(event(&json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}))), "busy")]
#[tokio::test]
async fn an_answer_that_broke_is_asked_for_again(#[case] answer: Answer, #[case] said: &str) {
    let outcome = run(store(), session(), [text("go")], [answer, fine()]).await;
    check_alive(&outcome);
    let errors = errors(&outcome);
    assert!(errors.len() == 1 && errors[0].0.contains(said), "{errors:?}");
    assert_eq!(errors[0].1, RetryStatus::Retrying);
}

#[tokio::test]
async fn half_a_character_of_text_is_replaced() {
    let answer = Answer::events([
        started(&json!({"type": "text", "text": ""})),
        "data: {\"type\": \"content_block_delta\", \"index\": 0, \"delta\": {\"type\": \"text_delta\", \"text\": \"a\\ud83d\"}}\n\n".to_owned(),
        event(&json!({"type": "content_block_stop", "index": 0})),
        end("end_turn"),
    ].concat());
    let outcome = run(store(), session(), [text("go"), text("on")], [answer, fine()]).await;
    check_alive(&outcome);
    assert_eq!(outcome.server.bodies()[1]["messages"][1]["content"][0]["text"], "a\u{fffd}");
}

fn many(calls: usize) -> Vec<Value> {
    (0..calls)
        .map(|call| json!({"type": "tool_use", "id": format!("toolu_{call}"), "name": "bash", "input": {"n": call}}))
        .collect()
}

#[tokio::test]
async fn of_too_many_calls_the_first_run_and_all_are_answered() {
    let blocks: String = many(200)
        .iter()
        .enumerate()
        .map(|(index, call)| {
            event(&json!({"type": "content_block_start", "index": index, "content_block": call}))
                + &event(&json!({"type": "content_block_stop", "index": index}))
        })
        .collect();
    let outcome = run(store(), session(), [text("go")], [Answer::events(blocks + &end("tool_use")), fine()]).await;
    check_alive(&outcome);
    let runs = outcome.service.runs.lock().unwrap().clone();
    assert!(runs.len() == MAX_CALLS && runs.values().all(|times| *times == 1), "{runs:?}");
    let results = outcome.server.bodies()[1]["messages"][2]["content"].as_array().unwrap().clone();
    assert_eq!(results.len(), 200);
    for (number, result) in results.iter().enumerate() {
        assert_eq!(result["is_error"] == true, number >= MAX_CALLS, "{result}");
    }
    let said = results[MAX_CALLS]["content"][0]["text"].as_str().unwrap();
    assert!(said.contains(&format!("{MAX_CALLS} calls")), "{said}");
}

/// The same from a chat completions server.
#[rstest]
#[case::calls_without_end(json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "bash", "arguments": "x".repeat(100_000)}}]}), "8388608 bytes")]
#[case::text_without_end(json!({"content": "x".repeat(100_000)}), "8388608 bytes")]
#[case::thinking_without_end(json!({"reasoning_content": "x".repeat(100_000)}), "8388608 bytes")]
#[tokio::test]
async fn a_chat_without_end_is_given_up(#[case] delta: Value, #[case] said: &str) {
    let chunk = |delta: &Value| event(&json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]}));
    let answer = Answer::events("").for_ever(chunk(&delta));
    let model = Model { api: ModelApi::OpenAi, ..agent().model };
    let session = HarnessSession { agent: AgentSnapshot { model, ..agent() }, ..session() };
    let end = event(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})) + "data: [DONE]\n\n";
    let fine = Answer::events(chunk(&json!({"content": "fine"})) + &end);
    let outcome = run(store(), session, [text("go"), text("on")], [answer, fine]).await;
    let errors = errors(&outcome);
    assert!(errors.len() == 1 && errors[0].0.contains(said), "{errors:?}");
    assert!(outcome.server.sent.load(Ordering::Relaxed) <= MOST_READ);
    assert!(matches!(last(&outcome.log), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
}
