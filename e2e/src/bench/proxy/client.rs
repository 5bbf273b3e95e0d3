//! Clients: connections that are kept, each with one request at a time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::process::{BOUND, OPEN, Running, SESSION_TOKEN};
use super::server::{Server, head};
use crate::cluster::TestResult;

const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// 256 answers of 100 MiB take a while on a small machine.
const RUN_DEADLINE: Duration = Duration::from_secs(900);

/// How the server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Tunnel,
    Intercepted,
    BaseUrl,
}

impl Way {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Intercepted => "intercepted",
            Self::BaseUrl => "base URL",
        }
    }
}

/// What a run gave.
#[derive(Debug)]
pub(super) struct Outcome {
    /// How long each answer took, whole.
    pub(super) milliseconds: Vec<f64>,
    /// How long the run took.
    pub(super) seconds: f64,
}

/// What clients need to know.
#[derive(Clone)]
pub(super) struct Client {
    server: SocketAddr,
    base: SocketAddr,
    egress: SocketAddr,
    token: String,
    placeholder: String,
    /// Trusts the server.
    plain: TlsConnector,
    /// Trusts the proxy.
    intercepted: TlsConnector,
}

impl Client {
    pub(super) async fn new(server: &Server, proxy: &Running) -> TestResult<Self> {
        let authority = proxy.authority().await?;
        Ok(Self {
            server: server.address,
            base: proxy.base,
            egress: proxy.egress,
            token: proxy.token.clone(),
            placeholder: proxy.placeholder.clone(),
            plain: trusting(&server.pem)?,
            intercepted: trusting(&authority)?,
        })
    }

    /// Asks on `connections` at a time for answers of `size` bytes: each `most` times, or until `window` is over.
    pub(super) async fn run(
        &self,
        way: Way,
        size: usize,
        connections: usize,
        most: usize,
        window: Duration,
    ) -> TestResult<Outcome> {
        let (mut drivers, mut senders) = (JoinSet::new(), Vec::new());
        for _ in 0..connections {
            let mut sender = timeout(CONNECT_DEADLINE, self.connect(way, &mut drivers)).await??;
            // The first use of a credential waits to be on record, and connections begin slowly.
            ask(&mut sender, self.request(way, 1)?, 1).await?;
            senders.push(sender);
        }
        let begun = Instant::now();
        // A task each, so that the clients have every core that the server has.
        let mut workers = JoinSet::new();
        for mut sender in senders {
            let client = self.clone();
            workers.spawn(async move {
                let mut milliseconds = Vec::new();
                while milliseconds.len() < most && begun.elapsed() < window {
                    let asked = Instant::now();
                    ask(&mut sender, client.request(way, size)?, size).await?;
                    milliseconds.push(asked.elapsed().as_secs_f64() * 1_000.0);
                }
                TestResult::Ok(milliseconds)
            });
        }
        let mut all = Vec::new();
        while let Some(ended) = timeout(RUN_DEADLINE, workers.join_next()).await? {
            all.extend(ended??);
        }
        Ok(Outcome { milliseconds: all, seconds: begun.elapsed().as_secs_f64() })
    }

    fn request(&self, way: Way, size: usize) -> TestResult<Request<Empty<Bytes>>> {
        let request = match way {
            Way::Direct | Way::Tunnel => Request::get(format!("/{size}")).header("host", OPEN),
            Way::Intercepted => Request::get(format!("/{size}"))
                .header("host", BOUND)
                .header("authorization", format!("Bearer {}", self.placeholder)),
            Way::BaseUrl => Request::get(format!("/model/{size}"))
                .header("host", self.base.to_string())
                .header("authorization", format!("Bearer {SESSION_TOKEN}")),
        };
        Ok(request.body(Empty::new())?)
    }

    async fn connect(&self, way: Way, drivers: &mut JoinSet<()>) -> TestResult<SendRequest<Empty<Bytes>>> {
        match way {
            Way::BaseUrl => speak(tcp(self.base).await?, drivers).await,
            Way::Direct => speak(tls(&self.plain, OPEN, tcp(self.server).await?).await?, drivers).await,
            Way::Tunnel => {
                speak(tls(&self.plain, OPEN, tunnel(self.egress, &self.token, OPEN).await?).await?, drivers).await
            }
            Way::Intercepted => {
                let stream = tunnel(self.egress, &self.token, BOUND).await?;
                speak(tls(&self.intercepted, BOUND, stream).await?, drivers).await
            }
        }
    }
}

/// Fetches the authority of a proxy that has just started, and has it impersonate a host.
pub(super) async fn first_handshake(proxy: &Running) -> TestResult {
    let connector = trusting(&proxy.authority().await?)?;
    let stream = tunnel(proxy.egress, &proxy.token, BOUND).await?;
    timeout(CONNECT_DEADLINE, tls(&connector, BOUND, stream)).await??;
    Ok(())
}

fn trusting(pem: &str) -> TestResult<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()).into())
}

async fn tcp(address: SocketAddr) -> TestResult<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn tunnel(egress: SocketAddr, token: &str, host: &str) -> TestResult<TcpStream> {
    let mut stream = tcp(egress).await?;
    let request =
        format!("CONNECT {host}:443 HTTP/1.1\r\nhost: {host}:443\r\nproxy-authorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let answer = timeout(CONNECT_DEADLINE, head(&mut stream)).await??;
    if answer.starts_with("HTTP/1.1 200") { Ok(stream) } else { Err(format!("no tunnel to {host}: {answer}").into()) }
}

async fn tls(
    connector: &TlsConnector,
    host: &'static str,
    stream: TcpStream,
) -> TestResult<tokio_rustls::client::TlsStream<TcpStream>> {
    Ok(connector.connect(ServerName::try_from(host)?, stream).await?)
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    drivers: &mut JoinSet<()>,
) -> TestResult<SendRequest<Empty<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    drivers.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of the bench ended");
        }
    });
    Ok(sender)
}

/// Reads the answer whole, and looks that it is so long.
async fn ask(sender: &mut SendRequest<Empty<Bytes>>, request: Request<Empty<Bytes>>, size: usize) -> TestResult {
    sender.ready().await?;
    let mut response = sender.send_request(request).await?;
    let (status, mut count) = (response.status(), 0);
    while let Some(frame) = response.frame().await {
        count += frame?.data_ref().map_or(0, Bytes::len);
    }
    if status.is_success() && count == size {
        return Ok(());
    }
    Err(format!("{count} bytes with status {status} in place of {size}: {:?}", response.headers()).into())
}
