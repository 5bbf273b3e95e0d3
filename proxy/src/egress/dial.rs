//! From a host to a connection. A name is resolved once, its addresses are judged, and only those are dialled.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::target::{Route, Target};
use crate::{
    address::{AddressRefused, admit},
    config::UpstreamProxy,
    policy::{Host, Scheme},
};

/// From a name to its addresses.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the addresses to a connection, the upstream proxy's answer included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// More addresses than a name has that wants to be reached.
const MAX_ADDRESSES: usize = 16;
/// An upstream proxy's answer to CONNECT.
const MAX_HEAD: usize = 16 * 1024;

/// Where names become addresses and addresses become connections; tests have their own.
pub trait Sockets: Send + Sync + std::fmt::Debug {
    /// The addresses of a name, as they are now.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;

    /// A connection to the first of these addresses that takes one.
    fn connect<'a>(&'a self, addresses: &'a [SocketAddr]) -> BoxFuture<'a, io::Result<TcpStream>>;
}

/// Those of the system.
#[derive(Debug)]
pub struct SystemSockets;

impl Sockets for SystemSockets {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    }

    fn connect<'a>(&'a self, addresses: &'a [SocketAddr]) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(addresses))
    }
}

/// Why a target is not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// One of its addresses may not be reached.
    #[error("{0}")]
    Address(#[from] AddressRefused),
    /// It has no address.
    #[error("cannot resolve {host}: {cause}")]
    Resolve {
        /// The host.
        host: String,
        /// Why not.
        cause: io::Error,
    },
    /// None of its addresses takes a connection.
    #[error("cannot connect to {host}:{port}: {cause}")]
    Connect {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why not.
        cause: io::Error,
    },
    /// The upstream proxy will not.
    #[error("the upstream proxy refused CONNECT {host}:{port} with status {status}")]
    Refused {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What it answered.
        status: u16,
    },
}

/// Makes connections, directly or through the upstream proxy.
#[derive(Debug, Clone)]
pub struct Dialer {
    sockets: Arc<dyn Sockets>,
    upstream_proxy: Option<Arc<UpstreamProxy>>,
}

impl Dialer {
    /// A dialer that goes through `upstream_proxy`, if there is one.
    #[must_use]
    pub fn new(sockets: Arc<dyn Sockets>, upstream_proxy: Option<UpstreamProxy>) -> Self {
        Self { sockets, upstream_proxy: upstream_proxy.map(Arc::new) }
    }

    /// Resolves and judges a host. Nothing is connected yet. A name that is reached through the upstream proxy is resolved
    /// there, so that its addresses are that proxy's to judge.
    ///
    /// # Errors
    /// [`DialError`] when it has no address, or one that may not be reached.
    pub async fn resolve(
        &self,
        scheme: Scheme,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<Target, DialError> {
        let target = |route| Target { scheme, host: host.clone(), port, route };
        if let Some(address) = host.address() {
            admit(host.as_str(), [address], allow_private)?;
        }
        if self.proxy_for(host, port).is_some() {
            return Ok(target(Route::Proxied));
        }
        let addresses = self.addresses(host, allow_private).await?;
        Ok(target(Route::Direct(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())))
    }

    /// Connects to a target, whatever its name stands for by now.
    ///
    /// # Errors
    /// [`DialError`] says what could not be reached.
    pub async fn connect(&self, target: &Target) -> Result<TcpStream, DialError> {
        let (host, port) = (target.host.to_string(), target.port);
        match (&target.route, &self.upstream_proxy) {
            (Route::Direct(addresses), _) => {
                self.direct(addresses).await.map_err(|cause| DialError::Connect { host, port, cause })
            }
            (Route::Proxied, Some(proxy)) => self.through(proxy, target).await,
            (Route::Proxied, None) => {
                let cause = io::Error::other("there is no upstream proxy");
                Err(DialError::Connect { host, port, cause })
            }
        }
    }

    fn proxy_for(&self, host: &Host, port: u16) -> Option<&UpstreamProxy> {
        self.upstream_proxy.as_deref().filter(|proxy| proxy.is_for(host, port))
    }

    async fn addresses(&self, host: &Host, allow_private: bool) -> Result<Vec<IpAddr>, DialError> {
        if let Some(address) = host.address() {
            return Ok(vec![address]);
        }
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
        let resolved = timeout(RESOLVE_TIMEOUT, self.sockets.resolve(host.as_str())).await.unwrap_or_else(late);
        let failed = |cause| DialError::Resolve { host: host.to_string(), cause };
        let mut addresses = resolved.map_err(failed)?;
        admit(host.as_str(), addresses.iter().copied(), allow_private)?;
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() {
            return Err(failed(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
        }
        Ok(addresses)
    }

    /// The upstream proxy is the cluster owner's, so it may have a private address.
    async fn through(&self, proxy: &UpstreamProxy, target: &Target) -> Result<TcpStream, DialError> {
        let addresses = self.addresses(&proxy.host, true).await?;
        let addresses: Vec<SocketAddr> =
            addresses.into_iter().map(|address| SocketAddr::new(address, proxy.port)).collect();
        let failed = |cause| DialError::Connect { host: proxy.host.to_string(), port: proxy.port, cause };
        let mut stream = self.direct(&addresses).await.map_err(failed)?;
        let status = match timeout(CONNECT_TIMEOUT, ask(&mut stream, target)).await {
            Ok(answered) => answered.map_err(failed)?,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        if status == 200 {
            return Ok(stream);
        }
        Err(DialError::Refused { host: target.host.to_string(), port: target.port, status })
    }

    async fn direct(&self, addresses: &[SocketAddr]) -> io::Result<TcpStream> {
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
        let stream = timeout(CONNECT_TIMEOUT, self.sockets.connect(addresses)).await.unwrap_or_else(late)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Asks a proxy for a tunnel. Reads its head byte by byte, since what follows belongs to the tunnel.
async fn ask(stream: &mut TcpStream, target: &Target) -> io::Result<u16> {
    let authority = format!("{}:{}", target.host.in_authority(), target.port);
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(invalid("the upstream proxy's answer has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = std::str::from_utf8(line).unwrap_or_default().split(' ');
    let version = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let status = words.next().and_then(|status| status.parse().ok());
    status.filter(|_| version).ok_or_else(|| invalid("the upstream proxy's answer is not HTTP"))
}
