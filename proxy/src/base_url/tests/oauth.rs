//! Access tokens that are renewed on the way.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::support::{Options, Running, TOKEN, Wire, request, within};
use crate::oauth::{
    service::Service,
    testing::{FakeVault, Instead, Provider, Seat, write_files},
};

struct World {
    running: Running,
    provider: Provider,
    vault: Arc<FakeVault>,
    _files: tempfile::TempDir,
}

async fn world(expires_at: &str) -> World {
    world_of(expires_at, &["/mcp/1"]).await
}

/// A proxy with a server behind each of these prefixes, all with the same credential.
async fn world_of(expires_at: &str, prefixes: &'static [&str]) -> World {
    let (provider, vault) = (Provider::start().await, Arc::new(FakeVault::default()));
    let files = tempfile::tempdir().unwrap();
    write_files(files.path());
    let oauth = provider.section(files.path(), expires_at);
    let access = files.path().join("access");
    let change = move |route: &mut Value, port: u16| {
        let server = |prefix: &&str| {
            json!({
                "name": prefix.trim_start_matches('/').replace('/', "-"), "prefix": prefix,
                "upstream": format!("http://127.0.0.1:{port}/mcp"), "exact": true,
                "methods": ["GET", "POST", "DELETE"], "required": false,
                "credential": {
                    "name": "tickets", "file": access, "placement": {"type": "bearer"}, "oauth": oauth,
                    "allow": {"scheme": "http", "hosts": ["127.0.0.1"], "port": port, "allowPrivate": true},
                },
            })
        };
        *route = prefixes.iter().map(server).collect();
    };
    let service: Arc<dyn Service> = Arc::new(Seat { vault: vault.clone(), pod: "pod-1" });
    let more = json!({"service": {"session": "sesn_1", "url": "http://session.test", "tokenFile": "/token"}});
    let options = Options { change: Box::new(change), more, service: Some(service), ..Options::default() };
    World { running: Running::with(options).await, provider, vault, _files: files }
}

fn call(body: &str) -> String {
    request("POST", "/mcp/1", "", body)
        .replace(&format!("x-api-key: {TOKEN}"), &format!("authorization: Bearer {TOKEN}"))
}

fn bearer(received: &str) -> &str {
    received.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap()
}

/// What the upstream gets next, on any connection.
async fn next(running: &Running) -> (String, Wire<tokio::net::TcpStream>) {
    let mut upstream = running.accept().await;
    (upstream.message().await, upstream)
}

const REFUSED: &str = "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const LATER: &str = "2999-01-01T00:00:00Z";

#[tokio::test]
async fn an_expired_token_is_renewed_before_it_is_used() {
    let world = world("2026-01-01T00:00:00Z").await;
    let mut client = world.running.client().await;
    client.send(call("{}")).await;
    let (received, mut upstream) = next(&world.running).await;
    assert_eq!(bearer(&received), "access-1", "{received}");
    upstream.send("HTTP/1.1 200 OK\r\nx-echo: access-1\r\ncontent-length: 0\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("access-1"), "{answer}");
    within(world.running.proxy.settled()).await;
    assert_eq!(world.vault.kept().stored.len(), 1);
}

#[tokio::test]
async fn a_request_whose_token_is_refused_is_sent_once_more() {
    let world = world(LATER).await;
    let mut client = world.running.client().await;
    client.send(call("{\"id\": 7}")).await;
    let (received, mut upstream) = next(&world.running).await;
    assert_eq!(bearer(&received), "access-0");
    upstream.send(REFUSED).await;
    let (received, mut upstream) = next(&world.running).await;
    assert!(bearer(&received) == "access-1" && received.ends_with("{\"id\": 7}"), "{received}");
    // It is not the token that this server minds. Neither of them comes back.
    let echo = "access-0 access-1";
    upstream.send(format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{echo}", echo.len())).await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.ends_with("\r\n\r\n******** ********"), "{answer}");
    assert_eq!(world.provider.given().asked.len(), 1);
}

#[tokio::test]
async fn two_servers_with_one_credential_have_one_token() {
    let world = world_of("2026-01-01T00:00:00Z", &["/mcp/1", "/mcp/2"]).await;
    world.provider.given().instead.push_back(Instead::Slow(Duration::from_millis(200)));
    let (mut one, mut two) = (world.running.client().await, world.running.client().await);
    one.send(call("{}")).await;
    two.send(call("{}").replace("/mcp/1", "/mcp/2")).await;
    for _ in 0..2 {
        let (received, mut upstream) = next(&world.running).await;
        assert_eq!(bearer(&received), "access-1", "{received}");
        upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    }
    for client in [&mut one, &mut two] {
        assert!(client.answer().await.starts_with("HTTP/1.1 200 "));
    }
    within(world.running.proxy.settled()).await;
    let given = world.provider.given();
    assert!(given.asked.len() == 1 && !given.revoked, "{:?}", given.asked);
}

#[tokio::test]
async fn a_large_request_is_not_sent_twice_but_the_next_one_has_the_new_token() {
    let world = world(LATER).await;
    let mut client = world.running.client().await;
    client.send(call(&"x".repeat(300 * 1024))).await;
    let (received, mut upstream) = next(&world.running).await;
    assert_eq!(bearer(&received), "access-0");
    upstream.send(REFUSED).await;
    assert!(client.answer().await.starts_with("HTTP/1.1 401 "));
    let mut client = world.running.client().await;
    client.send(call("{}")).await;
    let (received, _upstream) = next(&world.running).await;
    assert_eq!(bearer(&received), "access-1");
}

#[tokio::test]
async fn a_token_that_cannot_be_renewed_is_not_sent() {
    let world = world("2026-01-01T00:00:00Z").await;
    world.vault.kept().secret = Some("by-another".to_owned());
    let answer = world.running.refused(call("{}")).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("another session has renewed it"), "{answer}");
    let states = world.running.proxy.credentials(std::time::Instant::now());
    assert!(matches!(states.as_slice(), [state] if state.condition.is_some()), "{states:?}");
}
