//! What surrounds every request: its identifier, its span, its metrics, and the body of an error.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderValue, Method, header};
use longhand_process::trace::{UNTRACED, belonging};
use longhand_protocol::ErrorEnvelope;
use longhand_protocol::id::request_id;
use longhand_protocol::trace;
use tracing::{Instrument as _, Span, field, info_span};

use super::error::Result;
use super::extract::Caller;
use crate::app::App;
use crate::metrics;

/// What only parts of Longhand ask for.
const OURS: [&str; 3] = ["/harness/", "/internal/", "/peer/"];
const PREVIEWS: &str = "/deltas";
/// Requests are counted by the template of their route, never by their path.
const NO_ROUTE: &str = "none";

/// Gives the request an identifier, a span and a count, and writes the body of an error.
pub async fn surround(request: Request, next: Next) -> Response {
    let id = request_id();
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
    let method = request.method().as_str().to_owned();
    let span = span_of(&request, &id, &method, &route);
    let started = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    metrics::request(&method, &route, response.status(), started.elapsed());
    span.record("http.response.status_code", response.status().as_u16());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("request-id", value);
    }
    let Some(mut envelope) = response.extensions_mut().remove::<ErrorEnvelope>() else { return response };
    log(&span, &response, &envelope);
    envelope.request_id = Some(id);
    let body = serde_json::to_vec(&envelope).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body);
    response
}

/// The span of a request, which belongs to what its caller says. For the log alone are those that only read, previews, of which
/// there are many, and what harnesses and the operator ask for outside of a turn.
fn span_of(request: &Request, id: &str, method: &str, route: &str) -> Span {
    let parent = request.headers().get(trace::HEADER).and_then(|parent| parent.to_str().ok()?.parse().ok());
    let alone = parent.is_none() && OURS.iter().any(|prefix| route.starts_with(prefix));
    if alone || request.method() == Method::GET || route.ends_with(PREVIEWS) {
        return info_span!(target: UNTRACED, "request", request_id = id, method, route, session = field::Empty,
            http.response.status_code = field::Empty);
    }
    let name = format!("{method} {route}");
    let span = info_span!(
        "request",
        request_id = id,
        method,
        route,
        session = field::Empty,
        http.response.status_code = field::Empty,
        otel.name = name,
        otel.kind = "server"
    );
    belonging(span, parent)
}

/// Lets a request in whose caller is known and has not had its share.
pub async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Result<Response> {
    let identity = app.auth.identify(request.headers()).await?;
    app.limits.request(&identity)?;
    request.extensions_mut().insert(Caller(identity));
    Ok(next.run(request).await)
}

fn log(span: &Span, response: &Response, envelope: &ErrorEnvelope) {
    let (status, message) = (response.status().as_u16(), &envelope.error.message);
    span.in_scope(|| match status {
        500.. if status != 504 => tracing::warn!(status, message, "request failed"),
        _ => tracing::debug!(status, message, "request refused"),
    });
}
