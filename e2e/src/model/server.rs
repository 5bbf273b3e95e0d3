//! The HTTP server. A test tool: `/recorded` and `/script` ask for no key, and belong on no network that matters.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Query, State, rejection::BytesRejection},
    response::{IntoResponse, Response},
    routing::{get, post, put},
    serve::ListenerExt,
};
use bytes::Bytes;
use futures::{Stream, stream};
use http::{HeaderMap, StatusCode, Uri, header};
use rand::{Rng, distr::Alphanumeric};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::yield_now, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    chat,
    record::{Open, Recorder, kept_headers},
    request::Request,
    respond::{Message, Player, Reply},
    script::{Ending, HttpError, Script},
    stream::{Frame, Tail, frames},
    validate::Invalid,
};

/// The real API's limit.
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
/// A reply that hangs is given up after this time, in case a client never goes.
const MAX_HANG: Duration = Duration::from_secs(15 * 60);

#[derive(Clone)]
struct Server(Arc<Shared>);

struct Shared {
    player: Mutex<Player>,
    recorder: Recorder,
    api_key: String,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`, which also breaks streams that are open.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    script: Script,
    api_key: String,
    shutdown: CancellationToken,
) -> io::Result<()> {
    // Tokens are small writes, which must not wait for one another.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    axum::serve(listener, router(script, api_key, shutdown.clone()))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

/// The routes of the server.
pub fn router(script: Script, api_key: String, shutdown: CancellationToken) -> Router {
    let shared = Shared { player: Mutex::new(Player::new(script)), recorder: Recorder::default(), api_key, shutdown };
    Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/chat/completions", post(completions))
        .route("/recorded", get(recorded).delete(clear))
        .route("/script", put(replace))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .fallback(|uri: Uri| async move { error(404, "not_found_error", &format!("no such path: {}", uri.path())) })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Server(Arc::new(shared)))
}

/// Which API a request is of.
#[derive(Clone, Copy)]
enum Api {
    Messages,
    Chat,
}

impl Api {
    /// The header that carries the key, and the key.
    fn key(self, headers: &HeaderMap) -> (&'static str, Option<&[u8]>) {
        let value = |name: &str| headers.get(name).map(http::HeaderValue::as_bytes);
        match self {
            Self::Messages => ("x-api-key", value("x-api-key")),
            Self::Chat => {
                ("authorization", value("authorization").map(|key| key.strip_prefix(b"Bearer ").unwrap_or(key)))
            }
        }
    }

    fn parse(self, body: &[u8]) -> Result<Request, Invalid> {
        match self {
            Self::Messages => Request::parse(body),
            Self::Chat => chat::parse(body),
        }
    }

    fn frames(self, message: &Message) -> (Vec<Frame>, Tail) {
        let (frames, tail) = frames(message);
        match self {
            Self::Messages => (frames, tail),
            Self::Chat => (chat::chunks(message, frames), tail),
        }
    }
}

async fn messages(state: State<Server>, uri: Uri, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Response {
    answer(Api::Messages, state, uri, headers, body).await
}

async fn completions(
    state: State<Server>,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    answer(Api::Chat, state, uri, headers, body).await
}

async fn answer(
    api: Api,
    State(Server(shared)): State<Server>,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (key_header, key) = api.key(&headers);
    let key_matches = key.is_some_and(|key| key == shared.api_key.as_bytes());
    let read = body.as_ref().map_or(&[][..], |body| body);
    let record = shared.recorder.open(uri.path(), kept_headers(&headers, key_matches), read);
    let refuse = |record: Open, status: u16, kind: &str, message: &str| {
        record.decided(None, status);
        record.completed();
        error(status, kind, message)
    };
    if !key_matches {
        let message =
            if key.is_some() { format!("invalid {key_header}") } else { format!("{key_header} header is required") };
        return refuse(record, 401, "authentication_error", &message);
    }
    if matches!(api, Api::Messages) && !headers.contains_key("anthropic-version") {
        return refuse(record, 400, "invalid_request_error", "anthropic-version: header is required");
    }
    let body = match body {
        Ok(body) => body,
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return refuse(record, 413, "request_too_large", "Request exceeds the maximum size");
        }
        Err(rejection) => return refuse(record, 400, "invalid_request_error", &rejection.body_text()),
    };
    let request = match api.parse(&body) {
        Ok(request) => request,
        Err(invalid) => return refuse(record, 400, "invalid_request_error", &invalid.to_string()),
    };
    let answer = shared.player.lock().unwrap_or_else(PoisonError::into_inner).respond(&request, new_id);
    tracing::info!(rule = answer.rule, messages = request.message_count, turn = request.turn, "answering");
    match answer.reply {
        Reply::Error { error, delay } => {
            record.decided(answer.rule, error.status);
            sleep(delay).await;
            record.completed();
            scripted_error(&error)
        }
        Reply::Message(message) => {
            record.decided(answer.rule, 200);
            if request.stream {
                let (frames, tail) = api.frames(&message);
                let stream = Body::from_stream(play(frames, tail, record, shared.shutdown.clone()));
                let headers =
                    [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
                (headers, stream).into_response()
            } else {
                whole(&message, answer.rule, record, &shared.shutdown).await
            }
        }
    }
}

/// Answers without streaming: the delays of all tokens come first.
async fn whole(message: &Message, rule: Option<usize>, record: Open, shutdown: &CancellationToken) -> Response {
    let (frames, tail) = frames(message);
    let delay = frames.iter().map(|frame| frame.delay).sum();
    if shutdown.run_until_cancelled(sleep(delay)).await.is_none() {
        return broken(record);
    }
    match (&message.ending, tail) {
        (Ending::Error(failure), _) => {
            record.decided(rule, 500);
            record.completed();
            error(500, &failure.kind, &failure.message)
        }
        (_, Tail::Hang) => {
            let _ = shutdown.run_until_cancelled(sleep(MAX_HANG)).await;
            broken(record)
        }
        (_, Tail::Disconnect) => {
            record.completed();
            broken_body()
        }
        (_, Tail::End) => {
            record.token();
            record.completed();
            Json(message.to_json()).into_response()
        }
    }
}

fn broken(record: Open) -> Response {
    drop(record);
    broken_body()
}

fn broken_body() -> Response {
    Body::from_stream(stream::once(break_off())).into_response()
}

/// The item at which the server breaks the connection. It comes in a poll of its own, so that what was sent before is
/// flushed and not thrown away with the connection.
async fn break_off() -> io::Result<Bytes> {
    yield_now().await;
    Err(io::Error::from(io::ErrorKind::ConnectionReset))
}

/// The frames, each after its delay. An error item makes the server break the connection.
fn play(
    frames: Vec<Frame>,
    tail: Tail,
    record: Open,
    shutdown: CancellationToken,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let state = Some((frames.into_iter(), record));
    stream::unfold(state, move |state| {
        let shutdown = shutdown.clone();
        async move {
            let (mut frames, record) = state?;
            let Some(frame) = frames.next() else {
                match tail {
                    Tail::End => {
                        record.completed();
                        return None;
                    }
                    Tail::Disconnect => record.completed(),
                    Tail::Hang => {
                        let _ = shutdown.run_until_cancelled(sleep(MAX_HANG)).await;
                    }
                }
                return Some((break_off().await, None));
            };
            if !frame.delay.is_zero() && shutdown.run_until_cancelled(sleep(frame.delay)).await.is_none() {
                return Some((break_off().await, None));
            }
            if frame.token {
                record.token();
            }
            Some((Ok(Bytes::from(frame.encode())), Some((frames, record))))
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedQuery {
    #[serde(default)]
    after: u64,
}

async fn recorded(State(Server(shared)): State<Server>, Query(query): Query<RecordedQuery>) -> Response {
    Json(shared.recorder.after(query.after)).into_response()
}

async fn clear(State(Server(shared)): State<Server>) -> StatusCode {
    shared.recorder.clear();
    StatusCode::NO_CONTENT
}

async fn replace(State(Server(shared)): State<Server>, yaml: String) -> Response {
    match Script::parse(&yaml) {
        Ok(script) => {
            *shared.player.lock().unwrap_or_else(PoisonError::into_inner) = Player::new(script);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(invalid) => error(400, "invalid_request_error", &invalid.to_string()),
    }
}

fn scripted_error(scripted: &HttpError) -> Response {
    let mut response = error(scripted.status, &scripted.kind, &scripted.message);
    if let Some(seconds) = scripted.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn error(status: u16, kind: &str, message: &str) -> Response {
    let body: Value =
        json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": new_id("req_")});
    (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(body)).into_response()
}

fn new_id(prefix: &str) -> String {
    const LENGTH: usize = 24;
    let random = rand::rng().sample_iter(Alphanumeric).take(LENGTH).map(char::from);
    prefix.chars().chain(random).collect()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
