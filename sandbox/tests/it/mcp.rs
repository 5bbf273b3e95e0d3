//! The tools over MCP, by hand.

use crate::sandboxd::Sandboxd;
use crate::support::POD;
use rstest::rstest;
use serde_json::{Value, json};

async fn post(sandboxd: &Sandboxd, message: Value) -> (String, Value) {
    let token = sandboxd.signer.sign(POD).unwrap();
    let answer = sandboxd.raw_with("POST /mcp", &token, message.to_string().as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().to_owned();
    (status, serde_json::from_str(body).unwrap_or_default())
}

async fn request(sandboxd: &Sandboxd, method: &str, params: Value) -> Value {
    let (status, answer) = post(sandboxd, json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})).await;
    assert_eq!((status.as_str(), &answer["jsonrpc"], &answer["id"]), ("200", &json!("2.0"), &json!(7)));
    answer
}

#[tokio::test]
async fn a_client_finds_and_calls_the_tools() {
    let sandboxd = Sandboxd::start("0");
    let hello = request(&sandboxd, "initialize", json!({"protocolVersion": "2025-06-18", "capabilities": {}})).await;
    assert_eq!(hello["result"]["protocolVersion"], "2025-06-18");
    let hello = request(&sandboxd, "initialize", json!({"protocolVersion": "1999-01-01"})).await;
    assert_eq!(hello["result"]["protocolVersion"], "2025-11-25");
    let (status, _) = post(&sandboxd, json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    assert_eq!(status, "202");
    assert_eq!(request(&sandboxd, "ping", json!({})).await["result"], json!({}));
    let tools = request(&sandboxd, "tools/list", json!({})).await;
    let names: Vec<_> = tools["result"]["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    assert_eq!(names, ["bash", "process", "read", "write", "edit", "glob", "grep"]);
    let call = json!({"name": "bash", "arguments": {"command": "echo hi; exit 3"}});
    let result = request(&sandboxd, "tools/call", call).await;
    let expected = json!({"content": [{"type": "text", "text": "hi\nexit code 3"}], "isError": true});
    assert_eq!(result["result"], expected);
}

#[tokio::test]
async fn a_call_with_an_id_runs_once() {
    let sandboxd = Sandboxd::start("0");
    let call = |command: &str| json!({"name": "bash", "arguments": {"command": command}, "_meta": {"longhand.dev/call-id": "a"}});
    for _ in 0..2 {
        let result = request(&sandboxd, "tools/call", call("echo ran >> runs; wc -l < runs")).await;
        assert_eq!(result["result"]["content"][0]["text"], "1\n");
    }
    let other = request(&sandboxd, "tools/call", call("another")).await;
    assert!(other["error"]["message"].as_str().unwrap().contains("another name or input"), "{other}");
}

#[rstest]
#[case("resources/list", json!({}), -32601)]
#[case("tools/call", json!({}), -32602)]
#[case("tools/call", json!({"name": "bash", "_meta": {"longhand.dev/call-id": 1}}), -32602)]
#[case("tools/call", json!({"name": "bash", "_meta": {"longhand.dev/call-id": "two words"}}), -32602)]
#[tokio::test]
async fn what_is_wrong_is_said(#[case] method: &str, #[case] params: Value, #[case] code: i64) {
    let sandboxd = Sandboxd::start("0");
    assert_eq!(request(&sandboxd, method, params).await["error"]["code"], code);
}

#[tokio::test]
async fn it_needs_a_token_and_offers_no_stream() {
    let sandboxd = Sandboxd::start("0");
    assert!(sandboxd.raw_with("POST /mcp", "junk", b"{}").await.starts_with("HTTP/1.1 401"));
    let token = sandboxd.signer.sign(POD).unwrap();
    assert!(sandboxd.raw("GET /mcp", &token).await.starts_with("HTTP/1.1 405"));
}
