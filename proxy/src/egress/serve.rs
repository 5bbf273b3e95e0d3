//! The listener for sandboxes, and what becomes of each request.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use hyper::{body::Incoming, service::service_fn, upgrade};
use hyper_util::rt::TokioIo;
use longhand_process::http::{Limits, Listener};
use longhand_protocol::{SessionId, egress::Claims};
use rustls::ClientConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    context::{Answer, Bound, SessionContext},
    decide::{Way, decide},
    dial::{Dialer, Sockets},
    forward::forward,
    head::{self, Ask},
    refusal::{self, Refusal},
    target::Target,
    token::{KeyError, Verifier},
    tunnel,
};
use crate::{
    audit::{Audit, Subject},
    config::{Egress, Network},
    intercept::{Interceptor, authority::AuthorityError},
    linger::Lingering,
    policy::{Host, Scheme},
    unusable::Unusable,
    upstream::IDLE_TIMEOUT,
};

/// Connections of the session's sandboxes through this proxy at the same time.
pub const MAX_TUNNELS: usize = 512;
const LIMITS: Limits = Limits {
    connections: MAX_TUNNELS,
    head: Duration::from_secs(60),
    // A program may be stopped for a while, and harms nobody but its own session by it.
    stall: IDLE_TIMEOUT,
    grace: Duration::ZERO,
    buffer: 32 * 1024,
};
/// From the answer to a CONNECT to the tunnel.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Whoever reaches the node or any interface of the pod would reach it.
    #[error("{0} is every address of this host: the egress proxy listens on the pod's IP only")]
    Unspecified(SocketAddr),
    /// The address is taken or not there.
    #[error("cannot listen for sandboxes on {address}: {source}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// Listens on one address of the pod.
///
/// # Errors
/// [`BindError`], also for the address that means all.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    if address.ip().is_unspecified() {
        return Err(BindError::Unspecified(address));
    }
    TcpListener::bind(address).await.map_err(|source| BindError::Io { address, source })
}

/// The egress proxy of one harness pod.
pub struct EgressProxy {
    session: SessionId,
    verifier: Verifier,
    sandboxes: BTreeMap<String, Network>,
    bindings: Arc<[Bound]>,
    dialer: Dialer,
    tls: Arc<ClientConfig>,
    audit: Audit,
    interceptor: Interceptor,
    slots: Arc<Semaphore>,
    /// With the rests of bodies.
    tunnels: TaskTracker,
    /// The proxy closes: what is idle ends.
    closing: CancellationToken,
    /// What is left ends too.
    abort: CancellationToken,
}

