//! What every handler shares, and the routes.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post, put};
use longhand_crds::default_model::DefaultModel;
use longhand_crds::{Agent, AgentSession, SandboxTemplate};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore;
use longhand_session_log::files::Files;
use longhand_session_log::requests::Requests;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::error::ApiError;
use crate::api::{harness, internal, layer, peer, wire};
use crate::auth::Auth;
use crate::cache::TtlCache;
use crate::config::Accounts;
use crate::execute::Executor;
use crate::expected::Expected;
use crate::jobs::config::KeepDeleted;
use crate::limits::{Limits, Rates};
use crate::openapi;
use crate::ports::{self, Ports};
use crate::previews::Previews;
use crate::quota::{Quota, SizeLimits};
use crate::resources::Resources;
use crate::resources::homes::Homes;
use crate::resources::objects::Objects;
use crate::resources::revisions::Revisions;
use crate::resources::templates::Templates;
use crate::resources::vaults::Vaults;
use crate::streams::Streams;
use crate::tunnels::Tunnels;
use crate::warm::Warm;

const REMEMBERED: usize = 16_384;
/// Each is an object of the API server, for a moment.
const OFFERED: usize = 1_024;

/// How long requests may be held open, and deletions put off.
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
    /// The log of a deleted session waits to be deleted.
    pub deletion: KeepDeleted,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            claim: Duration::from_secs(5),
            execute: Duration::from_secs(50),
            heartbeat: Duration::from_secs(15),
            recheck: Duration::from_secs(60),
            deletion: KeepDeleted::default(),
        }
    }
}

/// The Kubernetes API, by families of kinds.
#[derive(Clone)]
pub struct Kinds {
    /// Sessions and what they are made of.
    pub resources: Arc<dyn Resources>,
    /// Sessions, to be changed.
    pub sessions: Arc<dyn Objects<AgentSession>>,
    /// Vaults, and the Secrets that are written for them.
    pub vaults: Arc<dyn Vaults>,
    /// Agents.
    pub agents: Arc<dyn Objects<Agent>>,
    /// The versions of agents.
    pub revisions: Arc<dyn Revisions>,
    /// Environments.
    pub environments: Arc<dyn Objects<SandboxTemplate>>,
    /// Which environments are self-hosted.
    pub templates: Arc<dyn Templates>,
}

impl Kinds {
    /// All of them in one place.
    #[must_use]
    pub fn of<T>(cluster: &Arc<T>) -> Self
    where
        T: Resources
            + Vaults
            + Revisions
            + Objects<Agent>
            + Objects<AgentSession>
            + Objects<SandboxTemplate>
            + Templates,
    {
        Self {
            resources: Arc::<T>::clone(cluster),
            sessions: Arc::<T>::clone(cluster),
            vaults: Arc::<T>::clone(cluster),
            agents: Arc::<T>::clone(cluster),
            revisions: Arc::<T>::clone(cluster),
            environments: Arc::<T>::clone(cluster),
            templates: Arc::<T>::clone(cluster),
        }
    }
}

