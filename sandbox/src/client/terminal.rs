//! Terminals in a sandbox.

use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::error::Failure;
use super::files::{escaped, refusal};
use super::{CONTROL_TIMEOUT, SandboxClient, SandboxError, Target};
use crate::token::Scope;
use crate::wire::{TERMINAL_PROTOCOL, TerminalOptions};

/// An open terminal: a WebSocket connection whose handshake is over, in the subprotocol [`TERMINAL_PROTOCOL`]. It can be
/// spoken on, or handed to whoever asked for it as it is.
#[derive(Debug)]
pub struct Tunnel {
    /// The answer to the key that was given, `Sec-WebSocket-Accept`.
    pub accept: String,
    /// The connection.
    pub stream: TokioIo<Upgraded>,
}

impl SandboxClient {
    /// Opens a terminal. `key` is what the WebSocket client gave as `Sec-WebSocket-Key`.
    ///
    /// # Errors
    /// See [`SandboxError`]. After [`SandboxError::Lost`] a shell may have run for a moment.
    pub async fn open_terminal(
        &self,
        target: &Target,
        options: &TerminalOptions,
        key: &str,
    ) -> Result<Tunnel, SandboxError> {
        let opened = timeout(CONTROL_TIMEOUT, self.tunnel(target, options, key)).await;
        let opened = opened.map_err(|_| SandboxError::Deadline { waited: CONTROL_TIMEOUT })?;
        opened.map_err(|failure| match failure {
            Failure::Broken(reason) => SandboxError::Lost { reason },
            other => other.into_error(None),
        })
    }

    async fn tunnel(&self, target: &Target, options: &TerminalOptions, key: &str) -> Result<Tunnel, Failure> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(uri(options))
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_PROTOCOL, TERMINAL_PROTOCOL)
            .header(SEC_WEBSOCKET_KEY, key);
        let response = self.open(target, Scope::Terminal, request, Empty::<Bytes>::new()).await?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT).and_then(|accept| accept.to_str().ok());
        let accept = accept.map(str::to_owned);
        let accept =
            accept.ok_or_else(|| Failure::Protocol { status, reason: "no Sec-WebSocket-Accept".to_owned() })?;
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| Failure::Broken(error.to_string()))?;
        Ok(Tunnel { accept, stream: TokioIo::new(upgraded) })
    }
}

fn uri(options: &TerminalOptions) -> String {
    let TerminalOptions { command, columns, rows, term, tty } = options;
    let command = command.as_deref().map(|command| format!("&command={}", escaped(command))).unwrap_or_default();
    let pipes = if *tty { "" } else { "&tty=false" };
    format!("/v1/terminal?columns={columns}&rows={rows}&term={}{pipes}{command}", escaped(term))
}

#[cfg(test)]
mod tests {
    use super::uri;
    use crate::wire::TerminalOptions;

    #[test]
    fn options_are_in_the_query() {
        let options = TerminalOptions::default();
        assert_eq!(uri(&options), "/v1/terminal?columns=80&rows=24&term=xterm-256color");
        let options = TerminalOptions { command: Some("top & ls".to_owned()), columns: 132, tty: false, ..options };
        assert_eq!(
            uri(&options),
            "/v1/terminal?columns=132&rows=24&term=xterm-256color&tty=false&command=top%20%26%20ls"
        );
    }
}
