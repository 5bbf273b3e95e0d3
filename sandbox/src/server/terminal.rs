//! Terminals over WebSocket, in the protocol that Kubernetes has for `exec`: the first byte of each binary message is its
//! channel (0 input, 1 output, 2 errors of a command without a terminal, 3 the end as a `Status`, 4 a new size, 255 the end of a channel).

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts as _, Query, Request, State};
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::calls::Calls;
use super::error::ApiError;
use super::journal::Use;
use crate::tools::terminal::{Outlet, Screen, Shell, Size, Terminal};
use crate::wire::{TERMINAL_PROTOCOL, TerminalOptions};

/// A message of a client: input comes as it is typed or pasted.
const MAX_MESSAGE: usize = 64 * 1024;
const CHUNK: usize = 16 * 1024;
/// How long the other end may take to begin, to take a message, or to say goodbye.
const PATIENCE: Duration = Duration::from_secs(30);
/// What was shown before the shell ended is there by then.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERRORS: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSED: u8 = 255;
/// What a terminal takes for the end of its input.
const END_OF_TRANSMISSION: u8 = 4;

/// `GET /v1/terminal`, to be upgraded.
pub(super) async fn open(State(calls): State<Arc<Calls>>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let Query(options) = Query::<TerminalOptions>::from_request_parts(&mut parts, &()).await?;
    let accept = accepted(&parts.headers)?;
    let open = calls.open(Use::Terminal)?;
    let terminal = calls.toolbox().terminal(&options)?;
    info!("a terminal is open");
    let upgrade = hyper::upgrade::on(Request::from_parts(parts, Body::empty()));
    let (idle, stop) = (calls.terminal_idle(), calls.ending());
    calls.spawn(async move {
        let _open = open;
        match timeout(PATIENCE, upgrade).await {
            Ok(Ok(upgraded)) => {
                let config = WebSocketConfig::default()
                    .max_message_size(Some(MAX_MESSAGE))
                    .max_frame_size(Some(MAX_MESSAGE))
                    .max_write_buffer_size(4 * MAX_MESSAGE);
                let io = TokioIo::new(upgraded);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
                Session { socket, terminal, idle, stop }.run().await;
            }
            other => {
                debug!(?other, "a terminal's connection was not upgraded");
                terminal.shell.hang_up().await;
            }
        }
        info!("a terminal is closed");
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(TERMINAL_PROTOCOL));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// The answer to the client's key, if it asks for what we speak.
fn accepted(headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    let has = |name: HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(ApiError::NoWebSocket)?;
    if !has(UPGRADE, "websocket") || !has(CONNECTION, "upgrade") || !has(SEC_WEBSOCKET_PROTOCOL, TERMINAL_PROTOCOL) {
        return Err(ApiError::NoWebSocket);
    }
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| ApiError::NoWebSocket)
}

/// How a session ended.
enum End {
    Exited(io::Result<ExitStatus>),
    /// For a reason that the client is told.
    Closed(String),
    /// The client has gone.
    Gone,
}

struct Session<S> {
    socket: WebSocketStream<S>,
    terminal: Terminal,
    idle: Duration,
    stop: CancellationToken,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    async fn run(self) {
        let Self { mut socket, terminal, idle, stop } = self;
        let Terminal { mut shell, mut screen } = terminal;
        let (mut buffer, mut errors) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut input = Bytes::new();
        let (mut open, mut errors_open) = (true, !screen.is_terminal());
        let mut last = Instant::now();
        let end = loop {
            tokio::select! {
                () = stop.cancelled() => break End::Closed("the sandbox is ending".to_owned()),
                () = sleep_until(last + idle) => {
                    break End::Closed(format!("nothing was typed or shown for {} s", idle.as_secs()));
                }
                status = shell.wait() => break End::Exited(status),
                shown = screen.read(Outlet::Output, &mut buffer), if open => {
                    last = Instant::now();
                    let length = shown.unwrap_or_default();
                    open = length > 0;
                    if open && send(&mut socket, OUTPUT, &buffer[..length]).await.is_err() {
                        break End::Gone;
                    }
                }
                shown = screen.read(Outlet::Errors, &mut errors), if errors_open => {
                    last = Instant::now();
                    let length = shown.unwrap_or_default();
                    errors_open = length > 0;
                    if errors_open && send(&mut socket, ERRORS, &errors[..length]).await.is_err() {
                        break End::Gone;
                    }
                }
                written = screen.write(&input), if !input.is_empty() => match written {
                    Ok(length) => _ = input.split_to(length),
                    // The shell has ended, or closed its terminal: its end will tell.
                    Err(_) => input.clear(),
                },
                // What was typed before goes first.
                message = socket.next(), if input.is_empty() => match message {
                    Some(Ok(Message::Binary(message))) => {
                        last = Instant::now();
                        match Asked::of(&message) {
                            Asked::Type(bytes) => input = bytes,
                            Asked::Resize(size) => _ = screen.resize(size),
                            Asked::End if screen.is_terminal() => input = Bytes::from_static(&[END_OF_TRANSMISSION]),
                            Asked::End => screen.end_input(),
                            Asked::Nothing => {}
                        }
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break End::Gone,
                },
            }
        };
        if matches!(end, End::Exited(_)) {
            drain(&mut socket, &screen, &mut buffer).await;
        }
        finish(socket, end, shell).await;
    }
}

/// Sends what was said before the end.
async fn drain<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>, screen: &Screen, buffer: &mut [u8]) {
    for (outlet, channel) in [(Outlet::Output, OUTPUT), (Outlet::Errors, ERRORS)] {
        while let Ok(Ok(length @ 1..)) = timeout(DRAIN_LIMIT, screen.read(outlet, buffer)).await {
            if send(socket, channel, &buffer[..length]).await.is_err() {
                return;
            }
        }
    }
}

async fn finish<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>, end: End, shell: Shell) {
    let status = match end {
        End::Exited(status) => Some(exit_status(status)),
        End::Closed(reason) => Some(failure(&reason, "Closed", None)),
        End::Gone => None,
    };
    // Whatever still runs below the shell has lost its terminal.
    shell.hang_up().await;
    if let Some(status) = status {
        let goodbye = async {
            send(&mut socket, STATUS, status.to_string().as_bytes()).await?;
            socket.close(None).await?;
            // The connection may go when the other end has said goodbye too.
            while let Some(Ok(_)) = socket.next().await {}
            Ok::<_, SocketError>(())
        };
        match timeout(PATIENCE, goodbye).await {
            Ok(Ok(())) => {}
            other => debug!(?other, "a terminal's client did not wait for its end"),
        }
    }
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    channel: u8,
    bytes: &[u8],
) -> Result<(), SocketError> {
    let message = [&[channel], bytes].concat();
    let late = || SocketError::Io(io::ErrorKind::TimedOut.into());
    timeout(PATIENCE, socket.send(Message::Binary(message.into()))).await.map_err(|_| late())?
}

