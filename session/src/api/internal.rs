//! What the operator asks. It has no access to logs: it learns what it needs for the status of its resources.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use longhand_protocol::SessionId;
use longhand_protocol::internal::{
    DrainSandbox, Drained, EnsureSession, Handoff, SessionList, SessionRef, SessionSummary, SettleHandoff,
};
use longhand_session_log::StoreError;
use longhand_session_log::store::SessionState;
use serde_json::{Value, json};

use super::error::{ApiError, Result};
use super::extract::{Caller, JsonOf, PathOf};
use super::query::Params;
use crate::app::App;
use crate::auth::Identity;
use crate::sessions;

const PAGE: usize = 500;
const LONGEST_PAGE: usize = 1_000;

fn require_operator(app: &App, identity: &Identity) -> Result<()> {
    if identity.username == app.operator {
        return Ok(());
    }
    Err(ApiError::forbidden(format!("{} is not the operator, {}", identity.username, app.operator)))
}

/// `PUT /internal/v1/namespaces/{namespace}/sessions/{name}`.
pub async fn ensure(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<EnsureSession>,
) -> Result<Json<SessionSummary>> {
    require_operator(&app, &identity)?;
    let (namespace, name) = path.resource()?;
    let resource = app.resources.session(namespace, name).await?.ok_or_else(|| no_session(namespace, name))?;
    let uid = resource.metadata.uid.as_deref().unwrap_or_default();
    if uid != request.uid {
        let message = format!("the AgentSession {namespace}/{name} has the UID {uid}, not {}", request.uid);
        return Err(ApiError::conflict(message));
    }
    let state = sessions::ensure(&app, &resource).await?;
    Ok(Json(summary_of(&app, state).await?))
}

/// `GET /internal/v1/namespaces/{namespace}/sessions/{name}`.
pub async fn summary(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<SessionSummary>> {
    require_operator(&app, &identity)?;
    params.end()?;
    let (namespace, name) = path.resource()?;
    let resource = app.resources.session(namespace, name).await?.ok_or_else(|| no_session(namespace, name))?;
    let state = app.store.state(&longhand_crds::session_id(&resource.metadata)).await?;
    Ok(Json(summary_of(&app, state).await?))
}

/// `GET /internal/v1/sessions?after=&limit=`.
pub async fn list(State(app): State<App>, Caller(identity): Caller, mut params: Params) -> Result<Json<SessionList>> {
    require_operator(&app, &identity)?;
    let after = params.one("after")?.map(|after| after.parse::<SessionId>()).transpose();
    let after = after.map_err(|error| ApiError::bad_request(format!("`after`: {error}")))?;
    let limit = params.limit(PAGE, LONGEST_PAGE)?;
    params.end()?;
    let sessions = app.store.list(after.as_ref(), limit).await?.into_iter();
    let sessions = sessions.map(|meta| SessionRef {
        session_id: meta.id,
        namespace: meta.namespace,
        name: meta.name,
        uid: meta.uid,
    });
    Ok(Json(SessionList { sessions: sessions.collect() }))
}

/// `DELETE /internal/v1/sessions/{session}`: the log goes if its resource is gone, as soon as its retention permits.
/// Until then it takes nothing new.
pub async fn delete(State(app): State<App>, Caller(identity): Caller, path: PathOf) -> Result<Json<Value>> {
    require_operator(&app, &identity)?;
    let session = path.session()?;
    match app.store.state(session).await {
        Ok(state) => {
            if sessions::resource_of(&app, &state.meta).await?.is_some() {
                let (namespace, name) = (&state.meta.namespace, &state.meta.name);
                let message = format!("the AgentSession {namespace}/{name} of session {session} exists");
                return Err(ApiError::conflict(message));
            }
            if let Some(keep) = app.waits.deletion.of(&state.meta.retention) {
                // It ends before the first moment from which the time is counted.
                let ended = app.store.archive(session).await?;
                if Timestamp::now().duration_since(ended) < keep {
                    return Ok(Json(json!({})));
                }
            }
        }
        // A deletion that was begun and not finished is finished.
        Err(StoreError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    app.store.delete(session).await?;
    tracing::info!(%session, "log deleted: its resource is gone");
    Ok(Json(json!({})))
}

/// `POST /internal/v1/namespaces/{namespace}/sandboxes/{name}/drain`.
pub async fn drain(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<DrainSandbox>,
) -> Result<Json<Drained>> {
    require_operator(&app, &identity)?;
    let (namespace, name) = path.resource()?;
    Ok(Json(app.executor.drain(namespace, name, &request).await?))
}

/// `POST /internal/v1/namespaces/{namespace}/sandboxes/{name}/handoff`.
pub async fn settle_handoff(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<SettleHandoff>,
) -> Result<Json<Handoff>> {
    require_operator(&app, &identity)?;
    let (namespace, name) = path.resource()?;
    Ok(Json(app.executor.settle_handoff(namespace, name, &request.uid).await?))
}

fn no_session(namespace: &str, name: &str) -> ApiError {
    ApiError::not_found(format!("there is no AgentSession {namespace}/{name}"))
}

async fn summary_of(app: &App, state: SessionState) -> Result<SessionSummary> {
    let limit = app.quota.notice(&*app.store, &state).await?;
    Ok(SessionSummary {
        session_id: state.meta.id,
        status: state.status,
        epoch: state.epoch,
        head: state.head,
        delivered_inputs: state.meta.delivered_inputs,
        owner_pod_uid: state.owner.map(|owner| owner.claimant.pod_uid),
        wake: state.wake_revision.is_some(),
        usage: state.usage,
        limit,
    })
}
