//! What surrounds every request: its identifier, its span, its metrics, and the body of an error.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderValue, header};
use longhand_protocol::ErrorEnvelope;
use longhand_protocol::id::request_id;
use tracing::{Instrument as _, Span, field, info_span};

use super::error::Result;
use super::extract::Caller;
use crate::app::App;
use crate::metrics;

/// Requests are counted by the template of their route, never by their path.
const NO_ROUTE: &str = "none";

/// Gives the request an identifier, a span and a count, and writes the body of an error.
pub async fn surround(request: Request, next: Next) -> Response {
    let id = request_id();
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
    let method = request.method().as_str().to_owned();
    let span = info_span!("request", request_id = id, method, route, session = field::Empty);
    let started = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    metrics::request(&method, &route, response.status(), started.elapsed());
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
