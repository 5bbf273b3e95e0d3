//! The client against servers that mean no good.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../../tests/suite/support/mcp.rs"]
mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::response::IntoResponse as _;
use axum::routing::post;
use bytes::Bytes;
use http::HeaderMap;
use longhand_process::mcp::{self, About, Received};
use longhand_protocol::EventId;
use longhand_protocol::client::TokenSource;
use longhand_protocol::event::McpTool;
use longhand_protocol::harness::{McpServer, mcp_route};
use rstest::rstest;
use serde_json::{Value, json};

use self::fake::{Fault, Mcp, tool};
use super::http::{MAX_MESSAGE, MAX_STREAM};
use super::servers::{Patience, Servers, Session};
use crate::core::mcp::{Answer, Call, Unreachable};

/// Nothing here takes longer, except on a machine that is very busy.
const LIMIT: Duration = Duration::from_secs(60);
/// What sockets and buffers hold.
const SLACK: usize = 16 * 1024 * 1024;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap()
}

async fn listen(router: axum::Router) -> String {
    // Another provider that is installed already would do as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    base
}

fn server() -> McpServer {
    McpServer::Url { name: "fake".to_owned(), url: "https://fake.test/mcp".to_owned() }
}

const PATIENCE: Patience =
    Patience { ready: Duration::from_secs(20), silence: Duration::from_secs(20), call: Duration::from_secs(30) };

struct World {
    server: Arc<Mcp>,
    session: Session,
}

impl World {
    async fn start() -> Self {
        Self::patient(PATIENCE).await
    }

    async fn patient(patience: Patience) -> Self {
        let (server, base) = Mcp::serve(listen).await;
        let servers = Servers::new(Some(&base), TokenSource::fixed("the-token")).unwrap();
        Self { server, session: servers.open_with(patience) }
    }

    async fn discover(&mut self) -> Result<Vec<McpTool>, Unreachable> {
        within(self.session.discover(vec![server()])).await.remove(0).tools
    }

    fn send(&mut self, tool: &str) -> EventId {
        let event = EventId::generate();
        let input = json!({"message": "hello"});
        self.session.send(vec![Call { event: event.clone(), server: server(), tool: tool.to_owned(), input }]);
        event
    }

    async fn call(&mut self, tool: &str) -> Answer {
        let event = self.send(tool);
        let mut outcomes = within(self.session.ended()).await;
        assert_eq!((outcomes.len(), &outcomes[0].call), (1, &event));
        outcomes.remove(0).answer
    }

    fn taken(&self) -> usize {
        self.server.sent.load(Ordering::Relaxed)
    }
}

fn said(text: &str) -> Answer {
    Answer::Result { content: vec![json!({"type": "text", "text": text})], is_error: false }
}

fn names(tools: &[McpTool]) -> Vec<&str> {
    tools.iter().map(|tool| tool.name.as_str()).collect()
}

