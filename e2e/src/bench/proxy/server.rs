//! What is behind the proxy: a server of TLS that answers with as many bytes as it is asked for, and takes CONNECT itself, so that
//! names lead to it without a resolver and without one more process in between; and the session service, as far as it takes reports.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::process::{BOUND, OPEN};
use crate::cluster::TestResult;

const CHUNK: usize = 64 * 1024;
const MAX_HEAD: usize = 4 * 1024;
static ZEROS: [u8; CHUNK] = [b'x'; CHUNK];

/// Both servers; they end when it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// The session service.
    pub(super) service: SocketAddr,
    /// The certificate of the server, in PEM.
    pub(super) pem: String,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start() -> TestResult<Self> {
        let names = [OPEN, BOUND, "127.0.0.1"].map(ToOwned::to_owned);
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let config =
            rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.der().clone()], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let reports = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let service = reports.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // They end with the listener.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    if let Err(error) = serve(stream, acceptor).await {
                        tracing::debug!(%error, "a connection of the bench ended");
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        tasks.spawn(async move {
            let router = Router::new().fallback(post(async || http::StatusCode::NO_CONTENT));
            if let Err(error) = axum::serve(reports, router).await {
                tracing::error!(%error, "reports are taken no more");
            }
        });
        Ok(Self { address, service, pem: cert.pem(), _tasks: tasks })
    }
}

async fn serve(mut stream: TcpStream, acceptor: TlsAcceptor) -> TestResult {
    stream.set_nodelay(true)?;
    let mut first = [0];
    // TLS begins with 22, CONNECT with a letter.
    if stream.peek(&mut first).await? == 1 && first[0] == b'C' {
        head(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    }
    let stream = TokioIo::new(acceptor.accept(stream).await?);
    let service = hyper::service::service_fn(async |request| Ok::<_, Infallible>(answer(&request)));
    hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await?;
    Ok(())
}

/// The head of a message, read byte by byte, since what follows is not of it.
pub(super) async fn head(stream: &mut TcpStream) -> TestResult<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err("a head without an end".into());
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}

/// `GET /<count>` is answered with so many bytes.
fn answer(request: &Request<Incoming>) -> Response<Filled> {
    let count = request.uri().path().rsplit('/').next().and_then(|count| count.parse().ok());
    let mut response = Response::new(Filled(count.unwrap_or(0)));
    if count.is_none() {
        *response.status_mut() = http::StatusCode::BAD_REQUEST;
    }
    response
}

/// So many bytes.
struct Filled(u64);

impl Body for Filled {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let count = usize::try_from(self.0).unwrap_or(CHUNK).min(CHUNK);
        self.0 -= count as u64;
        let bytes = Bytes::from_static(ZEROS.get(..count).unwrap_or_default());
        Poll::Ready((count > 0).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}
