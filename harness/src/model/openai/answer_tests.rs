use rstest::rstest;
use serde_json::{Value, json};

use super::Answer;
use crate::model::json::MAX_DEPTH;
use crate::model::stream::{Frames as _, MAX_BLOCKS, Progress};
use crate::model::{Failure, Reply};

fn feed(frames: &[Value]) -> Result<(Reply, String), Failure> {
    let mut answer = Answer::default();
    let mut shown = String::new();
    let done = json!("[DONE]");
    for frame in frames.iter().chain([&done]) {
        let data = frame.as_str().map_or_else(|| frame.to_string(), ToOwned::to_owned);
        match answer.event(&data)? {
            Progress::Quiet => {}
            Progress::Text(delta) => {
                assert_eq!(delta.index, 0);
                shown.push_str(&delta.text);
            }
            Progress::Done(reply) => return Ok((reply, shown)),
        }
    }
    unreachable!("the last frame is the end")
}

fn delta(delta: &Value) -> Value {
    json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn end(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn calls(calls: &Value) -> Value {
    delta(&json!({ "tool_calls": calls }))
}

fn tool(id: &str, name: &str, input: &Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

#[test]
fn a_whole_answer() {
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6}});
    let frames = [
        delta(&json!({"role": "assistant", "content": ""})),
        delta(&json!({"reasoning_content": "h"})),
        delta(&json!({"reasoning": "m", "content": null})),
        delta(&json!({"content": "Let "})),
        delta(&json!({"content": [{"type": "text", "text": "me"}]})),
        calls(&json!([{"index": 0, "id": "c1", "type": "function", "function": {"name": "bash", "arguments": ""}}])),
        calls(
            &json!([{"index": 1, "id": "c2", "type": "function", "function": {"name": "read", "arguments": "{\"pa"}}]),
        ),
        calls(
            &json!([{"index": 0, "function": {"arguments": "{\"command\""}}, {"index": 1, "function": {"arguments": "th\": \"x\"}"}}]),
        ),
        calls(&json!([{"index": 0, "id": "", "function": {"name": "", "arguments": ": \"ls\"}"}}])),
        end("tool_calls"),
        json!({"choices": [], "usage": usage}),
    ];
    let (reply, shown) = feed(&frames).unwrap();
    assert_eq!(shown, "Let me");
    assert_eq!(
        reply.content,
        [
            json!({"type": "thinking", "thinking": "hm"}),
            json!({"type": "text", "text": "Let me"}),
            tool("c1", "bash", &json!({"command": "ls"})),
            tool("c2", "read", &json!({"path": "x"})),
        ]
    );
    let usage = (reply.usage.input_tokens, reply.usage.cache_read_input_tokens, reply.usage.output_tokens);
    assert_eq!((reply.stop_reason.as_deref(), usage), (Some("tool_use"), (4, 6, 4)));
    assert!(reply.incomplete.is_empty());
}

/// Calls as servers send them that do not keep to the letter; two calls are meant each time.
#[rstest]
#[case::whole_and_all_of_one_index(&[
    json!([{"index": 0, "id": "c1", "function": {"name": "bash", "arguments": "{\"a\":1}"}}]),
    json!([{"index": 0, "id": "c2", "function": {"name": "bash", "arguments": "{\"a\":2}"}}])])]
#[case::one_index_and_no_identifier(&[
    json!([{"index": 0, "id": "", "function": {"name": "bash", "arguments": "{\"a\":1}"}}]),
    json!([{"index": 0, "id": "", "function": {"name": "bash", "arguments": "{\"a\":2}"}}])])]
#[case::no_index(&[
    json!([{"function": {"name": "bash", "arguments": "{\"a\":1}"}}, {"function": {"name": "bash", "arguments": "{\"a\":2}"}}])])]
#[case::no_index_in_pieces(&[
    json!([{"id": "c1", "function": {"name": "bash", "arguments": "{\"a\""}}]), json!([{"function": {"arguments": ":1}"}}]),
    json!([{"id": "c2", "function": {"name": "bash"}}]), json!([{"function": {"arguments": "{\"a\":2}"}}])])]
#[case::arguments_as_an_object(&[
    json!([{"index": 0, "id": "c1", "function": {"name": "bash", "arguments": {"a": 1}}}]),
    json!([{"index": 1, "id": "c2", "function": {"name": "bash", "arguments": {"a": 2}}}])])]
#[case::the_same_identifier(&[
    json!([{"index": 0, "id": "c", "function": {"name": "bash", "arguments": "{\"a\":1}"}}]),
    json!([{"index": 1, "id": "c", "function": {"name": "bash", "arguments": "{\"a\":2}"}}])])]
