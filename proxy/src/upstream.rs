//! Connections to upstreams. A name is resolved once for each connection and only judged addresses are dialled.

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, dns::Name},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tower::Service;

use crate::{
    address::{AddressRefused, Class, admit, classify},
    body::Relayed,
    config::UpstreamProxy,
    egress::{
        Target,
        dial::{Dialer, SystemSockets},
        target::Route,
    },
    error::Refusal,
    policy::{Host, Scheme},
};

/// From a name to a connection, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an upstream may be silent, before its answer and in it: longer than the harness waits for any.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(16 * 60);
/// Shorter than servers usually keep connections, so that the proxy lets go first.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Of the harness, and kept for each route: one that is closed for want of room costs the next request a handshake.
pub const MAX_CONNECTIONS: usize = 256;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The most that is held of one connection, in bytes, and so the largest head of an answer.
const MAX_BUFFER: usize = 16 * 1024;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The TLS library does not support its own defaults.
    #[error("cannot set up TLS: {0}")]
    Library(#[from] rustls::Error),
    /// Authorities that cannot be used.
    #[error("cannot read the authorities of `ca`: {0}")]
    Authorities(String),
}

/// Trusts the roots of the system (or of `SSL_CERT_FILE`, for an own authority), or else those of Mozilla that are built in;
/// and the authorities `more`, in PEM.
///
/// # Errors
/// When `more` holds no certificate, or the TLS library does not support its own defaults.
pub fn tls_config(more: Option<&str>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a certificate of the system cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(pem) = more {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let certificates = certificates.map_err(|error| TlsError::Authorities(error.to_string()))?;
        let (added, _) = roots.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(TlsError::Authorities("there is no certificate in PEM".to_owned()));
        }
    }
    tls_config_with(roots)
}

/// Trusts exactly these roots.
///
/// # Errors
/// When the TLS library does not support its own defaults.
pub fn tls_config_with(roots: RootCertStore) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// How upstreams are reached and known.
#[derive(Clone)]
pub struct Way {
    /// By which certificates.
    pub tls: Arc<ClientConfig>,
    /// Through which proxy, if not directly.
    pub proxy: Option<UpstreamProxy>,
}

/// What of this cluster an upstream may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nothing: its addresses are those of the internet.
    Public,
    /// A server of the cluster: it may have a private address, and is never asked of the proxy of the cluster's owner.
    Private,
    /// Either: it may have a private address, and its name alone says whether that proxy is asked.
    Any,
}

impl Reach {
    /// That of an upstream whose addresses may be private or not.
    #[must_use]
    pub fn of(allow_private: bool) -> Self {
        if allow_private { Self::Private } else { Self::Public }
    }

    fn allows_private(self) -> bool {
        self != Self::Public
    }

    /// Whether a host is connected to directly, whatever proxy there is: one outside the cluster cannot know it, and would be
    /// told the credential.
    fn is_direct(self, host: &Host) -> bool {
        let here = match host.address() {
            Some(address) => classify(address) != Class::Public,
            None => !host.as_str().contains('.') || host.is_disguised_address(),
        };
        here || self == Self::Private
    }
}

/// Whether a connection is asked of the proxy of the cluster's owner.
fn goes_through(proxy: &UpstreamProxy, reach: Reach, uri: &Uri) -> bool {
    let Ok(host) = Host::parse(uri.host().unwrap_or_default()) else { return false };
    !reach.is_direct(&host) && proxy.is_for(&host, port(uri))
}

fn scheme(uri: &Uri) -> Scheme {
    if uri.scheme_str() == Some("https") { Scheme::Https } else { Scheme::Http }
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or_else(|| scheme(uri).default_port())
}

/// The body of a request: a client's on its way, or one that is kept.
pub type Outgoing = Either<Relayed<Incoming>, Full<Bytes>>;

/// A pool of connections for one route. HTTP/1.1, so that streams do not share a connection or its flow control.
#[derive(Clone)]
pub struct Upstream {
    client: Client<Guarded, Outgoing>,
}

impl Upstream {
    /// A pool without connections yet.
    #[must_use]
    pub fn new(way: &Way, reach: Reach) -> Self {
        let mut http = HttpConnector::new_with_resolver(Resolver { allow_private: reach.allows_private() });
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(KEEP_ALIVE));
        let through = way.proxy.clone().map(|proxy| {
            let tunnels = Tunnels { dialer: Dialer::new(Arc::new(SystemSockets), Some(proxy.clone())) };
            Through { proxy, connector: HttpsConnector::from((tunnels, way.tls.clone())) }
        });
        let connector = Guarded { direct: HttpsConnector::from((http, way.tls.clone())), through, reach };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_CONNECTIONS)
            .http1_max_buf_size(MAX_BUFFER)
            .build(connector);
        Self { client }
    }

    /// Sends a request and waits for the head of its answer. Redirects are not followed.
    ///
    /// # Errors
    /// [`Refusal`] says what went wrong, without anything of the request but its host.
    pub async fn send(&self, host: &str, request: Request<Outgoing>) -> Result<Response<Incoming>, Refusal> {
        let host = host.to_owned();
        match tokio::time::timeout(IDLE_TIMEOUT, self.client.request(request)).await {
            Err(_) => Err(Refusal::TimedOut { host, waited: IDLE_TIMEOUT }),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                if let Some(refused) = find::<AddressRefused>(&error) {
                    Err(Refusal::Address(refused.clone()))
                } else if error.is_connect() {
                    Err(Refusal::Connect { host, cause: causes(&error) })
                } else {
                    Err(Refusal::NoAnswer { host, cause: causes(&error) })
                }
            }
        }
    }
}

