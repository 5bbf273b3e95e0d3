//! Nothing but the probes is answered without a token of the session service for this very pod.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use super::error::ApiError;
use crate::token::{Scope, Verifier};

pub(super) async fn require_token(
    State(verifier): State<Arc<Verifier>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    verifier.verify(bearer(request.headers()).ok_or(ApiError::NoToken)?)?;
    Ok(next.run(request).await)
}

/// The same for a terminal, whose tokens open nothing else.
pub(super) async fn require_terminal_token(
    State(verifier): State<Arc<Verifier>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    verifier.verify_for(bearer(request.headers()).ok_or(ApiError::NoToken)?, Scope::Terminal)?;
    Ok(next.run(request).await)
}

/// The same for a port.
pub(super) async fn require_port_token(
    State(verifier): State<Arc<Verifier>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    verifier.verify_for(bearer(request.headers()).ok_or(ApiError::NoToken)?, Scope::Port)?;
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
