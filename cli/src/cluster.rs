//! The cluster of the kubeconfig.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::client::retry::RetryPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

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
        let client = client(config)
            .map_err(|source| Error::Kube { doing: "set up the client".to_owned(), source: Box::new(source) })?;
        Ok(Self { client, namespace })
    }
}

/// A client that sends what it is given at once.
///
/// What goes through a port-forward or a terminal is a few bytes at a time in one direction. [`Client::try_from`] leaves it to
/// the kernel to wait with each for the confirmation of the one before, for which the other side takes 40 ms.
///
/// # Errors
/// When the credentials or authorities of `config` cannot be used.
pub fn client(config: Config) -> std::result::Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // That there is a way through a proxy, or none, is the library's to say.
        return Client::try_from(config);
    }
    let https = config.rustls_https_connector_with_connector(connector(&config))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then_some(RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https));
    Ok(Client::new(service, config.default_namespace))
}

fn connector(config: &Config) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use kube::Config;
    use tokio::net::TcpListener;
    use tower::Service as _;

    use super::{client, connector};

    #[tokio::test]
    async fn small_pieces_are_sent_at_once() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url: http::Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let connected = connector(&Config::new(url.clone())).call(url).await.unwrap();
        assert!(connected.inner().nodelay().unwrap());
    }

    #[tokio::test]
    async fn the_version_is_asked_for_at_the_url_of_the_cluster() {
        // Another provider that is installed already would do as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut config = Config::new(url);
        config.auth_info.token = Some("a-token".to_owned().into());
        config.root_cert = Some(Vec::new());
        let client = client(config).unwrap();
        let answer = async {
            let (mut stream, _) = listener.accept().await?;
            let mut head = vec![0; 4096];
            let size = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await?;
            let body = r#"{"major":"1","minor":"33","gitVersion":"v1","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await?;
            std::io::Result::Ok(String::from_utf8_lossy(&head[..size]).to_lowercase())
        };
        let (version, head) = tokio::join!(client.apiserver_version(), answer);
        assert_eq!(version.unwrap().minor, "33");
        let head = head.unwrap();
        assert!(head.starts_with("get /version http/1.1") && head.contains("authorization: bearer a-token"), "{head}");
    }
}