/// What a message of the client asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Type(Bytes),
    Resize(Size),
    /// Nothing more is to come.
    End,
    Nothing,
}

impl Asked {
    fn of(message: &Bytes) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct NewSize {
            width: u16,
            height: u16,
        }
        match message.split_first() {
            Some((&INPUT, rest)) => Self::Type(message.slice_ref(rest)),
            Some((&RESIZE, size)) => serde_json::from_slice(size)
                .map_or(Self::Nothing, |NewSize { width, height }| Self::Resize(Size { columns: width, rows: height })),
            Some((&CLOSED, &[INPUT])) => Self::End,
            _ => Self::Nothing,
        }
    }
}

fn exit_status(status: io::Result<ExitStatus>) -> Value {
    match status {
        Ok(status) if status.success() => json!({"metadata": {}, "status": "Success"}),
        Ok(status) => {
            // As a shell counts it.
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
            failure(&format!("the shell ended with {status}"), "NonZeroExitCode", Some(code))
        }
        Err(error) => failure(&format!("the exit status is not known: {error}"), "InternalError", None),
    }
}

fn failure(message: &str, reason: &str, code: Option<i32>) -> Value {
    let mut status = json!({"metadata": {}, "status": "Failure", "message": message, "reason": reason});
    if let Some(code) = code {
        status["details"] = json!({"causes": [{"reason": "ExitCode", "message": code.to_string()}]});
    }
    status
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use axum::http::{HeaderMap, HeaderName, HeaderValue};
    use bytes::Bytes;
    use rstest::rstest;

    use super::{Asked, Size, accepted, exit_status};

    #[rstest]
    #[case(b"\0ls\n", Asked::Type(Bytes::from_static(b"ls\n")))]
    #[case(b"\x04{\"Width\":80,\"Height\":24}", Asked::Resize(Size { columns: 80, rows: 24 }))]
    #[case(b"\x04{\"Width\":-1,\"Height\":24}", Asked::Nothing)]
    #[case(b"\x04junk", Asked::Nothing)]
    #[case(b"\xFF\0", Asked::End)]
    #[case(b"\x01output", Asked::Nothing)]
    #[case(b"", Asked::Nothing)]
    fn messages_are_understood(#[case] message: &'static [u8], #[case] expected: Asked) {
        assert_eq!(Asked::of(&Bytes::from_static(message)), expected);
    }

    #[rstest]
    #[case(0, r#"{"metadata":{},"status":"Success"}"#)]
    #[case(3 << 8, r#""reason":"ExitCode","message":"3""#)]
    #[case(9, r#""reason":"ExitCode","message":"137""#)]
    fn the_end_is_told_as_kubernetes_does(#[case] raw: i32, #[case] expected: &str) {
        let status = exit_status(Ok(ExitStatus::from_raw(raw))).to_string();
        assert!(status.contains(expected), "{status}");
    }

    #[rstest]
    #[case(&[], true)]
    #[case(&[("connection", "close")], false)]
    #[case(&[("upgrade", "h2c")], false)]
    #[case(&[("sec-websocket-protocol", "v4.channel.k8s.io")], false)]
    #[case(&[("sec-websocket-protocol", "v4.channel.k8s.io, v5.channel.k8s.io")], true)]
    #[case(&[("connection", "keep-alive, Upgrade")], true)]
    fn only_what_we_speak_is_accepted(#[case] changed: &[(&'static str, &'static str)], #[case] expected: bool) {
        let mut headers = HeaderMap::new();
        let usual = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
            // The example of RFC 6455.
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in usual.iter().chain(changed) {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        match accepted(&headers) {
            Ok(accept) => assert!(expected && accept == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            Err(_) => assert!(!expected),
        }
    }
}
