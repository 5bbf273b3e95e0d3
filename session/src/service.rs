//! The process: what is started, in which order, and how it ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use longhand_sandbox::client::SandboxClient;
use longhand_sandbox::token::{KeyError, Signer};
use longhand_session_log::StoreError;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use tokio::net::TcpListener;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{App, Waits};
use crate::auth::Auth;
use crate::config::Config;
use crate::execute::sandboxes::SandboxIndex;
use crate::execute::{Executor, Limits};
use crate::health::{self, Health};
use crate::metrics;
use crate::resources::Cluster;
use crate::server::serve;

const SIGNING_KEY: &str = "signing-key";
const UPKEEP: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Requests that wait for a tool call are answered after it was let go.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no way to the Kubernetes API.
    #[error("the Kubernetes API cannot be spoken to: {0}")]
    Kube(Box<kube::Error>),
    /// The metrics cannot be set up.
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The shared key is not one.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The log cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Serves until `stop`, then lets what runs come to an end.
///
/// # Errors
/// See [`StartError`]. What is only away for now is waited for.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), StartError> {
    let end = CancellationToken::new();
    let tasks = TaskTracker::new();
    let sandboxes = Arc::new(SandboxIndex::default());
    let health = Arc::new(Health {
        store: OnceLock::new(),
        key_published: AtomicBool::new(false),
        sandboxes: Arc::clone(&sandboxes),
        stop: stop.clone(),
        metrics: metrics::install()?,
    });
    let listener = listen(config.health_listen).await?;
    tasks.spawn(serve(listener, health::router(Arc::clone(&health)), end.clone(), Duration::ZERO));
    tasks.spawn(keep_up(Arc::clone(&health), end.clone()));
    let served = start_and_serve(config, &health, sandboxes, &tasks, &stop, &end).await;
    end.cancel();
    tasks.close();
    tasks.wait().await;
    served
}

async fn start_and_serve(
    config: Config,
    health: &Arc<Health>,
    sandboxes: Arc<SandboxIndex>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    end: &CancellationToken,
) -> Result<(), StartError> {
    let client = kube::Client::try_default().await.map_err(|error| StartError::Kube(Box::new(error)))?;
    let cluster = Cluster::new(client);
    let Some(opened) = stop.run_until_cancelled(open(&config.etcd_endpoints)).await else { return Ok(()) };
    let (store, signer) = opened?;
    health.store.get_or_init(|| store.clone());
    let watch = cluster.watch_sandboxes();
    let index = Arc::clone(&sandboxes);
    let ended = end.clone();
    tasks.spawn(async move { ended.run_until_cancelled(index.follow(watch)).await });
    tasks.spawn(publish(cluster.clone(), config.namespace, signer.public_key(), Arc::clone(health), end.clone()));

    let cluster = Arc::new(cluster);
    let store = Arc::new(store);
    let executor = Arc::new(Executor::new(
        store.clone(),
        cluster.clone(),
        sandboxes,
        SandboxClient::new(signer),
        Limits::default(),
    ));
    let operator = &config.operator_service_account;
    let app = App::new(
        store,
        cluster.clone(),
        Auth::new(cluster),
        Arc::clone(&executor),
        (&operator.namespace, &operator.name),
        Waits::default(),
        stop.clone(),
    );
    let listener = listen(config.listen).await?;
    tracing::info!(address = %config.listen, "serving");
    let grace = Duration::from_secs(config.grace_seconds.into());
    let serving = serve(listener, app.router(), stop.clone(), grace + LAST_ANSWERS);
    let stopping = async {
        stop.cancelled().await;
        tracing::info!("stopping");
        executor.stop(grace).await;
    };
    tokio::join!(serving, stopping);
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// Opens the log and fetches the key that the replicas share, or makes it. Waits while etcd is away.
async fn open(endpoints: &[String]) -> Result<(EtcdStore, Signer), StartError> {
    let mut pause = FIRST_PAUSE;
    let store = EtcdStore::connect(endpoints, EtcdOptions::default()).await?;
    let (_, candidate) = Signer::generate()?;
    loop {
        match store.get_or_create(SIGNING_KEY, candidate.as_bytes()).await {
            Ok(key) => return Ok((store, Signer::from_pem(&String::from_utf8_lossy(&key))?)),
            Err(StoreError::Unavailable(reason)) => {
                tracing::warn!(reason, "waiting for etcd");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Publishes the verify key, as often as it takes.
async fn publish(cluster: Cluster, namespace: String, key: String, health: Arc<Health>, end: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    let publish = async {
        while let Err(error) = cluster.publish_verify_key(&namespace, &key).await {
            tracing::warn!(%error, "the verify key could not be published");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        health.key_published.store(true, Ordering::Relaxed);
        tracing::info!("the verify key is published");
    };
    end.run_until_cancelled(publish).await;
}

/// Histograms are drained from time to time, also when nobody scrapes.
async fn keep_up(health: Arc<Health>, end: CancellationToken) {
    let mut ticks = interval(UPKEEP);
    let upkeep = async {
        loop {
            ticks.tick().await;
            health.metrics.run_upkeep();
        }
    };
    end.run_until_cancelled(upkeep).await;
}
