//! What the replicas of the service tell one another.

use axum::Json;
use axum::extract::State;
use longhand_protocol::internal::PeerPreviews;
use serde_json::{Value, json};

use super::error::{ApiError, Result};
use super::extract::{Caller, JsonOf};
use crate::app::App;

/// `POST /peer/v1/previews`: what a harness has posted at another replica.
pub async fn previews(
    State(app): State<App>,
    Caller(identity): Caller,
    JsonOf(request): JsonOf<PeerPreviews>,
) -> Result<Json<Value>> {
    if identity.username != app.replicas {
        return Err(ApiError::forbidden(format!("{} is no replica of this service", identity.username)));
    }
    request.posts.into_iter().for_each(|post| app.previews.show(post));
    Ok(Json(json!({})))
}
