//! The process: what is started, in which order, and how it ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use hyper_util::service::TowerToHyperService;
use longhand_process::http::{Limits as Connections, Listener};
use longhand_process::listen::bind;
use longhand_process::tls::{Certificate, CertificateError};
use longhand_protocol::client::TokenSource;
use longhand_sandbox::client::SandboxClient;
use longhand_sandbox::token::{KeyError, Signer};
use longhand_session_log::StoreError;
use longhand_session_log::etcd::{EtcdFlags, EtcdOptions, ShardedStore};
use longhand_session_log::objects::{DEADLINE, Objects, ObjectsError};
use longhand_session_log::wake::WakeWatch;
use longhand_session_log::work::Work;
use tokio::net::TcpListener;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{App, Kinds, Settings, Waits};
use crate::auth::{Auth, WorkerTokens};
use crate::config::Config;
use crate::execute::sandboxes::SandboxIndex;
use crate::execute::{Egress, Executor, Hosted, Limits as CallLimits};
use crate::health::{self, Health};
use crate::jobs::{self, Alarm, FileJobs, Jobs, Namespaces, ShardAlarm};
use crate::metrics;
use crate::ports::Ports;
use crate::ports::pass::Passes;
use crate::previews::Addressing;
use crate::resources::{Cluster, Published};
use crate::restore;
use crate::serving::{self, Ending};
use crate::warm;

const SIGNING_KEY: &str = "signing-key";
const UPKEEP: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Whether there is another authority.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
const PROBES: usize = 256;
const PEERS: usize = 256;

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
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There is no way to the Kubernetes API.
    #[error("the Kubernetes API cannot be spoken to: {0}")]
    Kube(Box<kube::Error>),
    /// The metrics cannot be set up.
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The shared key is not one.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The place for old events cannot be used.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// The log cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Serves until `stop`, then lets what runs come to an end.
///
/// # Errors
/// See [`StartError`]. What is only away for now is waited for.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), StartError> {
    if config.raise_epochs {
        let store = ShardedStore::connect(&config.etcd.etcd_endpoints, &config.etcd.options()).await?;
        store.check().await?;
        let sessions = restore::raise_epochs(&store).await?;
        tracing::info!(sessions, "every epoch is raised: the service may be started");
        return Ok(());
    }
    let end = CancellationToken::new();
    let tasks = TaskTracker::new();
    let sandboxes = Arc::new(SandboxIndex::default());
    let health = Arc::new(Health {
        store: OnceLock::new(),
        key_published: AtomicBool::new(false),
        sandboxes: Arc::clone(&sandboxes),
        alarm: Arc::new(Alarm::default()),
        stop: stop.clone(),
        metrics: metrics::install()?,
    });
    let probes = Listener::plain(listen(config.health_listen).await?);
    let limits = Connections { connections: PROBES, grace: Duration::ZERO, ..Connections::default() };
    tasks.spawn(probes.serve(service(health::router(Arc::clone(&health))), limits, end.clone()));
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
    let certificate = certificate(&config, tasks, end).await?;
    let client = kube::Client::try_default().await.map_err(|error| StartError::Kube(Box::new(error)))?;
    let cluster = Cluster::new(client, config.accounts.scope());
    let objects = config.jobs.objects_url.as_deref().map(|url| Objects::open(url, DEADLINE)).transpose()?;
    let options = EtcdOptions { objects, caps: config.sizes.caps(), ..config.etcd.options() };
    let opening = open(&config.etcd, &options, &config.etcd_wake_readers);
    let Some(opened) = stop.run_until_cancelled(opening).await else { return Ok(()) };
    let (store, signer) = opened?;
    health.store.get_or_init(|| store.clone());
    let about = config.jobs.deployment.clone().map(|deployment| (config.namespace.clone(), deployment));
    for (shard, shard_store) in store.shards().iter().enumerate() {
        let alarm = ShardAlarm { all: Arc::clone(&health.alarm), shard };
        let about = about.clone().map(|about| (cluster.clone(), about));
        tasks.spawn(jobs::watch(shard_store.clone(), alarm.clone(), about.clone(), end.clone()));
        // What belongs to no session is on the first.
        let first = shard == 0;
        let namespaces = first.then(|| Namespaces::new(store.clone(), config.sizes, about));
        let requests = first.then(|| store.requests());
        let files = first.then(|| FileJobs::new(store.files(), cluster.clone()));
        let jobs = Jobs { store: shard_store.clone(), config: config.jobs.clone(), alarm, namespaces, files, requests };
        tasks.spawn(jobs.run(end.clone()));
    }
    let watch = cluster.watch_sandboxes();
    let index = Arc::clone(&sandboxes);
    let ended = end.clone();
    tasks.spawn(async move { ended.run_until_cancelled(index.follow(watch)).await });
    let ended = end.clone();
    let publishing =
        publish(cluster.clone(), config.namespace, signer.public_key(), config.tls_ca_file.clone(), Arc::clone(health));
    tasks.spawn(async move { ended.run_until_cancelled(publishing).await });

    let agents = cluster.watch_agents();
    let wakes = WakeWatch::connect(&config.etcd.etcd_endpoints, &config.etcd.options()).await?;

    let cluster = Arc::new(cluster);
    let store = Arc::new(store);
    let workers = WorkerTokens::new(signer.clone())?;
    let passes = Passes::new(signer.clone())?;
    let ports = config.ports_url.map(|domain| Ports { domain, passes });
    let hosted = Hosted::new(Work::new(Arc::new(store.work())), cluster.clone(), cluster.clone());
    let egress = Egress::new(&cluster, signer.clone());
    let executor = Executor::new(
        store.clone(),
        cluster.clone(),
        sandboxes,
        hosted,
        SandboxClient::new(signer),
        CallLimits { namespace_sandboxes: config.namespace_max_sandboxes, ..CallLimits::default() },
    );
    let files = store.files();
    let executor = Arc::new(executor.with_egress(egress).with_files(files.clone()));
    let (default_model, scope) = (config.default_model.model(), config.accounts.scope());
    let requests = Arc::new(store.requests());
    let app = App::new(
        store,
        requests,
        files,
        Kinds::of(&cluster),
        Auth::new(cluster, workers).within(scope),
        executor,
        &Settings {
            accounts: config.accounts,
            rates: config.rates,
            sizes: config.sizes,
            default_model,
            waits: Waits { deletion: config.jobs.keep_deleted(), ..Waits::default() },
        },
        ports,
        CancellationToken::new(),
    );
    let (ready, ended) = (app.clone(), end.clone());
    tasks.spawn(async move { ended.run_until_cancelled(ready.warm.pods().follow(agents)).await });
    let (ready, ended) = (app.clone(), end.clone());
    tasks.spawn(async move { ended.run_until_cancelled(warm::follow_wakes(&ready, wakes.stream())).await });
    let listener = secured(listen(config.listen).await?, certificate.as_ref());
    if let (Some(url), Some(own)) = (config.peers.peers_url, config.peers.pod_ip) {
        let token = TokenSource::file(config.peers.token_file);
        let addressing = Addressing { url, own, token, authority_file: config.tls_ca_file };
        let (app, ended) = (app.clone(), end.clone());
        let listener = secured(listen(config.peers.peer_listen).await?, certificate.as_ref());
        let limits = Connections { connections: PEERS, grace: Duration::ZERO, ..Connections::default() };
        tasks.spawn(listener.serve(service(app.clone().peer_router()), limits, end.clone()));
        tasks.spawn(async move { ended.run_until_cancelled(app.previews.reach_peers(addressing)).await });
    }
    tracing::info!(address = %config.listen, tls = certificate.is_some(), "serving");
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let ending = Ending { drain: seconds(config.drain_seconds), grace: seconds(config.grace_seconds) };
    serving::serve(listener, app, stop, ending).await;
    Ok(())
}

