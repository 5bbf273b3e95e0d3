//! Servers in sandboxes over HTTP, each port on an origin of its own. Who may use one shows a pass that the API has given out, as a
//! header, or in a link that is exchanged for a cookie of that origin. The server learns nothing of either.

mod headers;
pub mod origin;
pub mod pass;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tower::ServiceExt as _;

pub(crate) use self::headers::LINK;
use self::headers::{FOREIGN, PASS, cookie, inwards, is_foreign, link, outwards};
use self::origin::Domain;
use self::pass::{Kind, Pass, Passes};
use crate::api::error::{ApiError, Result};
use crate::api::layer;
use crate::api::wire::sandboxes::upgrade::PORT_FORWARD;
use crate::app::App;
use crate::auth::Access;
use crate::tunnels::Opened;

/// A server that has said that it speaks another protocol has to do so.
const BEGIN: Duration = Duration::from_secs(10);
/// More does not fit into a cookie.
const LONGEST_PASS: usize = 3_800;

/// Where ports are served, and who is let in.
pub struct Ports {
    /// Where.
    pub domain: Domain,
    /// Who.
    pub passes: Passes,
}

/// A pass that was made, and when it is over.
pub(crate) struct Issued {
    pub(crate) pass: String,
    pub(crate) until: u64,
}

impl Ports {
    /// A new pass.
    ///
    /// # Errors
    /// 400 for a caller in more groups than fit into a cookie.
    pub(crate) fn issue(&self, kind: Kind, pass: &Pass) -> Result<Issued> {
        let issued = self.passes.issue(kind, pass);
        let (pass, until) = issued.map_err(|error| ApiError::internal(error.to_string()))?;
        if pass.len() > LONGEST_PASS {
            return Err(ApiError::bad_request("you are in too many groups for a pass: use `longhand port-forward`"));
        }
        Ok(Issued { pass, until })
    }

    /// Only over TLS a browser keeps others from setting it.
    fn cookie(&self) -> &'static str {
        if self.domain.is_secure() { "__Host-longhand-port" } else { "longhand-port" }
    }
}

/// Serves what is for a host below the domain of ports, and hands on everything else.
pub(crate) async fn by_host(State(app): State<App>, request: Request, next: Next) -> Response {
    let ours = app
        .ports
        .as_ref()
        .is_some_and(|ports| host_of(request.headers()).is_some_and(|host| ports.domain.is_ours(host)));
    if !ours {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    // Its path is one of another server.
    parts.extensions.remove::<axum::extract::MatchedPath>();
    let router = Router::new().fallback(serve).layer(from_fn(layer::surround)).with_state(app);
    match router.oneshot(Request::from_parts(parts, body)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn host_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

async fn serve(State(app): State<App>, request: Request) -> Result<Response> {
    let ports = app.ports.as_ref().ok_or_else(|| ApiError::not_found("no ports are served here"))?;
    let host = host_of(request.headers()).unwrap_or_default().to_owned();
    if let Some((shown, on)) = link(request.uri()) {
        return enter(ports, &host, shown, &on);
    }
    let by_header = request.headers().get(PASS).and_then(|pass| pass.to_str().ok());
    let by_cookie = cookie(request.headers(), ports.cookie());
    let shown = by_header.or(by_cookie);
    let pass = shown.and_then(|shown| ports.passes.read(Kind::Visit, shown));
    let pass = pass.filter(|pass| ports.domain.is_host_of(&host, &pass.sandbox, pass.port)).ok_or_else(|| {
        ApiError::unauthenticated(format!(
            "open a link that `longhand port-forward --link` has made, or send its token as {PASS}: there is none, or it is over"
        ))
    })?;
    let origin = ports.domain.origin(&pass.sandbox, pass.port);
    if by_header.is_none() && is_foreign(request.method(), request.headers(), &origin) {
        return Err(ApiError::forbidden(FOREIGN));
    }
    app.limits.request(&pass.identity)?;
    let access = Access::InSandbox { part: PORT_FORWARD, verb: "create", name: &pass.sandbox.name };
    app.auth.require(&pass.identity, access, &pass.sandbox.namespace).await?;
    pass_on(&app, pass, &host, ports.domain.scheme(), request).await
}

/// Exchanges a link for a cookie.
fn enter(ports: &Ports, host: &str, shown: &str, on: &str) -> Result<Response> {
    let pass = ports.passes.read(Kind::Link, shown);
    let pass = pass.filter(|pass| ports.domain.is_host_of(host, &pass.sandbox, pass.port));
    let pass = pass.ok_or_else(|| ApiError::unauthenticated("the link is over: ask for another"))?;
    let Issued { pass, .. } = ports.issue(Kind::Visit, &pass)?;
    let secure = if ports.domain.is_secure() { "; Secure" } else { "" };
    let cookie = format!("{}={pass}; Path=/; HttpOnly; SameSite=Lax{secure}", ports.cookie());
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| ApiError::internal(error.to_string()));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(on)?);
    headers.insert(header::SET_COOKIE, value(&cookie)?);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}

/// Sends the request to the server, over a connection of its own.
async fn pass_on(app: &App, pass: Pass, host: &str, scheme: &'static str, request: Request) -> Result<Response> {
    let Pass { identity, sandbox, port } = pass;
    let slot = app.streams.open(&sandbox.namespace)?;
    let target = app.executor.reach(&sandbox).await?;
    let stream = app.executor.client().open_port(&target, port).await?;
    let broken = |error: hyper::Error| {
        ApiError::unavailable(format!("the server on port {port} of the sandbox did not answer: {error}"))
    };
    let (mut sender, connection) = http1::handshake(stream.into_inner()).await.map_err(broken)?;
    app.tunnels.drive(app, slot, connection.with_upgrades());

    let (mut parts, body) = request.into_parts();
    let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    parts.headers = inwards(&parts.headers, host, scheme, port);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().map_err(|_| ApiError::bad_request("the path cannot be read"))?;
    parts.extensions.clear();
    let mut answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(broken)?;

    let headers = outwards(answer.headers());
    let status = answer.status();
    let body = if status == StatusCode::SWITCHING_PROTOCOLS {
        let client = client.ok_or_else(|| ApiError::bad_request("the connection cannot be upgraded"))?;
        let server = timeout(BEGIN, hyper::upgrade::on(&mut answer)).await;
        let server = server.map_err(|_| ApiError::timeout("the server did not begin to speak in time"))?;
        let slot = app.streams.open(&sandbox.namespace)?;
        let (part, namespace, sandbox) = (PORT_FORWARD, sandbox.namespace, sandbox.name);
        let opened = Opened { identity: Arc::new(identity), part, namespace, sandbox, slot };
        app.tunnels.carry(app, opened, client, TokioIo::new(server.map_err(broken)?));
        Body::empty()
    } else {
        Body::new(answer.into_body())
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}