#[tokio::test]
async fn tools_are_listed_page_by_page_and_called_with_the_session_s_token() {
    let mut world = World::start().await;
    let tools = world.discover().await.unwrap();
    assert_eq!(names(&tools), ["echo", "hang", "look"]);
    assert_eq!(tools.iter().map(|tool| tool.repeatable).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(world.call("echo").await, said("echo: hello"));
    assert_eq!(world.server.count("initialize"), 1);
    let path = format!("/mcp/{}", mcp_route("fake", "https://fake.test/mcp"));
    let callers = world.server.callers.lock().unwrap().clone();
    assert!(callers.iter().all(|caller| *caller == (path.clone(), "Bearer the-token".to_owned())), "{callers:?}");
}

#[rstest]
#[case::initialize("initialize")]
#[case::list("tools/list")]
#[tokio::test]
async fn a_server_that_never_answers_is_given_up(#[case] method: &'static str) {
    let mut world = World::patient(Patience { ready: Duration::from_secs(2), ..PATIENCE }).await;
    world.server.fails(method, Fault::Silent);
    let error = world.discover().await.unwrap_err();
    assert!(!error.refused && error.message.contains("not ready within"), "{error:?}");
    world.server.mends();
    assert_eq!(world.discover().await.unwrap().len(), 3);
}

#[rstest]
#[case::no_json(Fault::Says("<html>nonsense</html>", "application/json"), "no JSON-RPC message")]
#[case::no_message(Fault::Says("[1, 2]", "application/json"), "no JSON-RPC message")]
#[case::empty(Fault::Says("", "application/json"), "no JSON-RPC message")]
#[case::html(Fault::Says("<html>", "text/html"), "content type")]
#[case::an_answer_to_something_else(Fault::WrongId, "not for the request")]
#[case::a_redirect(Fault::Status(307, "http://127.0.0.1:1/"), "redirect 307")]
#[case::an_error(Fault::Status(502, ""), "status 502: turned away")]
#[case::no_such_place(Fault::Status(404, ""), "404")]
#[case::too_large(Fault::Huge(50_000_000), "more than 8388608 bytes")]
#[tokio::test]
async fn an_answer_that_is_none_is_named(
    #[values("initialize", "tools/list")] method: &'static str,
    #[case] fault: Fault,
    #[case] part: &str,
) {
    let mut world = World::start().await;
    world.server.fails(method, fault.clone());
    let error = world.discover().await.unwrap_err();
    let forgotten = method == "tools/list" && error.message.to_lowercase().contains("session");
    assert!(!error.refused && (error.message.contains(part) || forgotten), "{method} {fault:?}: {error:?}");
    assert!(world.taken() < MAX_MESSAGE + SLACK, "{} bytes were taken", world.taken());
    world.server.mends();
    assert_eq!(world.discover().await.unwrap().len(), 3, "it is used again as soon as it works");
}

#[rstest]
#[tokio::test]
async fn a_refused_credential_is_told_apart(
    #[values("initialize", "tools/list")] method: &'static str,
    #[values(401, 403)] status: u16,
) {
    let mut world = World::start().await;
    world.server.fails(method, Fault::Status(status, ""));
    let error = world.discover().await.unwrap_err();
    assert!(error.refused && error.message.contains("turned away"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let servers = Servers::new(Some("http://127.0.0.1:1/mcp"), TokenSource::fixed("t")).unwrap();
    let error = within(servers.open().discover(vec![server()])).await.remove(0).tools.unwrap_err();
    assert!(!error.refused && error.message.contains("cannot be used"), "{error:?}");
    let nowhere = Servers::new(None, TokenSource::fixed("t")).unwrap();
    let error = within(nowhere.open().discover(vec![server()])).await.remove(0).tools.unwrap_err();
    assert!(error.message.contains("MCP_BASE_URL"), "{error:?}");
}

#[rstest]
#[case::notifications(Fault::Endless, MAX_STREAM)]
#[case::one_event(Fault::EndlessEvent, MAX_MESSAGE)]
#[tokio::test]
async fn a_stream_without_end_is_left(
    #[values("initialize", "tools/list", "tools/call")] method: &'static str,
    #[case] fault: Fault,
    #[case] most: usize,
) {
    let mut world =
        World::patient(Patience { silence: Duration::from_secs(5), ready: Duration::from_secs(5), ..PATIENCE }).await;
    if method == "tools/call" {
        world.discover().await.unwrap();
    }
    world.server.fails(method, fault);
    if method == "tools/call" {
        assert!(matches!(world.call("echo").await, Answer::Unknown(_)));
    } else {
        world.discover().await.unwrap_err();
    }
    assert!(world.taken() < most + SLACK, "{} bytes were taken", world.taken());
    world.server.mends();
    assert_eq!(world.call("echo").await, said("echo: hello"), "the next call makes another session");
}

#[rstest]
#[case::garbage(Fault::Says("nonsense", "application/json"), "no JSON-RPC")]
#[case::wrong_id(Fault::WrongId, "")]
#[case::too_large(Fault::Huge(50_000_000), "more than 8388608")]
#[case::failed(Fault::Status(500, ""), "status 500")]
#[case::broken(Fault::Breaks, "")]
#[tokio::test]
async fn a_call_whose_answer_is_none_has_an_unknown_outcome(#[case] fault: Fault, #[case] part: &str) {
    let mut world = World::patient(Patience { silence: Duration::from_secs(3), ..PATIENCE }).await;
    world.discover().await.unwrap();
    world.server.fails("tools/call", fault);
    let answer = world.call("echo").await;
    assert!(matches!(&answer, Answer::Unknown(cause) if cause.contains(part)), "{answer:?}");
    assert_eq!(world.server.count("tools/call"), 1, "it is not sent again");
    world.server.mends();
    assert_eq!(world.call("echo").await, said("echo: hello"));
}

#[tokio::test]
async fn a_call_that_is_turned_away_was_not_run() {
    let mut world = World::start().await;
    world.discover().await.unwrap();
    for status in [401, 403, 429] {
        world.server.fails("tools/call", Fault::Status(status, ""));
        let answer = world.call("echo").await;
        assert!(matches!(&answer, Answer::NotRun(why) if why.contains(&status.to_string())), "{answer:?}");
    }
}

#[tokio::test]
async fn a_forgotten_session_is_set_up_again_once() {
    let mut world = World::start().await;
    world.discover().await.unwrap();
    world.server.fails("tools/call", Fault::Forgets);
    assert_eq!(world.call("echo").await, said("echo: hello"));
    assert_eq!((world.server.count("initialize"), world.server.count("tools/call")), (2, 2));
}

#[tokio::test]
async fn a_server_s_own_error_is_a_result() {
    let mut world = World::start().await;
    let answer = world.call("nonesuch").await;
    assert!(
        matches!(&answer, Answer::Result { content, is_error: true } if content[0]["text"].as_str().unwrap().contains("no such tool")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_silent_call_ends_and_the_server_is_told() {
    let mut world = World::patient(Patience { silence: Duration::from_millis(300), ..PATIENCE }).await;
    world.discover().await.unwrap();
    let answer = world.call("hang").await;
    assert!(matches!(&answer, Answer::Unknown(cause) if cause.contains("timeout")), "{answer:?}");
    within(world.server.until("notifications/cancelled", 1)).await;
}

#[tokio::test]
async fn a_cancelled_call_ends_at_once_and_the_others_go_on() {
    let mut world = World::start().await;
    world.discover().await.unwrap();
    let hanging = world.send("hang");
    within(world.server.until("tools/call", 1)).await;
    let other = world.send("hang");
    within(world.server.until("tools/call", 2)).await;
    let begun = tokio::time::Instant::now();
    let outcomes = world.session.cancel(std::slice::from_ref(&hanging)).await;
    assert!(begun.elapsed() < PATIENCE.call / 10, "{:?}", begun.elapsed());
    assert!(matches!(outcomes.as_slice(), [outcome] if outcome.call == hanging), "{outcomes:?}");
    within(world.server.until("notifications/cancelled", 1)).await;
    let asked = world.server.asked.lock().unwrap().clone();
    let cancelled = asked.iter().filter(|(method, _)| method == "notifications/cancelled").count();
    assert_eq!(cancelled, 1, "{asked:?}");
    let outcomes = world.session.cancel(std::slice::from_ref(&other)).await;
    assert_eq!(outcomes[0].call, other);
}

#[tokio::test]
async fn more_tools_than_a_model_is_offered_are_cut() {
    let mut world = World::start().await;
    *world.server.tools.lock().unwrap() = (0..400).map(|number| tool(&format!("t{number:03}"), &Value::Null)).collect();
    // Two a page: more pages than are read.
    assert_eq!(world.discover().await.unwrap().len(), 128);
}

#[tokio::test]
async fn a_change_of_the_tools_is_noticed() {
    let mut world = World::start().await;
    world.discover().await.unwrap();
    assert_eq!(world.session.take_changed(), Vec::<String>::new());
    let news = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
    *world.server.news.lock().unwrap() = Some(news);
    world.server.news_came.notify_one();
    let noticed = async {
        while world.session.take_changed().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    within(noticed).await;
    // A connection that a call has made has not seen the tools either.
    let mut other = World::start().await;
    other.call("echo").await;
    assert_eq!((other.session.take_changed(), other.session.take_changed()), (vec!["fake".to_owned()], vec![]));
}

/// The part of a server that the session service and sandboxd have in common, with the answer of a call as a stream.
#[tokio::test]
async fn our_own_servers_are_understood() {
    const ABOUT: About = About { name: "own", version: "1", instructions: None };
    let serve = async |headers: HeaderMap, body: Bytes| {
        let tools = || json!([{"name": "echo", "description": "Echoes.", "inputSchema": {"type": "object"}}]);
        match mcp::receive(&headers, &body, ABOUT, tools) {
            Received::Answered(response) => response.into_response(),
            Received::Call(call, reply) => {
                assert!(mcp::takes_stream(&headers));
                let text = format!("echo: {}", call.arguments["message"].as_str().unwrap());
                let message = reply.text(Ok(mcp::text_result(&text, false)));
                let frames = format!(":\n\n:\n\nevent: message\ndata: {message}\n\n");
                ([("content-type", "text/event-stream")], frames).into_response()
            }
        }
    };
    let base = listen(axum::Router::new().route("/{*path}", post(serve))).await;
    let servers = Servers::new(Some(&base), TokenSource::fixed("the-token")).unwrap();
    let mut session = servers.open_with(PATIENCE);
    let tools = within(session.discover(vec![server()])).await.remove(0).tools.unwrap();
    assert_eq!(names(&tools), ["echo"]);
    let input = json!({"message": "hello"});
    session.send(vec![Call { event: EventId::generate(), server: server(), tool: "echo".to_owned(), input }]);
    assert_eq!(within(session.ended()).await.remove(0).answer, said("echo: hello"));
}
