//! Connects to the next endpoint that lets it.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::Service;

use super::security::TlsFiles;
use crate::store::{Result, StoreError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection younger than this is not the one that somebody complains about.
const GRACE: Duration = Duration::from_secs(1);
const DEFAULT_PORT: u16 = 2379;

/// Where an etcd is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    tls: bool,
    host: String,
    port: u16,
}

/// Connects to one of several endpoints; clones share which one it is.
#[derive(Clone)]
pub(super) struct Connector(Arc<Shared>);

struct Shared {
    targets: Vec<Target>,
    tls: Option<TlsFiles>,
    current: Mutex<Current>,
}

struct Current {
    /// The endpoint to try first, for the next connection.
    next: usize,
    since: Instant,
    /// Breaks the connection.
    leave: CancellationToken,
}

impl Connector {
    pub(super) fn to(endpoints: &[String], tls: Option<TlsFiles>) -> Result<Self> {
        let targets = endpoints.iter().map(|endpoint| Target::parse(endpoint)).collect::<Result<Vec<_>, _>>();
        let targets = targets.map_err(StoreError::Unavailable)?;
        if targets.is_empty() {
            return Err(StoreError::Unavailable("no endpoint of etcd is given".to_owned()));
        }
        if tls.is_none() && targets.iter().any(|target| target.tls) {
            return Err(StoreError::Unavailable("an https:// endpoint of etcd needs a CA file".to_owned()));
        }
        // Replicas do not all begin with the same member.
        let member = RandomState::new().hash_one(endpoints) % u64::try_from(targets.len()).unwrap_or(1);
        let next = usize::try_from(member).unwrap_or(0);
        let current = Mutex::new(Current { next, since: Instant::now(), leave: CancellationToken::new() });
        Ok(Self(Arc::new(Shared { targets, tls, current })))
    }

    /// Goes to another endpoint, if there is one, unless the connection has only just been made.
    pub(super) fn leave(&self) {
        let current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.targets.len() > 1 && current.since.elapsed() >= GRACE {
            current.leave.cancel();
        }
    }

    /// As tonic takes it. The address that it is asked for does not matter.
    pub(super) fn into_service(
        self,
    ) -> impl Service<Uri, Response = TokioIo<Connection>, Error = io::Error, Future: Send> + Send + 'static {
        tower::service_fn(move |_: Uri| {
            let connector = self.clone();
            async move { connector.connect().await.map(TokioIo::new) }
        })
    }

    async fn connect(&self) -> io::Result<Connection> {
        let first = self.0.current.lock().unwrap_or_else(PoisonError::into_inner).next;
        let count = self.0.targets.len();
        let mut last = io::Error::other("no endpoint of etcd is given");
        for (target, number) in self.0.targets.iter().zip(0..).cycle().skip(first).take(count) {
            let opened = timeout(CONNECT_TIMEOUT, self.open(target)).await;
            match opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(inner) => {
                    let leave = CancellationToken::new();
                    let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
                    *current = Current { next: (number + 1) % count, since: Instant::now(), leave: leave.clone() };
                    return Ok(Connection { inner, left: Box::pin(leave.cancelled_owned()) });
                }
                Err(error) => last = io::Error::new(error.kind(), format!("etcd at {}: {error}", target.host)),
            }
        }
        Err(last)
    }

    async fn open(&self, target: &Target) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
        stream.set_nodelay(true)?;
        let Some(files) = self.0.tls.as_ref().filter(|_| target.tls) else { return Ok(Box::new(stream)) };
        let config = files.load().await.map_err(io::Error::other)?;
        let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
        Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
    }
}

impl Target {
    /// `http://host:port` or `https://host:port`; `host:port` is the first of them.
    fn parse(endpoint: &str) -> Result<Self, String> {
        let wrong = |reason: &str| format!("{endpoint:?} is no endpoint of etcd: {reason}");
        let full = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
        let uri: Uri = full.trim_end_matches('/').parse().map_err(|error| wrong(&format!("{error}")))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("it begins with neither http:// nor https://")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { tls, host, port: uri.port_u16().unwrap_or(DEFAULT_PORT) })
    }
}

/// Bytes to and from etcd.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that can be left from outside.
pub(super) struct Connection {
    inner: Box<dyn Stream>,
    left: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn check_left(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.left.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "this etcd does not answer")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_left(context)?;
        Pin::new(&mut this.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::{Connector, GRACE, Target};

    #[rstest]
    #[case("http://one:1234", false, "one", 1234)]
    #[case("https://one/", true, "one", 2379)]
    #[case("one:1", false, "one", 1)]
    #[case("https://[::1]:5", true, "::1", 5)]
    fn an_endpoint_is_an_address(#[case] text: &str, #[case] tls: bool, #[case] host: &str, #[case] port: u16) {
        assert_eq!(Target::parse(text), Ok(Target { tls, host: host.to_owned(), port }));
    }

    #[rstest]
    #[case("")]
    #[case("ftp://one")]
    #[case("http://")]
    #[case("one two")]
    fn what_is_no_address_is_refused(#[case] text: &str) {
        assert!(Target::parse(text).is_err());
    }

    #[test]
    fn tls_needs_an_authority() {
        assert!(Connector::to(&["https://one".to_owned()], None).is_err());
        assert!(Connector::to(&[], None).is_err());
    }

    #[tokio::test]
    async fn the_next_endpoint_is_tried() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoints = [closed, open.local_addr().unwrap(), closed].map(|address| address.to_string());
        let connector = Connector::to(&endpoints, None).unwrap();
        for _ in 0..3 {
            connector.connect().await.unwrap();
            open.accept().await.unwrap();
        }
        let connector = Connector::to(&[closed.to_string()], None).unwrap();
        assert!(connector.connect().await.is_err());
    }

    #[tokio::test]
    async fn a_connection_is_left_if_there_is_another_place_to_go() {
        let (one, two) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let endpoints = [&one, &two].map(|listener| listener.local_addr().unwrap().to_string());
        let connector = Connector::to(&endpoints, None).unwrap();
        let mut first = connector.connect().await.unwrap();
        connector.leave();
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), first.read_u8()).await;
        assert!(early.is_err(), "it has only just been made");
        connector.0.current.lock().unwrap().since -= GRACE;
        connector.leave();
        assert_eq!(first.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
        let before = connector.0.current.lock().unwrap().next;
        connector.connect().await.unwrap();
        assert_ne!(connector.0.current.lock().unwrap().next, before);
    }
}
