//! A harness that belongs to no session waits for one.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use longhand_protocol::harness::{Offer, ParkRequest};

use super::access::pod_of;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf};
use crate::app::App;
use crate::warm;

const LONGEST_WAIT: u64 = 30;

/// `POST /harness/v1/parked`.
pub async fn park(
    State(app): State<App>,
    Caller(identity): Caller,
    JsonOf(request): JsonOf<ParkRequest>,
) -> Result<Json<Offer>> {
    let wait = request.wait_seconds;
    if wait > LONGEST_WAIT {
        return Err(ApiError::bad_request(format!("`wait_seconds` is {wait}, and must be 0 to {LONGEST_WAIT}")));
    }
    let pod = pod_of(&identity)?;
    Ok(Json(warm::park(&app, &pod, Duration::from_secs(wait)).await?))
}
