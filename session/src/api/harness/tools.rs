//! A brain runs tools, has sandboxes made, and shows what it is writing.

use axum::Json;
use axum::extract::State;
use longhand_protocol::harness::{DeltasRequest, ExecuteRequest, ExecuteResponse};
use longhand_protocol::provision::{ProvisionRequest, ProvisionResponse};
use longhand_protocol::sandbox_tools::shortened;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::access;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf, PathOf};
use crate::app::App;

/// `POST execute`. The call goes on when the harness hangs up, or is told to ask again.
pub async fn execute(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<ExecuteRequest>,
) -> Result<Json<ExecuteResponse>> {
    let session = path.session()?;
    access::require(&app, &identity, session, Some(request.epoch)).await?;
    let result = app.executor.execute(session, request.epoch, &request.tool_use_id);
    match timeout(app.waits.execute, result).await {
        Ok(record) => Ok(Json(ExecuteResponse { record: record? })),
        Err(_) => Err(ApiError::timeout("the tool call is still running; ask again for its result")),
    }
}

/// `POST provision`. What was begun goes on when the harness hangs up, or is told to ask again.
pub async fn provision(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<ProvisionRequest>,
) -> Result<Json<ProvisionResponse>> {
    let session = path.session()?;
    access::require(&app, &identity, session, Some(request.epoch)).await?;
    let meta = app.store.state(session).await?.meta;
    let sandbox = match (request.sandbox, meta.sandboxes.first()) {
        (_, None) => return Err(ApiError::bad_request(format!("session {session} has no sandbox"))),
        (Some(wanted), _) if !meta.sandboxes.contains(&wanted) => {
            let (wanted, all) = (shortened(&wanted), meta.sandboxes.join(", "));
            return Err(ApiError::bad_request(format!("session {session} has no sandbox `{wanted}`; it has: {all}")));
        }
        (wanted, Some(first)) => wanted.unwrap_or_else(|| first.clone()),
    };
    match timeout(app.waits.execute, app.executor.provision(&meta, &sandbox)).await {
        Ok(reason) => {
            let reason = reason?;
            Ok(Json(ProvisionResponse { sandbox, ready: reason.is_none(), reason }))
        }
        Err(_) => Err(ApiError::timeout("the sandbox is not ready yet; ask again")),
    }
}

/// `POST deltas`.
pub async fn deltas(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<DeltasRequest>,
) -> Result<Json<Value>> {
    let session = path.session()?;
    access::require(&app, &identity, session, Some(request.epoch)).await?;
    app.previews.post(session, request.frames);
    Ok(Json(json!({})))
}
