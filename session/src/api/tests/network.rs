//! Over real sockets: what clients do to one another, and what replicas tell one another.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use hyper_util::service::TowerToHyperService;
use longhand_process::http::{Limits as Connections, Listener};
use longhand_process::tls::Certificate;
use longhand_protocol::EventId;
use longhand_protocol::client::TokenSource;
use longhand_protocol::event::{Delta, DeltaContent, NewEvent, Preview, PreviewEvent};
use longhand_session_log::SessionStore as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::limits::Rates;
use crate::previews::Addressing;
use crate::testing::{SOON, UNLIMITED, World, limits, message, say};

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_caller_has_a_rate_and_others_have_theirs() {
    let rates = Rates { requests_per_second: 1, request_burst: 2, ..UNLIMITED };
    let world = World::with_rates(limits(SOON, SOON), rates);
    for _ in 0..2 {
        assert_eq!(world.call("GET", "/v1/sessions", "alice", &Value::Null).await.status, 200);
    }
    let refused = world.call("GET", "/v1/sessions", "alice", &Value::Null).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.body["error"]["type"], "rate_limit_error");
    assert_eq!(refused.headers["retry-after"], "1");
    let ms: u64 = refused.headers["retry-after-ms"].to_str().unwrap().parse().unwrap();
    assert!((1..=1_000).contains(&ms), "{ms}");
    assert_ne!(world.call("GET", "/v1/sessions", "bob", &Value::Null).await.status, 429);
    for _ in 0..4 {
        assert_eq!(world.call("GET", "/internal/v1/sessions", "operator", &Value::Null).await.status, 200);
    }
}

#[tokio::test]
async fn a_namespace_has_its_share_of_what_is_open() {
    let world = World::with_rates(limits(SOON, SOON), Rates { namespace_open_streams: 1, ..UNLIMITED });
    let id = world.session("one", "pod-1").await;
    let (stream, export) = (format!("/v1/sessions/{id}/events/stream"), format!("/v1/sessions/{id}/export"));
    let open = world.stream(&stream, "alice", &[]).await;
    for path in [&stream, &export] {
        let refused = world.call("GET", path, "alice", &Value::Null).await;
        assert_eq!(refused.status, 429, "{path}");
        assert!(refused.message().contains("has 1 streams and transfers open"), "{}", refused.message());
        assert!(refused.headers.contains_key("retry-after"));
    }
    drop(open);
    let (status, _) = world.text("GET", &export, &[("authorization", "Bearer alice")], Body::empty()).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_session_takes_so_many_events() {
    let rates = Rates { session_events_per_second: 1, ..UNLIMITED };
    let world = World::with_rates(limits(SOON, SOON), rates);
    let id = world.session("one", "pod-1").await;
    let path = format!("/v1/sessions/{id}/events");
    let body = json!({"events": [say("a"), say("b"), say("c"), say("d"), say("e")]});
    for _ in 0..2 {
        assert_eq!(world.call("POST", &path, "alice", &body).await.status, 200);
    }
    let refused = world.call("POST", &path, "alice", &body).await;
    assert_eq!(refused.status, 429);
    assert!(refused.message().contains("this session"), "{}", refused.message());
    assert_eq!(world.store.inbox(&id).await.unwrap().items.len(), 10, "a refusal takes nothing");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let headers = [("authorization", "Bearer alice")];
    let body = Body::from(vec![b' '; 9 * 1024 * 1024]);
    let answer = world.raw("POST", &format!("/v1/sessions/{id}/events"), &headers, body).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.body["error"]["type"], "request_too_large");
}

// What is remembered must not end meanwhile.
#[tokio::test(start_paused = true)]
async fn tokens_that_are_made_up_push_nobody_out() {
    let world = World::new();
    assert_eq!(world.call("GET", "/v1/sessions", "alice", &Value::Null).await.status, 200);
    for number in 0..5_000 {
        let answer = world.call("GET", "/v1/sessions", &format!("made-up-{number}"), &Value::Null).await;
        assert_eq!(answer.status, 401);
    }
    world.cluster.forget_users();
    assert_eq!(world.call("GET", "/v1/sessions", "alice", &Value::Null).await.status, 200, "alice was remembered");
}

