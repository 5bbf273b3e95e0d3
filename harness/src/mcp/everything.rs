//! The client against a server that we did not write, npm's `@modelcontextprotocol/server-everything`, through the
//! credential proxy. `hack/mcp-servers` installs it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longhand_protocol::EventId;
use longhand_protocol::client::TokenSource;
use longhand_protocol::harness::{McpServer, mcp_route};
use longhand_proxy::base_url::{Proxy, serve};
use longhand_proxy::config::Config;
use longhand_proxy::upstream::tls_config;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::servers::{Patience, Servers, Session};
use crate::core::mcp::{Answer, Call};

/// Nothing here takes longer, except on a machine that is very busy.
const LIMIT: Duration = Duration::from_secs(60);

struct World {
    port: u16,
    server: Child,
    session: Session,
    shutdown: CancellationToken,
    files: tempfile::TempDir,
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap()
}

/// Starts the server and waits until it listens.
async fn start(port: u16) -> Child {
    let folder = std::env::var("MCP_EVERYTHING")
        .unwrap_or_else(|_| panic!("MCP_EVERYTHING is the folder that hack/mcp-servers prints"));
    let script = PathBuf::from(folder).join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let mut child = Command::new("node")
        .arg(script)
        .arg("streamableHttp")
        .env_clear()
        .envs(std::env::var("PATH").map(|path| ("PATH", path)))
        .env("PORT", port.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    within(async {
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if line.contains("listening on port") {
                return;
            }
        }
    })
    .await;
    // It may go on to write.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

fn server(port: u16) -> McpServer {
    McpServer::Url { name: "everything".to_owned(), url: format!("http://127.0.0.1:{port}/mcp") }
}

impl World {
    async fn new(patience: Patience) -> Self {
        // Another provider that is installed already would do as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let child = start(port).await;
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), "the-token").unwrap();
        let server = server(port);
        let key = mcp_route(server.name(), server.url());
        let config = json!({"routes": [{
            "name": format!("mcp-{key}"), "prefix": format!("/mcp/{key}"), "upstream": server.url(), "exact": true,
            "methods": ["GET", "POST", "DELETE"], "allowPrivate": true, "required": false,
        }]});
        let config = Config::parse(&config.to_string()).unwrap();
        let proxy =
            Arc::new(Proxy::new(config, files.path().join("token"), &Arc::new(tls_config(None).unwrap()), None, None));
        let listener = serve::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let base = format!("http://{}/mcp", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, proxy, shutdown.clone(), Duration::from_secs(1)));
        let session = Servers::new(Some(&base), TokenSource::fixed("the-token")).unwrap().open_with(patience);
        Self { port, server: child, session, shutdown, files }
    }

    fn send(&mut self, tool: &str, input: Value) -> EventId {
        let event = EventId::generate();
        let call = Call { event: event.clone(), server: server(self.port), tool: tool.to_owned(), input };
        self.session.send(vec![call]);
        event
    }

    async fn call(&mut self, tool: &str, input: Value) -> Answer {
        self.send(tool, input);
        within(self.session.ended()).await.remove(0).answer
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.server.kill().await.unwrap();
        self.files.close().unwrap();
    }
}

fn text(answer: &Answer) -> (&str, bool) {
    let Answer::Result { content, is_error } = answer else { panic!("{answer:?}") };
    (content[0]["text"].as_str().unwrap(), *is_error)
}

#[tokio::test]
#[ignore = "needs the server that hack/mcp-servers installs; hack/test runs it"]
async fn everything_lists_calls_and_fails_as_the_protocol_says() {
    let mut world = World::new(Patience::default()).await;
    let mut discovered = within(world.session.discover(vec![server(world.port)])).await;
    let tools = discovered.remove(0).tools.unwrap();
    let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
    for name in ["echo", "get-sum", "get-structured-content", "get-tiny-image", "trigger-long-running-operation"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(tools.iter().any(|tool| tool.name == "get-sum" && tool.repeatable));
    let echo = world.call("echo", json!({"message": "Grüße"})).await;
    assert_eq!(text(&echo), ("Echo: Grüße", false));
    let sum = world.call("get-sum", json!({"a": 2, "b": 3})).await;
    assert_eq!(text(&sum), ("The sum of 2 and 3 is 5.", false));
    let Answer::Result { content, .. } = world.call("get-tiny-image", json!({})).await else { panic!() };
    assert!(content.iter().any(|block| block["source"]["media_type"] == "image/png"), "{content:?}");
    let structured = world.call("get-structured-content", json!({"location": "Chicago"})).await;
    assert!(text(&structured).0.contains("temperature"), "{structured:?}");
    let wrong = world.call("get-sum", json!({"a": "two"})).await;
    assert!(matches!(&wrong, Answer::Result { is_error: true, .. }), "{wrong:?}");
    let nonesuch = world.call("nonesuch", json!({})).await;
    assert!(text(&nonesuch).0.contains("nonesuch") && text(&nonesuch).1, "{nonesuch:?}");
    world.stop().await;
}

#[tokio::test]
#[ignore = "needs the server that hack/mcp-servers installs; hack/test runs it"]
async fn everything_keeps_a_long_call_alive_by_its_progress() {
    let silence = Duration::from_secs(2);
    let mut world = World::new(Patience { silence, ..Patience::default() }).await;
    let begun = Instant::now();
    let long = world.call("trigger-long-running-operation", json!({"duration": 5, "steps": 10})).await;
    assert!(text(&long).0.contains("completed"), "{long:?}");
    assert!(begun.elapsed() > silence * 2, "{:?}", begun.elapsed());
    // Without a word it is given up.
    let silent = world.call("trigger-long-running-operation", json!({"duration": 30, "steps": 1})).await;
    assert!(matches!(&silent, Answer::Unknown(cause) if cause.contains("timeout")), "{silent:?}");
    world.stop().await;
}

#[tokio::test]
#[ignore = "needs the server that hack/mcp-servers installs; hack/test runs it"]
async fn everything_runs_calls_side_by_side_and_lets_one_be_cancelled() {
    let mut world = World::new(Patience::default()).await;
    let long = world.send("trigger-long-running-operation", json!({"duration": 50, "steps": 50}));
    let echo = world.call("echo", json!({"message": "meanwhile"})).await;
    assert_eq!(text(&echo), ("Echo: meanwhile", false));
    let begun = Instant::now();
    let outcomes = world.session.cancel(std::slice::from_ref(&long)).await;
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    assert!(outcomes.iter().all(|outcome| outcome.call == long));
    let echo = world.call("echo", json!({"message": "after"})).await;
    assert_eq!(text(&echo), ("Echo: after", false));
    world.stop().await;
}

#[tokio::test]
#[ignore = "needs the server that hack/mcp-servers installs; hack/test runs it"]
async fn everything_is_used_again_after_it_was_restarted() {
    let mut world = World::new(Patience::default()).await;
    let long = world.send("trigger-long-running-operation", json!({"duration": 50, "steps": 50}));
    let echo = world.call("echo", json!({"message": "before"})).await;
    assert_eq!(text(&echo), ("Echo: before", false));
    world.server.kill().await.unwrap();
    world.server = start(world.port).await;
    // What ran is lost, and is not said to have been run or not.
    let outcome = within(world.session.ended()).await.remove(0);
    assert!(outcome.call == long && matches!(outcome.answer, Answer::Unknown(_)), "{outcome:?}");
    let echo = world.call("echo", json!({"message": "after"})).await;
    assert_eq!(text(&echo), ("Echo: after", false));
    world.stop().await;
}
