//! Whether this replica lives, whether it can serve, and what it has counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::StatusCode;
use longhand_session_log::etcd::ShardedStore;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::execute::sandboxes::SandboxIndex;
use crate::jobs::Alarm;

const PING: Duration = Duration::from_secs(2);

/// What readiness depends on.
pub(crate) struct Health {
    pub(crate) store: OnceLock<ShardedStore>,
    pub(crate) key_published: AtomicBool,
    pub(crate) sandboxes: Arc<SandboxIndex>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) stop: CancellationToken,
    pub(crate) metrics: PrometheusHandle,
}

impl Health {
    /// Why this replica cannot serve now.
    async fn obstacle(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("stopping".to_owned());
        }
        let Some(store) = self.store.get() else {
            return Some("etcd has not been reached yet".to_owned());
        };
        match timeout(PING, store.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Some(error.to_string()),
            Err(_) => return Some(format!("etcd did not answer within {} s", PING.as_secs())),
        }
        if !self.key_published.load(Ordering::Relaxed) {
            return Some("the key that sandboxes verify tokens with is not published yet".to_owned());
        }
        (!self.sandboxes.is_synced()).then(|| "the sandboxes have not been listed yet".to_owned())
    }
}

pub(crate) fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(health): State<Arc<Health>>| async move { health.metrics.render() }))
        .with_state(health)
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    match health.obstacle().await {
        // What is stored can be read, and tool calls can end.
        None => {
            (StatusCode::OK, health.alarm.text().map_or_else(|| "ok\n".to_owned(), |text| format!("ok, but {text}\n")))
        }
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
    }
}
