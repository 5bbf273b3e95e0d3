//! An egress proxy that runs, with a network without wires behind it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

pub(super) use crate::testing::{PATIENCE, Wire, within};
use crate::{
    audit::Audit,
    egress::{
        EgressProxy, serve,
        serve::bind,
        testing::{FakeSockets, HARNESS, Recorder, TokenMaker, egress, parse},
    },
    upstream::tls_config_with,
};

/// The address of the server on loopback, as names stand for it.
pub(super) const PUBLIC: &str = "8.8.4.4";

pub(super) struct Running {
    pub(super) address: SocketAddr,
    pub(super) tokens: TokenMaker,
    pub(super) sockets: Arc<FakeSockets>,
    pub(super) service: Arc<Recorder>,
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: Vec<JoinHandle<()>>,
}

/// What a proxy is started with.
pub(super) struct Options {
    pub(super) hosts: Value,
    pub(super) bindings: Value,
    pub(super) sockets: FakeSockets,
    /// Changes the egress section.
    pub(super) change: fn(&mut Value),
}

impl Options {
    /// A sandbox that may reach these hosts, and the network that they are in.
    pub(super) fn new(hosts: &[&str], sockets: FakeSockets) -> Self {
        Self { hosts: json!(hosts), bindings: json!([]), sockets, change: |_| {} }
    }
}

impl Running {
    pub(super) async fn start(options: Options) -> Self {
        let Options { hosts, bindings, sockets, change } = options;
        let (tokens, sockets, service) = (TokenMaker::new(), Arc::new(sockets), Arc::new(Recorder::default()));
        let mut section = egress(&tokens.public_key(), &json!({"default": {"hosts": hosts}}), &bindings);
        change(&mut section);
        let tls = Arc::new(tls_config_with(RootCertStore::empty()).unwrap());
        let audit = Audit::default();
        let proxy = EgressProxy::new(parse(&section), HARNESS, sockets.clone(), tls, audit.clone());
        let proxy = Arc::new(proxy.unwrap());
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (to, until) = (service.clone(), shutdown.clone());
        let tasks = vec![
            tokio::spawn(async move { audit.run(&to, until).await }),
            tokio::spawn(serve(listener, proxy, shutdown.clone(), PATIENCE)),
        ];
        Self { address, tokens, sockets, service, shutdown, tasks }
    }

    pub(super) fn token(&self) -> String {
        self.tokens.token(|_| {})
    }

    pub(super) async fn client(&self) -> Wire<TcpStream> {
        Wire::new(within(TcpStream::connect(self.address)).await.unwrap())
    }

    /// The answer to the only request of a connection, with a good token.
    pub(super) async fn ask(&self, method: &str, target: &str, headers: &str) -> String {
        let mut client = self.client().await;
        let token = self.token();
        let request = format!("{method} {target} HTTP/1.1\r\nproxy-authorization: Bearer {token}\r\n{headers}\r\n");
        client.send(request).await;
        client.message().await
    }

    /// A tunnel that is open, as far as the proxy has answered.
    pub(super) async fn tunnel(&self, authority: &str) -> TcpStream {
        let mut stream = within(TcpStream::connect(self.address)).await.unwrap();
        let token = self.token();
        let request = format!("CONNECT {authority} HTTP/1.1\r\nproxy-authorization: Bearer {token}\r\n\r\n");
        within(stream.write_all(request.as_bytes())).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within(stream.read_u8()).await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        stream
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            within(task).await.unwrap();
        }
    }
}

/// A server of TLS on loopback.
pub(super) struct TlsServer {
    pub(super) address: SocketAddr,
    pub(super) files: TempDir,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    certificate: CertificateDer<'static>,
}

impl TlsServer {
    pub(super) async fn start(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("ca.pem"), cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let certificate = cert.der().clone();
        Self { address, files, listener, acceptor: Arc::new(config).into(), certificate }
    }

    pub(super) fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        tls_config_with(roots).unwrap()
    }

    /// The next client.
    pub(super) async fn accept(&self) -> Wire<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        let (stream, _) = within(self.listener.accept()).await.unwrap();
        Wire::new(within(self.acceptor.accept(stream)).await.unwrap())
    }

    /// What the next client sends first; it is answered with `!`.
    pub(super) async fn accept_raw(&self, count: usize) -> Vec<u8> {
        let mut client = Wire::new(within(self.listener.accept()).await.unwrap().0);
        let sent = client.bytes(count).await;
        client.send("!").await;
        sent
    }

    /// How much the next client sends until it ends.
    pub(super) async fn bytes_of_next_client(&self) -> usize {
        Wire::new(within(self.listener.accept()).await.unwrap().0).raw_rest().await.len()
    }

    /// TLS to it over a connection.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        name: &str,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        within(TlsConnector::from(Arc::new(self.client())).connect(name, stream)).await
    }
}
