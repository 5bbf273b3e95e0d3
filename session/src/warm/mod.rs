//! Harnesses that are ready before there is a session for them.
//!
//! The operator makes them and names them in the status of their `Agent`. They wait here, and when work comes to a session
//! that may have one of them, it is offered to the one that has waited longest. Whoever claims the session has it: the claim
//! is the log's, so that an offer may be made twice, or be lost. Then the operator makes a pod.

mod pods;
mod polls;

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use longhand_crds::AgentSession;
use longhand_protocol::harness::Offer;
use longhand_protocol::internal::Wake;
use longhand_session_log::store::{SessionMeta, SessionState};
use longhand_session_log::wake::WakeEvent;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

pub use self::pods::{Pool, WarmPod, WarmPods};
use self::polls::Polls;
use crate::api::error::{ApiError, Result};
use crate::app::App;
use crate::auth::Pod;
use crate::metrics;
use crate::sessions::resource_of;

/// The replica that took the message makes its offer first: a claim takes about as long.
const OTHERS_FIRST: Duration = Duration::from_millis(10);
/// A harness that is offered a session claims it within this time, or the operator makes another: until then what the
/// API server has said of the session is good.
const OFFERED_FOR: Duration = Duration::from_millis(250);
/// Wakes that are looked at at the same time. One that is left out is the operator's.
const LOOKS: usize = 64;
/// A template may get a `network` later.
const NETWORK_KNOWN_FOR: Duration = Duration::from_secs(10);

/// Harnesses that are ready before there is a session for them.
#[derive(Debug)]
pub struct Warm {
    pods: WarmPods,
    polls: Polls,
    looks: Arc<Semaphore>,
}

impl Default for Warm {
    fn default() -> Self {
        Self { pods: WarmPods::default(), polls: Polls::default(), looks: Arc::new(Semaphore::new(LOOKS)) }
    }
}

impl Warm {
    /// The pods that there are.
    #[must_use]
    pub const fn pods(&self) -> &WarmPods {
        &self.pods
    }

    /// The pool that the pod is of, if it is of one.
    #[must_use]
    pub fn pool_of(&self, pod: &Pod) -> Option<Pool> {
        self.pods.get(pod).map(|pod| pod.pool)
    }

    /// The pools whose pods wait here and may be for a session with this metadata.
    fn waiting_for(&self, meta: &SessionMeta) -> Vec<Pool> {
        let mut pools = self.pods.pools(&meta.namespace, &meta.agent.id);
        pools.retain(|pool| self.polls.any(pool));
        pools
    }
}

/// Holds a pod's request open until there is a session for it, or for `wait`.
///
/// # Errors
/// 403 if the operator does not name the pod in time.
pub async fn park(app: &App, pod: &Pod, wait: Duration) -> Result<Offer> {
    let begun = Instant::now();
    let mut changes = app.warm.pods.changes();
    loop {
        changes.borrow_and_update();
        let known = app.warm.pods.get(pod);
        // The operator names a pod just after it has made it, and the pod may be faster.
        let until = begun + if known.is_some() { wait } else { app.waits.claim };
        match known {
            Some(known) if known.retiring => return Ok(Offer::Retire),
            None if Instant::now() >= until => {
                return Err(ApiError::forbidden(format!(
                    "pod {}/{} is no harness that waits for sessions: no Agent names it in status.warmPods",
                    pod.namespace, pod.name
                )));
            }
            None => {
                if timeout_at(until, changes.changed()).await.is_err() {
                    tracing::debug!(pod = pod.name, "a pod that nobody names waits for a session");
                }
            }
            Some(known) => {
                let mut offered = app.warm.polls.wait(&known.pool, &pod.uid);
                let same = |changed: Option<WarmPod>| changed.as_ref() == Some(&known);
                let over = loop {
                    tokio::select! {
                        biased;
                        offered = &mut offered => {
                            return Ok(offered.map_or(Offer::Nothing, |session| Offer::Session { session }));
                        }
                        () = app.stop.cancelled() => break true,
                        () = tokio::time::sleep_until(until) => break true,
                        _ = changes.changed() => {
                            if !same(app.warm.pods.get(pod)) {
                                break false;
                            }
                        }
                    }
                };
                // What was offered in this moment is not lost.
                offered.close();
                if let Ok(session) = offered.try_recv() {
                    return Ok(Offer::Session { session });
                }
                app.warm.polls.tidy();
                if over {
                    return Ok(Offer::Nothing);
                }
            }
        }
    }
}

/// An offer that is prepared while a message is being queued.
///
/// One that is dropped before it is made asks to no purpose and offers nothing.
pub(crate) struct Offering(Option<(App, SessionMeta, JoinHandle<Allowed>)>);

