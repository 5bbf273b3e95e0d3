//! The server over real sockets, plain and over TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use longhand_process::http::{Limits, Listener};
use longhand_process::tls::{Certificate, CertificateError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);
const NAME: &str = "session.example";

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, folder: &Path) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    }

    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

async fn load(folder: &Path) -> Result<Certificate, CertificateError> {
    Certificate::load(folder.join("tls.crt"), folder.join("tls.key")).await
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from(request.uri().path().to_owned()))))
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn limits() -> Limits {
    Limits { head: Duration::from_secs(2), grace: Duration::from_secs(5), ..Limits::default() }
}

async fn ends(server: JoinHandle<()>) {
    timeout(SOON, server).await.expect("the server ends").unwrap();
}

/// What a server answers to one request, and the certificate that it showed.
async fn ask(address: SocketAddr, connector: &TlsConnector) -> std::io::Result<(String, CertificateDer<'static>)> {
    let stream = TcpStream::connect(address).await?;
    let mut stream = connector.connect(ServerName::try_from(NAME).unwrap(), stream).await?;
    stream.write_all(b"GET /over-tls HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((answer, shown))
}

#[tokio::test]
async fn a_certificate_is_renewed_while_connections_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(folder.path());
    let certificate = load(folder.path()).await.unwrap();
    let (listener, address) = listen().await;
    let close = CancellationToken::new();
    let server = tokio::spawn(Listener::tls(listener, &certificate).serve(service_fn(echo), limits(), close.clone()));

    // One for each connection, since a resumed one shows no certificate.
    let (answer, first) = ask(address, &authority.connector()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("/over-tls"), "{answer}");

    // Half a renewal is no certificate: the old one goes on.
    std::fs::write(folder.path().join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    certificate.refresh().await.unwrap_err();
    assert_eq!(ask(address, &authority.connector()).await.unwrap().1, first);

    authority.issue(folder.path());
    assert!(certificate.refresh().await.unwrap());
    assert!(!certificate.refresh().await.unwrap());
    assert_ne!(ask(address, &authority.connector()).await.unwrap().1, first);

    ask(address, &Authority::new().connector()).await.expect_err("another authority is not trusted");
    // Who speaks plain HTTP is not served, and does not disturb anybody.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let _ = timeout(SOON, plain.read_to_end(&mut bytes)).await.expect("it is closed");
    assert!(!bytes.starts_with(b"HTTP"));
    ask(address, &authority.connector()).await.unwrap();
    close.cancel();
    ends(server).await;
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let error = load(folder.path()).await.unwrap_err();
    assert!(error.to_string().contains("tls.crt"), "{error}");
    Authority::new().issue(folder.path());
    std::fs::write(folder.path().join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = load(folder.path()).await.unwrap_err();
    assert!(matches!(error, CertificateError::Pair { .. }), "{error}");
    std::fs::write(folder.path().join("tls.crt"), "nothing").unwrap();
    let error = load(folder.path()).await.unwrap_err();
    assert!(error.to_string().contains("no certificate in PEM"), "{error}");
}

#[tokio::test]
async fn who_never_sends_a_head_is_closed() {
    let (listener, address) = listen().await;
    let close = CancellationToken::new();
    let limits = Limits { head: Duration::from_millis(200), ..limits() };
    let server = tokio::spawn(Listener::plain(listener).serve(service_fn(echo), limits, close.clone()));
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
    let mut bytes = Vec::new();
    timeout(SOON, slow.read_to_end(&mut bytes)).await.expect("it is closed").unwrap();
    close.cancel();
    ends(server).await;
}

#[tokio::test]
async fn what_is_in_flight_is_answered_and_nothing_new_is_taken() {
    let (listener, address) = listen().await;
    let close = CancellationToken::new();
    let (began, mut begun) = mpsc::channel(1);
    let (release, released) = oneshot::channel::<()>();
    let released = Arc::new(tokio::sync::Mutex::new(Some(released)));
    let service = service_fn(move |request| {
        let (began, released) = (began.clone(), Arc::clone(&released));
        async move {
            began.send(()).await.unwrap();
            if let Some(released) = released.lock().await.take() {
                released.await.unwrap();
            }
            echo(request).await
        }
    });
    let server = tokio::spawn(Listener::plain(listener).serve(service, limits(), close.clone()));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    begun.recv().await.unwrap();
    close.cancel();
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(SOON, refused).await.expect("no new connection is taken");
    release.send(()).unwrap();
    let mut answer = String::new();
    timeout(SOON, client.read_to_string(&mut answer)).await.expect("it is closed").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("/late"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    ends(server).await;
}

#[tokio::test]
async fn what_takes_longer_than_the_grace_is_broken_off() {
    let (listener, address) = listen().await;
    let close = CancellationToken::new();
    let (began, mut begun) = mpsc::channel(1);
    let service = service_fn(move |request| {
        let began = began.clone();
        async move {
            began.send(()).await.unwrap();
            std::future::pending::<()>().await;
            echo(request).await
        }
    });
    let limits = Limits { grace: Duration::from_millis(50), ..limits() };
    let server = tokio::spawn(Listener::plain(listener).serve(service, limits, close.clone()));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    begun.recv().await.unwrap();
    close.cancel();
    ends(server).await;
    let mut answer = Vec::new();
    let _ = timeout(SOON, client.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(answer.is_empty());
}
