//! `POST /v1/provision`: what the workspace shall hold. `PUT /v1/provision`: the content of a stored file of it.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use tokio::sync::oneshot;

use super::calls::Calls;
use super::error::ApiError;
use super::journal::Use;
use super::routes::Body;
use super::transfer::receive;
use crate::provision::{Content, ProvisionRequest, Provisioned};
use crate::tools::Toolbox;

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

/// A body that breaks off, or is not what it should be, changes nothing.
pub(super) async fn content(
    State(calls): State<Arc<Calls>>,
    content: Result<Query<Content>, QueryRejection>,
    body: axum::body::Body,
) -> Result<Json<Provisioned>, ApiError> {
    let Query(content) = content?;
    let open = calls.open(Use::Transfer)?;
    let toolbox = Arc::clone(calls.toolbox());
    let _turn = toolbox.provisioning().await;
    let (workspace, name) = (toolbox.workspace(), content.name.clone());
    let made = receive(Some(open), body, move |from| Toolbox::put_stored(workspace, &content, from)).await?;
    let made = if made { vec![name] } else { Vec::new() };
    Ok(Json(Provisioned { made, ..Provisioned::default() }))
}