/// The pool whose pods may serve a session, and the session's resource.
type Allowed = Option<(Pool, AgentSession)>;

impl Offering {
    /// Begins to find out whether a harness that waits here may have the session, if nobody owns it.
    pub(crate) fn begin(app: &App, state: &SessionState) -> Self {
        if state.owner.is_some() || state.archived_at.is_some() {
            return Self(None);
        }
        let pools = app.warm.waiting_for(&state.meta);
        if pools.is_empty() {
            return Self(None);
        }
        let (asking, meta) = (app.clone(), state.meta.clone());
        let check = tokio::spawn(async move { allowed(&asking, &meta, pools).await });
        Self(Some((app.clone(), state.meta.clone(), check)))
    }

    /// Work is open in the session: offers it, without being waited for.
    pub(crate) fn make(self) {
        if self.0.is_some() {
            tokio::spawn(self.made());
        }
    }

    async fn made(self) {
        let Some((app, meta, check)) = self.0 else { return };
        if let Ok(Some((pool, resource))) = check.await {
            app.offered.put(meta.id.clone(), Arc::new(resource), OFFERED_FOR);
            offer(&app, &meta, &pool);
        }
    }
}

/// The pool of these whose pods may serve the session, as its resource says; and the resource.
async fn allowed(app: &App, meta: &SessionMeta, pools: Vec<Pool>) -> Allowed {
    let resource = match resource_of(app, meta).await {
        Ok(resource) => resource?,
        Err(error) => {
            tracing::warn!(session = %meta.id, %error, "whether a ready harness may have the session is not known");
            metrics::offer("failed");
            return None;
        }
    };
    let pool = pools.into_iter().find(|pool| pool.may_take(&resource, &meta.id));
    let pool = match pool {
        Some(_) if has_network(app, &resource).await => None,
        pool => pool,
    };
    if pool.is_none() {
        metrics::offer("not_allowed");
    }
    pool.map(|pool| (pool, resource))
}

fn offer(app: &App, meta: &SessionMeta, pool: &Pool) {
    let given = app.warm.polls.offer(pool, &meta.id);
    metrics::offer(if given { "given" } else { "nobody_waits" });
    tracing::debug!(session = %meta.id, agent = pool.agent, given, "offered to a ready harness");
}

/// Follows the wake keys: a session whose message another replica took may be for a harness that waits here.
pub async fn follow_wakes(app: &App, wakes: impl Stream<Item = WakeEvent>) {
    let mut wakes = std::pin::pin!(wakes);
    while let Some(event) = wakes.next().await {
        let WakeEvent::Set(id, Wake { namespace, .. }) = event else { continue };
        if !app.warm.polls.any_in(&namespace) {
            continue;
        }
        let Ok(look) = Arc::clone(&app.warm.looks).try_acquire_owned() else {
            metrics::offer("too_many");
            continue;
        };
        let app = app.clone();
        tokio::spawn(async move {
            let _look = look;
            sleep(OTHERS_FIRST).await;
            match app.store.state(&id).await {
                Ok(state) if state.wake_revision.is_some() => Offering::begin(&app, &state).made().await,
                Ok(_) => {}
                Err(error) => tracing::debug!(session = %id, %error, "a session that was woken cannot be looked at"),
            }
        });
    }
}

/// Whether a pod that belongs to no session may claim this one.
#[must_use]
pub async fn may_claim(app: &App, pod: &Pod, session: &AgentSession, state: &SessionState) -> bool {
    let of_pool = app.warm.pool_of(pod).is_some_and(|pool| pool.may_take(session, &state.meta.id));
    of_pool && !has_network(app, session).await
}

/// Whether a sandbox of the session may reach anything: then its harness has to be made for it, since the proxy beside it is
/// the way out. If that is not known, the operator makes a pod.
async fn has_network(app: &App, session: &AgentSession) -> bool {
    let Some(namespace) = session.metadata.namespace.clone() else { return true };
    for sandbox in &session.spec.sandboxes {
        let key = (namespace.clone(), sandbox.template_ref.name.clone());
        let network = match app.networks.get(&key) {
            Some(known) => known,
            None => match app.templates.template(&key.0, &key.1).await {
                Ok(template) => {
                    let network = template.is_some_and(|template| template.network);
                    app.networks.put(key, network, NETWORK_KNOWN_FOR);
                    network
                }
                Err(error) => {
                    tracing::warn!(%error, "whether a session has egress is not known");
                    true
                }
            },
        };
        if network {
            return true;
        }
    }
    false
}

#[cfg(test)]
pub(crate) fn somebody_waits(app: &App, state: &SessionState) -> bool {
    !app.warm.waiting_for(&state.meta).is_empty()
}