#[case::the_name_again_and_again(&[
    json!([{"index": 0, "function": {"name": "bash", "arguments": "{\"a\""}}]), json!([{"index": 0, "function": {"name": "bash", "arguments": ":1}"}}]),
    json!([{"index": 1, "function": {"name": "bash", "arguments": "{\"a\":2}"}}])])]
#[case::an_absurd_index(&[
    json!([{"index": 0, "id": "c1", "function": {"name": "bash", "arguments": "{\"a\":1}"}}]),
    json!([{"index": u64::MAX, "id": "c2", "function": {"name": "bash", "arguments": "{\"a\":2}"}}])])]
fn two_calls_are_two_calls(#[case] frames: &[Value]) {
    let frames: Vec<Value> = frames.iter().map(calls).chain([end("stop")]).collect();
    let (reply, _) = feed(&frames).unwrap();
    let inputs: Vec<&Value> = reply.content.iter().map(|block| &block["input"]).collect();
    assert_eq!(inputs, [&json!({"a": 1}), &json!({"a": 2})]);
    let ids: Vec<&str> = reply.content.iter().map(|block| block["id"].as_str().unwrap()).collect();
    assert!(!ids[0].is_empty() && !ids[1].is_empty() && ids[0] != ids[1], "{ids:?}");
    assert_eq!((reply.stop_reason.as_deref(), reply.incomplete.len()), (Some("tool_use"), 0));
}

#[rstest]
#[case("stop", "end_turn")]
#[case("length", "max_tokens")]
#[case("content_filter", "refusal")]
#[case("tool_calls", "end_turn")]
#[case("abort", "abort")]
fn an_end_has_its_reason(#[case] reason: &str, #[case] expected: &str) {
    let (reply, _) = feed(&[delta(&json!({"content": "a"})), end(reason)]).unwrap();
    assert_eq!(reply.stop_reason.as_deref(), Some(expected));
    assert_eq!(reply.usage.output_tokens, 0, "a server may say nothing of usage");
}

#[test]
fn a_refusal_is_text() {
    let (reply, shown) = feed(&[delta(&json!({"refusal": "I will not."})), end("stop")]).unwrap();
    assert_eq!((shown.as_str(), reply.stop_reason.as_deref()), ("I will not.", Some("refusal")));
}

#[rstest]
#[case("length", "{\"command\": \"rm -r", false)]
#[case("length", "", false)]
#[case("length", "{\"command\": \"ls\"}", true)]
#[case("tool_calls", "", true)]
#[case("tool_calls", "[1]", false)]
#[case("tool_calls", "{\"a\": \"\\ud800\"}", false)]
fn a_partial_input_is_marked(#[case] reason: &str, #[case] arguments: &str, #[case] complete: bool) {
    let call = json!([{"index": 0, "id": "c1", "function": {"name": "bash", "arguments": arguments}}]);
    let (reply, _) = feed(&[calls(&call), end(reason)]).unwrap();
    assert_eq!(reply.incomplete.is_empty(), complete);
    assert!(reply.content[0]["input"].is_object());
}

#[test]
fn an_input_that_is_too_deep_is_not_run() {
    let deep = (0..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
    let call =
        json!([{"index": 0, "id": "c1", "function": {"name": "bash", "arguments": json!({"a": deep}).to_string()}}]);
    assert_eq!(feed(&[calls(&call), end("tool_calls")]).unwrap().0.incomplete, ["c1"]);
}

#[test]
fn calls_are_counted() {
    let many: Vec<Value> = (0..=MAX_BLOCKS)
        .map(|index| json!({"index": index, "function": {"name": "bash", "arguments": "{}"}}))
        .collect();
    assert!(!feed(&[calls(&json!(many))]).unwrap_err().retryable);
}

#[rstest]
#[case(json!({"error": {"message": "m", "code": 503}}), true)]
#[case(json!({"error": {"message": "m", "type": "invalid_request_error"}}), false)]
#[case(json!({"object": "error", "message": "m", "code": 400}), false)]
#[case(json!("{not json"), true)]
fn an_error_in_the_middle_is_told(#[case] frame: Value, #[case] retryable: bool) {
    let failure = feed(&[delta(&json!({"content": "a"})), frame]).unwrap_err();
    assert_eq!(failure.retryable, retryable, "{failure}");
}

#[test]
fn an_answer_may_end_without_a_word_but_not_without_a_reason() {
    let mut answer = Answer::default();
    answer.event(&delta(&json!({"content": "a"})).to_string()).unwrap();
    assert!(answer.end().unwrap_err().retryable);
    answer.event(&end("stop").to_string()).unwrap();
    assert_eq!(answer.end().unwrap().content, [json!({"type": "text", "text": "a"})]);
    assert!(feed(&[delta(&json!({"content": "a"}))]).unwrap_err().retryable);
}
