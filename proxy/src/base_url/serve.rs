//! The listener for the harness: loopback only, bounded, and patient with streams when it is told to stop.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::forward::Proxy;

const MAX_CONNECTIONS: usize = 256;
/// Also how long a connection is kept without a request; longer than clients keep theirs, so that they let go first.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Other pods could reach it.
    #[error("{0} is not a loopback address: the proxy serves its own pod only")]
    NotLoopback(SocketAddr),
    /// The address is taken or not there.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// Listens on a loopback address.
///
/// # Errors
/// [`BindError`], also for any address that is not loopback.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    if !address.ip().is_loopback() {
        return Err(BindError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|source| BindError::Io { address, source })
}

/// Serves until `shutdown`, then lets requests in flight go on for `grace`.
pub async fn serve(listener: TcpListener, proxy: Arc<Proxy>, shutdown: CancellationToken, grace: Duration) {
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let abort = CancellationToken::new();
    loop {
        let accepted = shutdown.run_until_cancelled(async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        });
        match accepted.await {
            None | Some((Err(_), _)) => break,
            Some((Ok(permit), Ok((stream, _)))) => {
                let (proxy, shutdown) = (proxy.clone(), shutdown.clone());
                let abort = abort.clone();
                connections.spawn(async move {
                    abort.run_until_cancelled(connection(stream, proxy, shutdown)).await;
                    drop(permit);
                });
            }
            Some((Ok(_), Err(error))) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "breaking off what is still in flight");
        abort.cancel();
        connections.wait().await;
    }
}

async fn connection(stream: TcpStream, proxy: Arc<Proxy>, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let service = service_fn(|request| {
        let proxy = proxy.clone();
        async move { Ok::<_, std::convert::Infallible>(proxy.handle(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A client that goes in the middle of a stream is no fault, and neither is an upstream that broke off: that was its own.
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
