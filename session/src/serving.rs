//! Serving clients until this replica is told to stop, and then letting go of everything in order: first everybody learns
//! that it goes, then streams and long waits end, then what is in flight comes to its end, and what does not end in time is
//! left to another replica.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use longhand_process::http::{Limits, Listener};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// Requests that wait for a tool call are answered after it was let go.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// How long a replica that stops goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// New requests still come until it is known everywhere that this replica is not ready.
    pub(crate) drain: Duration,
    /// Requests and tool calls may go on for so long after that.
    pub(crate) grace: Duration,
}

/// Serves until `stop`, and returns when nothing is in flight any more: after [`Ending::drain`] and [`Ending::grace`] at
/// the latest, and a moment for the last answers. Streams are told to come back to another replica; a tool call that has
/// no result by then goes on in its sandbox, and whoever is asked for it next takes it over.
pub(crate) async fn serve(listener: Listener, app: App, stop: &CancellationToken, ending: Ending) {
    let (executor, close) = (Arc::clone(&app.executor), app.stop.clone());
    let ways = app.clone();
    let limits = Limits { grace: ending.grace + LAST_ANSWERS, ..Limits::default() };
    let serving = listener.serve(TowerToHyperService::new(app.router()), limits, close.clone());
    let stopping = async {
        stop.cancelled().await;
        tracing::info!(seconds = ending.drain.as_secs(), "stopping: no new requests are expected");
        sleep(ending.drain).await;
        close.cancel();
        tokio::join!(executor.stop(ending.grace), ways.tunnels.closed());
    };
    tokio::join!(serving, stopping);
    tracing::info!("nothing is in flight any more");
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