fn secured(listener: TcpListener, certificate: Option<&Certificate>) -> Listener {
    match certificate {
        Some(certificate) => Listener::tls(listener, certificate),
        None => Listener::plain(listener),
    }
}

fn service(router: Router) -> TowerToHyperService<Router> {
    TowerToHyperService::new(router)
}

/// The certificate of the files, which is kept current until `end`.
async fn certificate(
    config: &Config,
    tasks: &TaskTracker,
    end: &CancellationToken,
) -> Result<Option<Certificate>, StartError> {
    let (Some(certificate), Some(key)) = (&config.tls_cert_file, &config.tls_key_file) else { return Ok(None) };
    let certificate = Certificate::load(certificate.clone(), key.clone()).await?;
    let (following, end) = (certificate.clone().follow(), end.clone());
    tasks.spawn(async move { end.run_until_cancelled(following).await });
    Ok(Some(certificate))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// Opens the log and fetches the key that the replicas share, or makes it. Waits while etcd is away.
async fn open(
    etcd: &EtcdFlags,
    options: &EtcdOptions,
    wake_readers: &[String],
) -> Result<(ShardedStore, Signer), StartError> {
    let mut pause = FIRST_PAUSE;
    let store = ShardedStore::connect(&etcd.etcd_endpoints, options).await?;
    let (_, candidate) = Signer::generate()?;
    loop {
        let key = match prepare(&store, wake_readers).await {
            Ok(()) => store.get_or_create(SIGNING_KEY, candidate.as_bytes()).await,
            Err(error) => Err(error),
        };
        match key {
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

/// Has etcd know its users, if they are ours to make, and checks that each cluster is in its place.
async fn prepare(store: &ShardedStore, wake_readers: &[String]) -> Result<(), StoreError> {
    if !wake_readers.is_empty() {
        for shard in store.shards() {
            shard.require_users(wake_readers).await?;
        }
    }
    store.check().await
}

/// Publishes what others need to know, as often as it takes, and again when the authority changes.
async fn publish(cluster: Cluster, namespace: String, key: String, authority: Option<PathBuf>, health: Arc<Health>) {
    let mut pause = FIRST_PAUSE;
    let mut last = None;
    loop {
        let authority = match &authority {
            None => Ok(None),
            Some(path) => tokio::fs::read_to_string(path).await.map(Some),
        };
        let outcome = match authority {
            Err(error) => Err(error.to_string()),
            Ok(authority) => {
                let published = Published { verify_key: key.clone(), authority };
                if last.as_ref() == Some(&published) {
                    sleep(LOOK_AGAIN).await;
                    continue;
                }
                let done = cluster.publish(&namespace, &published).await;
                done.map(|()| last = Some(published)).map_err(|error| error.to_string())
            }
        };
        match outcome {
            Ok(()) => {
                health.key_published.store(true, Ordering::Relaxed);
                pause = FIRST_PAUSE;
                tracing::info!("the verify key and the authority are published");
            }
            Err(error) => {
                tracing::warn!(error, "the verify key and the authority could not be published");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
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
