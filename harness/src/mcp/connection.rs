//! One MCP session with one server.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longhand_protocol::event::McpTool;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelledNotification, CancelledNotificationParam, ClientCapabilities,
    ClientConfig, ClientRequest, Implementation, ListToolsRequest, PaginatedRequestParams, RequestId, ServerResult,
};
use rmcp::service::{
    ClientInitializeError, NotificationContext, Peer, PeerRequestOptions, RoleClient, RunningService, ServiceError,
};
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransport, StreamableHttpClientTransportConfig, StreamableHttpError,
};
use rmcp::{ClientHandler, ServiceExt as _};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::content;
use super::definitions::{self, Listing};
use super::http::{Http, HttpError};
use super::servers::Patience;
use crate::core::mcp::{Answer, Unreachable};

/// How long a server is told that a call is cancelled.
const FAREWELL: Duration = Duration::from_millis(100);
/// Pages of tools that are read.
const MOST_PAGES: usize = 64;
/// A stream that breaks is taken up again so often in a row.
const RECONNECTS: usize = 5;
const FIRST_RECONNECT: Duration = Duration::from_millis(500);
const LAST_RECONNECT: Duration = Duration::from_secs(10);

/// A session that was set up. Dropping it ends the session.
#[derive(Debug)]
pub(super) struct Connection {
    service: RunningService<RoleClient, Handler>,
    changed: Arc<AtomicBool>,
    patience: Patience,
}

/// Hears what a server says of itself, and refuses what it asks for: no model, no files and no person is at its service.
#[derive(Debug)]
struct Handler {
    changed: Arc<AtomicBool>,
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let name = Implementation::new("longhand", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), name)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.store(true, Ordering::Relaxed);
    }
}

impl Connection {
    /// Sets a session up with the server behind `url`.
    pub(super) async fn open(http: Http, url: &str, patience: Patience) -> Result<Self, Unreachable> {
        let mut config = StreamableHttpClientTransportConfig::with_uri(url);
        let mut again = ExponentialBackoff::default();
        again.max_times = Some(RECONNECTS);
        again.base_duration = FIRST_RECONNECT;
        again.max_delay = Some(LAST_RECONNECT);
        config.retry_config = Arc::new(again);
        let changed = Arc::new(AtomicBool::new(false));
        let handler = Handler { changed: Arc::clone(&changed) };
        let opening = handler.serve(StreamableHttpClientTransport::with_client(http, config));
        match tokio::time::timeout(patience.ready, opening).await {
            Ok(Ok(service)) => Ok(Self { service, changed, patience }),
            Ok(Err(error)) => Err(not_opened(&error)),
            Err(_) => Err(silent(patience)),
        }
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.service.is_closed() || self.service.is_transport_closed()
    }

    /// Whether the server has said since that it has other tools.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// The server's tools, as far as a model can be offered them.
    pub(super) async fn tools(&self, server: &str) -> Result<Vec<McpTool>, Unreachable> {
        let pages = tokio::time::timeout(self.patience.ready, self.pages()).await;
        let listing = pages.unwrap_or_else(|_| Err(silent(self.patience)))?;
        let (tools, left_out) = listing.finish();
        if left_out > 0 {
            tracing::warn!(server, left_out, "tools of an MCP server cannot be offered to a model");
        }
        Ok(tools)
    }

    async fn pages(&self) -> Result<Listing, Unreachable> {
        let mut listing = Listing::default();
        let mut cursor = None;
        for _ in 0..MOST_PAGES {
            let params = cursor.map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
            let request = params.map_or_else(ListToolsRequest::default, ListToolsRequest::with_param);
            let answer = self.service.peer().send_request(ClientRequest::ListToolsRequest(request)).await;
            let page = match answer {
                Ok(ServerResult::ListToolsResult(page)) => page,
                Ok(_) => return Err(broken("it answered tools/list with something else")),
                Err(error) => return Err(not_listed(&error)),
            };
            listing.add(page.tools);
            cursor = page.next_cursor;
            if cursor.is_none() || listing.is_full() {
                break;
            }
        }
        Ok(listing)
    }