/// A connector with a deadline for the whole way, which also judges addresses that are written as such and never resolved.
#[derive(Clone)]
struct Guarded {
    direct: HttpsConnector<HttpConnector<Resolver>>,
    through: Option<Through>,
    reach: Reach,
}

/// The way through the proxy of the cluster's owner.
#[derive(Clone)]
struct Through {
    proxy: UpstreamProxy,
    connector: HttpsConnector<Tunnels>,
}

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, Box<dyn Error + Send + Sync>>> + Send>>;

impl Service<Uri> for Guarded {
    type Response = <HttpsConnector<HttpConnector<Resolver>> as Service<Uri>>::Response;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // A tunnel is always ready to be asked for.
        self.direct.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let judged = match host.parse::<IpAddr>() {
            Ok(address) => admit(host, [address], self.reach.allows_private()),
            Err(_) => Ok(()),
        };
        let reach = self.reach;
        let through = self.through.as_mut().filter(|through| goes_through(&through.proxy, reach, &uri));
        let connecting: Self::Future = match through {
            Some(through) => Box::pin(through.connector.call(uri)),
            None => Box::pin(self.direct.call(uri)),
        };
        Box::pin(async move {
            judged?;
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}

/// Asks the proxy of the cluster's owner for a tunnel. It resolves the name, so that the addresses are that proxy's to judge.
#[derive(Debug, Clone)]
struct Tunnels {
    dialer: Dialer,
}

impl Service<Uri> for Tunnels {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.dialer.clone();
        Box::pin(async move {
            let (scheme, port) = (scheme(&uri), port(&uri));
            let host = Host::parse(uri.host().unwrap_or_default())?;
            let stream = dialer.connect(&Target { scheme, host, port, route: Route::Proxied }).await?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// Resolves a name and lets its addresses through if all of them may be reached.
#[derive(Debug, Clone)]
struct Resolver {
    allow_private: bool,
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            admit(name.as_str(), addresses.iter().map(SocketAddr::ip), allow_private)?;
            Ok(addresses.into_iter())
        })
    }
}

fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    sources(error).find_map(|error| error.downcast_ref())
}

fn causes(error: &(dyn Error + 'static)) -> String {
    let mut causes: Vec<String> = sources(error).skip(1).map(ToString::to_string).collect();
    causes.dedup();
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Reach, goes_through, tls_config};
    use crate::{
        config::{NoProxy, UpstreamProxy},
        policy::Host,
    };

    #[rstest]
    #[case("https://api.example/v1", Reach::Public, true)]
    #[case("https://8.8.8.8/", Reach::Public, true)]
    #[case("https://git.corp.example/", Reach::Public, false)]
    #[case("https://api.example:8443/", Reach::Public, false)]
    // What is of this cluster is nobody else's to know.
    #[case("http://localhost/", Reach::Any, false)]
    #[case("http://127.0.0.1/", Reach::Any, false)]
    #[case("http://127.1/", Reach::Any, false)]
    #[case("http://[fd12::1]/", Reach::Any, false)]
    #[case("http://10.1.2.3/", Reach::Any, false)]
    #[case("http://169.254.169.254/", Reach::Any, false)]
    #[case("http://search/", Reach::Any, false)]
    #[case("http://search.tools/", Reach::Private, false)]
    #[case("https://login.example/token", Reach::Any, true)]
    fn which_upstreams_the_proxy_of_the_cluster_s_owner_is_asked_for(
        #[case] uri: &str,
        #[case] reach: Reach,
        #[case] expected: bool,
    ) {
        let no_proxy = ["*.corp.example", "api.example:8443"].map(|entry| NoProxy::parse(entry).unwrap()).to_vec();
        let proxy = UpstreamProxy { host: Host::parse("proxy.example").unwrap(), port: 3128, no_proxy };
        assert_eq!(goes_through(&proxy, reach, &uri.parse().unwrap()), expected);
    }

    #[test]
    fn authorities_of_the_cluster_s_owner_are_trusted_too() {
        assert!(tls_config(Some("no certificate")).unwrap_err().to_string().contains("no certificate in PEM"));
        let certificate = rcgen::generate_simple_self_signed(vec!["corporate.example".to_owned()]).unwrap();
        assert!(tls_config(Some(&certificate.cert.pem())).is_ok());
    }
}