/// Why this mode cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The session service's key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The session's authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl EgressProxy {
    /// The proxy in the pod `pod_uid`, whose uses and refusals `audit` puts on record.
    ///
    /// # Errors
    /// [`StartError`] when the configured key is none, or no authority can be made.
    pub fn new(
        egress: Egress,
        pod_uid: &str,
        sockets: Arc<dyn Sockets>,
        tls: Arc<ClientConfig>,
        audit: Audit,
    ) -> Result<Self, StartError> {
        let Egress { session, verify_key, sandboxes, bindings, upstream_proxy, audit: _, ca: _ } = egress;
        let interceptor = Interceptor::new(&bindings)?;
        Ok(Self {
            verifier: Verifier::new(&verify_key, session.clone(), pod_uid)?,
            session,
            sandboxes,
            bindings: bindings.into_iter().map(Bound::new).collect(),
            dialer: Dialer::new(sockets, upstream_proxy),
            tls,
            audit,
            interceptor,
            slots: Arc::new(Semaphore::new(MAX_TUNNELS)),
            tunnels: TaskTracker::new(),
            closing: CancellationToken::new(),
            abort: CancellationToken::new(),
        })
    }

    /// The certificate of the session's authority, in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.interceptor.ca_pem()
    }

    /// Every binding, and why it cannot be used, if it cannot.
    pub fn credentials(&self, now: Instant) -> impl Iterator<Item = (&Bound, Option<Unusable>)> {
        self.bindings.iter().map(move |bound| (bound, bound.condition(now)))
    }

    /// Answers a request. A CONNECT that is answered with success goes on as a tunnel.
    pub async fn handle(self: &Arc<Self>, request: Request<Incoming>) -> Answer {
        let (mut parts, body) = request.into_parts();
        let body = Lingering::new(body, &parts.headers, &self.tunnels);
        let ask = head::read(&parts);
        let caller = self.caller(&mut parts.headers, matches!(ask, Ok(Ask::Certificate)));
        let caller = match caller {
            Ok(caller) => caller,
            Err(refusal) => {
                // Nobody's log takes it: who asks is not known.
                tracing::warn!(session = %self.session, reason = %refusal, "refused a client of the egress proxy");
                count("none", refusal.rule());
                return refusal.answer();
            }
        };
        let sandbox: Arc<str> = caller.claims.sandbox.as_str().into();
        let method = parts.method.to_string();
        let path = parts.uri.path().to_owned();
        let request = Request::from_parts(parts, body);
        let (kind, subject, answered) = match ask {
            Ok(Ask::Certificate) => {
                let pem = self.interceptor.ca_pem().to_owned();
                ("certificate", None, Ok(refusal::text(StatusCode::OK, pem)))
            }
            Ok(Ask::Tunnel { host, port }) => {
                let subject = Subject::tunnel(sandbox, host.as_str(), port);
                ("tunnel", Some(subject), self.tunnel(request, host, port, &caller).await)
            }
            Ok(Ask::Plain { host, port }) => {
                let subject = Subject::request(sandbox, host.as_str(), port, &method, &path);
                ("plain", Some(subject), self.plain(request, &host, port, &caller).await)
            }
            Err(refusal) => {
                // As far as it can be told from such a head.
                let (host, port) = (request.uri().host().unwrap_or("*"), request.uri().port_u16().unwrap_or(0));
                ("none", Some(Subject::request(sandbox, host, port, &method, &path)), Err(refusal))
            }
        };
        match answered {
            Ok(answer) => {
                count(kind, "allowed");
                answer
            }
            Err(refusal) => {
                count(kind, refusal.rule());
                if let Some(subject) = &subject {
                    self.refused(subject, &refusal);
                }
                refusal.answer()
            }
        }
    }

    /// Who asks. What said so is taken out of the request.
    fn caller(&self, headers: &mut HeaderMap, certificate: bool) -> Result<Caller<'_>, Refusal> {
        let mut presented = take_all(headers, &header::PROXY_AUTHORIZATION);
        if certificate {
            presented.extend(take_all(headers, &header::AUTHORIZATION));
        }
        let (Some(value), None) = (presented.first(), presented.get(1)) else {
            return Err(if presented.is_empty() {
                Refusal::NoToken
            } else {
                Refusal::Malformed("it has more than one egress token")
            });
        };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let (_, token) = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).ok_or(Refusal::NoToken)?;
        let claims = self.verifier.verify(token.trim())?;
        match self.sandboxes.get(&claims.sandbox) {
            Some(network) => Ok(Caller { claims, network }),
            None => Err(Refusal::UnknownSandbox { sandbox: claims.sandbox }),
        }
    }

    /// Judges, resolves and pins a destination.
    async fn target(
        &self,
        scheme: Scheme,
        host: &Host,
        port: u16,
        caller: &Caller<'_>,
    ) -> Result<(Way, Target), Refusal> {
        let way = decide(caller.network, &self.bindings, scheme, host, port)?;
        let allow_private = way == Way::Bound { allow_private: true };
        Ok((way, self.dialer.resolve(scheme, host, port, allow_private).await?))
    }

    fn context(&self, caller: &Caller<'_>) -> SessionContext {
        let claims = &caller.claims;
        SessionContext {
            session: self.session.clone(),
            sandbox: claims.sandbox.as_str().into(),
            network: caller.network.clone(),
            seed: claims.seed.clone(),
            bindings: self.bindings.clone(),
            dialer: self.dialer.clone(),
            tls: self.tls.clone(),
            audit: self.audit.clone(),
            closing: self.closing.clone(),
        }
    }

    async fn plain(
        &self,
        request: Request<Lingering<Incoming>>,
        host: &Host,
        port: u16,
        caller: &Caller<'_>,
    ) -> Result<Answer, Refusal> {
        let (way, target) = self.target(Scheme::Http, host, port, caller).await?;
        let context = self.context(caller);
        match way {
            Way::Bound { .. } => Ok(self.interceptor.plain(request, target, Arc::new(context)).await),
            Way::Open => forward(request, &target, &context).await,
        }
    }

    /// Opens a tunnel. The connection to a host that nothing is bound to is made first, so that its failure can be told.
    async fn tunnel(
        self: &Arc<Self>,
        request: Request<Lingering<Incoming>>,
        host: Host,
        port: u16,
        caller: &Caller<'_>,
    ) -> Result<Answer, Refusal> {
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| Refusal::Busy(MAX_TUNNELS))?;
        let (way, target) = self.target(Scheme::Https, &host, port, caller).await?;
        let context = Arc::new(self.context(caller));
        let open = match way {
            Way::Bound { .. } => None,
            Way::Open => Some(self.dialer.connect(&target).await?),
        };
        let (proxy, abort) = (self.clone(), self.abort.clone());
        self.tunnels.spawn(async move {
            let _slot = slot;
            abort.run_until_cancelled(proxy.opened(request, target, context, open)).await;
        });
        Ok(refusal::empty(StatusCode::OK))
    }

    /// A tunnel, from the answer to its CONNECT to its end.
    async fn opened(
        &self,
        request: Request<Lingering<Incoming>>,
        target: Target,
        context: Arc<SessionContext>,
        open: Option<TcpStream>,
    ) {
        let Ok(Ok(client)) = timeout(UPGRADE_TIMEOUT, upgrade::on(request)).await else { return };
        let mut client = TokioIo::new(client);
        let gauge = metrics::gauge!("longhand_proxy_egress_connections");
        gauge.increment(1);
        match open {
            None => self.interceptor.serve(client, target, context).await,
            Some(upstream) => match tunnel::judge(&mut client, &target.host).await {
                Ok(None) => tracing::debug!(host = %target.host, "a client went before it asked for anything"),
                Ok(Some(begun)) => match tunnel::relay(client, upstream, begun, &self.closing).await {
                    Ok(tunnel::Moved { sent, received }) => {
                        tracing::debug!(host = %target.host, sent, received, "a tunnel ended");
                    }
                    Err(error) => tracing::debug!(host = %target.host, %error, "a tunnel broke"),
                },
                Err(refusal) => {
                    let subject = Subject::tunnel(context.sandbox.clone(), target.host.as_str(), target.port);
                    count("tunnel", refusal.rule());
                    self.refused(&subject, &refusal);
                }
            },
        }
        gauge.decrement(1);
    }

    /// Puts a refusal on record.
    fn refused(&self, subject: &Subject, refusal: &Refusal) {
        let Subject { sandbox, host, port, method, .. } = subject;
        tracing::info!(%sandbox, %host, port, %method, rule = refusal.rule(), reason = %refusal, "refused");
        if refusal.is_denial() {
            self.audit.denied(None, subject, &refusal.to_string());
        }
    }
}