/// What the service is told about its callers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who is who.
    pub accounts: Accounts,
    /// How much each may ask.
    pub rates: Rates,
    /// How large sessions and namespaces may become.
    pub sizes: SizeLimits,
    /// What agents without a credential of their own are run with.
    pub default_model: Option<DefaultModel>,
    /// How long they may wait.
    pub waits: Waits,
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
    /// Namespaces, as files know them.
    pub homes: Homes,
    /// Sessions, to be changed.
    pub sessions: Arc<dyn Objects<AgentSession>>,
    /// Vaults.
    pub vaults: Arc<dyn Vaults>,
    /// Agents.
    pub agents: Arc<dyn Objects<Agent>>,
    /// The versions of agents.
    pub revisions: Arc<dyn Revisions>,
    /// Environments.
    pub environments: Arc<dyn Objects<SandboxTemplate>>,
    /// What agents without a credential of their own are run with.
    pub default_model: Option<DefaultModel>,
    /// Which environments are self-hosted.
    pub templates: Arc<dyn Templates>,
    /// Who asks, and whether they may.
    pub auth: Auth,
    /// Tool calls.
    pub executor: Arc<Executor>,
    /// The name of the operator's ServiceAccount, as a username.
    pub operator: String,
    /// The name of the ServiceAccount that all replicas of this service run as, as a username.
    pub replicas: String,
    /// How much each caller may ask.
    pub limits: Limits,
    /// How much namespaces may hold.
    pub quota: Quota,
    /// Requests with an `Idempotency-Key`.
    pub requests: Arc<dyn Requests>,
    /// Files that clients upload.
    pub files: Files,
    /// How long requests may be held open.
    pub waits: Waits,
    /// Previews of messages.
    pub previews: Previews,
    /// Harnesses that wait for a session.
    pub warm: Warm,
    /// The last claim of each session that this replica has seen: epoch and pod.
    pub claims: TtlCache<SessionId, (u64, String)>,
    /// The resources of sessions that were just offered to a harness that waits.
    pub offered: TtlCache<SessionId, Arc<AgentSession>>,
    /// The resources of sessions that a harness in its grace is about to claim.
    pub expected: Expected,
    /// Which environments say what their sandboxes may reach, by namespace and name.
    pub networks: TtlCache<(String, String), bool>,
    /// When queued events were accepted.
    pub accepted: TtlCache<EventId, Instant>,
    /// Bounds the event streams, transfers and ways into sandboxes.
    pub streams: Streams,
    /// Ways into sandboxes that are open.
    pub tunnels: Tunnels,
    /// Ports of sandboxes over HTTP, if they are served.
    pub ports: Option<Ports>,
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
    /// An app whose streams end at `stop`.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is another part of the service")]
    pub fn new(
        store: Arc<dyn SessionStore>,
        requests: Arc<dyn Requests>,
        files: Files,
        kinds: Kinds,
        auth: Auth,
        executor: Arc<Executor>,
        settings: &Settings,
        ports: Option<Ports>,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            store,
            homes: Homes::new(Arc::clone(&kinds.resources)),
            resources: kinds.resources,
            sessions: kinds.sessions,
            vaults: kinds.vaults,
            agents: kinds.agents,
            revisions: kinds.revisions,
            environments: kinds.environments,
            default_model: settings.default_model.clone(),
            templates: kinds.templates,
            auth,
            executor,
            operator: settings.accounts.operator.username(),
            replicas: settings.accounts.replicas.username(),
            limits: Limits::new(settings.rates),
            quota: Quota::new(settings.sizes),
            requests,
            files,
            waits: settings.waits,
            previews: Previews::default(),
            warm: Warm::default(),
            claims: TtlCache::new(REMEMBERED),
            offered: TtlCache::new(OFFERED),
            expected: Expected::default(),
            networks: TtlCache::new(REMEMBERED),
            accepted: TtlCache::new(REMEMBERED),
            streams: Streams::new(settings.rates.namespace_open_streams),
            tunnels: Tunnels::default(),
            ports,
            stop,
        }))
    }

    /// The routes for other replicas, which are served on a port of their own.
    pub fn peer_router(self) -> Router {
        Router::new()
            .route("/peer/v1/previews", post(peer::previews))
            .fallback(|| async { ApiError::not_found("there is no such path") })
            .layer(from_fn(layer::surround))
            .with_state(self)
    }

    /// Every route.
    pub fn router(self) -> Router {
        let wire = Router::new()
            .route("/agents", get(wire::agents::list).post(wire::agents::create))
            .route("/agents/{agent}", get(wire::agents::retrieve).post(wire::agents::update))
            .route("/agents/{agent}/archive", post(wire::agents::archive))
            .route("/agents/{agent}/versions", get(wire::agents::versions))
            .route("/environments", get(wire::environments::list).post(wire::environments::create))
            .route(
                "/environments/{environment}",
                get(wire::environments::retrieve).post(wire::environments::update).delete(wire::environments::delete),
            )
            .route("/environments/{environment}/archive", post(wire::environments::archive))
            .route("/sessions", get(wire::session_list::list).post(wire::session_create::create))
            .route(
                "/sessions/{session}",
                get(wire::sessions::retrieve).post(wire::session_update::update).delete(wire::sessions::delete),
            )
            .route("/sessions/{session}/archive", post(wire::sessions::archive))
            .route("/sessions/{session}/threads", get(wire::threads::list))
            .route("/sessions/{session}/threads/{thread}", get(wire::threads::retrieve))
            .route("/sessions/{session}/threads/{thread}/archive", post(wire::threads::archive))
            .route("/sessions/{session}/threads/{thread}/events", get(wire::threads::list_events))
            .route("/sessions/{session}/threads/{thread}/stream", get(wire::threads::stream_events))
            .route("/sessions/{session}/export", get(wire::export::export))
            .route("/sessions/{session}/events", get(wire::events::list).post(wire::events::send))
            .route("/sessions/{session}/events/stream", get(wire::stream::stream))
            .merge(resources())
            .merge(vaults())
            // An import is known by its session, and work by its worker; an upload is not held to be compared: none is
            // remembered by a key.
            .route_layer(from_fn_with_state(self.clone(), wire::once::once))
            .route("/sessions/import", post(wire::import::import))
            .merge(files())
            .merge(sandboxes())
            .merge(work());
        let harness = Router::new()
            .route("/claim", post(harness::claim::claim))
            .route("/lease", post(harness::log::lease))
            .route("/events", get(harness::log::events))
            .route("/inbox", get(harness::log::inbox))
            .route("/append", post(harness::log::append))
            .route("/promote", post(harness::log::promote))
            .route("/idle", post(harness::log::idle))
            .route("/execute", post(harness::tools::execute))
            .route("/provision", post(harness::tools::provision))
            .route("/deltas", post(harness::tools::deltas))
            .route("/mcp", post(harness::mcp::serve));
        let internal = Router::new()
            .route("/sessions", get(internal::list))
            .route("/sessions/{session}", delete(internal::delete))
            .route("/namespaces/{namespace}/sessions/{name}", put(internal::ensure).get(internal::summary))
            .route("/namespaces/{namespace}/sandboxes/{name}/drain", post(internal::drain))
            .route("/namespaces/{namespace}/sandboxes/{name}/handoff", post(internal::settle_handoff));
        let admit = from_fn_with_state(self.clone(), layer::admit);
        let (wire, harness) = (wire.route_layer(admit.clone()), harness.route_layer(admit.clone()));
        // The proxy has a token of its own.
        let harness = harness
            .route("/credential_events", post(harness::credentials::report))
            .route("/credential_refresh", post(harness::refresh::refresh));
        let parked = post(harness::parked::park).route_layer(admit);
        Router::new()
            .nest("/v1", wire.clone())
            .nest("/namespaces/{namespace}/v1", wire)
            .nest("/harness/v1/sessions/{session}", harness)
            .route("/harness/v1/parked", parked)
            .nest("/internal/v1", internal)
            .route("/openapi.json", get(openapi::serve))
            .fallback(|| async { ApiError::not_found("there is no such path") })
            .method_not_allowed_fallback(|| async { ApiError::method_not_allowed("the path has other methods") })
            .layer(from_fn(layer::surround))
            .layer(from_fn_with_state(self.clone(), ports::by_host))
            .with_state(self)
    }
}

