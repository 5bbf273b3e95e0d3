//! What the proxy refuses, with the status and the words that it refuses with. Each proves that the upstream was not reached.

use rstest::rstest;
use serde_json::json;
use tokio::net::TcpListener;

use super::support::{Running, SECRET, TOKEN, post, request};

fn without_token(headers: &str) -> String {
    format!("POST /model/v1/messages HTTP/1.1\r\nhost: x\r\n{headers}content-length: 2\r\n\r\n{{}}")
}

#[rstest]
#[case::none(without_token(""), "no session token")]
#[case::wrong(without_token("x-api-key: guess\r\n"), "not the session token")]
#[case::wrong_bearer(without_token("authorization: Bearer guess\r\n"), "not the session token")]
#[case::the_secret_itself(without_token(&format!("x-api-key: {SECRET}\r\n")), "not the session token")]
#[case::another_beside_it(without_token(&format!("x-api-key: {TOKEN}\r\nauthorization: Bearer sk-mine\r\n")), "not the session token")]
#[tokio::test]
async fn who_is_not_the_harness_gets_401(#[case] request: String, #[case] expected: &str) {
    let answer = Running::start().await.refused(request).await;
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
    assert!(answer.contains(r#""type":"authentication_error""#) && answer.contains(expected), "{answer}");
}

#[rstest]
#[case::method(request("DELETE", "/model/v1/messages", "", ""), "it allows methods POST, GET only")]
#[case::trace(request("TRACE", "/model/v1/messages", "", ""), "it allows methods POST, GET only")]
#[case::path(post("/model/v1/files"), "it allows paths under /base/v1/messages only")]
#[case::sibling(post("/model/v1/messages-x"), "it allows paths under")]
#[case::root(post("/model"), "it allows paths under")]
#[case::dots(post("/model/v1/messages/../files"), "dot segment")]
#[case::out_of_the_base(post("/model/../v1/messages"), "dot segment")]
#[case::encoded_dots(post("/model/v1/messages/%2e%2e/files"), "encoded")]
#[case::encoded_slash(post("/model/v1/messages%2f..%2ffiles"), "encoded")]
#[case::twice_encoded(post("/model/v1/messages/%252e%252e/files"), "encoded")]
#[case::two_slashes(post("/model/v1/messages//files"), "empty segment")]
#[case::semicolon(post("/model/v1/messages/..;/files"), "semicolon")]
#[case::encoded_backslash(post("/model/v1/messages/..%5cfiles"), "encoded")]
#[case::half_encoded(post("/model/v1/messages/%2"), "hexadecimal")]
#[case::token_in_query(post(&format!("/model/v1/messages?key={TOKEN}")), "the session token appears in the URL")]
#[case::token_in_header(request("POST", "/model/v1/messages", &format!("x-other: a{TOKEN}b\r\n"), "{}"), "the session token appears")]
#[tokio::test]
async fn what_the_rule_does_not_allow_gets_403(#[case] request: String, #[case] expected: &str) {
    let answer = Running::start().await.refused(request).await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    assert!(answer.contains(r#""type":"permission_error""#) && answer.contains(expected), "{answer}");
    assert!(!answer.contains(TOKEN), "{answer}");
}

#[rstest]
#[case(|route: &mut serde_json::Value, _| route["credential"]["allow"]["hosts"] = json!(["api.example"]), "hosts api.example only")]
#[case(|route: &mut serde_json::Value, _| route["credential"]["allow"]["scheme"] = json!("https"), "scheme https only, not http")]
#[case(|route: &mut serde_json::Value, _| route["credential"]["allow"]["port"] = json!(1), "port 1 only")]
#[case(|route: &mut serde_json::Value, _| route["credential"]["allow"]["allowPrivate"] = json!(false), "127.0.0.1, a loopback address")]
#[case::a_name(
    |route: &mut serde_json::Value, port| {
        route["upstream"] = json!(format!("http://localhost:{port}/base"));
        route["credential"]["allow"]["allowPrivate"] = json!(false);
    },
    "a loopback address"
)]
#[case::a_short_form_of_an_address(
    |route: &mut serde_json::Value, port| {
        route["upstream"] = json!(format!("http://127.1:{port}/base"));
        route["credential"]["allow"]["hosts"] = json!(["127.1"]);
        route["credential"]["allow"]["allowPrivate"] = json!(false);
    },
    "a loopback address"
)]
#[case::metadata(
    |route: &mut serde_json::Value, _| {
        route["upstream"] = json!("http://169.254.169.254/base");
        route["credential"]["allow"]["hosts"] = json!(["169.254.169.254"]);
        route["credential"]["allow"]["port"] = json!(80);
    },
    "never reached with a credential"
)]
#[tokio::test]
async fn where_the_credential_may_not_go_gets_403(
    #[case] change: fn(&mut serde_json::Value, u16),
    #[case] expected: &str,
) {
    let running = Running::changed(change).await;
    let answer = running.refused(post("/model/v1/messages")).await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n") && answer.contains(expected), "{answer}");
}

