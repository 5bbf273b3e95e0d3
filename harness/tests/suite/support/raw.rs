//! A model server that answers whatever bytes a test wants, and a harness that is served by it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use futures::{StreamExt as _, stream};
use longhand_harness::{Config, Endpoints, Exit, Harness};
use longhand_protocol::Record;
use longhand_protocol::event::ClientEvent;
use longhand_protocol::harness::HarnessSession;
use longhand_session_log::memory::MemoryStore;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::service::Service;

/// The token of the harness; a server that wants a key that cannot be guessed takes it.
pub(crate) const TOKEN: &str = "sk-0c7f2e9b4d81a6538e1f70b2c94da3561f8e7d0b9a2c4e6f";

/// Nothing takes longer, except on a machine that is very busy.
const LIMIT: Duration = Duration::from_secs(60);

/// What the server answers.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    begin: String,
    /// Follows again and again, for ever.
    chorus: Option<String>,
}

impl Answer {
    /// A stream of events.
    pub(crate) fn events(body: impl Into<String>) -> Self {
        Self::status(200, body).header("content-type", "text/event-stream")
    }

    /// Any status and body.
    pub(crate) fn status(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), begin: body.into(), chorus: None }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn for_ever(mut self, chorus: impl Into<String>) -> Self {
        self.chorus = Some(chorus.into());
        self
    }
}

/// A request that was made.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

#[derive(Default)]
pub(crate) struct Server {
    answers: Mutex<VecDeque<Answer>>,
    pub(crate) asked: Mutex<Vec<Asked>>,
    /// Bytes of bodies that were taken from the server.
    pub(crate) sent: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.asked.lock().unwrap().iter().map(|asked| asked.body.clone()).collect()
    }
}

/// What came of a session.
pub(crate) struct Outcome {
    pub(crate) log: Vec<Record>,
    pub(crate) server: Arc<Server>,
    pub(crate) service: Arc<Service>,
}

/// Runs a harness until it has nothing left to do for these messages, against a model server with these answers.
pub(crate) async fn run(
    store: MemoryStore,
    session: HarnessSession,
    messages: impl IntoIterator<Item = ClientEvent>,
    answers: impl IntoIterator<Item = Answer>,
) -> Outcome {
    let (server, base) = serve(answers).await;
    let (log, service) = run_against(store, session, messages, &format!("{base}/model")).await;
    Outcome { log, server, service }
}

/// Serves these answers, whatever is asked for; gives the base URL.
pub(crate) async fn serve(answers: impl IntoIterator<Item = Answer>) -> (Arc<Server>, String) {
    let server = Arc::new(Server { answers: Mutex::new(answers.into_iter().collect()), ..Server::default() });
    let router = Router::new().fallback(answer).with_state(Arc::clone(&server));
    let base = super::model::listen(router).await;
    (server, base)
}

/// The same as [`run`], against any model server.
pub(crate) async fn run_against(
    store: MemoryStore,
    session: HarnessSession,
    messages: impl IntoIterator<Item = ClientEvent>,
    model_base_url: &str,
) -> (Vec<Record>, Arc<Service>) {
    let (service, log_url) = super::service::serve_session(store.clone(), session).await;
    for message in messages {
        super::send(&store, [message]);
        let endpoints = Endpoints {
            log_url: log_url.clone(),
            log_ca: None,
            token_file: TOKEN_FILE.clone(),
            model_base_url: model_base_url.to_owned(),
            mcp_base_url: None,
        };
        let config = Config { session: super::session_id(), endpoints };
        let harness = Harness::new(&config).unwrap();
        let exit = tokio::time::timeout(LIMIT, harness.run(&CancellationToken::new())).await.unwrap();
        assert!(matches!(exit, Exit::Done(_)), "{exit:?}");
    }
    (super::log(&store), service)
}

static TOKEN_FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let file = std::env::temp_dir().join(format!("longhand-harness-test-raw-{}", std::process::id()));
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    file
});

async fn answer(
    State(server): State<Arc<Server>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // A server in between may look around.
    if method != Method::POST {
        return Response::builder().status(404).body(Body::empty()).unwrap();
    }
    let body = serde_json::from_slice(&body).unwrap();
    server.asked.lock().unwrap().push(Asked { path: uri.path().to_owned(), headers, body });
    let Some(answer) = server.answers.lock().unwrap().pop_front() else {
        return Response::builder().status(400).body(Body::from("the script has ended")).unwrap();
    };
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let sent = Arc::clone(&server.sent);
    let chorus = answer.chorus.into_iter().map(Bytes::from).collect::<Vec<_>>();
    let chunks = stream::iter([Bytes::from(answer.begin)]).chain(stream::iter(chorus.into_iter().cycle()));
    let chunks = chunks.map(move |chunk| {
        sent.fetch_add(chunk.len(), Ordering::Relaxed);
        Ok::<_, std::io::Error>(chunk)
    });
    response.body(Body::from_stream(chunks)).unwrap()
}
