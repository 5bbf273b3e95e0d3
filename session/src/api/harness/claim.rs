//! A harness takes its session.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use longhand_crds::AgentSession;
use longhand_protocol::harness::{ClaimRequest, ClaimResponse, HarnessSession, Inbox, Since};
use longhand_protocol::{Record, SessionId};
use longhand_session_log::StoreError;
use longhand_session_log::store::{Claimant, Query, SessionState, Slice, Takeover};
use tokio::time::{Instant, sleep};

use super::access::{REMEMBERED, denied, is_named_by, pod_of};
use super::log::PAGE;
use crate::allowance::Allowance;
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
    let (seen, taken) = match again(&app, &pod, session, request.after).await? {
        Some(both) => both,
        None => first(&app, &pod, session, request.after).await?,
    };
    let Seen { state, inbox, page } = seen;
    let Taken { epoch, woken, resource, is_ready } = taken;
    app.claims.put(session.clone(), (epoch, pod.uid), REMEMBERED);
    metrics::claim(if is_ready { "granted_to_ready" } else { "granted" });
    tracing::info!(epoch, harness = pod.name, "session claimed");
    let head = woken.seq;
    let since = page.zip(inbox).map(|(page, inbox)| Since { records: with(page, woken), inbox });
    let meta = state.meta;
    // Limits may change while the session lives, unlike the agent: they are as they are now.
    let Allowance { limits, budget } = resource.map(|resource| Allowance::of(&resource.spec)).unwrap_or_default();
    let session = HarnessSession {
        id: meta.id,
        agent: meta.agent,
        sandboxes: meta.sandboxes,
        harness_idle_seconds: meta.harness_idle_seconds,
        limits,
        budget,
    };
    let tools = session.offered_tools();
    Ok(Json(ClaimResponse { epoch, head, lease_ttl_seconds: LEASE.as_secs(), session, tools, since }))
}

/// What a harness is told of its session.
struct Seen {
    state: SessionState,
    inbox: Option<Inbox>,
    page: Option<Slice>,
}

async fn look(app: &App, session: &SessionId, after: Option<u64>) -> Result<(SessionState, Option<Inbox>)> {
    let inbox = async { if after.is_some() { app.store.inbox(session).await.map(Some) } else { Ok(None) } };
    Ok(tokio::try_join!(app.store.state(session), inbox)?)
}

/// A pod that has had the session takes it again, as long as nobody has it: like other calls of this pod it need not wait for
/// the API server, which may name another pod by now. That one takes the session from whoever has it.
///
/// Nothing is waited for that can be asked for at the same time. `None` where it is not that simple.
async fn again(app: &App, pod: &Pod, session: &SessionId, after: Option<u64>) -> Result<Option<(Seen, Taken)>> {
    let had_it = app.claims.get(session).is_some_and(|(_, owner)| owner == pod.uid);
    if !had_it || app.warm.pool_of(pod).is_some() {
        return Ok(None);
    }
    let claimant = Claimant { pod_uid: pod.uid.clone(), pod_name: pod.name.clone() };
    let claim = app.store.claim(session, &claimant, Takeover::IfFree, LEASE);
    let seen = async {
        let (state, inbox) = look(app, session, after).await?;
        let resource = async {
            match app.expected.take(session).await {
                Some(resource) => Ok(Some(resource)),
                None => Ok::<_, ApiError>(resource_of(app, &state.meta).await?.map(Arc::new)),
            }
        };
        let (page, resource) = tokio::join!(page(app, &state, after), resource);
        Ok::<_, ApiError>((Seen { state, inbox, page }, resource?))
    };
    let (claimed, seen) = tokio::join!(claim, seen);
    let (epoch, woken) = match claimed {
        Err(StoreError::Owned { .. }) => return Ok(None),
        claimed => claimed?,
    };
    let (seen, resource) = seen?;
    let resource = resource.filter(|resource| is_named_by(resource, pod)).ok_or_else(|| denied(pod, session))?;
    Ok(Some((seen, Taken { epoch, woken, resource: Some(resource), is_ready: false })))
}

/// Any other pod takes the session when it is known that it may.
async fn first(app: &App, pod: &Pod, session: &SessionId, after: Option<u64>) -> Result<(Seen, Taken)> {
    let (state, inbox) = look(app, session, after).await?;
    if state.meta.namespace != pod.namespace {
        return Err(denied(pod, session));
    }
    let (page, taken) = tokio::join!(page(app, &state, after), take(app, pod, &state));
    Ok((Seen { state, inbox, page }, taken?))
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
    let claimant = Claimant { pod_uid: pod.uid.clone(), pod_name: pod.name.clone() };
    let (takeover, resource) = right(app, pod, state).await?;
    let (epoch, woken) = app.store.claim(&state.meta.id, &claimant, takeover, LEASE).await?;
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
