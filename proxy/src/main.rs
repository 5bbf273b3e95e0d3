//! `proxy`: the credential-proxy sidecar.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use longhand_process::{listen, log, signals};
use longhand_protocol::{
    client::{self, HarnessClient, Server, TokenSource},
    egress::PORT,
};
use longhand_proxy::{
    audit::Audit,
    base_url::{self, Proxy, serve::BindError},
    config::{Config, ConfigError, Egress, Service},
    egress::{self, EgressProxy, dial::SystemSockets, serve::StartError},
    harden::harden,
    health, oauth,
    upstream::{TlsError, tls_config},
};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long streams in flight may go on after SIGTERM.
const GRACE: Duration = Duration::from_secs(30);
/// How long a client of the probes may take to go after that.
const PROBES_GRACE: Duration = Duration::from_secs(1);
/// How long what a provider gave may take to get into the vault after that.
const HAND_OVER: Duration = Duration::from_secs(8);
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
const BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Swaps a session token for real credentials, for the harness in the same pod.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The routes, in JSON.
    #[arg(long, env = "PROXY_CONFIG", hide_env_values = true)]
    config: String,
    /// The file with the session token that clients must present.
    #[arg(long, env = "SESSION_TOKEN_FILE")]
    session_token_file: PathBuf,
    /// Where to listen for the harness; loopback only.
    #[arg(long, env = "PROXY_LISTEN", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Where to listen for probes and metrics.
    #[arg(long, env = "PROXY_HEALTH_LISTEN", default_value = "[::]:8082")]
    health_listen: SocketAddr,
    /// The UID of this pod, which egress tokens name. Needed with egress.
    #[arg(long, env = "POD_UID")]
    pod_uid: Option<String>,
    /// The address of this pod, where the sandboxes are served. Needed with egress.
    #[arg(long, env = "POD_IP")]
    pod_ip: Option<IpAddr>,
    /// The port there.
    #[arg(long, env = "PROXY_EGRESS_PORT", default_value_t = PORT)]
    egress_port: u16,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot protect this process's memory: {0}")]
    Harden(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] BuildError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot listen for probes on {address}: {source}")]
    BindHealth { address: SocketAddr, source: io::Error },
    #[error("cannot serve probes: {0}")]
    Health(#[source] io::Error),
    #[error("there is egress in PROXY_CONFIG, but no {0}: set it from the pod's own fields")]
    NoPodField(&'static str),
    #[error(transparent)]
    Egress(#[from] StartError),
    #[error(transparent)]
    EgressBind(#[from] egress::serve::BindError),
    #[error("the session service: {0}")]
    Service(#[from] client::Error),
    #[error("cannot wait for signals: {0}")]
    Signal(#[source] io::Error),
}

// One thread: the work is passing bytes on, and a sidecar must be small.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    log::to_stderr();
    // The client of the session service takes the provider of the process; only an earlier one would be in the way.
    drop(rustls::crypto::ring::default_provider().install_default());
    match harden().map_err(Failure::Harden).map(|()| Args::parse()) {
        Ok(args) => match run(args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => fail(&failure),
        },
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    tracing::error!("{failure}");
    ExitCode::FAILURE
}

async fn run(args: Args) -> Result<(), Failure> {
    let config = Config::parse(&args.config)?;
    let log = config.log().as_ref().map(service).transpose()?;
    let audit = Audit::default();
    let sandboxes = match config.egress.clone() {
        Some(egress) => Some(Sandboxes::new(egress, &args, audit.clone()).await?),
        None => None,
    };
    let tls = Arc::new(tls_config(config.ca.as_deref())?);
    let refreshes = log.clone().filter(|_| config.service.is_some());
    let refreshes = refreshes.map(|service| service as Arc<dyn oauth::service::Service>);
    // Without a session there is no log that is the right one.
    let on_record = log.is_some().then(|| audit.clone());
    let proxy = Arc::new(Proxy::new(config, args.session_token_file, &tls, refreshes.as_ref(), on_record));
    let metrics = PrometheusBuilder::new().set_buckets(BUCKETS)?.install_recorder()?;
    let listener = base_url::serve::bind(args.listen).await?;
    let health_listener = listen::bind(args.health_listen)
        .await
        .map_err(|source| Failure::BindHealth { address: args.health_listen, source })?;
    let mut asked = signals::Stop::listen().map_err(Failure::Signal)?;

    let (shutdown, done) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let (upkeep, upkeep_done) = (metrics.clone(), done.clone());
    tasks.spawn(async move {
        let mut ticks = interval(METRICS_UPKEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while upkeep_done.run_until_cancelled(ticks.tick()).await.is_some() {
            upkeep.run_upkeep();
        }
    });
    let egress = sandboxes.as_ref().map(|sandboxes| sandboxes.proxy.clone());
    let router = health::router(proxy.clone(), egress, metrics, shutdown.clone());
    let probes = axum::serve(health_listener, router).with_graceful_shutdown(done.clone().cancelled_owned());
    let mut probes = tasks.spawn(probes.into_future());
    let harness_proxy = proxy.clone();
    let harness = base_url::serve(listener, proxy, shutdown.clone(), GRACE);
    if let Some(log) = log {
        let audit_done = done.clone();
        tasks.spawn(async move { audit.run(&*log, audit_done).await });
    }
    let mut serving = match sandboxes {
        None => tasks.spawn(harness),
        Some(Sandboxes { proxy, listener }) => {
            let sandboxes = egress::serve(listener, proxy, shutdown.clone(), GRACE);
            // Neither ends before the other is told to.
            tasks.spawn(async move { _ = tokio::join!(harness, sandboxes) })
        }
    };
    tracing::info!(address = %args.listen, probes = %args.health_listen, "serving");

    let outcome = tokio::select! {
        () = asked.asked() => Ok(()),
        ended = &mut probes => match ended {
            Ok(served) => served.map_err(Failure::Health),
            Err(panicked) => Err(Failure::Health(panicked.into())),
        },
        _ = &mut serving => Ok(()),
    };
    shutdown.cancel();
    if !serving.is_finished() && serving.await.is_err() {
        tracing::error!("a listener failed");
    }
    if timeout(HAND_OVER, harness_proxy.settled()).await.is_err() {
        tracing::error!("renewed access tokens are lost: the session service did not take them");
    }
    done.cancel();
    tasks.close();
    if !probes.is_finished() && timeout(PROBES_GRACE, &mut probes).await.is_err() {
        probes.abort();
    }
    // The rest ends by itself.
    tasks.wait().await;
    outcome
}

/// The session service, which has the log and keeps refreshed tokens.
fn service(service: &Service) -> Result<Arc<HarnessClient>, client::Error> {
    let Service { session, url, ca, token_file } = service;
    let server = Server::new(url);
    let server = match ca {
        Some(authorities) => server.trusting(authorities.as_str()),
        None => server,
    };
    HarnessClient::new(server, session.clone(), TokenSource::file(token_file)).map(Arc::new)
}

/// What the sandboxes of the session are served with.
struct Sandboxes {
    proxy: Arc<EgressProxy>,
    listener: TcpListener,
}

impl Sandboxes {
    async fn new(egress: Egress, args: &Args, audit: Audit) -> Result<Self, Failure> {
        let pod_uid = args.pod_uid.as_deref().ok_or(Failure::NoPodField("POD_UID"))?;
        let pod_ip = args.pod_ip.ok_or(Failure::NoPodField("POD_IP"))?;
        let tls = Arc::new(tls_config(egress.ca.as_deref())?);
        let proxy = Arc::new(EgressProxy::new(egress, pod_uid, Arc::new(SystemSockets), tls, audit)?);
        let listener = egress::serve::bind(SocketAddr::new(pod_ip, args.egress_port)).await?;
        tracing::info!(address = %pod_ip, port = args.egress_port, "serving sandboxes");
        Ok(Self { proxy, listener })
    }
}
