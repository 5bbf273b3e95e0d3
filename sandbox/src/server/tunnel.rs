//! Ways to servers that listen in the sandbox: a connection that is upgraded leads to a port of the loopback, and nowhere else.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use longhand_process::relay::relay;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::calls::Calls;
use super::error::ApiError;
use super::journal::Use;
use crate::wire::TUNNEL_PROTOCOL;

/// A server on the same machine takes a connection at once, or not at all.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the other end may take to begin.
const PATIENCE: Duration = Duration::from_secs(30);
/// A connection on which nothing comes or goes for so long is closed.
const IDLE: Duration = Duration::from_secs(3_600);

/// `GET /v1/ports/{port}`, to be upgraded. `own` is the port of sandboxd.
pub(super) async fn open(
    State(calls): State<Arc<Calls>>,
    Path(port): Path<String>,
    request: Request,
    own: u16,
) -> Result<Response, ApiError> {
    let number = port.parse().ok().filter(|port| *port != 0);
    let port: u16 = number.ok_or_else(|| ApiError::NotFound { path: request.uri().path().to_owned() })?;
    if port == own {
        return Err(ApiError::OwnPort { port });
    }
    if !asks_for_tunnel(request.headers()) {
        return Err(ApiError::NoTunnel);
    }
    let open = calls.open(Use::Tunnel)?;
    let mut server = connect(port).await?;
    let upgrade = hyper::upgrade::on(request);
    let stop = calls.ending();
    calls.spawn(async move {
        let _open = open;
        let carried = async {
            let upgraded = timeout(PATIENCE, upgrade).await.map_err(std::io::Error::from)?;
            let mut client = TokioIo::new(upgraded.map_err(std::io::Error::other)?);
            relay(&mut client, &mut server, IDLE).await
        };
        if let Some(Err(error)) = stop.run_until_cancelled(carried).await {
            debug!(port, %error, "a connection to a port has ended");
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(TUNNEL_PROTOCOL));
    Ok(response)
}

fn asks_for_tunnel(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.trim().eq_ignore_ascii_case(TUNNEL_PROTOCOL))
}

/// A server may listen on either of the two loopback addresses.
async fn connect(port: u16) -> Result<TcpStream, ApiError> {
    let refused = |reason: String| ApiError::NothingListens { port, reason };
    let connecting = async {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(stream) => Ok(stream),
            Err(first) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| first),
        }
    };
    let stream = timeout(CONNECT, connecting).await;
    let stream = stream.map_err(|_| refused(format!("no answer in {} s", CONNECT.as_secs())))?;
    let stream = stream.map_err(|error| refused(error.to_string()))?;
    stream.set_nodelay(true).map_err(|error| refused(error.to_string()))?;
    Ok(stream)
}