/// A sandbox that may ask.
struct Caller<'a> {
    claims: Claims,
    network: &'a Network,
}

fn take_all(headers: &mut HeaderMap, name: &HeaderName) -> Vec<HeaderValue> {
    let values = headers.get_all(name).iter().cloned().collect();
    headers.remove(name);
    values
}

fn count(kind: &'static str, decision: &'static str) {
    metrics::counter!("longhand_proxy_egress_requests_total", "kind" => kind, "decision" => decision).increment(1);
}

/// Serves until `shutdown`. Then what is idle ends, and what is not may go on for `grace`.
pub async fn serve(listener: TcpListener, proxy: Arc<EgressProxy>, shutdown: CancellationToken, grace: Duration) {
    let (handler, closing) = (proxy.clone(), proxy.closing.clone());
    let service = service_fn(move |request| {
        let proxy = handler.clone();
        async move { Ok::<_, Infallible>(proxy.handle(request).await) }
    });
    let deadline = async {
        shutdown.cancelled().await;
        closing.cancel();
        tokio::time::Instant::now() + grace
    };
    let requests = Listener::plain(listener).serve(service, Limits { grace, ..LIMITS }, shutdown.clone());
    let ((), deadline) = tokio::join!(requests, deadline);
    proxy.tunnels.close();
    if timeout_at(deadline, proxy.tunnels.wait()).await.is_err() {
        tracing::warn!(open = proxy.tunnels.len(), "tunnels that are still open are broken off");
        proxy.abort.cancel();
        proxy.tunnels.wait().await;
    }
}
