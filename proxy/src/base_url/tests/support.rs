//! A proxy between a client and an upstream that speak raw bytes, so that tests see exactly what goes over each wire.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(super) use crate::testing::{PATIENCE, SECRET, Wire, within};
use crate::{
    audit::Audit,
    base_url::{Proxy, serve},
    config::Config,
    egress::testing::Recorder,
    oauth,
    upstream::tls_config_with,
};

pub(super) const TOKEN: &str = "session-token-51d2";

/// A proxy that runs, its files, and the upstream it points to.
pub(super) struct Running {
    pub(super) proxy: Arc<Proxy>,
    pub(super) address: SocketAddr,
    pub(super) upstream: TcpListener,
    pub(super) shutdown: CancellationToken,
    pub(super) task: JoinHandle<()>,
    files: TempDir,
}

/// Changes the route, or puts a list of routes in its place; gets the upstream's port.
type Change = Box<dyn FnOnce(&mut Value, u16)>;

pub(super) struct Options {
    /// Changes the route, or puts a list of routes in its place; gets the upstream's port.
    pub(super) change: Change,
    /// What the configuration has besides the route.
    pub(super) more: Value,
    pub(super) tls: ClientConfig,
    pub(super) service: Option<Arc<dyn oauth::service::Service>>,
    /// Where uses and refusals are put on record, if it is known of which session they are.
    pub(super) log: Option<Arc<Recorder>>,
    pub(super) grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let tls = tls_config_with(RootCertStore::empty()).unwrap();
        Self { change: Box::new(|_, _| {}), more: json!({}), tls, service: None, log: None, grace: PATIENCE }
    }
}

impl Running {
    pub(super) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(super) async fn changed(change: fn(&mut Value, u16)) -> Self {
        Self::with(Options { change: Box::new(change), ..Options::default() }).await
    }

    pub(super) async fn with(options: Options) -> Self {
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = upstream.local_addr().unwrap().port();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("key"), format!("{SECRET}\n")).unwrap();
        std::fs::write(files.path().join("token"), TOKEN).unwrap();
        let mut route = json!({
            "name": "model", "prefix": "/model", "upstream": format!("http://127.0.0.1:{port}/base"),
            "credential": {
                "name": "anthropic", "vault": "models", "file": files.path().join("key"),
                "placement": {"type": "header", "name": "x-api-key"},
                "allow": {
                    "scheme": "http", "hosts": ["127.0.0.1", "localhost"], "port": port, "allowPrivate": true,
                    "methods": ["POST", "GET"], "pathPrefixes": ["/base/v1/messages"],
                },
            },
        });
        (options.change)(&mut route, port);
        let mut config = options.more;
        config["routes"] = if route.is_array() { route } else { json!([route]) };
        let config = Config::parse(&config.to_string()).unwrap();
        let shutdown = CancellationToken::new();
        let audit = options.log.map(|log| {
            let (audit, until) = (Audit::default(), shutdown.clone());
            let running = audit.clone();
            tokio::spawn(async move { running.run(&log, until).await });
            audit
        });
        let (tls, token) = (Arc::new(options.tls), files.path().join("token"));
        let proxy = Arc::new(Proxy::new(config, token, &tls, options.service.as_ref(), audit));
        let listener = serve::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve(listener, proxy.clone(), shutdown.clone(), options.grace));
        Self { proxy, address, upstream, shutdown, task, files }
    }

    /// Stops the proxy, which closes its connections to the upstream.
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        within(self.task).await.unwrap();
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(super) async fn client(&self) -> Wire<TcpStream> {
        Wire::new(within(TcpStream::connect(self.address)).await.unwrap())
    }

    /// The next connection that the upstream gets.
    pub(super) async fn accept(&self) -> Wire<TcpStream> {
        Wire::new(within(self.upstream.accept()).await.unwrap().0)
    }

    /// Sends a request that the proxy answers itself, and proves that the upstream got no connection.
    pub(super) async fn refused(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.client().await;
        client.send(request).await;
        let answer = client.answer().await;
        let (mut probe, accepted) =
            tokio::join!(async { TcpStream::connect(self.upstream.local_addr().unwrap()).await.unwrap() }, async {
                within(self.upstream.accept()).await.unwrap().1
            });
        assert_eq!(accepted, probe.local_addr().unwrap(), "the upstream got a connection");
        probe.shutdown().await.unwrap();
        answer
    }
}

/// A request as a harness sends it.
pub(super) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:8081\r\nx-api-key: {TOKEN}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(super) fn post(path: &str) -> String {
    request("POST", path, "", "{}")
}
