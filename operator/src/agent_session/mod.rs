//! `AgentSession`: its log exists, it has a harness while work is open, and its status says how it goes.
//!
//! The operator looks at resources and wake keys, never at a log: what it shows of one, the session service tells it.

mod apply;
mod egress;
pub(crate) mod harness_pod;
pub(crate) mod observe;
mod plan;
mod proxy_config;
mod proxy_health;
mod seen;
mod status;
pub mod sweep;
mod triggers;
mod warm;

use std::sync::Arc;

use futures::Stream;
use futures::channel::mpsc::UnboundedReceiver;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use longhand_crds::{Agent, AgentSession, SandboxTemplate, Vault, labels, session_id};
use longhand_protocol::internal::SessionSummary;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use self::observe::Observed;
use self::plan::LogCall;
use self::proxy_health::{HttpProxies, Proxies};
use self::status::Outcome;
use crate::context::{Context, Guarded, GuardedStore};
use crate::drive;
use crate::error::Error;
use crate::lists::Lists;
use crate::vault::sightings::Sightings;
use crate::wakes::Wakes;

/// What the reconcile of a session looks at.
struct Sessions {
    context: Arc<Context>,
    agents: GuardedStore<Agent>,
    vaults: GuardedStore<Vault>,
    templates: GuardedStore<SandboxTemplate>,
    /// Every harness pod, those too that were not made for a session.
    pods: Store<Pod>,
    wakes: Arc<Wakes>,
    proxies: Arc<dyn Proxies>,
    /// Who asks proxies for the vaults: when nodes are lost, no more reconciles than these wait for an answer.
    asking: Semaphore,
    /// What proxies say, for the vaults.
    sightings: Arc<Sightings>,
}

/// The sessions' own store and the controller that feeds it.
pub struct Prepared {
    /// Every session, for the sweep and the pools of agents.
    pub store: GuardedStore<AgentSession>,
    /// Of it, and of what else the controller reads.
    pub lists: Lists,
    controller: Controller<Guarded<AgentSession>>,
    sessions: Arc<Sessions>,
}

/// The agents of which a pod that was not made for a session was taken or given back.
pub type Taken = UnboundedReceiver<ObjectRef<Guarded<Agent>>>;

/// Sets up the watches; `woken` are the sessions whose wake key changed, and `sightings` gets what proxies say of credentials.
///
/// # Errors
/// When the HTTP client for proxies cannot be set up.
pub fn prepare(
    context: Arc<Context>,
    wakes: Arc<Wakes>,
    sightings: Arc<Sightings>,
    woken: impl Stream<Item = ObjectRef<Guarded<AgentSession>>> + Send + 'static,
) -> Result<(Prepared, Taken), reqwest::Error> {
    let everything = watcher::Config::default;
    let mut lists = Lists::default();
    let (store, sessions) = drive::watch::<Guarded<AgentSession>>(&context, &everything(), &mut lists);
    let (taken, sessions) = triggers::taken(sessions);
    let (agents, agent_stream) = drive::watch::<Guarded<Agent>>(&context, &everything(), &mut lists);
    let (vaults, vault_stream) = drive::watch::<Guarded<Vault>>(&context, &everything(), &mut lists);
    let (templates, template_stream) = drive::watch::<Guarded<SandboxTemplate>>(&context, &everything(), &mut lists);
    let harness_pods = format!("{}={},{}={}", labels::MANAGED_BY, labels::LONGHAND, labels::ROLE, labels::HARNESS);
    let (pods, pod_stream) = drive::watch::<Pod>(&context, &everything().labels(&harness_pods), &mut lists);
    let controller = Controller::for_stream(sessions, store.clone())
        .reconcile_on(triggers::by_pod(store.clone(), pod_stream))
        .reconcile_on(triggers::by_agent(store.clone(), agents.clone(), agent_stream))
        .reconcile_on(triggers::by_vault(
            store.clone(),
            agents.clone(),
            (vaults.clone(), vault_stream),
            context.default_model.clone(),
        ))
        .reconcile_on(triggers::by_template(store.clone(), template_stream))
        .reconcile_on(woken);
    let proxies = Arc::new(HttpProxies::new()?);
    let asking = Semaphore::new(seen::AT_ONCE);
    let sessions = Arc::new(Sessions { context, agents, vaults, templates, pods, wakes, proxies, asking, sightings });
    Ok((Prepared { store, lists, controller, sessions }, taken))
}

/// Reconciles every `AgentSession` until `token` is cancelled.
pub async fn run(prepared: Prepared, token: CancellationToken) {
    drive::run(prepared.controller, prepared.lists, prepared.sessions, token, reconcile).await;
}

async fn reconcile(session: Arc<AgentSession>, sessions: Arc<Sessions>) -> Result<Action, Error> {
    if session.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let observed = observe::observe(session, &sessions, Timestamp::now()).await?;
    if let Some(left) = warm::held(&observed, Timestamp::now()) {
        // A harness that is there takes the session now, or none does; nothing is to be said before that is known.
        return Ok(Action::requeue(left));
    }
    proceed(&observed, &sessions, Timestamp::now()).await
}

/// Acts on what was observed. Whatever fails, the status is written.
async fn proceed(observed: &Observed, sessions: &Sessions, now: Timestamp) -> Result<Action, Error> {
    let urgent = plan::is_urgent(observed);
    let mut log = if urgent { Ok(None) } else { ask(observed, sessions).await };
    let plan = plan::plan(observed, log.as_ref().ok().and_then(Option::as_ref), now);
    let mut harness = plan.harness.clone();
    let applied = apply::apply(observed, &plan, &mut harness, sessions).await;
    if urgent {
        log = ask(observed, sessions).await;
    }
    let outcome = Outcome {
        log: log.as_ref().ok().and_then(Option::as_ref),
        harness: harness.clone(),
        error: applied.as_ref().err().or(log.as_ref().err()),
    };
    let status = status::status(observed, &plan, &outcome, now);
    // Compared with what this reconcile wrote last, which is what the API server has.
    let before = match &plan.make {
        Some(_) if applied.is_ok() => Some(status::with_harness(observed, harness.clone())),
        _ => observed.session.status.clone(),
    };
    crate::status::write(&sessions.context.client, &*observed.session, before.as_ref(), &status).await?;
    if applied.is_ok() {
        apply::tell(observed, &plan, &harness, &status, sessions).await;
    }
    applied?;
    let asked = log?.is_some();
    if let Some(settled) = observed.worked {
        sessions.wakes.settle(&session_id(&observed.session.metadata), settled);
    }
    // Last, as nobody waits for it.
    let again = seen::tell_vaults(observed, &harness, asked, sessions, now).await;
    Ok(drive::action(plan.requeue.into_iter().chain(again).min()))
}

async fn ask(observed: &Observed, sessions: &Sessions) -> Result<Option<SessionSummary>, Error> {
    let session = &observed.session;
    let (namespace, name) = (session.namespace().unwrap_or_default(), session.name_any());
    let log = &sessions.context.log;
    match plan::log_call(observed) {
        LogCall::Ensure => {
            // What the resource says begins a trace, as a message of a client does.
            let span = info_span!("ensure session", %namespace, name);
            let uid = session.uid().unwrap_or_default();
            Ok(Some(log.ensure(&namespace, &name, &uid).instrument(span).await?))
        }
        LogCall::Refresh => Ok(Some(log.summary(&namespace, &name).await?)),
        LogCall::Nothing => Ok(None),
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
