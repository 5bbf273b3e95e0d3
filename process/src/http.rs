//! Connections of an HTTP/1 server: bounded in number, with deadlines for who sends or reads slowly, and closed in an
//! orderly way.

use std::convert::Infallible;
#[cfg(feature = "tls")]
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::stall::Impatient;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
#[cfg(feature = "tls")]
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Room for the head of a request, with a long token in it.
pub const BUFFER: usize = 128 * 1024;

/// What a server allows its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at the same time; more wait in the listener's queue.
    pub connections: usize,
    /// Until the head of a request is there; also how long a connection is kept without one.
    pub head: Duration,
    /// How long the other end may read nothing of what is sent to it.
    pub stall: Duration,
    /// What is in flight may go on for so long after the server was told to close.
    pub grace: Duration,
    /// The most that is held of one connection in each direction, in bytes, and so the largest head of a request.
    pub buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8_192,
            head: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            grace: Duration::from_secs(20),
            buffer: BUFFER,
        }
    }
}

/// A listening socket, and how it is spoken to.
pub struct Listener {
    tcp: TcpListener,
    #[cfg(feature = "tls")]
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Listener {
    /// Speaks plain HTTP.
    #[must_use]
    pub fn plain(tcp: TcpListener) -> Self {
        Self {
            tcp,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Speaks HTTP over TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(tcp: TcpListener, certificate: &crate::tls::Certificate) -> Self {
        Self { tcp, tls: Some(certificate.acceptor()) }
    }

    /// Serves until `close`; then takes no new connection, and lets the requests in flight come to their end within
    /// [`Limits::grace`].
    pub async fn serve<S, B>(self, service: S, limits: Limits, close: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let slots = Arc::new(Semaphore::new(limits.connections));
        let (connections, abort) = (TaskTracker::new(), CancellationToken::new());
        let accept = async {
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                let stream = self.accept().await;
                let (close, abort, service) = (close.clone(), abort.clone(), service.clone());
                #[cfg(feature = "tls")]
                let tls = self.tls.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    let stream = Impatient::new(stream, limits.stall);
                    #[cfg(feature = "tls")]
                    let served = match tls {
                        Some(tls) => abort.run_until_cancelled(secured(stream, tls, service, limits, close)).await,
                        None => abort.run_until_cancelled(connection(stream, service, limits, close)).await,
                    };
                    #[cfg(not(feature = "tls"))]
                    let served = abort.run_until_cancelled(connection(stream, service, limits, close)).await;
                    if let Some(Err(error)) = served {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
        };
        close.run_until_cancelled(accept).await;
        drop(self);
        connections.close();
        if timeout(limits.grace, connections.wait()).await.is_err() {
            tracing::warn!(open = connections.len(), "what is still in flight is broken off");
            abort.cancel();
            connections.wait().await;
        }
    }

    async fn accept(&self) -> TcpStream {
        loop {
            match self.tcp.accept().await {
                // Pieces of a stream are small and must not wait for one another.
                Ok((stream, _)) => match stream.set_nodelay(true) {
                    Ok(()) => return stream,
                    Err(error) => tracing::debug!(%error, "a connection was gone before it was served"),
                },
                Err(error) => {
                    // Out of descriptors, or a connection that went before it was taken: neither ends the server.
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Why a connection ended that was not closed by either side.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[cfg(feature = "tls")]
    #[error("no TLS handshake: {0}")]
    Handshake(#[source] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

#[cfg(feature = "tls")]
async fn secured<S, B>(
    stream: Impatient<TcpStream>,
    tls: tokio_rustls::TlsAcceptor,
    service: S,
    limits: Limits,
    close: CancellationToken,
) -> Result<(), Broken>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("not within {} s", HANDSHAKE.as_secs()));
    let stream = timeout(HANDSHAKE, tls.accept(stream)).await.unwrap_or_else(|_| Err(late()));
    connection(stream.map_err(Broken::Handshake)?, service, limits, close).await
}

async fn connection<I, S, B>(io: I, service: S, limits: Limits, close: CancellationToken) -> Result<(), Broken>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.buffer)
        .serve_connection(TokioIo::new(io), service)
        // What a connection is upgraded to belongs to its handler, which has to bound and to end it.
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = close.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}
