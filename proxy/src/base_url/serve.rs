//! The listener for the harness: loopback only, bounded, and patient with streams when it is told to stop.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use longhand_process::http::{Limits, Listener};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::forward::Proxy;
use crate::upstream::MAX_CONNECTIONS;

const LIMITS: Limits = Limits {
    connections: MAX_CONNECTIONS,
    // Longer than clients keep a connection without a request, so that they let go first.
    head: Duration::from_secs(120),
    stall: Duration::from_secs(120),
    grace: Duration::ZERO,
    buffer: 32 * 1024,
};

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
    let service = service_fn(move |request| {
        let proxy = proxy.clone();
        async move { Ok::<_, Infallible>(proxy.handle(request).await) }
    });
    Listener::plain(listener).serve(service, Limits { grace, ..LIMITS }, shutdown).await;
}
