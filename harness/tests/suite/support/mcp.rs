//! An MCP server over streamable HTTP that can be told to misbehave.

#![allow(dead_code, reason = "the tests of the client and those of the whole harness each use a part")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// How a server misbehaves.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It never answers.
    Silent,
    /// It answers with this body and content type.
    Says(&'static str, &'static str),
    /// It answers with a JSON text of so many bytes.
    Huge(usize),
    /// It answers with a stream of notifications that never ends.
    Endless,
    /// It answers with a stream of one event that never ends.
    EndlessEvent,
    /// It answers the request with another number.
    WrongId,
    /// It answers with this status, and where to go for a redirect.
    Status(u16, &'static str),
    /// It has forgotten the session, once.
    Forgets,
    /// It ends its stream before the answer.
    Breaks,
}

#[derive(Default)]
pub(crate) struct Mcp {
    /// By method.
    pub(crate) faults: Mutex<BTreeMap<&'static str, Fault>>,
    pub(crate) tools: Mutex<Vec<Value>>,
    /// Methods with their parameters.
    pub(crate) asked: Mutex<Vec<(String, Value)>>,
    /// Paths and bearer tokens.
    pub(crate) callers: Mutex<Vec<(String, String)>>,
    /// Told when something was asked.
    pub(crate) heard: Notify,
    /// Bytes of large answers that were taken.
    pub(crate) sent: AtomicUsize,
    sessions: AtomicUsize,
    /// What its own stream says, as soon as there is something.
    pub(crate) news: Mutex<Option<Value>>,
    pub(crate) news_came: Notify,
}

pub(crate) fn tool(name: &str, annotations: &Value) -> Value {
    let schema = json!({"type": "object", "properties": {"message": {"type": "string"}}});
    json!({"name": name, "description": format!("The tool {name}."), "inputSchema": schema, "annotations": annotations})
}

impl Mcp {
    /// Serves until the test ends; gives the base URL of the proxy that it stands for.
    pub(crate) async fn serve(listen: impl AsyncFnOnce(Router) -> String) -> (Arc<Self>, String) {
        let tools =
            vec![tool("echo", &json!({})), tool("look", &json!({"readOnlyHint": true})), tool("hang", &json!({}))];
        let server = Arc::new(Self { tools: Mutex::new(tools), ..Self::default() });
        let base = listen(Router::new().fallback(handle).with_state(Arc::clone(&server))).await;
        (server, format!("{base}/mcp"))
    }

    pub(crate) fn fails(&self, method: &'static str, fault: Fault) {
        self.faults.lock().unwrap().insert(method, fault);
    }

    pub(crate) fn mends(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// How often this was asked.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|(asked, _)| asked == method).count()
    }

    /// Waits until this was asked so often.
    pub(crate) async fn until(&self, method: &str, times: usize) {
        while self.count(method) < times {
            self.heard.notified().await;
        }
    }

    fn result(&self, method: &str, params: &Value) -> Option<Value> {
        Some(match method {
            "initialize" => {
                json!({"protocolVersion": params["protocolVersion"], "serverInfo": {"name": "fake", "version": "1"},
                "capabilities": {"tools": {"listChanged": true}}})
            }
            "tools/list" => {
                let tools = self.tools.lock().unwrap();
                let at: usize = params["cursor"].as_str().map_or(0, |cursor| cursor.parse().unwrap());
                let end = tools.len().min(at + 2);
                let mut page = json!({"tools": tools[at..end]});
                if end < tools.len() {
                    page["nextCursor"] = json!(end.to_string());
                }
                page
            }
            "tools/call" => {
                let said = params["arguments"]["message"].as_str().unwrap_or("nothing");
                json!({"content": [{"type": "text", "text": format!("{}: {said}", params["name"].as_str().unwrap())}]})
            }
            _ => return None,
        })
    }
}

fn plain(status: u16, kind: &str, body: impl Into<Body>) -> Response {
    Response::builder().status(status).header("content-type", kind).body(body.into()).unwrap()
}

