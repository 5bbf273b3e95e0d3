//! A credential proxy puts on record what it did for the sandboxes of its session.

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use longhand_protocol::egress::{CredentialEvent, CredentialEvents, CredentialOutcome, MalformedReport};
use longhand_protocol::event::{EventBody, NewEvent};
use serde_json::{Value, json};

use super::access;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{JsonOf, PathOf};
use crate::app::App;
use crate::metrics;

/// So many are appended at once.
const BATCH: usize = 60;

/// `POST credential_events`. What is answered is in the log. What is too long is there as far as it fits: one event is no reason
/// to lose the others.
pub async fn report(
    State(app): State<App>,
    headers: HeaderMap,
    path: PathOf,
    JsonOf(report): JsonOf<CredentialEvents>,
) -> Result<Json<Value>> {
    let session = path.session()?;
    let identity = app.auth.identify_proxy(&headers).await?;
    app.limits.request(&identity)?;
    access::require(&app, &identity, session, None).await?;
    let malformed = |problem: MalformedReport| ApiError::bad_request(problem.to_string());
    report.check().map_err(malformed)?;
    let events: Vec<EventBody> = report.events.into_iter().map(body).collect::<Result<_, _>>().map_err(malformed)?;
    for batch in events.chunks(BATCH) {
        let batch = batch.iter().cloned().map(NewEvent::new).collect();
        app.store.append_unfenced(session, batch).await?;
    }
    for event in &events {
        metrics::credential(event);
    }
    Ok(Json(json!({})))
}

fn body(event: CredentialEvent) -> Result<EventBody, MalformedReport> {
    let CredentialEvent { outcome, credential, sandbox, host, port, method, path_sha256, reason, count, at } = event;
    let (sandbox, host, method) = (sandbox.into(), host.into(), method.into());
    let (credential, path_sha256) = (credential.map(Into::into), path_sha256.map(Into::into));
    match (outcome, credential, reason) {
        (CredentialOutcome::Used, Some(credential), None) => {
            Ok(EventBody::CredentialUsed { credential, sandbox, host, port, method, path_sha256, count, at })
        }
        (CredentialOutcome::Denied, credential, Some(reason)) => {
            let reason = reason.into();
            Ok(EventBody::CredentialDenied { credential, sandbox, host, port, method, path_sha256, reason, count, at })
        }
        _ => Err(MalformedReport::Outcome),
    }
}
