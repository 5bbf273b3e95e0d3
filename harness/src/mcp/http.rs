//! HTTP exchanges with an MCP server. No redirect is followed, and no answer is held in memory beyond a limit.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use http::{HeaderName, HeaderValue, StatusCode, header};
use longhand_protocol::client::TokenSource;
use reqwest::{Client, RequestBuilder, Response};
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};

/// The largest message.
pub(super) const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// The most bytes of one stream of messages.
pub(super) const MAX_STREAM: usize = 64 * 1024 * 1024;
/// What of an error's body is read, and of it shown.
const MAX_ERROR_BODY: usize = 16 * 1024;
const MAX_SHOWN: usize = 300;

const SESSION: &str = "mcp-session-id";
const LAST_EVENT: &str = "last-event-id";
const EVENTS: &str = "text/event-stream";
const JSON: &str = "application/json";
const ACCEPT: &str = "application/json, text/event-stream";

type Result<T, E = StreamableHttpError<HttpError>> = std::result::Result<T, E>;

/// Why an exchange failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HttpError {
    /// The session's own token.
    #[error("the session token cannot be used: {0}")]
    Token(String),
    /// No connection, or it broke.
    #[error("{0}")]
    Transport(String),
    /// An answer that is none.
    #[error("it answered with status {status}: {message}")]
    Status {
        /// The status.
        status: u16,
        /// What the body says.
        message: String,
    },
    /// A redirect, which could lead anywhere.
    #[error("it answered with redirect {0}, which is never followed")]
    Redirect(u16),
    /// Too much.
    #[error("its answer has more than {0} bytes")]
    TooLarge(usize),
    /// Neither JSON nor a stream of events.
    #[error("its answer has the content type {0:?}, and must be JSON or a stream of events")]
    ContentType(String),
    /// No JSON-RPC.
    #[error("its answer is no JSON-RPC message: {0}")]
    NotJsonRpc(String),
    /// An answer to something else.
    #[error("its answer is not for the request that was sent")]
    WrongId,
}

/// The HTTP side of one connection.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: Client,
    token: TokenSource,
}

impl Http {
    /// Sends `token` with each request; `client` follows no redirects.
    pub(super) const fn new(client: Client, token: TokenSource) -> Self {
        Self { client, token }
    }

    async fn send(
        &self,
        request: RequestBuilder,
        session: Option<&str>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<Response> {
        let token = self.token.get().await.map_err(|error| HttpError::Token(error.to_string()))?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| HttpError::Token("it has characters that a header may not have".to_owned()))?;
        bearer.set_sensitive(true);
        let mut request = request.headers(headers.into_iter().collect()).header(header::AUTHORIZATION, bearer);
        if let Some(session) = session {
            request = request.header(SESSION, session);
        }
        let response = request.send().await.map_err(transport)?;
        let status = response.status();
        match status {
            _ if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND if session.is_some() => Err(StreamableHttpError::SessionExpired),
            _ if status.is_redirection() => Err(HttpError::Redirect(status.as_u16()).into()),
            _ => Err(HttpError::Status { status: status.as_u16(), message: complaint(response).await }.into()),
        }
    }
}

impl From<HttpError> for StreamableHttpError<HttpError> {
    fn from(error: HttpError) -> Self {
        Self::Client(error)
    }
}

