//! `POST /v1/provision`: what the workspace shall hold.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tokio::sync::oneshot;

use super::calls::Calls;
use super::error::ApiError;
use super::journal::Use;
use super::routes::Body;
use crate::provision::{ProvisionRequest, Provisioned};

/// It goes on when whoever asked is gone, and ends by its own deadline or with this process.
pub(super) async fn provision(
    State(calls): State<Arc<Calls>>,
    Body(request): Body<ProvisionRequest>,
) -> Result<Json<Provisioned>, ApiError> {
    let open = calls.open(Use::Transfer)?;
    let (toolbox, ending) = (Arc::clone(calls.toolbox()), calls.ending());
    let (sender, answer) = oneshot::channel();
    calls.spawn(async move {
        let provisioned = toolbox.provision(&request, &ending).await;
        drop(open);
        // Nobody may wait for it any more.
        sender.send(provisioned).ok();
    });
    answer.await.map(Json).map_err(|_| ApiError::Failed)
}
