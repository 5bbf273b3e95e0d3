//! A harness takes its session.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use longhand_crds::AgentSession;
use longhand_protocol::harness::{ClaimRequest, ClaimResponse, HarnessSession};
use longhand_protocol::wire::Money;
use longhand_session_log::store::{Claimant, SessionState, Takeover};
use tokio::time::{Instant, sleep};

use super::access::{REMEMBERED, denied, is_named_by, pod_of};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf, PathOf};
use crate::app::App;
use crate::auth::Pod;
use crate::metrics;
use crate::sessions::resource_of;
use crate::warm::may_claim;

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
    let (takeover, resource) = right(&app, &pod, &state).await?;
    let claimant = Claimant { pod_uid: pod.uid.clone(), pod_name: pod.name };
    let (epoch, woken) = app.store.claim(session, &claimant, takeover, LEASE).await?;
    app.claims.put(session.clone(), (epoch, pod.uid), REMEMBERED);
    metrics::claim(if takeover == Takeover::Always { "granted" } else { "granted_to_ready" });
    tracing::info!(epoch, harness = claimant.pod_name, "session claimed");
    let meta = state.meta;
    // Limits may change while the session lives, unlike the agent: they are as they are now.
    let spec = resource.map(|resource| resource.spec);
    let session = HarnessSession {
        id: meta.id,
        agent: meta.agent,
        sandboxes: meta.sandboxes,
        harness_idle_seconds: meta.harness_idle_seconds,
        limits: spec.as_ref().and_then(|spec| spec.limits.as_ref()).map(Into::into).unwrap_or_default(),
        budget: spec
            .and_then(|spec| spec.budget)
            .map(|budget| Money { amount: budget.amount, currency: budget.currency }),
    };
    let tools = session.offered_tools();
    Ok(Json(ClaimResponse { epoch, head: woken.seq, lease_ttl_seconds: LEASE.as_secs(), session, tools }))
}

/// Whether the pod may take the session, and from whom; with the session's resource.
async fn right(app: &App, pod: &Pod, state: &SessionState) -> Result<(Takeover, Option<AgentSession>)> {
    let session = &state.meta.id;
    let deny = || {
        metrics::claim("denied");
        Err(denied(pod, session))
    };
    // The operator writes the name of the pod just after it has made it, and the pod may be faster.
    let until = Instant::now() + app.waits.claim;
    loop {
        let resource = resource_of(app, &state.meta).await?;
        if resource.as_ref().is_some_and(|resource| is_named_by(resource, pod)) {
            // The operator names one pod at a time: whoever owns the session now is not it.
            return Ok((Takeover::Always, resource));
        }
        if app.warm.pool_of(pod).is_some() {
            let Some(resource) = resource else { return deny() };
            if !may_claim(app, pod, &resource, state).await {
                return deny();
            }
            return match state.wake_revision {
                Some(_) => Ok((Takeover::IfFree, Some(resource))),
                None => Err(ApiError::conflict(format!("no work is open in session {session}"))),
            };
        }
        if Instant::now() >= until {
            return deny();
        }
        sleep(ASK_AGAIN).await;
    }
}
