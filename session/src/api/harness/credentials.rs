//! A credential proxy puts on record what it did for the sandboxes of its session.

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use longhand_protocol::egress::{CredentialEvent, CredentialEvents, CredentialOutcome, MAX_EVENTS};
use longhand_protocol::event::{EventBody, NewEvent};
use serde_json::{Value, json};

use super::access;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{JsonOf, PathOf};
use crate::app::App;
use crate::metrics;

/// So many are appended at once.
const BATCH: usize = 60;
const LONGEST_HOST: usize = 253;
const LONGEST_REASON: usize = 512;
/// Vault, slash and credential.
const LONGEST_CREDENTIAL: usize = 320;
const LONGEST_WORD: usize = 64;

/// `POST credential_events`. What is answered is in the log.
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
    let count = report.events.len();
    if !(1..=MAX_EVENTS).contains(&count) {
        return Err(ApiError::bad_request(format!("`events` has {count} entries, and must have 1 to {MAX_EVENTS}")));
    }
    let events: Vec<EventBody> = report.events.into_iter().map(body).collect::<Result<_>>()?;
    for batch in events.chunks(BATCH) {
        let batch = batch.iter().cloned().map(NewEvent::new).collect();
        app.store.append_unfenced(session, batch).await?;
    }
    for event in &events {
        metrics::credential(event);
    }
    Ok(Json(json!({})))
}

fn body(event: CredentialEvent) -> Result<EventBody> {
    let CredentialEvent { outcome, credential, sandbox, host, port, method, path_sha256, reason, count, at } = event;
    let lengths = [
        ("credential", credential.as_deref(), LONGEST_CREDENTIAL),
        ("sandbox", Some(&*sandbox), LONGEST_WORD),
        ("host", Some(&*host), LONGEST_HOST),
        ("method", Some(&*method), LONGEST_WORD),
        ("path_sha256", path_sha256.as_deref(), LONGEST_WORD),
        ("reason", reason.as_deref(), LONGEST_REASON),
    ];
    if let Some((name, ..)) = lengths.iter().find(|(_, value, most)| value.is_some_and(|value| value.len() > *most)) {
        return Err(ApiError::bad_request(format!("`{name}` of an event is too long")));
    }
    match (outcome, credential, reason) {
        (CredentialOutcome::Used, Some(credential), None) => {
            Ok(EventBody::CredentialUsed { credential, sandbox, host, port, method, path_sha256, count, at })
        }
        (CredentialOutcome::Denied, credential, Some(reason)) => {
            Ok(EventBody::CredentialDenied { credential, sandbox, host, port, method, path_sha256, reason, count, at })
        }
        _ => Err(ApiError::bad_request(
            "an event of outcome `used` has a credential and no reason, and one of `denied` a reason",
        )),
    }
}