impl StreamableHttpClient for Http {
    type Error = HttpError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse> {
        let request = self.client.post(uri.as_ref()).header(header::ACCEPT, ACCEPT).json(&message);
        let response = self.send(request, session_id.as_deref(), custom_headers).await?;
        let ClientJsonRpcMessage::Request(asked) = &message else {
            // Nothing is waited for, whatever the body says.
            return Ok(StreamableHttpPostResponse::Accepted);
        };
        let session = response.headers().get(SESSION).and_then(|id| id.to_str().ok()).map(ToOwned::to_owned);
        let kind = content_type(&response);
        if is(&kind, EVENTS) {
            return Ok(StreamableHttpPostResponse::Sse(events(response), session));
        }
        if !is(&kind, JSON) {
            return Err(HttpError::ContentType(kind.chars().take(MAX_SHOWN).collect()).into());
        }
        let body = body(response).await?;
        let answer: ServerJsonRpcMessage =
            serde_json::from_slice(&body).map_err(|error| HttpError::NotJsonRpc(error.to_string()))?;
        let for_it = match &answer {
            ServerJsonRpcMessage::Response(answer) => answer.id == asked.id,
            ServerJsonRpcMessage::Error(answer) => answer.id.as_ref().is_none_or(|id| *id == asked.id),
            ServerJsonRpcMessage::Request(_) | ServerJsonRpcMessage::Notification(_) => false,
        };
        if for_it { Ok(StreamableHttpPostResponse::Json(answer, session)) } else { Err(HttpError::WrongId.into()) }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<()> {
        // Servers may leave the end of a session to themselves.
        self.send(self.client.delete(uri.as_ref()), Some(session_id.as_ref()), custom_headers).await.map(drop)
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, std::result::Result<Sse, SseError>>> {
        let mut request = self.client.get(uri.as_ref()).header(header::ACCEPT, EVENTS);
        if let Some(last) = last_event_id {
            request = request.header(LAST_EVENT, last);
        }
        let response = match self.send(request, session_id.as_deref(), custom_headers).await {
            // The server offers no stream of its own.
            Err(StreamableHttpError::Client(HttpError::Status { status: 405, .. })) => {
                return Err(StreamableHttpError::ServerDoesNotSupportSse);
            }
            answered => answered?,
        };
        let kind = content_type(&response);
        if is(&kind, EVENTS) { Ok(events(response)) } else { Err(StreamableHttpError::ServerDoesNotSupportSse) }
    }
}

fn content_type(response: &Response) -> String {
    let value = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

fn is(content_type: &str, media: &str) -> bool {
    content_type.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(media))
}

/// The error and what is behind it, which says more than the error alone.
fn transport(error: reqwest::Error) -> HttpError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    HttpError::Transport(text)
}

async fn body(mut response: Response) -> Result<Vec<u8>, HttpError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if body.len() + chunk.len() > MAX_MESSAGE {
            return Err(HttpError::TooLarge(MAX_MESSAGE));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What an error's body says: the message of a JSON error, or the beginning of the text.
async fn complaint(mut response: Response) -> String {
    let mut body = Vec::new();
    while body.len() < MAX_ERROR_BODY {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    let json: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let message = json.as_ref().and_then(|json| {
        let error = &json["error"];
        error["message"].as_str().or_else(|| error.as_str()).or_else(|| json["message"].as_str())
    });
    let text = message.map_or_else(|| String::from_utf8_lossy(&body).into_owned(), ToOwned::to_owned);
    text.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
}

/// The events of an answer; the stream ends with an error when one of them, or all together, are too large.
fn events(response: Response) -> BoxStream<'static, std::result::Result<Sse, SseError>> {
    let since_event = Arc::new(AtomicUsize::new(0));
    let events = SseStream::from_bytes_stream(bounded(response.bytes_stream(), Arc::clone(&since_event)));
    events.inspect(move |_| since_event.store(0, Ordering::Relaxed)).boxed()
}

fn bounded(
    chunks: impl Stream<Item = reqwest::Result<Bytes>>,
    since_event: Arc<AtomicUsize>,
) -> impl Stream<Item = Result<Bytes, HttpError>> {
    let mut total = 0_usize;
    chunks.map(move |chunk| {
        let chunk = chunk.map_err(transport)?;
        total = total.saturating_add(chunk.len());
        if since_event.fetch_add(chunk.len(), Ordering::Relaxed) > MAX_MESSAGE {
            return Err(HttpError::TooLarge(MAX_MESSAGE));
        }
        if total > MAX_STREAM {
            return Err(HttpError::TooLarge(MAX_STREAM));
        }
        Ok(chunk)
    })
}
