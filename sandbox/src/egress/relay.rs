//! The relay: whatever a program asks it for, it asks the session's proxy for, with the credential that programs do not have.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use longhand_process::http::{BUFFER, Limits, Listener};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Current, Way, way};

/// Connections of programs, and what goes on after them in tunnels.
const AT_ONCE: usize = 512;
const CONNECT: Duration = Duration::from_secs(2);
/// Until the proxy has opened a tunnel.
const TUNNEL: Duration = Duration::from_secs(60);
/// Until it has begun to answer another request, which is as long as a tool call may take.
const ANSWER: Duration = Duration::from_secs(15 * 60);
const KEEPALIVE: Duration = Duration::from_secs(15);
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

const LIMITS: Limits = Limits {
    connections: AT_ONCE,
    head: Duration::from_secs(60),
    stall: Duration::from_secs(10 * 60),
    grace: Duration::from_millis(200),
    buffer: BUFFER,
};

type Body = Either<Incoming, Full<Bytes>>;

/// Why a program got an answer of the relay's own.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "this sandbox has no way out: its session allows no host (network of the SandboxTemplate), or its harness is not running"
    )]
    Unbound,
    #[error("this is a proxy: ask it for CONNECT host:port or for a URL with scheme and host")]
    NotAProxyRequest,
    #[error("more than {AT_ONCE} connections leave this sandbox")]
    TooMany,
    #[error("the session's proxy {proxy} cannot be reached: {reason}")]
    Unreachable { proxy: SocketAddr, reason: String },
    #[error("the session's proxy {proxy} did not answer within {} s", .limit.as_secs())]
    Late { proxy: SocketAddr, limit: Duration },
}

impl Refusal {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Unbound | Self::TooMany => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotAProxyRequest => StatusCode::BAD_REQUEST,
            Self::Unreachable { .. } => StatusCode::BAD_GATEWAY,
            Self::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn answer(&self) -> Response<Body> {
        let mut answer = Response::new(Either::Right(Full::from(format!("longhand: {self}\n"))));
        *answer.status_mut() = self.status();
        answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
        answer
    }
}

/// Relays until `close`.
pub(super) async fn serve(listener: TcpListener, current: Current, close: CancellationToken) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let service = service_fn(move |request| {
        let (current, slots) = (Arc::clone(&current), Arc::clone(&slots));
        async move {
            let answer = forward(way(&current), slots, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|refusal| refusal.answer()))
        }
    });
    Listener::plain(listener).serve(service, LIMITS, close).await;
}

async fn forward(
    way: Option<Way>,
    slots: Arc<Semaphore>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let Some(way) = way else { return Err(Refusal::Unbound) };
    let connect = request.method() == Method::CONNECT;
    if request.uri().authority().is_none() || (!connect && request.uri().scheme().is_none()) {
        return Err(Refusal::NotAProxyRequest);
    }
    let slot = slots.try_acquire_owned().map_err(|_| Refusal::TooMany)?;
    let ours = hyper::upgrade::on(&mut request);
    let headers = request.headers_mut();
    headers.remove(PROXY_CONNECTION);
    // In the place of any that the program has sent.
    headers.insert(header::PROXY_AUTHORIZATION, way.credential.clone());
    let proxy = way.proxy;
    let unreachable = |reason: String| Refusal::Unreachable { proxy, reason };
    let stream = open(proxy).await.map_err(|error| unreachable(error.to_string()))?;
    let failed = |error: hyper::Error| unreachable(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // It ends with the answer's body, or with what the connection is upgraded to.
    tokio::spawn(way.ended.clone().run_until_cancelled_owned(connection.with_upgrades()));
    let limit = if connect { TUNNEL } else { ANSWER };
    let answer = timeout(limit, sender.send_request(request)).await;
    let mut answer = answer.map_err(|_| Refusal::Late { proxy, limit })?.map_err(failed)?;
    let status = answer.status();
    if status == StatusCode::SWITCHING_PROTOCOLS || (connect && status.is_success()) {
        let theirs = hyper::upgrade::on(&mut answer);
        tokio::spawn(way.ended.run_until_cancelled_owned(tunnel(ours, theirs, slot)));
        let (mut parts, _) = answer.into_parts();
        if connect {
            parts.headers.clear();
        }
        return Ok(Response::from_parts(parts, Either::Right(Full::default())));
    }
    Ok(answer.map(Either::Left))
}

async fn open(proxy: SocketAddr) -> std::io::Result<TcpStream> {
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer");
    let stream = timeout(CONNECT, TcpStream::connect(proxy)).await.map_err(late)??;
    stream.set_nodelay(true)?;
    // A tunnel may be silent for long, and a node that is gone says nothing.
    SockRef::from(&stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(4))?;
    Ok(stream)
}

async fn tunnel(ours: OnUpgrade, theirs: OnUpgrade, _slot: OwnedSemaphorePermit) {
    let both = async { tokio::try_join!(ours, theirs) };
    match timeout(TUNNEL, both).await {
        Ok(Ok((ours, theirs))) => {
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            if let Err(error) = copy_bidirectional(&mut ours, &mut theirs).await {
                debug!(%error, "a tunnel broke");
            }
        }
        Ok(Err(error)) => debug!(%error, "a tunnel was not opened"),
        Err(_) => debug!("a tunnel was not opened in time"),
    }
}
