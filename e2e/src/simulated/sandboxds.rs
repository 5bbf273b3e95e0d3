//! What answers in place of every `sandboxd` of the simulated cluster, whose pods have addresses of loopback.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use longhand_sandbox::wire::{FenceReport, FenceState};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::TestResult;

/// Where `sandboxd` listens.
const PORT: u16 = 8090;
/// The target that it says it does not reach, and that answers the operator.
pub(super) const CANARY: &str = "api";

/// Says of every sandbox that it is fenced in. It ends when dropped.
pub(super) struct Sandboxds {
    asked: Arc<AtomicU64>,
    _server: DropGuard,
}

impl Sandboxds {
    /// Listens on every address of loopback.
    ///
    /// # Errors
    /// When another program has the port.
    pub(super) async fn start() -> TestResult<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await;
        let listener = listener.map_err(|error| format!("port {PORT}, at which the simulated pods answer: {error}"))?;
        let (asked, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let app = Router::new().route("/v1/fence", get(report)).with_state(asked.clone());
        let server = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::spawn(server.into_future());
        Ok(Self { asked, _server: stop.drop_guard() })
    }

    /// How often one was asked for its fence.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn report(State(asked): State<Arc<AtomicU64>>) -> Json<FenceReport> {
    asked.fetch_add(1, Ordering::Relaxed);
    Json(FenceReport { state: FenceState::Fenced, tried: vec![CANARY.to_owned()], reached: Vec::new() })
}
