//! A network on loopback.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use longhand_protocol::egress::{CredentialEvent, CredentialEvents, CredentialOutcome};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

pub(super) use crate::testing::within;
use crate::{
    audit::{Audit, Report, ReportError},
    egress::{
        serve::{self, EgressProxy},
        testing::{FakeSockets, HARNESS, TokenMaker, checked, egress, parse},
    },
    intercept::bodies::BoxError,
    upstream::tls_config_with,
};

/// With everything that an encoder may change.
pub(super) const SECRET: &str = "gh-s3cr/t+\"v\\l<ue>&= 1";
pub(super) const HOST: &str = "git.example";
/// Real programs on a busy machine.
const PROGRAM: Duration = Duration::from_secs(60);

pub(super) type Reply = Response<UnsyncBoxBody<Bytes, BoxError>>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Reply> + Send + Sync>;

pub(super) fn reply(body: impl Into<Bytes>) -> Reply {
    Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync())
}

/// Events as the session service would take them.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<CredentialEvent>>>);

impl Report for Recorder {
    fn report<'a>(&'a self, events: &'a CredentialEvents) -> BoxFuture<'a, Result<(), ReportError>> {
        Box::pin(async move {
            checked(events)?;
            self.0.lock().unwrap().extend(events.events.iter().cloned());
            Ok(())
        })
    }
}

pub(super) struct World {
    pub(super) files: TempDir,
    pub(super) egress: Arc<EgressProxy>,
    relay: SocketAddr,
    ca_pem: String,
    events: Recorder,
    _tasks: JoinSet<()>,
}

impl World {
    /// A sandbox with the credential `team/one` for [`HOST`], and an upstream that answers with `handler`.
    pub(super) async fn new<F>(handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        Self::with(|_| {}, &[b"h2", b"http/1.1"], handler).await
    }

    pub(super) async fn with<F>(
        change: impl FnOnce(&mut Value),
        protocols: &[&[u8]],
        handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let files = tempfile::tempdir().unwrap();
        let secret = files.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let mut tasks = JoinSet::new();
        let (upstream, roots) = serve_tls(&mut tasks, protocols, Arc::new(move |request| Box::pin(handler(request))));

        let maker = TokenMaker::new();
        let bindings = json!([{"name": "one", "hosts": [HOST], "file": secret}]);
        let mut config = egress(&maker.public_key(), &json!({"default": {}}), &bindings);
        change(&mut config);
        let sockets = FakeSockets::default().name(HOST, &[&["8.8.8.8"]]).server("8.8.8.8", upstream);
        let tls = Arc::new(tls_config_with(roots).unwrap());
        let audit = Audit::default();
        let proxy = EgressProxy::new(parse(&config), HARNESS, Arc::new(sockets), tls, audit.clone());
        let proxy = Arc::new(proxy.unwrap());
        let events = Recorder::default();
        let recorder = events.clone();
        tasks.spawn(async move { audit.run(&recorder, CancellationToken::new()).await });
        let ca_pem = proxy.ca_pem().to_owned();
        std::fs::write(files.path().join("ca.pem"), &ca_pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(serve::serve(listener, proxy.clone(), CancellationToken::new(), Duration::ZERO));
        let relay = relay(&mut tasks, address, maker.token(|_| {})).await;
        Self { files, egress: proxy, relay, ca_pem, events, _tasks: tasks }
    }

    /// What stands for `team/one`.
    pub(super) fn placeholder() -> String {
        longhand_protocol::egress::Seed::from([7; 32]).placeholder("team", "one")
    }

    pub(super) fn rotate(&self, value: &str) {
        std::fs::write(self.files.path().join("secret"), value).unwrap();
    }

    /// Where programs in the sandbox send their requests.
    pub(super) fn proxy(&self) -> String {
        format!("http://{}", self.relay)
    }

    pub(super) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let ca = self.files.path().join("ca.pem");
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HTTPS_PROXY", self.proxy()).env("HOME", self.files.path());
        for name in ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"] {
            command.env(name, &ca);
        }
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs a program to its end.
    pub(super) async fn run(&self, program: &str, arguments: &[&str]) -> Output {
        tokio::time::timeout(PROGRAM, self.command(program, arguments).output()).await.unwrap().unwrap()
    }

    /// What curl shows: the status, and the body.
    pub(super) async fn curl(&self, arguments: &[&str]) -> (String, String) {
        let mut all = vec!["--silent", "--show-error", "--write-out", "%{stderr}%{http_code}"];
        all.extend(arguments);
        let output = self.run("curl", &all).await;
        (String::from_utf8(output.stderr).unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A TLS connection through the proxy, for a host that TLS is asked for by another name.
    pub(super) async fn tls(&self, connect: &str, sni: &str) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls_for(connect, sni, b"http/1.1").await
    }

    /// The same, for one protocol.
    pub(super) async fn tls_for(
        &self,
        connect: &str,
        sni: &str,
        protocol: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut tcp = TcpStream::connect(self.relay).await?;
        tcp.write_all(format!("CONNECT {connect}:443 HTTP/1.1\r\nHost: {connect}:443\r\n\r\n").as_bytes()).await?;
        let head = read_head(&mut tcp).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut roots = RootCertStore::empty();
        let pem = pem_body(&self.ca_pem);
        roots.add(pem.into()).unwrap();
        let mut config: ClientConfig = tls_config_with(roots).unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        within(TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(sni.to_owned()).unwrap(), tcp)).await
    }

    /// Sends raw bytes through a tunnel, and gives what comes back until the end.
    pub(super) async fn raw(&self, request: &str) -> String {
        let mut tls = self.tls(HOST, HOST).await.unwrap();
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // An end without the alert of TLS is an end too.
        let _ = within(tls.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The refusals and uses so far, once there is one that fits.
    pub(super) async fn event(&self, outcome: CredentialOutcome, reason: &str) -> CredentialEvent {
        self.event_of(|event| event.outcome == outcome && event.reason.as_deref().unwrap_or_default().contains(reason))
            .await
    }

    /// The first event that fits, once there is one.
    pub(super) async fn event_of(&self, fits: impl Fn(&CredentialEvent) -> bool) -> CredentialEvent {
        within(async {
            loop {
                if let Some(event) = self.events.0.lock().unwrap().iter().find(|event| fits(event)) {
                    return event.clone();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }
}

fn pem_body(pem: &str) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(lines).unwrap()
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    within(async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
    })
    .await;
    String::from_utf8(head).unwrap()
}

/// Adds the token to the first head of each connection, as `sandboxd` does.
async fn relay(tasks: &mut JoinSet<()>, proxy: SocketAddr, token: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let token = token.clone();
            connections.spawn(async move {
                let head = read_head(&mut client).await;
                let head = head.replacen("\r\n", &format!("\r\nProxy-Authorization: Bearer {token}\r\n"), 1);
                let mut server = TcpStream::connect(proxy).await.unwrap();
                server.write_all(head.as_bytes()).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

fn serve_tls(tasks: &mut JoinSet<()>, protocols: &[&[u8]], handler: Handler) -> (SocketAddr, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let mut connections = JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, handler) = (acceptor.clone(), handler.clone());
            connections.spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = service_fn(move |request| {
                    let answer = handler(request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let io = TokioIo::new(tls);
                if h2 {
                    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
                } else {
                    let _ = http1::Builder::new().serve_connection(io, service).with_upgrades().await;
                }
            });
        }
    });
    (address, roots)
}

pub(super) fn path(world: &World, name: &str) -> PathBuf {
    world.files.path().join(name)
}
