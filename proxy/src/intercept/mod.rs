//! TLS interception for hosts with a binding: where placeholders become credentials, and credentials are kept from coming back.
//!
//! Pure: [`judge`] says which credentials a request may have, with what [`placeholder`] finds, [`foreign`] recognises and
//! [`mint`] knows, by the paths of [`endpoints`] and the [`shapes`] of credentials; [`head`] refuses what could be read in two ways; [`place`] puts values in; [`scrub`] takes them out, in the
//! forms of [`encodings`]. Around them: [`authority`] makes certificates, [`exchange`] carries one request, [`sealed`] keeps what
//! Git LFS hands out, [`aws`] signs for AWS, [`whole`] holds what has to be read to its end, [`bodies`], [`upgrade`], [`upstream`], [`ahead`] and [`still`] move bytes, and [`refused`] says why not.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::Request;
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::Acceptor;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use self::{
    ahead::Ahead,
    authority::{Authority, AuthorityError},
    exchange::Exchange,
    head::Form,
    sealed::Sealed,
    still::Still,
    upstream::Tasks,
    values::HostValues,
    whole::Room,
};
use crate::{
    audit::Subject,
    config::Binding,
    egress::{Answer, SessionContext, Target},
    linger::Lingering,
    policy::Host,
    upstream::IDLE_TIMEOUT,
};

pub mod ahead;
pub mod authority;
pub mod aws;
pub mod bodies;
pub mod encodings;
pub mod endpoints;
pub mod exchange;
pub mod foreign;
pub mod head;
pub mod judge;
pub mod mint;
pub mod place;
pub mod placeholder;
pub mod refused;
pub mod scrub;
pub mod sealed;
pub mod shapes;
pub mod still;
pub mod upgrade;
pub mod upstream;
pub mod values;
pub mod whole;

/// Until a client has shaken hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the head of a request is there; also how long a connection is kept without one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Of what is encrypted already and not yet taken by the other end, in bytes.
const TLS_BUFFER: usize = 16 * 1024;
/// The head of a request or of an answer, in bytes, and the most that is read or held of either at once: as much as a TLS record
/// holds.
const MAX_HEAD: usize = 16 * 1024;
/// Connections in HTTP/2. Each may make the proxy hold 4 MiB: the windows and the send buffers of both sides, at `MAX_STREAMS`
/// requests. Clients that are one too many are offered HTTP/1.1 alone, which holds no more than is on its way.
const MULTIPLEXED: usize = 12;
/// Requests at the same time on one connection.
const MAX_STREAMS: u32 = 32;
/// What may come of a request's body in HTTP/2 before its upstream takes it: of one request, and of all of a connection.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Of a body in HTTP/2 that the other end is slow to take.
const STREAM_SEND_BUFFER: usize = 32 * 1024;

/// What terminates TLS for the hosts with a binding. It lives as long as the process.
#[derive(Debug)]
pub struct Interceptor {
    ca_pem: String,
    shared: Arc<Shared>,
}

