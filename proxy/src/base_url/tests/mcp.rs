//! Routes to MCP servers: one URL, with or without a credential, and streams in both directions.

use rstest::rstest;
use serde_json::{Value, json};

use super::support::{Running, SECRET, TOKEN, request};

/// A route as the operator writes it for a server that needs no credential.
fn open(route: &mut Value, port: u16) {
    *route = json!({
        "name": "mcp-1", "prefix": "/mcp/1", "upstream": format!("http://127.0.0.1:{port}/v1/mcp/?tenant=a"),
        "exact": true, "methods": ["GET", "POST", "DELETE"], "allowPrivate": true, "required": false,
    });
}

/// The same for one that needs a bearer.
fn bound(route: &mut Value, port: u16) {
    let credential = route["credential"].take();
    open(route, port);
    route["allowPrivate"] = json!(false);
    route["credential"] = credential;
    route["credential"]["placement"] = json!({"type": "bearer"});
    route["credential"]["allow"]["methods"] = json!([]);
    route["credential"]["allow"]["pathPrefixes"] = json!(["/v1/mcp"]);
}

fn as_harness(method: &str, path: &str, body: &str) -> String {
    let accept =
        "accept: application/json, text/event-stream\r\nmcp-session-id: s1\r\nmcp-protocol-version: 2025-06-18\r\n";
    request(method, path, accept, body)
        .replace(&format!("x-api-key: {TOKEN}"), &format!("authorization: Bearer {TOKEN}"))
}

#[rstest]
#[case::without_a_credential(open as fn(&mut Value, u16), None)]
#[case::with_a_bearer(bound as fn(&mut Value, u16), Some(SECRET))]
#[tokio::test]
async fn the_token_never_goes_on(
    #[case] change: fn(&mut Value, u16),
    #[case] credential: Option<&str>,
    #[values("POST", "GET", "DELETE")] method: &str,
) {
    let running = Running::changed(change).await;
    let mut client = running.client().await;
    client.send(as_harness(method, "/mcp/1", "{}")).await;
    let mut upstream = running.accept().await;
    let received = upstream.message().await;
    assert!(received.starts_with(&format!("{method} /v1/mcp/?tenant=a HTTP/1.1\r\n")), "{received}");
    assert!(received.contains("mcp-session-id: s1\r\n") && received.contains("mcp-protocol-version"), "{received}");
    assert!(!received.contains(TOKEN), "{received}");
    let bearer = received.lines().find_map(|line| line.strip_prefix("authorization: Bearer "));
    assert_eq!(bearer, credential);
    let answer = "HTTP/1.1 405 Method Not Allowed\r\nmcp-session-id: s2\r\ncontent-length: 0\r\n\r\n";
    upstream.send(answer).await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("mcp-session-id: s2\r\n"), "{answer}");
}

#[rstest]
#[case::below("POST", "/mcp/1/admin")]
#[case::a_slash("POST", "/mcp/1/")]
#[case::a_query("POST", "/mcp/1?tenant=b")]
#[case::another_method("PUT", "/mcp/1")]
#[case::trace("TRACE", "/mcp/1")]
#[tokio::test]
async fn only_the_server_s_own_url_is_reached(
    #[values(open, bound)] change: fn(&mut Value, u16),
    #[case] method: &str,
    #[case] path: &str,
) {
    let running = Running::changed(change).await;
    let answer = running.refused(as_harness(method, path, "")).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("one URL"), "{answer}");
}

#[tokio::test]
async fn another_server_is_not_known() {
    let running = Running::changed(open).await;
    let answer = running.refused(as_harness("POST", "/mcp/12", "{}")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let answer = running.refused(as_harness("POST", "/mcp/1", "{}").replace(TOKEN, "another")).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

#[tokio::test]
async fn a_private_address_is_refused_unless_the_agent_says_so() {
    fn private(route: &mut Value, port: u16) {
        open(route, port);
        route["allowPrivate"] = json!(false);
    }
    let running = Running::changed(private).await;
    let answer = running.refused(as_harness("POST", "/mcp/1", "{}")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn a_missing_credential_of_a_server_is_no_reason_to_wait() {
    let running = Running::changed(bound).await;
    std::fs::remove_file(running.file("key")).unwrap();
    let states = running.proxy.credentials(std::time::Instant::now());
    assert!(matches!(states.as_slice(), [state] if !state.required && state.condition.is_some()), "{states:?}");
    let answer = running.refused(as_harness("POST", "/mcp/1", "{}")).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("is not available"), "{answer}");
}

#[tokio::test]
async fn events_come_through_one_by_one() {
    let running = Running::changed(open).await;
    let mut client = running.client().await;
    client.send(as_harness("GET", "/mcp/1", "")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    for number in 0..3 {
        let event = format!("data: {number}\n\n");
        upstream.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
        client.until(&event).await;
    }
}
