//! The clients against a server on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::StreamExt as _;
use hyper_util::service::TowerToHyperService;
use longhand_process::http::{Limits, Listener};
use longhand_process::tls::Certificate;
use longhand_protocol::client::sse::{StreamItem, StreamOptions};
use longhand_protocol::client::wire::EventQuery;
use longhand_protocol::client::{Error, HarnessClient, InternalClient, Server, TokenSource, WireClient};
use longhand_protocol::event::{EventBody, Preview};
use longhand_protocol::harness::{AppendRequest, Conflict, ExecuteRequest};
use longhand_protocol::wire::Order;
use longhand_protocol::{EventId, NewEvent, SessionId};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Answers one request after the other from a list and keeps what was asked.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Response>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).unwrap()
}

fn json_answer(status: u16, body: &Value) -> Response {
    answer(status, &[], body.to_string())
}

async fn handle(State(script): State<Script>, request: Request) -> Response {
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or("none");
    let last = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    let line = format!(
        "{} {} [{token}]{}",
        request.method(),
        request.uri(),
        last.map_or(String::new(), |id| format!(" last={id}"))
    );
    script.asked.lock().unwrap().push(line);
    script.answers.lock().unwrap().pop_front().unwrap_or_else(|| answer(418, &[], "the script has ended"))
}

