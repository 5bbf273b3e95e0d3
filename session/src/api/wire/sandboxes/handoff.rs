//! `POST handoff`: a sandbox of one session becomes one of another session of the namespace.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use longhand_protocol::wire::SessionStatus;
use longhand_protocol::wire::handoffs::{HandOff, SandboxAt, SandboxHandoff};
use longhand_session_log::store::SessionMeta;

use super::super::session_for;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf, PathOf, shortened};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::execute::Party;
use crate::resources::plan::sandbox_name;

const PART: &str = "handoff";

/// `POST /v1/sessions/{session}/sandboxes/{sandbox}/handoff`.
pub async fn hand_off(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    JsonOf(request): JsonOf<HandOff>,
) -> Result<Json<SandboxHandoff>> {
    params.end()?;
    let sandbox = path.of("sandbox")?;
    let from = session_for(&app, &identity, &path, Access::GetSession).await?.meta;
    let to = app.store.state(&request.to_session).await?;
    // Who may not know of the other session learns nothing of it.
    app.auth.require(&identity, Access::GetSession, &to.meta.namespace).await?;
    let name = request.to_sandbox.as_deref().unwrap_or(sandbox);
    for (meta, sandbox) in [(&from, sandbox), (&to.meta, name)] {
        require(&app, &identity, meta, sandbox).await?;
    }
    if to.status == SessionStatus::Terminated {
        return Err(ApiError::conflict(format!("the session {} has ended", to.meta.id)));
    }
    app.executor.hand_off(Party { meta: &from, sandbox }, Party { meta: &to.meta, sandbox: name }).await?;
    tracing::info!(user = identity.username, from = %from.id, to = %to.meta.id, sandbox, "a sandbox is handed over");
    let at = |meta: &SessionMeta, sandbox: &str| SandboxAt { session: meta.id.clone(), sandbox: sandbox.to_owned() };
    Ok(Json(SandboxHandoff { from: at(&from, sandbox), to: at(&to.meta, name) }))
}

/// An error unless the caller may change the session, and hand over what is its sandbox of this name, or shall be.
async fn require(app: &App, identity: &Arc<Identity>, meta: &SessionMeta, sandbox: &str) -> Result<()> {
    let change = Access::Object("agentsessions", "update", &meta.name);
    app.auth.require(identity, change, &meta.namespace).await?;
    if !meta.sandboxes.iter().any(|known| known == sandbox) {
        let sandbox = shortened(sandbox);
        return Err(ApiError::not_found(format!("the session {} has no sandbox `{sandbox}`", meta.id)));
    }
    let object = sandbox_name(&meta.name, &meta.uid, sandbox);
    let access = Access::InSandbox { part: PART, verb: "create", name: &object };
    app.auth.require(identity, access, &meta.namespace).await
}
