//! The operator: reconciles the five kinds of `longhand.dev`.
//!
//! One folder a kind, each `observe` (reads) -> `plan` (pure) -> `apply` (the only writer of children) -> `status` (written
//! once, on every path). Only the replica that holds the lease runs controllers. A pod is recognised by its owner's UID
//! and has a name that follows from the status, so that a reconcile may be repeated, or done by two replicas at once.

pub mod agent;
pub mod agent_session;
mod authorities;
pub mod calls;
pub mod conditions;
pub mod config;
pub mod context;
pub mod drive;
pub mod error;
pub mod events;
mod hardening;
pub mod health;
pub mod injection;
pub mod leader;
pub mod lists;
pub mod log_service;
pub mod metrics;
mod no_proxy;
pub mod nodes;
mod owned_pods;
mod pod_reports;
pub mod pods;
pub mod sandbox;
pub mod sandbox_template;
pub mod shutdown;
pub mod status;
pub mod term;
pub mod vault;
pub mod wakes;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use kube::Client;
use longhand_protocol::client::{InternalClient, TokenSource};
use metrics_exporter_prometheus::PrometheusHandle;
use reqwest::Url;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authorities::Authorities;
use crate::config::{Config, Fencing, Images};
use crate::context::Context;
use crate::events::Events;
use crate::health::Health;
use crate::injection::Injection;
use crate::leader::Elector;
use crate::nodes::Nodes;

/// Under this name the operator owns fields of what it writes.
pub const MANAGER: &str = "longhand-operator";

/// Why the operator cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// There is no usable access to a cluster.
    #[error("cannot set up the Kubernetes client: {0}")]
    Kubernetes(#[source] Box<kube::Error>),
    /// The session service's address cannot be used.
    #[error("cannot set up the client of the session service: {0}")]
    SessionService(#[source] Box<longhand_protocol::client::Error>),
    /// An etcd endpoint cannot be used.
    #[error("cannot set up the watch of wake keys: {0}")]
    Etcd(#[from] longhand_session_log::StoreError),
    /// The HTTP client for credential proxies cannot be set up.
    #[error("cannot set up the client of credential proxies: {0}")]
    Proxies(#[from] reqwest::Error),
    /// The authorities that the session service is known by cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Authorities {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There are other authorities now.
    #[error("the session service is known by another authority now: start again to trust it")]
    AuthoritiesChanged,
    /// Probes and metrics cannot be served.
    #[error("cannot serve probes and metrics on {address}: {source}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Controllers ended although nobody told them to, or did not end when they were told to.
    #[error("{0}")]
    Controllers(&'static str),
}

/// Runs until `token` is cancelled.
///
/// # Errors
/// [`Fatal`], after which only a restart helps.
pub async fn run(config: Config, metrics: PrometheusHandle, token: CancellationToken) -> Result<(), Fatal> {
    let client = Client::try_default().await.map_err(|error| Fatal::Kubernetes(Box::new(error)))?;
    let authorities = Authorities::read(config.session_ca_file.as_deref()).await?;
    let log = InternalClient::new(authorities.server(&config.session_url), TokenSource::file(&config.token_file))
        .map_err(|error| Fatal::SessionService(Box::new(error)))?;
    let context = Arc::new(Context {
        log: Arc::new(log),
        events: Events::new(client.clone(), &config.identity),
        scope: config.scope(),
        namespace: config.namespace.clone(),
        session_url: without_root(&config.session_url),
        session_ca: authorities.pem().map(ToOwned::to_owned),
        images: images(&config, &client).await,
        fencing: fencing(&config).await,
        way_out: config.way_out.clone(),
        tracing: config.tracing.clone(),
        default_model: config.default_model.model(),
        nodes: Nodes::new(client.clone()),
        client: client.clone(),
    });
    let health = Health::default();
    let tasks = TaskTracker::new();
    // Probes and metrics outlive the controllers, which take a moment to end.
    let serving = CancellationToken::new();
    tasks.spawn(metrics::upkeep(metrics.clone(), serving.clone()));
    let served = tasks.spawn(health::serve(config.listen, health.clone(), metrics, serving.clone()));
    let mut elector = Elector::new(client, &config.namespace, &config.lease_name, &config.identity, health);
    let result = tokio::select! {
        result = term::serve_terms(&config, &context, &mut elector, &token) => result,
        () = authorities.changed() => Err(Fatal::AuthoritiesChanged),
        served = served => Err(Fatal::Listen { address: config.listen, source: listen_error(served) }),
    };
    serving.cancel();
    tasks.close();
    tasks.wait().await;
    result
}

/// A URL whose host does not end with a dot. Certificates are for names without it, which some TLS libraries take literally.
fn without_root(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return url.to_owned() };
    let host = url.host_str().and_then(|host| host.strip_suffix('.')).map(ToOwned::to_owned);
    if let Some(host) = host {
        // A host without its last dot is one.
        let _ = url.set_host(Some(&host));
    }
    url.as_str().trim_end_matches('/').to_owned()
}

/// What pods are made of, on this cluster.
async fn images(config: &Config, client: &Client) -> Images {
    let mut images = config.images.clone();
    if images.injection.is_none() {
        images.injection = Some(Injection::detect(client).await);
    }
    images
}

/// What sandboxes must not reach, as far as it can be found out here.
async fn fencing(config: &Config) -> Fencing {
    let variable = |name| std::env::var(name).ok();
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"));
    let resolv = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
    config.fencing.detected(host.as_deref(), port.as_deref(), &resolv)
}

fn listen_error(served: Result<std::io::Result<()>, tokio::task::JoinError>) -> std::io::Error {
    match served {
        Ok(Err(error)) => error,
        Ok(Ok(())) => std::io::Error::other("the listener ended"),
        Err(error) => std::io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    #[rstest]
    #[case("https://s.ns.svc.cluster.local.:8080", "https://s.ns.svc.cluster.local:8080")]
    #[case("http://s.ns.svc:8080/", "http://s.ns.svc:8080")]
    #[case("http://10.0.0.1:8080", "http://10.0.0.1:8080")]
    fn a_url_for_any_tls_library(#[case] url: &str, #[case] expected: &str) {
        assert_eq!(super::without_root(url), expected);
    }
}