async fn serve(answers: impl IntoIterator<Item = Response>) -> (String, Script) {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let script = Script { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Script::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(handle).with_state(script.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (base, script)
}

fn session() -> SessionId {
    "sesn_1".parse().unwrap()
}

fn event(id: &str) -> Value {
    json!({"id": id, "type": "session.status_running", "processed_at": "2026-01-02T03:04:05Z"})
}

fn error(kind: &str, details: &Value) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": "no", "details": details}, "request_id": "req_1"})
}

#[tokio::test]
async fn a_conflict_is_typed() {
    let moved = json!({"conflict": "head_moved", "head": 7});
    let fenced = json!({"conflict": "fenced", "epoch": 3});
    let (base, script) = serve([
        json_answer(409, &error("invalid_request_error", &moved)),
        json_answer(412, &error("invalid_request_error", &fenced)),
        json_answer(409, &error("invalid_request_error", &json!({"other": 1}))),
    ])
    .await;
    let client = HarnessClient::new(&base, session(), TokenSource::fixed("t")).unwrap();
    let request =
        AppendRequest { epoch: 2, expected_head: 5, events: vec![NewEvent::new(EventBody::SessionStatusRunning {})] };
    let head_moved = client.append(&request).await.unwrap_err();
    assert!(matches!(head_moved, Error::Conflict(Conflict::HeadMoved { head: 7 })), "{head_moved:?}");
    let fenced = client.append(&request).await.unwrap_err();
    assert!(matches!(fenced, Error::Conflict(Conflict::Fenced { epoch: 3 })), "{fenced:?}");
    let other = client.append(&request).await.unwrap_err();
    assert_eq!(other.status().map(|status| status.as_u16()), Some(409), "{other:?}");
    assert!(!other.is_retryable());
    assert_eq!(script.asked()[0], "POST /harness/v1/sessions/sesn_1/append [Bearer t]");
}

#[tokio::test]
async fn an_answer_in_another_format_keeps_its_status() {
    let (base, _script) =
        serve([answer(502, &[("retry-after", "3"), ("request-id", "req_2")], "<html>bad gateway")]).await;
    let client = InternalClient::new(&base, TokenSource::fixed("t")).unwrap();
    let error = client.session("ns", "a/b").await.unwrap_err();
    let Error::Api(api) = &error else { panic!("{error:?}") };
    assert_eq!((api.status.as_u16(), api.request_id.as_deref()), (502, Some("req_2")));
    assert_eq!(api.retry_after, Some(Duration::from_secs(3)));
    assert!(error.is_retryable() && error.to_string().contains("bad gateway"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_is_told_from_a_broken_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let client = HarnessClient::new(&base, session(), TokenSource::fixed("t")).unwrap();
    let (broken, ()) = tokio::join!(client.inbox(), async { drop(listener.accept().await) });
    assert!(matches!(broken, Err(Error::Broken { .. })), "{broken:?}");
    drop(listener);
    let away = client.inbox().await;
    assert!(matches!(away, Err(Error::Connect { .. })), "{away:?}");
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let client = HarnessClient::new(&base, session(), TokenSource::fixed("t")).unwrap();
    let error = client.lease(1, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn execute_asks_again_until_there_is_a_result() {
    let result = json!({"record": {"seq": 9, "epoch": 0, "prev_hash": "", "event": {"id": "sevt_2",
        "type": "agent.tool_result", "tool_use_id": "sevt_1", "content": [], "is_error": false, "processed_at": null}}});
    let (base, script) = serve([
        answer(504, &[("retry-after-ms", "1")], ""),
        answer(503, &[("retry-after-ms", "1")], ""),
        json_answer(200, &result),
    ])
    .await;
    let client = HarnessClient::new(&base, session(), TokenSource::fixed("t")).unwrap();
    let request = ExecuteRequest { epoch: 1, tool_use_id: "sevt_1".parse().unwrap() };
    let response = client.execute(&request, Instant::now() + Duration::from_secs(30)).await.unwrap();
    assert_eq!(response.record.seq, 9);
    assert_eq!(script.asked().len(), 3);
}

#[tokio::test]
async fn execute_gives_up_at_its_deadline_and_on_a_refusal() {
    let (base, script) =
        serve([answer(503, &[("retry-after", "3600")], ""), json_answer(404, &error("not_found_error", &Value::Null))])
            .await;
    let client = HarnessClient::new(&base, session(), TokenSource::fixed("t")).unwrap();
    let request = ExecuteRequest { epoch: 1, tool_use_id: EventId::generate() };
    for status in [503, 404] {
        let error = client.execute(&request, Instant::now() + Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(error.status().map(|status| status.as_u16()), Some(status), "{error:?}");
    }
    assert_eq!(script.asked().len(), 2);
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let (base, script) = serve([
        json_answer(200, &json!({"data": [event("sevt_1")], "next_page": "p 2"})),
        json_answer(200, &json!({"data": [event("sevt_2")], "next_page": null})),
    ])
    .await;
    let client = WireClient::new(&base, TokenSource::fixed("t"), Some("team".to_owned())).unwrap();
    let query = EventQuery {
        types: vec!["x.*".to_owned()],
        order: Order::Desc,
        limit: Some(1),
        after_seq: Some(4),
        include_seq: true,
        page: None,
    };
    let ids: Vec<String> = client
        .all_events(&session(), query)
        .await
        .unwrap()
        .into_iter()
        .map(|numbered| numbered.event.id.to_string())
        .collect();
    assert_eq!(ids, ["sevt_1", "sevt_2"]);
    let path = "GET /namespaces/team/v1/sessions/sesn_1/events";
    let tail = "types%5B%5D=x.*&order=desc&include_seq=true [Bearer t]";
    assert_eq!(
        script.asked(),
        [format!("{path}?limit=1&after_seq=4&{tail}"), format!("{path}?limit=1&page=p+2&after_seq=4&{tail}")]
    );
}

#[tokio::test]
async fn a_broken_stream_goes_on_after_the_last_event() {
    let frame = |seq: u64| format!("event: message\nid: {seq}\ndata: {}\n\n", event(&format!("sevt_{seq}")));
    let preview =
        "event: message\ndata: {\"type\":\"event_start\",\"event\":{\"type\":\"agent.message\",\"id\":\"sevt_9\"}}\n\n";
    let (base, script) = serve([
        json_answer(
            200,
            &json!({"data": [{"id": "sevt_4", "type": "x.a", "processed_at": null, "seq": 4}], "next_page": null}),
        ),
        answer(200, &[], format!(": hello\n\n{}{preview}", frame(5))),
        answer(503, &[("retry-after-ms", "1")], ""),
        answer(200, &[], format!("{}{}", frame(5), frame(6))),
        json_answer(404, &error("not_found_error", &Value::Null)),
    ])
    .await;
    let client = WireClient::new(&base, TokenSource::fixed("t"), None).unwrap();
    let options = StreamOptions { previews: true, ..StreamOptions::default() };
    let items: Vec<_> = client.stream_events(&session(), options).collect().await;
    let seqs: Vec<Option<u64>> = items
        .iter()
        .filter_map(|item| match item {
            Ok(StreamItem::Event { seq, .. }) => Some(*seq),
            _ => None,
        })
        .collect();
    assert_eq!(seqs, [Some(5), Some(6)]);
    assert!(matches!(&items[1], Ok(StreamItem::Preview(Preview::EventStart { .. }))), "{items:?}");
    assert!(matches!(items.last(), Some(Err(Error::Api(error))) if error.status.as_u16() == 404), "{items:?}");
    let asked = script.asked();
    let path = "GET /v1/sessions/sesn_1/events";
    assert_eq!(asked[0], format!("{path}?limit=100&order=desc&include_seq=true [Bearer t]"));
    assert_eq!(asked[1], format!("{path}/stream?after_seq=4&event_deltas%5B%5D=agent.message [Bearer t] last=4"));
    assert_eq!(asked[3], format!("{path}/stream?after_seq=5&event_deltas%5B%5D=agent.message [Bearer t] last=5"));
    assert_eq!(asked[4], format!("{path}/stream?after_seq=6&event_deltas%5B%5D=agent.message [Bearer t] last=6"));
    assert_eq!(asked.len(), 5);
}

#[tokio::test]
async fn a_stream_ends_when_the_server_stays_away() {
    let (base, _script) = serve([answer(503, &[("retry-after-ms", "1")], ""), answer(503, &[], "")]).await;
    let client = WireClient::new(&base, TokenSource::fixed("t"), None).unwrap();
    let options = StreamOptions { after_seq: Some(0), patience: Duration::ZERO, ..StreamOptions::default() };
    let items: Vec<_> = client.stream_events(&session(), options).collect().await;
    assert!(matches!(items.as_slice(), [Err(Error::Api(_))]), "{items:?}");
}

#[test]
fn a_base_that_is_no_url_is_refused() {
    for base in ["", "localhost:80", "ftp://a", "data:x"] {
        let error = WireClient::new(base, TokenSource::fixed("t"), None).unwrap_err();
        assert!(matches!(error, Error::BaseUrl { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_service_over_tls_is_known_by_its_authority() {
    let (_, script) = serve([json_answer(200, &json!({"data": [], "next_page": null}))]).await;
    let authority = rcgen::generate_simple_self_signed(["session.example.svc".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&chain, authority.cert.pem()).unwrap();
    std::fs::write(&key, authority.signing_key.serialize_pem()).unwrap();
    let certificate = Certificate::load(chain, key).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = TowerToHyperService::new(Router::new().fallback(handle).with_state(script.clone()));
    let close = CancellationToken::new();
    let server = tokio::spawn(Listener::tls(listener, &certificate).serve(service, Limits::default(), close.clone()));

    // With the dot that spares pods the search list.
    let known = Server::new(format!("https://session.example.svc.:{}", address.port())).at(address);
    let list = |server: Server| async move {
        let client = WireClient::new(server, TokenSource::fixed("t"), None)?;
        client.list_events(&session(), &EventQuery::default()).await
    };
    list(known.clone().trusting(authority.cert.pem())).await.unwrap();
    let other = rcgen::generate_simple_self_signed(["session.example.svc".to_owned()]).unwrap();
    let error = list(known.clone().trusting(other.cert.pem())).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    let misnamed = Server::new(format!("https://other.example:{}", address.port())).at(address);
    list(misnamed.trusting(authority.cert.pem())).await.unwrap_err();
    assert!(matches!(list(known.trusting("none")).await.unwrap_err(), Error::NoAuthority));
    assert_eq!(script.asked().len(), 1, "no request went to a server that is not known");
    close.cancel();
    server.await.unwrap();
}
