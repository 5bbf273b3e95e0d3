//! A harness takes its session.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use longhand_protocol::harness::{ClaimRequest, ClaimResponse, HarnessSession};
use longhand_session_log::store::{Claimant, Takeover};
use tokio::time::{Instant, sleep};

use super::access::{REMEMBERED, denied, is_named, pod_of};
use crate::api::error::Result;
use crate::api::extract::{Caller, JsonOf, PathOf};
use crate::app::App;
use crate::metrics;

const LEASE: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// `POST claim`.
pub async fn claim(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(ClaimRequest {}): JsonOf<ClaimRequest>,
) -> Result<Json<ClaimResponse>> {
    let session = path.session()?;
    let pod = pod_of(&identity)?;
    let state = app.store.state(session).await?;
    if state.meta.namespace != pod.namespace {
        return Err(denied(&pod, session));
    }
    // The operator writes the name of the pod just after it has made it, and the pod may be faster.
    let until = Instant::now() + app.waits.claim;
    while !is_named(&app, &pod, &state.meta.name, &state.meta.uid).await? {
        if Instant::now() >= until {
            metrics::claim("denied");
            return Err(denied(&pod, session));
        }
        sleep(ASK_AGAIN).await;
    }
    let claimant = Claimant { pod_uid: pod.uid.clone(), pod_name: pod.name };
    // The operator names one pod at a time: whoever owns the session now is not it.
    let (epoch, woken) = app.store.claim(session, &claimant, Takeover::Always, LEASE).await?;
    app.claims.put(session.clone(), (epoch, pod.uid), REMEMBERED);
    metrics::claim("granted");
    tracing::info!(epoch, harness = claimant.pod_name, "session claimed");
    let meta = state.meta;
    let session = HarnessSession {
        id: meta.id,
        agent: meta.agent,
        sandboxes: meta.sandboxes,
        harness_idle_seconds: meta.harness_idle_seconds,
    };
    let tools = session.offered_tools();
    Ok(Json(ClaimResponse { epoch, head: woken.seq, lease_ttl_seconds: LEASE.as_secs(), session, tools }))
}
