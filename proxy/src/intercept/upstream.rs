//! Connections to the one target of a client's connection, kept as long as that is.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{
    body::Incoming,
    rt::{Executor, Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioIo, TokioTimer},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, sync::DropGuard, task::TaskTracker};
use tower::Service;

use super::{MAX_HEAD, STREAM_SEND_BUFFER, TLS_BUFFER, ahead::Ahead, bodies::BoxError, still::Still};
use crate::{
    egress::{SessionContext, Target},
    linger::Lingering,
    policy::Scheme,
    upstream::{CONNECT_TIMEOUT, IDLE_TIMEOUT},
};

/// Shorter than servers usually keep connections, so that the proxy lets go first.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
const MAX_POOLED_CONNECTIONS: usize = 8;
/// What may come of an answer in HTTP/2 before the client takes it, which is 10 MB/s at 100 ms from the upstream.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The body of a request on its way.
pub type Outgoing = UnsyncBoxBody<Bytes, BoxError>;

/// Tasks that end with what they were started for.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    ended: CancellationToken,
}

impl Tasks {
    /// No tasks yet; they end when the guard is dropped.
    #[must_use]
    pub fn new() -> (Self, DropGuard) {
        let ended = CancellationToken::new();
        (Self { tracker: TaskTracker::new(), ended: ended.clone() }, ended.drop_guard())
    }

    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.tracker.spawn(async move { ended.run_until_cancelled(task).await });
    }

    /// Has the rest of a request's body read once nobody wants it any more.
    pub fn lingering(&self, request: Request<Incoming>) -> Request<Lingering<Incoming>> {
        let (parts, body) = request.into_parts();
        let body = Lingering::new(body, &parts.headers, &self.tracker);
        Request::from_parts(parts, body)
    }

    /// Waits until every task has ended by itself.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(async move { drop(task.await) });
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It took too long.
    #[error("{host} did not answer within {} s", .waited.as_secs())]
    TimedOut {
        /// The host.
        host: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It cannot be reached, or the connection broke.
    #[error("{host} did not answer: {cause}")]
    Failed {
        /// The host.
        host: String,
        /// Why not.
        cause: String,
    },
}

/// A pool of connections to one target.
#[derive(Clone)]
pub struct Upstream {
    target: Arc<Target>,
    any: Client<Connect, Outgoing>,
    /// Without HTTP/2, which cannot be upgraded.
    upgradable: Client<Connect, Outgoing>,
}

impl Upstream {
    /// A pool without connections yet. They are `multiplexed` if the client's is: for one that asks for one thing after another
    /// HTTP/1.1 does, which holds less of an answer that the client is slow to take.
    #[must_use]
    pub fn new(target: Target, context: &Arc<SessionContext>, tasks: &Tasks, multiplexed: bool) -> Self {
        let target = Arc::new(target);
        let client = |protocols: &[&[u8]]| {
            let mut tls = (*context.tls).clone();
            tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            let connect = Connect { target: target.clone(), context: context.clone(), tls: Arc::new(tls) };
            Client::builder(tasks.clone())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE_TIMEOUT)
                .pool_max_idle_per_host(MAX_POOLED_CONNECTIONS)
                .http1_max_buf_size(MAX_HEAD)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .http2_max_send_buf_size(STREAM_SEND_BUFFER)
                .build(connect)
        };
        let upgradable = client(&[b"http/1.1"]);
        let any = if multiplexed { client(&[b"h2", b"http/1.1"]) } else { upgradable.clone() };
        Self { any, upgradable, target }
    }

    /// Sends a request and waits for the head of its answer. Redirects are not followed.
    ///
    /// # Errors
    /// [`SendError`] says what went wrong, without anything of the request but its host.
    pub async fn send(&self, request: Request<Outgoing>, upgrade: bool) -> Result<Response<Incoming>, SendError> {
        let host = self.target.host.to_string();
        let client = if upgrade { &self.upgradable } else { &self.any };
        match timeout(IDLE_TIMEOUT, client.request(request)).await {
            Err(_) => Err(SendError::TimedOut { host, waited: IDLE_TIMEOUT }),
            Ok(sent) => sent.map_err(|error| SendError::Failed { host, cause: causes(&error) }),
        }
    }
}

fn causes(error: &(dyn Error + 'static)) -> String {
    let sources = std::iter::successors(error.source(), |error| (*error).source());
    let mut causes: Vec<String> = sources.map(ToString::to_string).collect();
    causes.dedup();
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}

/// Connects to the target, whatever a URL says.
#[derive(Clone)]
struct Connect {
    target: Arc<Target>,
    context: Arc<SessionContext>,
    tls: Arc<ClientConfig>,
}

impl Connect {
    async fn connect(self) -> Result<Stream, BoxError> {
        let tcp = Still::new(Ahead::new(self.context.dialer.connect(&self.target).await?), IDLE_TIMEOUT);
        if self.target.scheme == Scheme::Http {
            return Ok(Stream { io: TokioIo::new(Box::new(tcp)), h2: false });
        }
        let name = ServerName::try_from(self.target.host.as_str().to_owned())?;
        let mut tls = TlsConnector::from(self.tls).connect(name, tcp).await?;
        tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
        let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Stream { io: TokioIo::new(Box::new(tls)), h2 })
    }
}

impl Service<Uri> for Connect {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connect = self.clone();
        // The dialer has its own deadlines; this one is for TLS.
        Box::pin(async move {
            match timeout(CONNECT_TIMEOUT * 2, connect.connect()).await {
                Ok(connected) => connected,
                Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            }
        })
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

struct Stream {
    io: TokioIo<Box<dyn Io>>,
    h2: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        if self.h2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: ReadBufCursor<'_>,
    ) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.io).poll_read(cx, to)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, std::io::Error>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize, std::io::Error>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }
}
