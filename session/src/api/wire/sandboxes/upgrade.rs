//! `GET terminal` and `GET ports/{port}`: connections that are upgraded and lead into the sandbox; `POST ports/{port}`: a link to a
//! port over HTTP.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use longhand_protocol::wire::ports::PortLink;
use longhand_sandbox::wire::{TERMINAL_PROTOCOL, TUNNEL_PROTOCOL, TerminalOptions};

use super::sandbox_for;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Identity;
use crate::ports::LINK;
use crate::ports::pass::{Kind, Pass};
use crate::tunnels::Opened;

const EXEC: &str = "exec";
pub(crate) const PORT_FORWARD: &str = "portforward";
/// Of a command, a terminal's name, or a WebSocket's key.
const LONGEST: usize = 64 * 1024;

/// `GET terminal?command=&columns=&rows=&term=&tty=`, to be upgraded to a WebSocket.
pub async fn terminal(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
    mut request: Request,
) -> Result<Response> {
    let options = options_of(&mut params)?;
    params.end()?;
    let key = websocket_key(request.headers())?;
    let sandbox = sandbox_for(&app, &identity, &path, EXEC, "create").await?;
    let slot = app.streams.open(&sandbox.namespace)?;
    let target = app.executor.reach(&sandbox).await?;
    let tunnel = app.executor.client().open_terminal(&target, &options, &key).await?;
    let accept = HeaderValue::from_str(&tunnel.accept);
    let accept = accept.map_err(|_| ApiError::unavailable("the sandbox answered a WebSocket in an unknown way"))?;
    tracing::info!(user = identity.username, sandbox = sandbox.name, "a terminal is opened");
    let opened = Opened { identity, part: EXEC, namespace: sandbox.namespace, sandbox: sandbox.name, slot };
    app.tunnels.carry(&app, opened, hyper::upgrade::on(&mut request), tunnel.stream);
    Ok(switching(
        "websocket",
        &[(SEC_WEBSOCKET_ACCEPT, accept), (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(TERMINAL_PROTOCOL))],
    ))
}

/// `GET ports/{port}`, to be upgraded to `tcp`.
pub async fn port(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    mut request: Request,
) -> Result<Response> {
    params.end()?;
    let port = port_of(&path)?;
    if !has(request.headers(), &UPGRADE, TUNNEL_PROTOCOL) {
        let message = format!("a port takes a connection that is upgraded: send `upgrade: {TUNNEL_PROTOCOL}`");
        return Err(ApiError::bad_request(message));
    }
    let sandbox = sandbox_for(&app, &identity, &path, PORT_FORWARD, "create").await?;
    let slot = app.streams.open(&sandbox.namespace)?;
    let target = app.executor.reach(&sandbox).await?;
    let stream = app.executor.client().open_port(&target, port).await?;
    tracing::debug!(user = identity.username, sandbox = sandbox.name, port, "a connection to a port is opened");
    let opened = Opened { identity, part: PORT_FORWARD, namespace: sandbox.namespace, sandbox: sandbox.name, slot };
    app.tunnels.carry(&app, opened, hyper::upgrade::on(&mut request), stream);
    Ok(switching(TUNNEL_PROTOCOL, &[]))
}

/// `POST ports/{port}`: a link and a pass. The sandbox need not be awake.
pub async fn port_link(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<PortLink>> {
    params.end()?;
    let port = port_of(&path)?;
    let sandbox = sandbox_for(&app, &identity, &path, PORT_FORWARD, "create").await?;
    let ports = app.ports.as_ref().ok_or_else(|| {
        ApiError::not_found("ports have no domain here, which the chart's session.ports.url names: use a port-forward")
    })?;
    let pass = Pass { identity: Identity::clone(&identity), sandbox, port };
    let (link, visit) = (ports.issue(Kind::Link, &pass)?, ports.issue(Kind::Visit, &pass)?);
    let origin = ports.domain.origin(&pass.sandbox, port);
    let expires_at = i64::try_from(visit.until).ok().and_then(|until| Timestamp::from_second(until).ok());
    Ok(Json(PortLink {
        url: format!("{origin}/?{LINK}={}", link.pass),
        origin,
        token: visit.pass,
        expires_at: expires_at.unwrap_or(Timestamp::MAX),
    }))
}

fn port_of(path: &PathOf) -> Result<u16> {
    let port = path.of("port")?.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| ApiError::not_found("a port is a number from 1 to 65535"))
}

fn switching(protocol: &'static str, more: &[(HeaderName, HeaderValue)]) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    headers.extend(more.iter().cloned());
    response
}

fn options_of(params: &mut Params) -> Result<TerminalOptions> {
    let usual = TerminalOptions::default();
    let command = params.one("command")?;
    let term = params.one("term")?.unwrap_or(usual.term);
    if command.as_ref().is_some_and(|command| command.len() > LONGEST) || term.len() > LONGEST {
        return Err(ApiError::bad_request(format!("`command` has more than {LONGEST} bytes")));
    }
    Ok(TerminalOptions {
        command,
        term,
        columns: params.positive("columns")?.unwrap_or(usual.columns),
        rows: params.positive("rows")?.unwrap_or(usual.rows),
        tty: params.one("tty")?.is_none_or(|tty| tty != "false"),
    })
}

/// The client's key, if it asks for what a terminal speaks.
fn websocket_key(headers: &HeaderMap) -> Result<String> {
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).filter(|key| key.len() <= 256);
    let asked = has(headers, &UPGRADE, "websocket") && has(headers, &SEC_WEBSOCKET_PROTOCOL, TERMINAL_PROTOCOL);
    key.filter(|_| asked).map(ToOwned::to_owned).ok_or_else(|| {
        ApiError::bad_request(format!("a terminal takes a WebSocket in the subprotocol {TERMINAL_PROTOCOL}"))
    })
}

/// Whether the header lists this.
pub(crate) fn has(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
}
