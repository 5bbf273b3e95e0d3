//! Sessions: looked at, archived and deleted.

use axum::Json;
use axum::extract::State;
use longhand_protocol::wire::{Session, SessionDeleted, SessionStatus};
use longhand_session_log::StoreError;
use longhand_session_log::store::SessionState;

use super::{session_for, view};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;
use crate::sessions;

/// `GET sessions/{session}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Session>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::GetSession).await?;
    shown(&app, state).await
}

async fn shown(app: &App, state: SessionState) -> Result<Json<Session>> {
    let resource = sessions::resource_of(app, &state.meta).await?;
    view::shown(app, state, resource).await.map(Json)
}

/// `POST sessions/{session}/archive`: the session ends for good, and stays to be read.
pub async fn archive(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Session>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::UpdateSession).await?;
    if state.archived_at.is_none() {
        require_rest(&state)?;
        app.store.archive(&state.meta.id).await.map_err(|error| ApiError::from(error).of_change())?;
        tracing::info!(session = %state.meta.id, "session archived");
    }
    let state = app.store.state(&state.meta.id).await?;
    shown(&app, state).await
}

fn require_rest(state: &SessionState) -> Result<()> {
    if matches!(state.status, SessionStatus::Running | SessionStatus::Rescheduling) {
        let message = format!("session {} is {}; interrupt it first", state.meta.id, state.status.as_str());
        return Err(ApiError::conflict(message));
    }
    Ok(())
}

/// `DELETE sessions/{session}`.
pub async fn delete(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<SessionDeleted>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::DeleteSession).await?;
    require_rest(&state)?;
    let meta = state.meta;
    // Before the resource goes, without which the log would have to go too.
    if let Some(fork) = state.fork {
        return Err(StoreError::HasForks { session: meta.id, fork }.into());
    }
    // The resource first: should the log be left, the sweep takes it.
    let deleted = app.resources.delete_session(&meta.namespace, &meta.name, &meta.uid).await;
    deleted.map_err(|error| ApiError::from(error).of_change())?;
    app.store.delete(&meta.id).await.map_err(|error| ApiError::from(error).of_last_step())?;
    tracing::info!(session = %meta.id, "session deleted");
    Ok(Json(SessionDeleted { id: meta.id, kind: "session_deleted".to_owned() }))
}
