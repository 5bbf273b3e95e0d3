//! A harness takes its session.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use longhand_crds::AgentSession;
use longhand_protocol::Record;
use longhand_protocol::harness::{ClaimRequest, ClaimResponse, HarnessSession, Since};
use longhand_protocol::wire::Money;
use longhand_session_log::StoreError;
use longhand_session_log::store::{Claimant, Query, SessionState, Slice, Takeover};
use tokio::time::{Instant, sleep};

use super::access::{REMEMBERED, denied, is_named_by, pod_of};
use super::log::PAGE;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf, PathOf};
use crate::app::App;
use crate::auth::Pod;
use crate::metrics;
use crate::sessions::resource_of;
use crate::warm::may_claim;

const LEASE: Duration = Duration::from_secs(15);
const PAGE_RECORDS: u64 = PAGE as u64;
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// `POST claim`.
pub async fn claim(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    JsonOf(request): JsonOf<ClaimRequest>,
) -> Result<Json<ClaimResponse>> {
    let session = path.session()?;
    let pod = pod_of(&identity)?;
    let wants = request.after.is_some();
    let inbox = async { if wants { app.store.inbox(session).await.map(Some) } else { Ok(None) } };
    let (state, inbox) = tokio::try_join!(app.store.state(session), inbox)?;
    if state.meta.namespace != pod.namespace {
        return Err(denied(&pod, session));
    }
    let page = page(&app, &state, request.after);
    let (page, taken) = tokio::join!(page, take(&app, &pod, &state));
    let Taken { epoch, woken, resource, is_ready } = taken?;
    app.claims.put(session.clone(), (epoch, pod.uid), REMEMBERED);
    metrics::claim(if is_ready { "granted_to_ready" } else { "granted" });
    tracing::info!(epoch, harness = pod.name, "session claimed");
    let head = woken.seq;
    let since = page.zip(inbox).map(|(page, inbox)| Since { records: with(page, woken), inbox });
    let meta = state.meta;
    // Limits may change while the session lives, unlike the agent: they are as they are now.
    let (limits, budget) = match resource.as_deref() {
        Some(AgentSession { spec, .. }) => (spec.limits.as_ref().map(Into::into), spec.budget.clone()),
        None => (None, None),
    };
    let session = HarnessSession {
        id: meta.id,
        agent: meta.agent,
        sandboxes: meta.sandboxes,
        harness_idle_seconds: meta.harness_idle_seconds,
        limits: limits.unwrap_or_default(),
        budget: budget.map(|budget| Money { amount: budget.amount, currency: budget.currency }),
    };
    let tools = session.offered_tools();
    Ok(Json(ClaimResponse { epoch, head, lease_ttl_seconds: LEASE.as_secs(), session, tools, since }))
}

/// What follows the record that the harness has read, if it is one page. Without it the harness asks for it.
async fn page(app: &App, state: &SessionState, after: Option<u64>) -> Option<Slice> {
    let after = after.filter(|after| state.head.saturating_sub(*after) < PAGE_RECORDS)?;
    let slice = app.store.slice(&state.meta.id, &Query::after(after, PAGE)).await;
    slice.ok().filter(|slice| slice.next.is_none())
}

/// The page with the record of the claim, unless others were appended between the two.
fn with(page: Slice, woken: Record) -> Vec<Record> {
    let mut records = page.records;
    if page.head.checked_add(1) == Some(woken.seq) {
        records.push(woken);
    }
    records
}

/// A session that was taken.
struct Taken {
    epoch: u64,
    woken: Record,
    resource: Option<Arc<AgentSession>>,
    /// By a pod that belongs to no session.
    is_ready: bool,
}

/// Takes the session if the pod may have it.
async fn take(app: &App, pod: &Pod, state: &SessionState) -> Result<Taken> {
    let session = &state.meta.id;
    let claimant = Claimant { pod_uid: pod.uid.clone(), pod_name: pod.name.clone() };
    let had_it = app.claims.get(session).is_some_and(|(_, owner)| owner == pod.uid);
    if had_it && app.warm.pool_of(pod).is_none() {
        // As other calls of this pod it need not wait for the API server, which may name another pod by now: that one takes
        // the session from whoever has it, and this one only while nobody has.
        let claim = app.store.claim(session, &claimant, Takeover::IfFree, LEASE);
        let (claimed, resource) = tokio::join!(claim, resource_of(app, &state.meta));
        match claimed {
            Err(StoreError::Owned { .. }) => {}
            claimed => {
                let (epoch, woken) = claimed?;
                let resource = resource?.filter(|resource| is_named_by(resource, pod));
                let resource = resource.ok_or_else(|| denied(pod, session))?;
                return Ok(Taken { epoch, woken, resource: Some(Arc::new(resource)), is_ready: false });
            }
        }
    }
    let (takeover, resource) = right(app, pod, state).await?;
    let (epoch, woken) = app.store.claim(session, &claimant, takeover, LEASE).await?;
    Ok(Taken { epoch, woken, resource, is_ready: takeover == Takeover::IfFree })
}

/// Whether the pod may take the session, and from whom; with the session's resource.
async fn right(app: &App, pod: &Pod, state: &SessionState) -> Result<(Takeover, Option<Arc<AgentSession>>)> {
    let session = &state.meta.id;
    let deny = || {
        metrics::claim("denied");
        Err(denied(pod, session))
    };
    // The operator writes the name of the pod just after it has made it, and the pod may be faster.
    let until = Instant::now() + app.waits.claim;
    let mut offered = app.offered.remove(session).filter(|_| app.warm.pool_of(pod).is_some());
    loop {
        let resource = match offered.take() {
            Some(resource) => Some(resource),
            None => resource_of(app, &state.meta).await?.map(Arc::new),
        };
        if resource.as_ref().is_some_and(|resource| is_named_by(resource, pod)) {
            // The operator names one pod at a time: whoever owns the session now is not it.
            return Ok((Takeover::Always, resource));
        }
        if app.warm.pool_of(pod).is_some() {
            return match resource {
                Some(resource) if may_claim(app, pod, &resource, state) => match state.wake_revision {
                    Some(_) => Ok((Takeover::IfFree, Some(resource))),
                    None => Err(ApiError::conflict(format!("no work is open in session {session}"))),
                },
                _ => deny(),
            };
        }
        if Instant::now() >= until {
            return deny();
        }
        sleep(ASK_AGAIN).await;
    }
}