/// The last `id` in the bytes of a stream.
fn last_id(stream: &str) -> u64 {
    let complete = &stream[..stream.rfind("\n\n").unwrap_or(0)];
    complete.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).next_back().unwrap_or(0)
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_dropped_and_resumes() {
    const EVENTS: u64 = 300;
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    // More than what sockets take in.
    let text = "x".repeat(60_000);
    for number in 0..EVENTS {
        let event = NewEvent::new(message(&text));
        world.store.append(&id, epoch, number + 1, vec![event]).await.unwrap();
    }
    let (listener, address) = listen().await;
    let close = CancellationToken::new();
    let connections = Connections { stall: Duration::from_millis(300), ..Connections::default() };
    let service = TowerToHyperService::new(world.app.clone().router());
    let server = tokio::spawn(Listener::plain(listener).serve(service, connections, close.clone()));
    let open = world.app.streams.left();

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut client = socket.connect(address).await.unwrap();
    let path = format!("/v1/sessions/{id}/events/stream");
    let head = format!("GET {path}?after_seq=0 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer alice\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let begun = async {
        while world.app.streams.left() == open {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, begun).await.expect("the stream begins");
    let dropped = async {
        while world.app.streams.left() < open {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, dropped).await.expect("the reader is dropped");

    let mut bytes = Vec::new();
    let _ = timeout(SOON, client.read_to_end(&mut bytes)).await.expect("the connection is closed");
    let seen = last_id(&String::from_utf8_lossy(&bytes));
    assert!(seen < EVENTS, "it has not read everything: {seen}");
    let mut resumed = world.stream(&path, "alice", &[("last-event-id", &seen.to_string())]).await;
    for expected in seen + 1..=EVENTS + 1 {
        // The claim has written an event of ours, which is not shown.
        if expected > 1 {
            assert_eq!(resumed.next().await.unwrap().id, Some(expected));
        }
    }
    close.cancel();
    drop(resumed);
    server.await.unwrap();
}

#[tokio::test]
async fn previews_reach_those_who_watch_at_another_replica() {
    // Another test may have been faster.
    drop(rustls::crypto::ring::default_provider().install_default());
    let here = World::new();
    let there = here.replica();
    let id = here.session("one", "pod-1").await;
    let epoch = here.claim(&id, "pod-1").await;

    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let authority = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&chain, authority.cert.pem()).unwrap();
    std::fs::write(&key, authority.signing_key.serialize_pem()).unwrap();
    let certificate = Certificate::load(chain.clone(), key).await.unwrap();
    let (listener, address) = listen().await;
    let close = CancellationToken::new();
    let service = TowerToHyperService::new(there.app.clone().peer_router());
    let server =
        tokio::spawn(Listener::tls(listener, &certificate).serve(service, Connections::default(), close.clone()));
    let addressing = Addressing {
        url: format!("https://127.0.0.1:{}", address.port()),
        own: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)),
        token: TokenSource::fixed("replica"),
        authority_file: Some(chain),
    };
    let app = here.app.clone();
    let reaching = tokio::spawn(async move { app.previews.reach_peers(addressing).await });

    let path = format!("/v1/sessions/{id}/events/stream?event_deltas[]=agent.message");
    let mut watching = there.stream(&path, "alice", &[]).await;
    let post = async || {
        let event = EventId::generate();
        let start = Preview::EventStart { event: PreviewEvent { kind: "agent.message".to_owned(), id: event.clone() } };
        let content = DeltaContent::Text { text: "hello".to_owned() };
        let delta = Preview::EventDelta { event_id: event, delta: Delta::ContentDelta { index: 0, content } };
        let body = json!({"epoch": epoch, "frames": [start, delta]});
        let answer = here.call("POST", &format!("/harness/v1/sessions/{id}/deltas"), "pod-1", &body).await;
        assert_eq!(answer.status, 200);
    };
    let keep_posting = async {
        loop {
            post().await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    let frames = tokio::select! {
        frames = watching.take(2) => frames,
        () = keep_posting => unreachable!("it goes on for ever"),
    };
    assert_eq!(frames[0].kind(), "event_start");
    assert_eq!(frames[1].data["event_id"], frames[0].data["event"]["id"]);
    assert_eq!(frames[1].data["delta"]["content"]["text"], "hello");
    reaching.abort();
    close.cancel();
    server.await.unwrap();
}

#[tokio::test]
async fn only_replicas_tell_of_previews() {
    use axum::http::Request;
    use tower::ServiceExt as _;
    let world = World::new();
    let ask = |token: &'static str, path: &'static str| {
        let request = Request::post(path).header("authorization", format!("Bearer {token}"));
        let router = world.app.clone().peer_router();
        async move { router.oneshot(request.body(Body::from(r#"{"posts":[]}"#)).unwrap()).await.unwrap().status() }
    };
    assert_eq!(ask("replica", "/peer/v1/previews").await, 200);
    assert_eq!(ask("alice", "/peer/v1/previews").await, 403);
    assert_eq!(ask("operator", "/peer/v1/previews").await, 403);
    assert_eq!(ask("nobody", "/peer/v1/previews").await, 401);
    assert_eq!(ask("replica", "/internal/v1/sessions").await, 404, "nothing else is on that port");
    let answer = world.call("POST", "/peer/v1/previews", "replica", &json!({"posts": []})).await;
    assert_eq!(answer.status, 404, "and it is on no other");
}
