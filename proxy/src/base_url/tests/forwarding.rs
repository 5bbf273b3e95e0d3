//! What the upstream is sent, and what the client gets back.

use std::time::Instant;

use axum::{body::Body, http::Request};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::BodyExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use rstest::rstest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::support::{Options, PATIENCE, Running, SECRET, TOKEN, post, request};
use crate::health;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn the_token_is_swapped_for_the_credential() {
    let running = Running::start().await;
    let mut client = running.client().await;
    let extra = "anthropic-version: 2023-06-01\r\ncookie: a=b\r\nauthorization: Bearer session-token-51d2\r\n\
                 x-http-method-override: DELETE\r\nconnection: x-drop\r\nx-drop: 1\r\nexpect: 100-continue\r\n";
    client.send(request("POST", "/model/v1/messages?beta=true", extra, r#"{"a":1}"#)).await;
    let mut upstream = running.accept().await;
    let received = upstream.message().await;
    let (head, body) = received.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().collect();
    lines[1..].sort_unstable();
    let host = format!("host: {}", running.upstream.local_addr().unwrap());
    assert_eq!(
        lines,
        [
            "POST /base/v1/messages?beta=true HTTP/1.1",
            "accept-encoding: identity",
            "anthropic-version: 2023-06-01",
            "content-length: 7",
            &host,
            &format!("x-api-key: {SECRET}"),
        ]
    );
    assert_eq!(body, r#"{"a":1}"#);
    upstream.send(OK).await;
    assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(client.answer().await.ends_with("\r\n\r\nok"));
}

#[tokio::test]
async fn bearer_placement() {
    let running = Running::changed(|route, _| route["credential"]["placement"] = json!({"type": "bearer"})).await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    let received = upstream.message().await;
    assert!(received.contains(&format!("authorization: Bearer {SECRET}\r\n")), "{received}");
    assert!(!received.contains(TOKEN) && !received.contains("x-api-key"), "{received}");
}

#[tokio::test]
async fn basic_placement() {
    let placement =
        |route: &mut Value, _| route["credential"]["placement"] = json!({"type": "basic", "username": "me"});
    let running = Running::changed(placement).await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    let received = upstream.message().await;
    let pair = STANDARD.encode(format!("me:{SECRET}"));
    assert!(received.contains(&format!("authorization: Basic {pair}\r\n")), "{received}");
    upstream.send(&format!("HTTP/1.1 200 OK\r\nx-echo: {pair} {SECRET}\r\ncontent-length: 2\r\n\r\nok")).await;
    let answer = client.answer().await;
    let echoed = answer.lines().find_map(|line| line.strip_prefix("x-echo: ")).unwrap();
    assert_eq!(echoed, format!("[credential removed]{} {}", "*".repeat(pair.len() - 20), "*".repeat(SECRET.len())));
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let running = Running::start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    for _ in 0..2 {
        upstream.message().await;
        upstream.send(OK).await;
        client.answer().await;
        client.send(post("/model/v1/messages")).await;
    }
}

#[tokio::test]
async fn a_reflected_credential_does_not_come_back_in_headers() {
    let running = Running::start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    let reflecting = format!(
        "HTTP/1.1 401 Unauthorized\r\nx-echo: key={SECRET}!\r\nset-cookie: a=b\r\nrequest-id: req_1\r\nconnection: close\r\n\
         content-length: 2\r\n\r\n{{}}"
    );
    upstream.send(reflecting).await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
    assert!(
        answer.contains(&format!("x-echo: key={}!\r\n", "*".repeat(SECRET.len())))
            && answer.contains("request-id: req_1\r\n"),
        "{answer}"
    );
    assert!(!answer.contains("set-cookie") && !answer.contains("connection"), "{answer}");
}

#[rstest]
#[case(301, "Moved Permanently")]
#[case(302, "Found")]
#[case(307, "Temporary Redirect")]
#[case(308, "Permanent Redirect")]
#[case(300, "Multiple Choices")]
#[tokio::test]
async fn redirects_are_not_followed(#[case] status: u16, #[case] reason: &str) {
    let running = Running::start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    let own = running.upstream.local_addr().unwrap();
    upstream
        .send(format!("HTTP/1.1 {status} {reason}\r\nlocation: http://{own}/{SECRET}\r\ncontent-length: 0\r\n\r\n"))
        .await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert!(answer.contains(&format!("redirect {status}, which is never followed")), "{answer}");
    assert!(!answer.contains("location"), "{answer}");
    assert!(running.refused(post("/model/none")).await.starts_with("HTTP/1.1 403"));
}

#[rstest]
#[case::two_lengths("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")]
#[case::upgrade("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")]
#[case::garbage("SSH-2.0-OpenSSH\r\n\r\n")]
#[case::nothing("")]
#[tokio::test]
async fn bad_answers_are_not_passed_on(#[case] answer: &str) {
    let running = Running::start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    upstream.send(answer).await;
    drop(upstream);
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && answer.contains("api_error"), "{answer}");
}

#[tokio::test]
async fn a_rotated_credential_is_used_without_a_restart() {
    let running = Running::start().await;
    let deadline = Instant::now() + PATIENCE;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    let mut received = upstream.message().await;
    assert!(received.contains(SECRET));
    std::fs::write(running.file("key"), "sk-rotated\n").unwrap();
    while !received.contains("x-api-key: sk-rotated\r\n") {
        assert!(Instant::now() < deadline, "{received}");
        upstream.send(OK).await;
        client.answer().await;
        client.send(post("/model/v1/messages")).await;
        received = upstream.message().await;
    }
}

#[tokio::test]
async fn a_credential_that_the_upstream_does_not_take_is_reported_until_it_does() {
    let change = |route: &mut Value, _: u16| {
        route["credential"]["vault"] = json!("models");
        route["credential"]["keptIn"] = json!({"secret": "model-key", "key": "token"});
    };
    let options = Options { change: Box::new(change), ..Options::default() };
    let running = Running::with(options).await;
    let recorder = PrometheusBuilder::new().build_recorder();
    let router = health::router(running.proxy.clone(), None, recorder.handle(), CancellationToken::new());
    let report = async || {
        let response = router.clone().oneshot(Request::get("/readyz").body(Body::empty()).unwrap()).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<Value>(&body).unwrap()["credentials"][0].take()
    };
    let before = report().await;
    let kept_in = json!({"vault": "models", "credential": "anthropic", "secret": "model-key", "key": "token"});
    assert_eq!((&before["refused"], &before["keptIn"]), (&json!(false), &kept_in));
    assert_eq!(before.get("answeredAt"), None, "nobody has said anything of it");
    for (status, refused) in [("401 Unauthorized", true), ("500 Internal Server Error", true), ("200 OK", false)] {
        let mut client = running.client().await;
        client.send(post("/model/v1/messages")).await;
        let mut upstream = running.accept().await;
        upstream.message().await;
        upstream.send(format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")).await;
        client.answer().await;
        let report = report().await;
        assert_eq!(report["refused"], json!(refused), "{status}");
        assert!(report["answeredAt"].is_string() && report["usable"] == json!(true), "{report}");
    }
}

#[tokio::test]
async fn probes_name_what_is_missing() {
    let running = Running::start().await;
    let recorder = PrometheusBuilder::new().build_recorder();
    let shutdown = CancellationToken::new();
    let router = health::router(running.proxy.clone(), None, recorder.handle(), shutdown.clone());
    let get = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    std::fs::remove_file(running.file("key")).unwrap();
    let expected = json!({
        "ready": true,
        "sessionToken": {"usable": true, "missing": false, "detail": null},
        "credentials": [{
            "route": "model", "credential": "anthropic", "required": true,
            "usable": false, "missing": true, "detail": "the file does not exist", "refused": false,
        }],
    });
    assert_eq!(get("/readyz").await, (200, expected.clone()));
    assert_eq!(get("/startupz").await, (503, expected));

    std::fs::write(running.file("key"), SECRET).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while get("/startupz").await.0 != 200 {
        assert!(Instant::now() < deadline, "the file was not noticed");
        tokio::task::yield_now().await;
    }
    assert!(!get("/readyz").await.1.to_string().contains(SECRET));
    shutdown.cancel();
    assert_eq!((get("/readyz").await.0, get("/startupz").await.0), (503, 503));
}
