//! The server over real connections on loopback.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    client: reqwest::Client,
    shutdown: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

impl Running {
    async fn start(yaml: &str) -> Self {
        // A second installation fails, and changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task =
            tokio::spawn(serve(listener, Script::parse(yaml).unwrap(), "sk-scripted".to_owned(), shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { address, client, shutdown, task }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn post(&self, body: &Value) -> reqwest::RequestBuilder {
        self.client
            .post(self.url("/v1/messages"))
            .header("x-api-key", "sk-scripted")
            .header("anthropic-version", "2023-06-01")
            .json(body)
    }

    async fn recorded(&self) -> Value {
        self.client.get(self.url("/recorded")).send().await.unwrap().json().await.unwrap()
    }

    /// Waits until the first record has an outcome.
    async fn outcome(&self, expected: &str) -> Value {
        timeout(PATIENCE, async {
            loop {
                let record = self.recorded().await["requests"][0].clone();
                if record["outcome"] == expected {
                    return record;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

fn hello(stream: bool) -> Value {
    json!({"model": "claude", "max_tokens": 100, "stream": stream, "messages": [{"role": "user", "content": "hello"}]})
}

#[tokio::test]
async fn it_streams_and_records() {
    let server = Running::start("rules: [{then: {text: one two, delay_per_token_ms: 1}}]").await;
    let response = server.post(&hello(true)).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let body = timeout(PATIENCE, response.text()).await.unwrap().unwrap();
    let types: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(types.first(), Some(&"message_start"));
    assert_eq!(types.last(), Some(&"message_stop"));
    let record = server.outcome("completed").await;
    assert_eq!((&record["rule"], &record["status"]), (&json!(0), &json!(200)));
    assert_eq!(record["body"], hello(true));
    assert_eq!(record["headers"]["x-api-key"], "matched");
    assert!(record["first_token_unix_ms"].as_f64().unwrap() >= record["received_unix_ms"].as_f64().unwrap());
    assert!(!record.to_string().contains("sk-scripted"));
    server.stop().await;
}

#[tokio::test]
async fn it_speaks_chat_completions_by_the_same_script() {
    let server = Running::start("rules: [{then: {text: one two}}]").await;
    let chat = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hello"}]});
    let url = server.url("/v1/chat/completions");
    let ask = |key: &str| server.client.post(&url).header("authorization", format!("Bearer {key}")).json(&chat).send();
    let response = ask("sk-scripted").await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let body = timeout(PATIENCE, response.text()).await.unwrap().unwrap();
    assert!(body.starts_with("data: {") && body.ends_with("data: [DONE]\n\n"), "{body}");
    assert!(body.contains("\"content\":\"one ") && !body.contains("event:"), "{body}");
    let record = server.outcome("completed").await;
    assert_eq!(
        (&record["path"], &record["headers"]["authorization"]),
        (&json!("/v1/chat/completions"), &json!("matched"))
    );
    let refused = ask("sk-other").await.unwrap();
    assert_eq!(refused.status().as_u16(), 401);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["message"], "invalid authorization");
    assert!(!server.recorded().await.to_string().contains("sk-"));
    server.stop().await;
}

#[tokio::test]
async fn it_answers_whole_messages() {
    let server = Running::start("").await;
    let message: Value = server.post(&hello(false)).send().await.unwrap().json().await.unwrap();
    assert_eq!(message["content"], json!([{"type": "text", "text": "You said: hello"}]));
    assert_eq!((&message["role"], &message["stop_reason"]), (&json!("assistant"), &json!("end_turn")));
    server.stop().await;
}

#[tokio::test]
async fn it_refuses_as_the_api_does() {
    let server = Running::start("").await;
    let url = server.url("/v1/messages");
    let cases = [
        (server.client.post(&url).json(&hello(true)), 401, "authentication_error"),
        (server.client.post(&url).header("x-api-key", "sk-other").json(&hello(true)), 401, "authentication_error"),
        (server.client.post(&url).header("x-api-key", "sk-scripted").json(&hello(true)), 400, "invalid_request_error"),
        (server.post(&json!({"model": "claude"})), 400, "invalid_request_error"),
        (server.client.get(server.url("/v1/models")), 404, "not_found_error"),
    ];
    for (request, status, kind) in cases {
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        let error: Value = response.json().await.unwrap();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
    }
    assert!(!server.recorded().await.to_string().contains("sk-other"));
    server.stop().await;
}

#[tokio::test]
async fn scripted_errors_come_with_their_headers() {
    let yaml =
        "rules: [{then: {error: {status: 529, type: overloaded_error, message: Overloaded, retry_after_seconds: 3}}}]";
    let server = Running::start(yaml).await;
    let response = server.post(&hello(true)).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (529, &"3".parse().unwrap()));
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"], json!({"type": "overloaded_error", "message": "Overloaded"}));
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_aborts_a_hanging_stream() {
    let server = Running::start("rules: [{then: {text: one two three, hang_after_tokens: 1}}]").await;
    let mut response = server.post(&hello(true)).send().await.unwrap();
    let mut body = String::new();
    while !body.contains("one ") {
        body.push_str(
            std::str::from_utf8(&timeout(PATIENCE, response.chunk()).await.unwrap().unwrap().unwrap()).unwrap(),
        );
    }
    assert!(!body.contains("two"));
    assert_eq!(server.recorded().await["requests"][0]["outcome"], "open");
    drop(response);
    server.outcome("aborted").await;
    server.stop().await;
}

#[tokio::test]
async fn a_broken_stream_is_an_error_to_the_client() {
    let server = Running::start("rules: [{then: {text: one two, disconnect_after_tokens: 1}}]").await;
    for stream in [true, false] {
        let response = server.post(&hello(stream)).send().await.unwrap();
        assert!(timeout(PATIENCE, response.text()).await.unwrap().is_err(), "stream: {stream}");
    }
    server.stop().await;
}

#[tokio::test]
async fn stopping_breaks_open_streams() {
    let server = Running::start("rules: [{then: {text: one two, hang_after_tokens: 1}}]").await;
    let response = server.post(&hello(true)).send().await.unwrap();
    server.stop().await;
    assert!(timeout(PATIENCE, response.text()).await.unwrap().is_err());
}

#[tokio::test]
async fn the_script_can_be_replaced_and_the_records_cleared() {
    let server = Running::start("rules: [{then: {text: old}}]").await;
    let put = |yaml: &'static str| server.client.put(server.url("/script")).body(yaml).send();
    assert_eq!(put("rules: [{then: {txt: new}}]").await.unwrap().status(), 400);
    let text = |message: Value| message["content"][0]["text"].as_str().unwrap().to_owned();
    let ask = || async { server.post(&hello(false)).send().await.unwrap().json::<Value>().await.unwrap() };
    assert_eq!(text(ask().await), "old");
    assert_eq!(put("rules: [{then: {text: new}}]").await.unwrap().status(), 204);
    assert_eq!(text(ask().await), "new");
    assert_eq!(server.client.delete(server.url("/recorded")).send().await.unwrap().status(), 204);
    assert_eq!(server.recorded().await, json!({"requests": [], "last": 2, "dropped": 0}));
    server.stop().await;
}