async fn handle(State(server): State<Arc<Mcp>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap());
    server.callers.lock().unwrap().push((uri.path().to_owned(), header("authorization").to_owned()));
    match method {
        Method::GET => return news(server),
        Method::DELETE => return plain(204, "text/plain", ""),
        _ => {}
    }
    let message: Value = serde_json::from_slice(&body).unwrap();
    let asked = message["method"].as_str().unwrap_or_default().to_owned();
    let params = message["params"].clone();
    server.asked.lock().unwrap().push((asked.clone(), params.clone()));
    server.heard.notify_waiters();
    server.heard.notify_one();
    if message.get("id").is_none() {
        return plain(202, "text/plain", "");
    }
    let mut id = message["id"].clone();
    let fault = server.faults.lock().unwrap().get(asked.as_str()).cloned();
    match fault {
        None => {}
        Some(Fault::Silent) => return std::future::pending().await,
        Some(Fault::Says(text, kind)) => return plain(200, kind, text),
        Some(Fault::Huge(bytes)) => return huge(server, "application/json", bytes),
        Some(Fault::EndlessEvent) => return huge(server, "text/event-stream", usize::MAX),
        Some(Fault::Endless) => return endless(server),
        Some(Fault::WrongId) => id = json!(987_654),
        Some(Fault::Status(status, to)) => {
            let error = json!({"type": "error", "error": {"type": "x", "message": "turned away"}});
            let mut response = plain(status, "application/json", error.to_string());
            if !to.is_empty() {
                response.headers_mut().insert("location", to.parse().unwrap());
            }
            return response;
        }
        Some(Fault::Forgets) => {
            server.mends();
            return plain(404, "application/json", "{}");
        }
        Some(Fault::Breaks) => return plain(200, "text/event-stream", ": nothing\n\n"),
    }
    if asked == "tools/call" && params["name"] == "hang" {
        return std::future::pending().await;
    }
    let mut response = match server.result(&asked, &params) {
        Some(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        None => json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no such method"}}),
    };
    if asked == "tools/call" && !["ask", "echo", "look"].contains(&params["name"].as_str().unwrap()) {
        response = json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": "no such tool"}});
    }
    // Both forms of an answer are used.
    let mut response = if asked == "tools/call" {
        plain(200, "text/event-stream", format!("event: message\ndata: {response}\n\n"))
    } else {
        plain(200, "application/json; charset=utf-8", response.to_string())
    };
    if asked == "initialize" {
        let session = server.sessions.fetch_add(1, Ordering::Relaxed).to_string();
        response.headers_mut().insert("mcp-session-id", session.parse().unwrap());
    }
    assert_eq!(response.status(), StatusCode::OK);
    response
}

/// The stream that a server has for itself.
fn news(server: Arc<Mcp>) -> Response {
    let events = stream::unfold(server, |server| async move {
        loop {
            let news = server.news.lock().unwrap().take();
            if let Some(news) = news {
                return Some((Ok::<_, std::io::Error>(format!("data: {news}\n\n")), server));
            }
            server.news_came.notified().await;
        }
    });
    plain(200, "text/event-stream", Body::from_stream(events))
}

fn huge(server: Arc<Mcp>, kind: &str, bytes: usize) -> Response {
    const CHUNK: usize = 64 * 1024;
    let head = if kind.starts_with("text") { "data: " } else { "\"" };
    let chunks = stream::iter(0..bytes / CHUNK).map(move |_| {
        server.sent.fetch_add(CHUNK, Ordering::Relaxed);
        Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; CHUNK]))
    });
    plain(
        200,
        kind,
        Body::from_stream(stream::once(async move { Ok(Bytes::from_static(head.as_bytes())) }).chain(chunks)),
    )
}

fn endless(server: Arc<Mcp>) -> Response {
    let note = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x".repeat(32 * 1024)}});
    let event = format!("data: {note}\n\n");
    let events = stream::repeat(event).map(move |event| {
        server.sent.fetch_add(event.len(), Ordering::Relaxed);
        Ok::<_, std::io::Error>(event)
    });
    plain(200, "text/event-stream", Body::from_stream(events))
}
