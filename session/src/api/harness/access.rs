//! Whether a pod may speak for a session.

use std::time::Duration;

use longhand_crds::AgentSession;
use longhand_protocol::SessionId;
use longhand_protocol::harness::Conflict;
use longhand_session_log::store::SessionState;

use crate::api::error::{ApiError, Result};
use crate::app::App;
use crate::auth::{Identity, Pod};
use crate::sessions::resource_of;

/// What was learnt of a claim is looked up again after this long.
pub(super) const REMEMBERED: Duration = Duration::from_secs(30);

/// The pod that a token is bound to.
pub(super) fn pod_of(identity: &Identity) -> Result<Pod> {
    identity.pod().ok_or_else(|| {
        ApiError::forbidden(format!(
            "{} is not a pod: a harness sends the projected token of its ServiceAccount",
            identity.username
        ))
    })
}

/// Lets the owner of the session pass, and while nobody owns it the pod that shall. An epoch that is fenced off is 412,
/// so that its harness knows that it is to exit.
pub(super) async fn require(app: &App, identity: &Identity, session: &SessionId, epoch: Option<u64>) -> Result<()> {
    let pod = pod_of(identity)?;
    let known = app.claims.get(session);
    if known.is_some_and(|(claimed, owner)| owner == pod.uid && epoch.is_none_or(|epoch| epoch == claimed)) {
        return Ok(());
    }
    let state = app.store.state(session).await?;
    if state.meta.namespace != pod.namespace {
        return Err(denied(&pod, session));
    }
    if let Some(epoch) = epoch.filter(|epoch| *epoch < state.epoch) {
        let message = format!("epoch {epoch} is fenced off: the session is at epoch {}", state.epoch);
        return Err(ApiError::log_conflict(Conflict::Fenced { epoch: state.epoch }, message));
    }
    let owns = state.owner.is_some_and(|owner| owner.claimant.pod_uid == pod.uid);
    if owns || resource_of(app, &state.meta).await?.is_some_and(|resource| is_named_by(&resource, &pod)) {
        app.claims.put(session.clone(), (state.epoch, pod.uid), REMEMBERED);
        return Ok(());
    }
    Err(denied(&pod, session))
}

/// The session as its owner sees it, whose epoch is then the session's. Everybody else is refused: whoever was the owner by
/// 412, as by every other call.
pub(super) async fn owned(app: &App, identity: &Identity, session: &SessionId) -> Result<SessionState> {
    let pod = pod_of(identity)?;
    require(app, identity, session, None).await?;
    let state = app.store.state(session).await?;
    if state.owner.as_ref().is_some_and(|owner| owner.claimant.pod_uid == pod.uid) {
        return Ok(state);
    }
    let message = format!("pod {}/{} has not claimed session {session}", pod.namespace, pod.name);
    Err(ApiError::log_conflict(Conflict::Fenced { epoch: state.epoch }, message))
}

/// Whether the operator has named the pod as the session's harness.
pub(super) fn is_named_by(resource: &AgentSession, pod: &Pod) -> bool {
    let named = resource.status.as_ref().and_then(|status| status.harness.as_ref()?.pod_uid.as_ref());
    named == Some(&pod.uid)
}

/// The pod is not the one.
pub(super) fn denied(pod: &Pod, session: &SessionId) -> ApiError {
    ApiError::forbidden(format!("pod {}/{} is not the harness of session {session}", pod.namespace, pod.name))
}
