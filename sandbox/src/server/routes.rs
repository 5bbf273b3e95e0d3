//! The paths of the API.

use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRef, FromRequest, Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router, middleware};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::auth::{require_port_token, require_terminal_token, require_token};
use super::calls::Calls;
use super::error::ApiError;
use super::{mcp, provision, terminal, transfer, tunnel, workspace};
use crate::egress::{BindError, Egress};
use crate::fence::Fence;
use crate::token::Verifier;
use crate::wire::{
    Activity, CancelRequest, CancelResponse, DrainRequest, DrainResponse, EgressBinding, EgressBound, ExecuteRequest,
    FenceReport, MAX_REQUEST_BYTES,
};

const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What the paths are answered from.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) calls: Arc<Calls>,
    /// The way out, if there can be one.
    pub(super) egress: Option<Arc<Egress>>,
    pub(super) fence: Fence,
}

impl FromRef<Served> for Arc<Calls> {
    fn from_ref(served: &Served) -> Self {
        Self::clone(&served.calls)
    }
}

/// `own` is the port that this is served on.
pub(super) fn router(served: Served, verifier: Arc<Verifier>, own: u16) -> Router {
    let guarded = Router::new()
        .route("/v1/execute", post(execute))
        .route("/v1/cancel", post(cancel))
        .route("/v1/activity", get(activity))
        .route("/v1/drain", post(drain).delete(resume))
        .route("/v1/egress", put(bind_egress).delete(unbind_egress))
        .route("/v1/provision", post(provision::provision).put(provision::content))
        .route("/v1/files", get(transfer::download).put(transfer::upload))
        .route("/v1/archive", get(transfer::download_folder).put(transfer::upload_folder))
        .route("/v1/workspace", get(workspace::send).put(workspace::fill))
        .route("/mcp", post(mcp::message))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&verifier), require_token));
    let terminals = Router::new()
        .route("/v1/terminal", get(terminal::open))
        .layer(middleware::from_fn_with_state(Arc::clone(&verifier), require_terminal_token));
    let ports = Router::new()
        .route("/v1/ports/{port}", get(move |state, port, request| tunnel::open(state, port, request, own)))
        .layer(middleware::from_fn_with_state(verifier, require_port_token));
    // Read by the kubelet and by the operator, which have no token; it says nothing that a program here could not find out.
    let probes = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).route("/v1/fence", get(fence));
    probes.merge(guarded).merge(terminals).merge(ports).with_state(served)
}

async fn execute(State(calls): State<Arc<Calls>>, Body(request): Body<ExecuteRequest>) -> Result<Response, ApiError> {
    let output = calls.execute(request).await?;
    Ok(Json(&*output).into_response())
}

async fn cancel(State(calls): State<Arc<Calls>>, Body(request): Body<CancelRequest>) -> Json<CancelResponse> {
    Json(CancelResponse { cancelled: calls.cancel(&request.call_id) })
}

async fn activity(State(calls): State<Arc<Calls>>) -> Json<Activity> {
    Json(calls.activity())
}

async fn drain(State(calls): State<Arc<Calls>>, Body(request): Body<DrainRequest>) -> Json<DrainResponse> {
    Json(calls.drain(&request))
}

async fn resume(State(calls): State<Arc<Calls>>) -> Json<Activity> {
    Json(calls.resume())
}

async fn livez() -> &'static str {
    "ok"
}

async fn readyz(State(served): State<Served>) -> (StatusCode, &'static str) {
    if served.calls.is_terminating() {
        return (StatusCode::SERVICE_UNAVAILABLE, "terminating");
    }
    if !served.fence.admits().await {
        return (StatusCode::SERVICE_UNAVAILABLE, "no network policy keeps this sandbox in; see /v1/fence");
    }
    (StatusCode::OK, "ok")
}

async fn fence(State(served): State<Served>) -> Json<FenceReport> {
    Json(served.fence.report())
}

async fn bind_egress(
    State(served): State<Served>,
    Body(binding): Body<EgressBinding>,
) -> Result<Json<EgressBound>, ApiError> {
    served.egress.ok_or(BindError::NoRelay)?.bind(binding).await?;
    Ok(Json(EgressBound { bound: true }))
}

async fn unbind_egress(State(served): State<Served>) -> Json<EgressBound> {
    if let Some(egress) = served.egress {
        egress.unbind();
    }
    Json(EgressBound { bound: false })
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::NotFound { path: uri.path().to_owned() }
}

async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::Method { method: method.to_string() }
}

/// A JSON body, whatever its content type, within the bounds of size and time.
pub(super) struct Body<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        Ok(Self(serde_json::from_slice(&whole(request.into_body()).await?)?))
    }
}

/// All of a body, within the bounds of size and time.
pub(super) async fn whole(body: axum::body::Body) -> Result<Bytes, ApiError> {
    timeout(BODY_TIMEOUT, to_bytes(body, MAX_REQUEST_BYTES))
        .await
        .map_err(|_| ApiError::SlowBody { seconds: BODY_TIMEOUT.as_secs() })?
        .map_err(|error| body_error(&error))
}

fn body_error(error: &axum::Error) -> ApiError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return ApiError::TooLarge;
        }
        cause = error.source();
    }
    ApiError::BrokenBody
}
