//! Probes and metrics, on a port that the kubelet reaches. Nothing here is secret.

use std::{sync::Arc, time::Instant};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use jiff::Timestamp;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    base_url::{Proxy, forward::CredentialState},
    config::{Binding, KeptIn},
    egress::{Bound, EgressProxy},
    refusals::Word,
    unusable::Unusable,
};

/// The route that credentials of the egress mode are reported under.
const EGRESS: &str = "egress";

#[derive(Clone)]
struct Health {
    proxy: Arc<Proxy>,
    egress: Option<Arc<EgressProxy>>,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
}

/// `/startupz`, `/livez`, `/readyz` and `/metrics`.
pub fn router(
    proxy: Arc<Proxy>,
    egress: Option<Arc<EgressProxy>>,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> Router {
    Router::new()
        .route("/startupz", get(startupz))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|State(health): State<Health>| async move { health.metrics.render() }))
        .with_state(Health { proxy, egress, metrics, shutdown })
}

/// Started once every credential that is required can be used: the pod holds back the harness until then, since it could do nothing.
async fn startupz(State(health): State<Health>) -> impl IntoResponse {
    let report = Report::of(&health);
    (status(report.may_start()), Json(report))
}

/// Ready with a missing credential too, which the body reports: it heals without a restart when the file appears.
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let report = Report::of(&health);
    (status(report.ready), Json(report))
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The body of `/readyz` and `/startupz`, which the operator reads too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    ready: bool,
    session_token: FileReport,
    credentials: Vec<CredentialReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CredentialReport {
    route: String,
    credential: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_in: Option<Place>,
    required: bool,
    #[serde(flatten)]
    file: FileReport,
    /// Whether the upstream answered 401 when it was last sent.
    refused: bool,
    /// When the upstream took it or did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_at: Option<Timestamp>,
}

/// Where a credential is kept.
#[derive(Serialize)]
struct Place {
    vault: String,
    credential: String,
    secret: String,
    key: String,
}

impl Place {
    fn new(vault: &str, credential: &str, KeptIn { secret, key }: &KeptIn) -> Self {
        Self { vault: vault.to_owned(), credential: credential.to_owned(), secret: secret.clone(), key: key.clone() }
    }
}

#[derive(Serialize)]
struct FileReport {
    usable: bool,
    /// Whether there is no file at all, which is what an absent Secret or key looks like.
    missing: bool,
    detail: Option<String>,
}

impl Report {
    fn of(Health { proxy, egress, shutdown, .. }: &Health) -> Self {
        let now = Instant::now();
        // A sandbox can do much without its credentials, so that none is required.
        let binding = |(bound, condition): (&Bound, Option<Unusable>)| {
            let Binding { vault, name, kept_in, .. } = &bound.binding;
            CredentialReport {
                route: EGRESS.to_owned(),
                credential: bound.binding.label(),
                kept_in: kept_in.as_ref().map(|kept_in| Place::new(vault, name, kept_in)),
                required: false,
                file: condition.into(),
                refused: is_refusal(bound.last_word.get()),
                answered_at: bound.last_word.get().map(|word| word.at),
            }
        };
        let bindings = egress.iter().flat_map(|egress| egress.credentials(now)).map(binding);
        let credential = |state: CredentialState| CredentialReport {
            route: state.route,
            kept_in: state
                .vault
                .zip(state.kept_in)
                .map(|(vault, kept_in)| Place::new(&vault, &state.credential, &kept_in)),
            credential: state.credential,
            required: state.required,
            file: state.condition.into(),
            refused: is_refusal(state.last_word),
            answered_at: state.last_word.map(|word| word.at),
        };
        Self {
            ready: !shutdown.is_cancelled(),
            session_token: proxy.token_condition(now).map(Unusable::File).into(),
            credentials: proxy.credentials(now).into_iter().map(credential).chain(bindings).collect(),
        }
    }

    fn may_start(&self) -> bool {
        let usable = |credential: &CredentialReport| credential.file.usable || !credential.required;
        self.ready && self.session_token.usable && self.credentials.iter().all(usable)
    }
}

fn is_refusal(word: Option<Word>) -> bool {
    word.is_some_and(|word| word.refused)
}

impl From<Option<Unusable>> for FileReport {
    fn from(condition: Option<Unusable>) -> Self {
        Self {
            usable: condition.is_none(),
            missing: condition.as_ref().is_some_and(Unusable::is_missing),
            detail: condition.map(|condition| condition.to_string()),
        }
    }
}
