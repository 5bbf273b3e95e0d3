//! A credential that an upstream sends back does not reach the harness, in whatever form and however it is cut.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rstest::rstest;
use serde_json::json;

use super::support::{Running, SECRET, Wire, post, request};

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// A client whose request the upstream has, with its credential.
async fn asked(
    running: &Running,
    request: String,
) -> (Wire<tokio::net::TcpStream>, Wire<tokio::net::TcpStream>, String) {
    let mut client = running.client().await;
    client.send(request).await;
    let mut upstream = running.accept().await;
    let received = upstream.message().await;
    assert!(received.contains(SECRET), "{received}");
    (client, upstream, received)
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[rstest]
#[case::raw(SECRET.to_owned())]
#[case::base64(STANDARD.encode(format!("authorization: Bearer {SECRET}!")))]
#[case::hex(hex(SECRET))]
#[case::every_byte(SECRET.bytes().map(|byte| format!("%{byte:02X}")).collect())]
#[case::json(SECRET.bytes().map(|byte| format!("\\u{byte:04x}")).collect())]
#[tokio::test]
async fn no_form_of_it_comes_back_in_a_body_or_a_header(#[case] form: String) {
    let running = Running::start().await;
    let (mut client, mut upstream, _) = asked(&running, post("/model/v1/messages")).await;
    let body = format!("{{\"echo\": \"{form}\"}}");
    let length = body.len();
    upstream.send(format!("HTTP/1.1 200 OK\r\nx-echo: {form}\r\ncontent-length: {length}\r\n\r\n{body}")).await;
    let answer = client.answer().await;
    assert!(answer.contains(&format!("content-length: {length}\r\n")) && answer.ends_with("\"}"), "{answer}");
    assert!(answer.contains("***") || answer.contains("[credential removed]"), "{answer}");
    let middle = &form[form.len() / 3..form.len() * 2 / 3];
    assert!(!answer.contains(middle), "{answer}");
}

#[tokio::test]
async fn events_leave_at_once_without_it() {
    let running = Running::start().await;
    let (mut client, mut upstream, _) = asked(&running, post("/model/v1/messages")).await;
    upstream.send(SSE).await;
    client.until("\r\n\r\n").await;
    // The end of an event is never held back, even where it ends with what a value begins with.
    for event in ["data: one\n\n".to_owned(), format!("data: {}\n\n", &SECRET[..6]), "event: ping\n".to_owned()] {
        upstream.send(chunk(&event)).await;
        client.until(&event).await;
    }
    let clean = format!("{}\n\n", "*".repeat(SECRET.len()));
    upstream.send(chunk(&format!("data: {SECRET}\n\n"))).await;
    client.until(&format!("data: {clean}")).await;
    // Cut anywhere: only the beginning of the value waits for the rest.
    let (first, second) = SECRET.split_at(7);
    upstream.send(chunk(&format!("data: {first}"))).await;
    client.until("data: \r\n").await;
    upstream.send(chunk(&format!("{second}\n\n"))).await;
    let rest = client.until(&clean).await;
    assert!(!rest.contains(&first[..3]), "{rest}");
    upstream.send(format!("{}0\r\n\r\n", chunk("data: last"))).await;
    client.until("data: last\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_value_that_was_replaced_does_not_come_back_either() {
    let running = Running::start().await;
    let (mut client, mut upstream, mut received) = asked(&running, post("/model/v1/messages")).await;
    std::fs::write(running.file("key"), "sk-rotated-1").unwrap();
    let deadline = std::time::Instant::now() + super::support::PATIENCE;
    while !received.contains("sk-rotated-1") {
        assert!(std::time::Instant::now() < deadline, "{received}");
        upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        client.answer().await;
        client.send(post("/model/v1/messages")).await;
        received = upstream.message().await;
    }
    let body = format!("{SECRET} sk-rotated-1");
    upstream.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
    let answer = client.answer().await;
    let clean = format!("{} {}", "*".repeat(SECRET.len()), "*".repeat(12));
    assert!(answer.ends_with(&format!("\r\n\r\n{clean}")), "{answer}");
}

#[rstest]
#[case::compressed("content-encoding: gzip\r\n")]
#[case::compressed_in_a_second_header("content-encoding: identity\r\ncontent-encoding: br\r\n")]
#[tokio::test]
async fn what_cannot_be_looked_into_is_refused(#[case] encoding: &str) {
    let running = Running::start().await;
    let extra = "accept-encoding: gzip, br\r\nrange: bytes=3-4\r\nif-range: \"x\"\r\n";
    let (mut client, mut upstream, received) =
        asked(&running, request("POST", "/model/v1/messages", extra, "{}")).await;
    assert!(received.contains("accept-encoding: identity\r\n") && !received.contains("range"), "{received}");
    upstream.send(format!("HTTP/1.1 200 OK\r\n{encoding}content-length: 2\r\n\r\nok")).await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("compressed"), "{answer}");
}

#[tokio::test]
async fn without_a_credential_nothing_is_changed() {
    let running = Running::changed(|route, port| {
        *route = json!({"name": "open", "prefix": "/model", "upstream": format!("http://127.0.0.1:{port}"), "allowPrivate": true});
    })
    .await;
    let mut client = running.client().await;
    client.send(request("GET", "/model/x", "accept-encoding: gzip\r\nrange: bytes=3-4\r\n", "")).await;
    let mut upstream = running.accept().await;
    let received = upstream.message().await;
    assert!(received.contains("accept-encoding: gzip\r\n") && received.contains("range: bytes=3-4\r\n"), "{received}");
    upstream.send("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\ngzip").await;
    assert!(client.answer().await.ends_with("\r\n\r\ngzip"));
}

#[tokio::test]
async fn a_value_that_is_too_long_to_be_looked_for_is_not_sent() {
    let running = Running::start().await;
    std::fs::write(running.file("key"), "x".repeat(8 * 1024 + 1)).unwrap();
    let states = running.proxy.credentials(std::time::Instant::now());
    assert!(states[0].condition.as_ref().is_some_and(|condition| !condition.is_missing()), "{states:?}");
    let answer = running.refused(post("/model/v1/messages")).await;
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("credential \\\"anthropic\\\" is not used"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_value_that_is_too_short_to_be_looked_for_is_sent() {
    let running = Running::start().await;
    std::fs::write(running.file("key"), "none").unwrap();
    let states = running.proxy.credentials(std::time::Instant::now());
    assert_eq!(states[0].condition, None, "{states:?}");
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let received = running.accept().await.message().await;
    assert!(received.contains(": none\r\n") || received.contains(": Bearer none\r\n"), "{received}");
}