/// What the connections of a session share.
pub struct Shared {
    authority: Authority,
    values: HostValues,
    sealed: Sealed,
    /// For what has to be read to its end.
    room: Room,
    /// For connections in HTTP/2.
    multiplexed: Arc<Semaphore>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

/// Why a tunnel was not taken over.
#[derive(Debug, thiserror::Error)]
enum NoTls {
    #[error("what came through the tunnel is no TLS: {0}")]
    Hello(#[source] std::io::Error),
    #[error("the client did not shake hands in time")]
    TimedOut,
    #[error("the client asked TLS for another host (SNI) than its tunnel is for")]
    OtherName,
    #[error("the client did not finish the handshake, as one that does not trust the session's authority: {0}")]
    Handshake(#[source] std::io::Error),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Drives a connection; once the proxy closes, it takes no new request and ends with those that it has.
macro_rules! until_closing {
    ($connection:ident, $closing:ident) => {{
        let mut connection = std::pin::pin!($connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = $closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }};
}

impl Interceptor {
    /// Makes the authority, which is good for the hosts of these bindings.
    ///
    /// # Errors
    /// [`AuthorityError`], when it cannot be made.
    pub fn new(bindings: &[Binding]) -> Result<Self, AuthorityError> {
        let hosts = bindings.iter().flat_map(|binding| &binding.rule.hosts);
        let authority = Authority::new(hosts, SystemTime::now())?;
        let ca_pem = authority.pem();
        let shared = Shared {
            authority,
            values: HostValues::default(),
            sealed: Sealed::default(),
            room: Room::default(),
            multiplexed: Arc::new(Semaphore::new(MULTIPLEXED)),
        };
        Ok(Self { ca_pem, shared: Arc::new(shared) })
    }

    /// The authority's certificate in PEM, for `GET /ca.pem`.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Serves a client after its CONNECT for `target` was answered with 200. It ends when either side does, when nothing
    /// moves for too long, or when it is dropped.
    pub async fn serve<I>(&self, client: I, target: Target, context: Arc<SessionContext>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, multiplexed) = match self.accept(client, &target.host).await {
            Ok(accepted) => accepted,
            Err(problem) => {
                tracing::warn!(host = %target.host, %problem, "not intercepted");
                metrics::counter!("longhand_proxy_intercepted_total", "outcome" => "no_tls").increment(1);
                if matches!(problem, NoTls::Hello(_) | NoTls::OtherName) {
                    let subject = Subject::tunnel(context.sandbox.clone(), target.host.as_str(), target.port);
                    context.audit.denied(None, &subject, &problem.to_string());
                }
                return;
            }
        };
        let h2 = multiplexed.is_some() && stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let (tasks, _ended_with_this) = Tasks::new();
        let closing = context.closing.clone();
        let exchange = Exchange::new(self.shared.clone(), target, context, tasks.clone(), Form::Tunnel, h2);
        let exchange = Arc::new(exchange);
        let rests = tasks.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (exchange, request) = (exchange.clone(), rests.lingering(request));
            async move { Ok::<_, std::convert::Infallible>(exchange.handle(request).await) }
        });
        let io = TokioIo::new(stream);
        let ended = if h2 {
            let connection = http2::Builder::new(tasks.clone())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(STREAM_SEND_BUFFER)
                .serve_connection(io, service);
            until_closing!(connection, closing)
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(io, service)
                .with_upgrades();
            until_closing!(connection, closing)
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an intercepted connection broke");
        }
        // A WebSocket goes on after the connection that it began on.
        tasks.finished().await;
    }

    /// Shakes hands. A connection in HTTP/2 is one of a few.
    async fn accept<I>(
        &self,
        client: I,
        host: &Host,
    ) -> Result<(TlsStream<Still<Ahead<I>>>, Option<OwnedSemaphorePermit>), NoTls>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = timeout(HANDSHAKE_TIMEOUT, async {
            let client = Still::new(Ahead::new(client), IDLE_TIMEOUT);
            let start = LazyConfigAcceptor::new(Acceptor::default(), client).await.map_err(NoTls::Hello)?;
            let hello = start.client_hello();
            let asked = hello.server_name().map(Host::parse);
            let asks_for_h2 = hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == b"h2"));
            let same = match asked {
                Some(asked) => asked.is_ok_and(|asked| asked == *host),
                // There is no SNI for an address.
                None => !host.is_name(),
            };
            if !same {
                return Err(NoTls::OtherName);
            }
            let turn = asks_for_h2.then(|| self.shared.multiplexed.clone().try_acquire_owned().ok()).flatten();
            let mut config = self.shared.authority.config(host, SystemTime::now())?;
            if asks_for_h2 && turn.is_none() {
                Arc::make_mut(&mut config).alpn_protocols = vec![b"http/1.1".to_vec()];
            }
            let mut stream = start.into_stream(config).await.map_err(NoTls::Handshake)?;
            stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
            Ok((stream, turn))
        });
        shaken.await.unwrap_or(Err(NoTls::TimedOut))
    }

    /// Judges, forwards and answers a request in absolute form to a plain HTTP host with a binding. Its head is as the client
    /// sent it, without `proxy-authorization`.
    pub async fn plain(
        &self,
        request: Request<Lingering<Incoming>>,
        target: Target,
        context: Arc<SessionContext>,
    ) -> Answer {
        let (tasks, ended_with_the_answer) = Tasks::new();
        let exchange = Exchange::new(self.shared.clone(), target, context, tasks, Form::Absolute, false);
        let answer = exchange.handle(request).await;
        answer.map(|body| {
            body.map_frame(move |frame| {
                let _ = &ended_with_the_answer;
                frame
            })
            .boxed_unsync()
        })
    }
}

#[cfg(test)]
mod tests;
