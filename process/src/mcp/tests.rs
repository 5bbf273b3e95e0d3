use http::HeaderName;
use rstest::rstest;

use super::*;

const ABOUT: About = About { name: "test", version: "1", instructions: Some("Use them.") };

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn post(pairs: &[(&'static str, &'static str)], body: &str) -> Received {
    receive(&headers(pairs), body.as_bytes(), ABOUT, || json!([{"name": "a", "inputSchema": {"type": "object"}}]))
}

/// The status and the JSON of an answer; null if it has none.
fn answer(received: Received) -> (u16, Value) {
    let Received::Answered(response) = received else { panic!("{received:?}") };
    let (status, body) = (response.status().as_u16(), response.into_body());
    (status, if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() })
}

fn request(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": "x", "method": method, "params": params}).to_string()
}

#[rstest]
#[case("2025-03-26", "2025-03-26")]
#[case("2025-06-18", "2025-06-18")]
#[case("2025-11-25", "2025-11-25")]
#[case("2024-11-05", "2025-11-25")]
#[case("2026-07-28", "2025-11-25")]
fn a_version_is_agreed_on(#[case] asked: &'static str, #[case] agreed: &str) {
    // Some clients say the version also in the header of this first message.
    let hello = request("initialize", &json!({"protocolVersion": asked, "capabilities": {}}));
    let (status, answer) = answer(post(&[("mcp-protocol-version", asked)], &hello));
    let expected = json!({
        "protocolVersion": agreed,
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "test", "version": "1"},
        "instructions": "Use them.",
    });
    assert_eq!((status, answer), (200, json!({"jsonrpc": "2.0", "id": "x", "result": expected})));
}

#[rstest]
#[case("ping", json!({}))]
#[case("tools/list", json!({"tools": [{"name": "a", "inputSchema": {"type": "object"}}]}))]
fn what_needs_no_tool_is_answered(#[case] method: &str, #[case] result: Value) {
    let (status, answer) = answer(post(&[("mcp-protocol-version", "2025-06-18")], &request(method, &json!({}))));
    assert_eq!((status, &answer["result"]), (200, &result));
}

#[rstest]
#[case(r#"{"jsonrpc": "2.0", "method": "notifications/initialized"}"#)]
#[case(r#"{"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "a"}}"#)]
#[case(r#"{"jsonrpc": "2.0", "id": 1, "result": {}}"#)]
#[case(r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": ""}}"#)]
fn what_asks_for_nothing_is_accepted(#[case] body: &str) {
    assert_eq!(answer(post(&[], body)), (202, Value::Null));
}

#[rstest]
#[case("", 400, -32700)]
#[case("{", 400, -32700)]
#[case(r#"{"jsonrpc": "2.0", "id": "\ud800", "method": "ping"}"#, 400, -32700)]
#[case("[]", 400, -32600)]
#[case(r#"[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]"#, 400, -32600)]
#[case(r#"{"id": 1, "method": "ping"}"#, 400, -32600)]
#[case(r#"{"jsonrpc": "1.0", "method": "ping"}"#, 400, -32600)]
#[case(r#"{"jsonrpc": "2.0", "id": 1}"#, 400, -32600)]
#[case(r#"{"jsonrpc": "2.0", "id": null, "method": "ping"}"#, 400, -32600)]
#[case(r#"{"jsonrpc": "2.0", "id": [1], "method": "ping"}"#, 400, -32600)]
#[case(r#"{"jsonrpc": "2.0", "id": 1, "method": 1}"#, 400, -32600)]
#[case(r#"{"jsonrpc": "2.0", "id": 1, "method": "resources/list"}"#, 200, -32601)]
#[case(r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}"#, 200, -32602)]
#[case(r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": [1]}"#, 200, -32602)]
#[case(r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": [1]}}"#, 200, -32602)]
#[case(r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "_meta": "b"}}"#, 200, -32602)]
fn what_is_wrong_has_its_code(#[case] body: &str, #[case] status: u16, #[case] code: i64) {
    let answer = answer(post(&[], body));
    assert_eq!((answer.0, &answer.1["error"]["code"]), (status, &json!(code)), "{}", answer.1);
}

#[rstest]
#[case("origin", "https://elsewhere.example", 403)]
#[case("origin", "null", 403)]
#[case("mcp-protocol-version", "2024-11-05", 400)]
#[case("mcp-protocol-version", "2026-07-28", 400)]
fn headers_can_forbid(#[case] name: &'static str, #[case] value: &'static str, #[case] expected: u16) {
    let (status, answer) = answer(post(&[(name, value)], &request("tools/call", &json!({"name": "a"}))));
    assert_eq!((status, &answer["error"]["code"]), (expected, &json!(-32600)), "{answer}");
}

#[test]
fn little_of_what_was_sent_is_said_again() {
    let long = "\u{1F600}".repeat(100_000);
    let bodies = [
        json!({"jsonrpc": "2.0", "id": long, "method": "ping"}).to_string(),
        request(&long, &json!({})),
        request("tools/call", &json!(long)),
        request("tools/call", &json!({"name": "a", "arguments": long})),
        request("initialize", &json!({"protocolVersion": long})),
    ];
    for body in bodies {
        let said = answer(post(&[], &body)).1.to_string();
        assert!(said.len() < 2_000, "{} bytes", said.len());
    }
    assert_eq!(Fault::invalid_params(&long).message.chars().count(), MAX_ECHO);
}

#[test]
fn a_call_is_handed_on_and_answered() {
    let params = json!({"name": "a", "arguments": {"b": 1}, "_meta": {"c": 2}});
    let Received::Call(call, reply) = post(&[], &request("tools/call", &params)) else { panic!("it is a call") };
    assert_eq!((call.name.as_str(), &call.arguments["b"], &call.meta["c"]), ("a", &json!(1), &json!(2)));
    let text = reply.text(Ok(text_result("two\nlines", true)));
    assert!(!text.contains('\n'), "an event has one line: {text}");
    let expected = json!({"content": [{"type": "text", "text": "two\nlines"}], "isError": true});
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"jsonrpc": "2.0", "id": "x", "result": expected}));
    let failed = reply.json(Err(Fault::internal("no", Some(json!({"d": 3})))));
    assert_eq!(failed.status(), StatusCode::OK);
    assert_eq!(failed.headers()[CONTENT_TYPE], "application/json");
    let failed: Value = serde_json::from_str(failed.body()).unwrap();
    assert_eq!(failed["error"], json!({"code": -32603, "message": "no", "data": {"d": 3}}));
}

#[rstest]
#[case(json!({"name": "a"}))]
#[case(json!({"name": "a", "arguments": null, "_meta": null}))]
fn a_call_needs_but_a_name(#[case] params: Value) {
    let Received::Call(call, _) = post(&[], &request("tools/call", &params)) else { panic!("it is a call") };
    assert!(call.arguments.is_empty() && call.meta.is_empty());
}

#[rstest]
#[case(&["application/json, text/event-stream"], true)]
#[case(&["application/json", "Text/Event-Stream;q=0.5"], true)]
#[case(&["application/json"], false)]
#[case(&["*/*"], false)]
#[case(&[], false)]
fn a_stream_goes_to_who_takes_it(#[case] accept: &[&'static str], #[case] expected: bool) {
    let mut headers = HeaderMap::new();
    for value in accept {
        headers.append(ACCEPT, HeaderValue::from_static(value));
    }
    assert_eq!(takes_stream(&headers), expected);
}