#[rstest]
#[case("/")]
#[case("/other/v1/messages")]
#[case("/modelx/v1/messages")]
#[case("//model/v1/messages")]
#[case("/%6dodel/v1/messages")]
#[case("/Model/v1/messages")]
#[tokio::test]
async fn other_paths_get_404_with_the_prefixes(#[case] path: &str) {
    let answer = Running::start().await.refused(post(path)).await;
    assert!(
        answer.starts_with("HTTP/1.1 404 Not Found\r\n") && answer.contains("known prefixes are /model"),
        "{answer}"
    );
}

#[rstest]
#[case("key", Some(""), "credential \\\"anthropic\\\" is not available: the file is empty")]
#[case("key", Some("\n"), "the file is empty")]
#[case("key", Some("sk-canary-7f3a9c\nx"), "the file holds more than one line")]
#[case("key", None, "the file does not exist")]
#[case("token", Some(""), "cannot be checked: the file is empty")]
#[case("token", None, "cannot be checked: the file does not exist")]
#[tokio::test]
async fn without_its_files_it_fails_closed(#[case] file: &str, #[case] content: Option<&str>, #[case] expected: &str) {
    let running = Running::start().await;
    match content {
        Some(content) => std::fs::write(running.file(file), content).unwrap(),
        None => std::fs::remove_file(running.file(file)).unwrap(),
    }
    let answer = running.refused(post("/model/v1/messages")).await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && answer.contains(expected), "{answer}");
}

#[rstest]
#[case::absolute_form(post("http://evil.example/model/v1/messages"))]
#[case::asterisk(request("OPTIONS", "*", "", ""))]
#[case::connect(request("CONNECT", "evil.example:443", "", ""))]
#[case::two_hosts(request("POST", "/model/v1/messages", "host: evil.example\r\n", "{}"))]
#[case::two_lengths(request("POST", "/model/v1/messages", "content-length: 5\r\n", "{}"))]
#[case::signed_length(without_token(&format!("x-api-key: {TOKEN}\r\ncontent-length: +2\r\n")))]
#[case::chunked_twice(format!(
    "POST /model/v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {TOKEN}\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
))]
#[case::chunked_in_http_1_0(format!(
    "POST /model/v1/messages HTTP/1.0\r\nx-api-key: {TOKEN}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
))]
#[case::not_chunked(request("POST", "/model/v1/messages", "transfer-encoding: gzip\r\n", "{}"))]
#[case::chunked_not_last(request("POST", "/model/v1/messages", "transfer-encoding: chunked, gzip\r\n", "{}"))]
#[case::obs_fold(request("POST", "/model/v1/messages", "x-a: b\r\n c\r\n", "{}"))]
#[case::nul(request("POST", "/model/v1/messages", "x-a: b\0c\r\n", "{}"))]
#[case::bare_cr(request("POST", "/model/v1/messages", "x-a: b\rc\r\n", "{}"))]
#[case::space_before_colon(request("POST", "/model/v1/messages", "x-a : b\r\n", "{}"))]
#[case::raw_space_in_path(post("/model/v1/ messages"))]
#[tokio::test]
async fn what_could_be_smuggled_gets_400(#[case] request: String) {
    let answer = Running::start().await.refused(request).await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
}

/// hyper goes by the chunks, drops the length before it can be seen here, and closes the connection after its answer, as RFC
/// 9112 (6.1, 6.3) asks. The upstream is sent one request with one framing, and what follows is no request to anyone.
#[rstest]
#[case::length_first("content-length: 58\r\ntransfer-encoding: chunked\r\n")]
#[case::length_last("transfer-encoding: chunked\r\ncontent-length: 58\r\n")]
#[tokio::test]
async fn two_framings_smuggle_nothing(#[case] framing: &str) {
    let running = Running::start().await;
    let mut client = running.client().await;
    let smuggled = "0\r\n\r\nGET /model/v1/messages/smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(smuggled.len(), 58);
    let head = format!("POST /model/v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {TOKEN}\r\n{framing}\r\n");
    client.send(head + smuggled).await;
    let mut upstream = running.accept().await;
    let received = upstream.until("\r\n\r\n").await;
    assert!(received.contains("transfer-encoding: chunked\r\n") && !received.contains("content-length"), "{received}");
    assert_eq!(upstream.until("0\r\n\r\n").await, "0\r\n\r\n");
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert!(client.answer().await.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(client.rest().await, "");
    running.stop().await;
    assert_eq!(upstream.rest().await, "");
}

#[tokio::test]
async fn an_upstream_that_is_not_there_gets_502() {
    let running = Running::changed(|route, _| {
        // Port 1 of loopback: nothing listens there.
        route["upstream"] = json!("http://127.0.0.1:1/base");
        route["credential"]["allow"]["port"] = json!(1);
    })
    .await;
    let answer = running.refused(post("/model/v1/messages")).await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert!(answer.contains("cannot connect to 127.0.0.1: tcp connect error"), "{answer}");
}

#[tokio::test]
async fn it_listens_on_loopback_only() {
    let error = super::super::serve::bind("0.0.0.0:0".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("not a loopback address"), "{error}");
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert!(super::super::serve::bind(taken.local_addr().unwrap()).await.is_err());
}
