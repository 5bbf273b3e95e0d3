//! What every handler shares, and the routes.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::{delete, get, post, put};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::error::ApiError;
use crate::api::{harness, internal, layer, wire};
use crate::auth::Auth;
use crate::cache::TtlCache;
use crate::execute::Executor;
use crate::previews::Previews;
use crate::resources::Resources;

const REMEMBERED: usize = 16_384;
/// A client that reads slowly costs memory for as long as it reads.
const OPEN_STREAMS: usize = 2_048;

/// How long requests may be held open.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// A claim waits for the operator to name the pod.
    pub claim: Duration,
    /// A harness waits for a tool's result, then asks again.
    pub execute: Duration,
    /// A stream that is silent says so.
    pub heartbeat: Duration,
    /// A stream asks again whether its reader may read.
    pub recheck: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            claim: Duration::from_secs(5),
            execute: Duration::from_secs(50),
            heartbeat: Duration::from_secs(15),
            recheck: Duration::from_secs(60),
        }
    }
}

/// What every handler shares.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// What every handler shares.
pub struct Shared {
    /// The log.
    pub store: Arc<dyn SessionStore>,
    /// The Kubernetes API.
    pub resources: Arc<dyn Resources>,
    /// Who asks, and whether they may.
    pub auth: Auth,
    /// Tool calls.
    pub executor: Arc<Executor>,
    /// The name of the operator's ServiceAccount, as a username.
    pub operator: String,
    /// How long requests may be held open.
    pub waits: Waits,
    /// Previews of messages.
    pub previews: Previews,
    /// The last claim of each session that this replica has seen: epoch and pod.
    pub claims: TtlCache<SessionId, (u64, String)>,
    /// When queued events were accepted.
    pub accepted: TtlCache<EventId, Instant>,
    /// Bounds the event streams.
    pub streams: Arc<Semaphore>,
    /// Ends streams and long waits.
    pub stop: CancellationToken,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    /// An app whose streams end at `stop`. `operator` is namespace and name of a ServiceAccount.
    #[must_use]
    pub fn new(
        store: Arc<dyn SessionStore>,
        resources: Arc<dyn Resources>,
        auth: Auth,
        executor: Arc<Executor>,
        operator: (&str, &str),
        waits: Waits,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            store,
            resources,
            auth,
            executor,
            operator: format!("system:serviceaccount:{}:{}", operator.0, operator.1),
            waits,
            previews: Previews::default(),
            claims: TtlCache::new(REMEMBERED),
            accepted: TtlCache::new(REMEMBERED),
            streams: Arc::new(Semaphore::new(OPEN_STREAMS)),
            stop,
        }))
    }

    /// Every route.
    pub fn router(self) -> Router {
        let wire = Router::new()
            .route("/sessions", get(wire::sessions::list).post(wire::sessions::create))
            .route("/sessions/{session}", get(wire::sessions::retrieve).delete(wire::sessions::delete))
            .route("/sessions/{session}/events", get(wire::events::list).post(wire::events::send))
            .route("/sessions/{session}/events/stream", get(wire::stream::stream));
        let harness = Router::new()
            .route("/claim", post(harness::claim::claim))
            .route("/lease", post(harness::log::lease))
            .route("/events", get(harness::log::events))
            .route("/inbox", get(harness::log::inbox))
            .route("/append", post(harness::log::append))
            .route("/promote", post(harness::log::promote))
            .route("/idle", post(harness::log::idle))
            .route("/execute", post(harness::tools::execute))
            .route("/deltas", post(harness::tools::deltas));
        let internal = Router::new()
            .route("/sessions", get(internal::list))
            .route("/sessions/{session}", delete(internal::delete))
            .route("/namespaces/{namespace}/sessions/{name}", put(internal::ensure).get(internal::summary))
            .route("/namespaces/{namespace}/sandboxes/{name}/drain", post(internal::drain));
        Router::new()
            .nest("/v1", wire.clone())
            .nest("/namespaces/{namespace}/v1", wire)
            .nest("/harness/v1/sessions/{session}", harness)
            .nest("/internal/v1", internal)
            .fallback(|| async { ApiError::not_found("there is no such path") })
            .method_not_allowed_fallback(|| async { ApiError::method_not_allowed("the path has other methods") })
            .layer(from_fn(layer::surround))
            .with_state(self)
    }
}
