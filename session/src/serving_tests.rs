//! What clients, brains and other replicas see of a replica that was told to stop.

use std::net::SocketAddr;
use std::time::Duration;

use longhand_process::http::Listener;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_session_log::SessionStore as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Ending, serve};
use crate::testing::hands::{Hands, eventually, hands};
use crate::testing::{SOON, World};

/// A connection with one request.
struct Client(TcpStream);

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Sends everything but the body.
    async fn ask(&mut self, method: &str, path: &str, token: &str, length: usize) {
        self.write(&format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
        ))
        .await;
    }

    /// What has come when `until` is in it.
    async fn read_until(&mut self, until: &str) -> String {
        let mut text = String::new();
        let reading = async {
            while !text.contains(until) {
                let mut buffer = [0_u8; 4_096];
                let count = self.0.read(&mut buffer).await.unwrap();
                assert!(count > 0, "the connection ended before {until:?}: {text}");
                text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            }
        };
        timeout(SOON, reading).await.expect("an answer in time");
        text
    }

    /// Everything up to the end of the connection, which the server makes.
    async fn read_to_end(mut self) -> String {
        let mut text = String::new();
        timeout(SOON, self.0.read_to_string(&mut text)).await.expect("the end in time").unwrap();
        text
    }
}

async fn listen() -> (Listener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (Listener::plain(listener), address)
}

#[tokio::test]
async fn a_replica_that_stops_lets_go_of_everything_in_order() {
    let world = World::new();
    let (id, epoch, call) = world.session_with_call("one", "bash", Hands::until_go()).await;
    let hands = hands(&world.signer, "hands-1").await;
    let (listener, address) = listen().await;
    let (app, stop) = (world.app.clone(), CancellationToken::new());
    let ending = Ending { drain: Duration::from_secs(2), grace: Duration::from_secs(2) };
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { serve(listener, app, &stop, ending).await }
    });

    let session = format!("/v1/sessions/{id}");
    let mut watcher = Client::connect(address).await;
    watcher.ask("GET", &format!("{session}/events/stream?after_seq=0"), "alice", 0).await;
    watcher.read_until("agent.tool_use").await;

    let executing = tokio::spawn({
        let (executor, id, call) = (world.executor.clone(), id.clone(), call.clone());
        async move { executor.execute(&id, epoch, &call).await }
    });
    eventually(async || world.cluster.sandbox_name().is_some()).await;
    world.cluster.sandbox_ready(&world.cluster.sandbox_name().unwrap(), "hands-1", &hands.address);
    hands.begun().await;

    let head = world.store.state(&id).await.unwrap().head;
    let event = NewEvent::new(EventBody::AgentThinking {});
    let append = json!({"epoch": epoch, "expected_head": head, "events": [event]}).to_string();
    let (begin, rest) = append.split_at(append.len() / 2);
    let mut brain = Client::connect(address).await;
    brain.ask("POST", &format!("/harness/v1/sessions/{id}/append"), "pod-1", append.len()).await;
    brain.write(begin).await;

    stop.cancel();
    let mut late = Client::connect(address).await;
    late.ask("GET", &session, "alice", 0).await;
    assert!(late.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 200"), "until all know, requests are still served");

    let last = watcher.read_to_end().await;
    assert!(last.contains("event: ping") && last.contains("retry: "), "its client is told to come back: {last}");
    eventually(async || TcpStream::connect(address).await.is_err()).await;

    brain.write(rest).await;
    let answer = brain.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "what is in flight is finished: {answer}");
    assert!(world.store.position(&id, &event.id).await.unwrap().is_some());

    timeout(SOON, serving).await.expect("it ends in time").unwrap();
    let let_go = timeout(SOON, executing).await.unwrap().unwrap();
    assert!(let_go.is_err(), "the call has no result yet: {let_go:?}");
    let other = world.replica();
    let path = format!("/harness/v1/sessions/{id}/execute");
    let request = json!({"epoch": epoch, "tool_use_id": call});
    assert_eq!(other.call("POST", &path, "pod-1", &request).await.status, 504, "it goes on in the sandbox");
    hands.go();
    let joined = other.executor.execute(&id, epoch, &call).await.unwrap();
    assert!(serde_json::to_string(&joined).unwrap().contains("gone"), "{joined:?}");
    assert_eq!(hands.runs(), 1, "and is not run again");
}

#[tokio::test]
async fn what_does_not_end_in_time_is_broken_off_or_told_to_ask_elsewhere() {
    let world = World::new();
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({"command": "echo hi"})).await;
    let (listener, address) = listen().await;
    let (app, stop) = (world.app.clone(), CancellationToken::new());
    stop.cancel();
    let mut brain = Client::connect(address).await;
    let request = json!({"epoch": epoch, "tool_use_id": call}).to_string();
    brain.ask("POST", &format!("/harness/v1/sessions/{id}/execute"), "pod-1", request.len()).await;
    brain.write(&request).await;
    let mut silent = Client::connect(address).await;
    silent.ask("POST", &format!("/v1/sessions/{id}/events"), "alice", 100).await;

    let ending = Ending { drain: Duration::from_millis(200), grace: Duration::from_millis(50) };
    timeout(SOON, serve(listener, app, &stop, ending)).await.expect("it ends in time");
    let answer = brain.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert!(body["error"]["message"].as_str().unwrap().contains("stopping"), "{body}");
    assert_eq!(silent.read_to_end().await, "", "who never sends the rest is not waited for");
}
