//! Connections: bounded in number, with a deadline for the head of each request, and closed in an orderly way.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

const MAX_CONNECTIONS: usize = 8_192;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then takes no new connection and gives the requests that are being answered `grace` to finish.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, grace: Duration) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let accept = async {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, or a connection that went before it was taken: neither ends the server.
                    warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Tokens of a stream are small and must not wait for one another.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "a connection was gone before it was served");
                continue;
            }
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
            let connection = graceful.watch(connection);
            let abort = abort.clone();
            connections.spawn(async move {
                let _slot = slot;
                if let Some(Err(error)) = abort.run_until_cancelled(connection).await {
                    debug!(%error, "a connection ended");
                }
            });
        }
    };
    stop.run_until_cancelled(accept).await;
    drop(listener);
    if timeout(grace, graceful.shutdown()).await.is_err() {
        abort.cancel();
    }
    connections.close();
    connections.wait().await;
}
