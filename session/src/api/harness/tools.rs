//! A brain runs tools, and shows what it is writing.

use axum::Json;
use axum::extract::State;
use longhand_protocol::harness::{DeltasRequest, ExecuteRequest, ExecuteResponse};
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
