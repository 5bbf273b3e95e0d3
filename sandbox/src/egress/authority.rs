//! The authority of the session's proxy, which is another one whenever the proxy was started anew.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::bundle::Bundle;
use super::{Current, way};

const PATH: &str = "/ca.pem";
const LIMIT: Duration = Duration::from_secs(5);
const MAX_BYTES: usize = 64 * 1024;
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// Between two looks at a proxy that does not answer, and at one that hangs up at once.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    #[error("the proxy {proxy} did not send its authority within {} s", LIMIT.as_secs())]
    Late { proxy: SocketAddr },
    #[error("the proxy {proxy} cannot be reached: {reason}")]
    Unreachable { proxy: SocketAddr, reason: String },
    #[error("the proxy {proxy} refused to send its authority: {status}")]
    Refused { proxy: SocketAddr, status: StatusCode },
    #[error("what the proxy {0} sent is no certificate in PEM of up to {MAX_BYTES} bytes")]
    Malformed(SocketAddr),
}

/// A connection to the proxy. It ends when the proxy does.
pub(super) struct Held {
    sender: SendRequest<Empty<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Asks the proxy for its authority, and keeps the connection.
pub(super) async fn fetch(proxy: SocketAddr, credential: &HeaderValue) -> Result<(Bytes, Held), AuthorityError> {
    timeout(LIMIT, ask(proxy, credential)).await.map_err(|_| AuthorityError::Late { proxy })?
}

async fn ask(proxy: SocketAddr, credential: &HeaderValue) -> Result<(Bytes, Held), AuthorityError> {
    let unreachable =
        |reason: &dyn std::fmt::Display| AuthorityError::Unreachable { proxy, reason: reason.to_string() };
    let stream = TcpStream::connect(proxy).await.map_err(|error| unreachable(&error))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
    let connection = tokio::spawn(async move { connection.await.unwrap_or_else(|error| debug!(%error, "hung up")) });
    let mut held = Held { sender, connection };
    let request = Request::get(PATH)
        .header(header::HOST, proxy.to_string())
        .header(header::PROXY_AUTHORIZATION, credential)
        .body(Empty::new())
        .map_err(|error| unreachable(&error))?;
    let response = held.sender.send_request(request).await.map_err(|error| unreachable(&error))?;
    let status = response.status();
    if !status.is_success() {
        return Err(AuthorityError::Refused { proxy, status });
    }
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    let body = body.map_err(|_| AuthorityError::Malformed(proxy))?.to_bytes();
    if !body.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Err(AuthorityError::Malformed(proxy));
    }
    Ok((body, held))
}

/// Keeps the bundle up to date with the proxy: whenever it has hung up, it may be another process with another authority. To
/// be dropped when the way ends.
pub(super) async fn watch(proxy: SocketAddr, current: Current, bundle: Arc<Bundle>, held: Held) {
    let mut held = Some(held);
    loop {
        if let Some(mut held) = held.take() {
            // Ends with the connection, since nothing is asked on it any more.
            if let Err(error) = (&mut held.connection).await {
                debug!(%error, "the connection to the proxy failed");
            }
        }
        sleep(PAUSE).await;
        let Some(way) = way(&current).filter(|way| way.proxy == proxy) else { return };
        match fetch(proxy, &way.credential).await {
            Ok((authority, again)) => {
                if let Err(error) = bundle.with(&authority) {
                    warn!(%error, "the bundle of authorities cannot be written");
                }
                held = Some(again);
            }
            Err(error) => debug!(%error, "the proxy is looked at again"),
        }
    }
}