/// The routes of repositories and files of sessions.
fn resources() -> Router<App> {
    use wire::session_resources as resources;
    Router::new().route("/sessions/{session}/resources", get(resources::list).post(resources::add)).route(
        "/sessions/{session}/resources/{resource}",
        get(resources::retrieve).post(resources::update).delete(resources::delete),
    )
}

/// The routes of files that clients upload.
fn files() -> Router<App> {
    use wire::files;
    Router::new()
        .route("/files", get(files::list).post(files::upload))
        .route("/files/{file}", get(files::retrieve).delete(files::delete))
        .route("/files/{file}/content", get(files::download))
}

/// The routes of vaults and their credentials.
fn vaults() -> Router<App> {
    use wire::vaults::{self, credentials};
    Router::new()
        .route("/vaults", get(vaults::list).post(vaults::create))
        .route("/vaults/{vault}", get(vaults::retrieve).post(vaults::update).delete(vaults::delete))
        .route("/vaults/{vault}/archive", post(vaults::archive))
        .route("/vaults/{vault}/credentials", get(credentials::list).post(credentials::create))
        .route(
            "/vaults/{vault}/credentials/{credential}",
            get(credentials::retrieve).post(credentials::update).delete(credentials::delete),
        )
        .route("/vaults/{vault}/credentials/{credential}/archive", post(credentials::archive))
        .route("/vaults/{vault}/credentials/{credential}/mcp_oauth_validate", post(credentials::validate))
}

/// The routes into sandboxes: of sessions, and of any by its own name.
fn sandboxes() -> Router<App> {
    use wire::sandboxes::{handoff, transfer, upgrade};
    Router::new()
        .route("/sessions/{session}/sandboxes/{sandbox}/handoff", post(handoff::hand_off))
        .route("/sessions/{session}/sandboxes/{sandbox}/files", get(transfer::download).put(transfer::upload))
        .route(
            "/sessions/{session}/sandboxes/{sandbox}/archive",
            get(transfer::download_folder).put(transfer::upload_folder),
        )
        .route("/sessions/{session}/sandboxes/{sandbox}/terminal", get(upgrade::terminal))
        .route("/sessions/{session}/sandboxes/{sandbox}/ports/{port}", get(upgrade::port).post(upgrade::port_link))
        .route("/sandboxes/{sandbox}/files", get(transfer::download).put(transfer::upload))
        .route("/sandboxes/{sandbox}/archive", get(transfer::download_folder).put(transfer::upload_folder))
        .route("/sandboxes/{sandbox}/terminal", get(upgrade::terminal))
        .route("/sandboxes/{sandbox}/ports/{port}", get(upgrade::port).post(upgrade::port_link))
}

/// The routes of the work of self-hosted environments.
fn work() -> Router<App> {
    use wire::work;
    Router::new()
        .route("/environments/{environment}/work", get(work::list))
        .route("/environments/{environment}/work/poll", get(work::poll))
        .route("/environments/{environment}/work/stats", get(work::stats))
        .route("/environments/{environment}/work/{work}", get(work::retrieve).post(work::update))
        .route("/environments/{environment}/work/{work}/ack", post(work::ack))
        .route("/environments/{environment}/work/{work}/heartbeat", post(work::heartbeat))
        .route("/environments/{environment}/work/{work}/stop", post(work::stop))
}