    /// Calls a tool; says whether the session is worth keeping, too.
    pub(super) async fn call(&self, tool: &str, input: Value, cancelled: &CancellationToken) -> (Answer, bool) {
        let mut params = CallToolRequestParams::new(tool.to_owned());
        if let Value::Object(arguments) = input {
            params = params.with_arguments(arguments);
        }
        let request = CallToolRequest::new(params);
        let options = PeerRequestOptions::with_timeout(self.patience.silence)
            .reset_timeout_on_progress()
            .with_max_total_timeout(self.patience.call);
        let peer = self.service.peer();
        let sent = peer.send_request_with_option(ClientRequest::CallToolRequest(request), options).await;
        let handle = match sent {
            Ok(handle) => handle,
            Err(error) => return (unanswered(&error), false),
        };
        let id = handle.id.clone();
        tokio::select! {
            answer = handle.await_response() => match answer {
                Ok(ServerResult::CallToolResult(result)) => {
                    let (content, is_error) = content::blocks(result);
                    (Answer::Result { content, is_error }, true)
                }
                Ok(_) => (Answer::Unknown("the server answered with something else than a result".to_owned()), true),
                // The server has judged the call: it is a result for the model.
                Err(ServiceError::McpError(error)) => {
                    let text = definitions::cut(&error.message, content::MOST_TEXT);
                    let text = format!("The MCP server refused the call: {text} (code {})", error.code.0);
                    (Answer::Result { content: vec![serde_json::json!({"type": "text", "text": text})], is_error: true }, true)
                }
                Err(error) => (unanswered(&error), false),
            },
            () = cancelled.cancelled() => {
                say_cancelled(peer, id).await;
                (Answer::Unknown("the user stopped the turn, and the call was cancelled".to_owned()), true)
            }
        }
    }
}

async fn say_cancelled(peer: &Peer<RoleClient>, request: RequestId) {
    let params = CancelledNotificationParam::new(Some(request), Some("the user stopped the turn".to_owned()));
    let notification = CancelledNotification::new(params);
    // A server that does not listen is not waited for.
    drop(tokio::time::timeout(FAREWELL, peer.send_notification(notification.into())).await);
}

fn silent(patience: Patience) -> Unreachable {
    let message = format!("The MCP server was not ready within {} seconds.", patience.ready.as_secs());
    Unreachable { refused: false, message }
}

fn broken(what: &str) -> Unreachable {
    Unreachable { refused: false, message: format!("The MCP server cannot be used: {what}") }
}

/// What is behind the error of a transport.
fn http_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a HttpError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(StreamableHttpError::Client(cause)) = error.downcast_ref::<StreamableHttpError<HttpError>>() {
            return Some(cause);
        }
        next = error.source();
    }
    None
}

/// Whether the credential, or its place, was refused.
fn is_refusal(error: &HttpError) -> bool {
    matches!(error, HttpError::Status { status: 401 | 403, .. })
}

fn not_opened(error: &ClientInitializeError) -> Unreachable {
    let cause = match error {
        ClientInitializeError::TransportError { error, .. } => http_error(error.error.as_ref()),
        _ => None,
    };
    match cause {
        Some(cause) => Unreachable { refused: is_refusal(cause), ..broken(&cause.to_string()) },
        None => broken(definitions::cut(&error.to_string(), 300)),
    }
}

fn not_listed(error: &ServiceError) -> Unreachable {
    match http_error(error) {
        Some(cause) => Unreachable { refused: is_refusal(cause), ..broken(&cause.to_string()) },
        None => broken(definitions::cut(&error.to_string(), 300)),
    }
}

/// A call without an answer: whether it was run is known only if it was turned away.
fn unanswered(error: &ServiceError) -> Answer {
    match http_error(error) {
        Some(HttpError::Status { status, message }) if (400..500).contains(status) && *status != 408 => {
            Answer::NotRun(format!("The call was not run: the MCP server answered with status {status}: {message}"))
        }
        Some(cause) => Answer::Unknown(cause.to_string()),
        None => Answer::Unknown(definitions::cut(&error.to_string(), 300).to_owned()),
    }
}
