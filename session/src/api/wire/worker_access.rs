//! Whether who asks may do something with a session now: a user of the cluster by RBAC, a worker of a self-hosted
//! environment while it has the session's work.

use longhand_session_log::store::SessionMeta;
use longhand_session_log::work::WorkError;

use crate::api::error::{ApiError, Result};
use crate::app::App;
use crate::auth::{Access, Identity, Worker};

/// Whether they may.
pub(super) async fn may(app: &App, identity: &Identity, access: Access<'_>, meta: &SessionMeta) -> Result<bool> {
    let Some(worker) = &identity.worker else { return app.auth.permits(identity, access, &meta.namespace).await };
    let fits = worker.session == meta.id
        && worker.queue.namespace == meta.namespace
        && matches!(access, Access::GetSession | Access::ReadEvents | Access::SendEvents);
    Ok(fits && has_its_work(app, worker).await?)
}

/// An error unless they may.
pub(super) async fn require(app: &App, identity: &Identity, access: Access<'_>, meta: &SessionMeta) -> Result<()> {
    match &identity.worker {
        None => app.auth.require(identity, access, &meta.namespace).await,
        Some(_) if may(app, identity, access, meta).await? => Ok(()),
        Some(worker) => Err(ApiError::forbidden(format!(
            "the token of the work {} is good for events and the state of its own session, as long as its worker has the work",
            worker.work
        ))),
    }
}

/// Whether the worker's attempt is the last one, and has not ended.
async fn has_its_work(app: &App, worker: &Worker) -> Result<bool> {
    match app.executor.hosted.work.get(&worker.queue, &worker.work).await {
        Ok(item) => Ok(item.admits(worker.attempt)),
        Err(WorkError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
