//! The cluster of the kubeconfig.

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::args::Target;
use crate::error::{Error, Result};

/// For each request to the API server.
const DEADLINE: Duration = Duration::from_secs(20);

/// A client of the API server, and the namespace that is meant when none is named.
#[derive(Clone)]
pub struct Cluster {
    /// Speaks with the kubeconfig's credentials, to the API server only.
    pub client: Client,
    /// From `--namespace`, or the kubeconfig's context.
    pub namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig.
    ///
    /// # Errors
    /// When there is none, or the context is not in it.
    pub async fn connect(target: &Target) -> Result<Self> {
        let config = config(target).await.map_err(|error| Error::Kubeconfig(Box::new(error)))?;
        let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)
            .map_err(|source| Error::Kube { doing: "set up the client".to_owned(), source: Box::new(source) })?;
        Ok(Self { client, namespace })
    }
}

async fn config(target: &Target) -> std::result::Result<Config, kube::config::KubeconfigError> {
    let options = KubeConfigOptions { context: target.context.clone(), ..KubeConfigOptions::default() };
    match &target.kubeconfig {
        Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await,
        None => Config::from_kubeconfig(&options).await,
    }
}

/// A request to the API server within its deadline; `doing` completes "cannot ...".
///
/// # Errors
/// [`Error::Kube`] or [`Error::Timeout`].
pub async fn request<T>(
    doing: impl Into<String>,
    future: impl Future<Output = std::result::Result<T, kube::Error>>,
) -> Result<T> {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::Kube { doing: doing.into(), source: Box::new(source) }),
        Err(_) => Err(Error::Timeout { doing: doing.into(), after: DEADLINE }),
    }
}
