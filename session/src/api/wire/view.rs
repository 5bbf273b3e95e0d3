//! Sessions and threads in the shape of the public API, from their log and their resource.

use jiff::Timestamp;
use longhand_crds::agent_session::Budget;
use longhand_crds::wire_id::prefix;
use longhand_crds::{AgentSession, AgentSessionSpec, SandboxTemplate, Vault, wire_id};
use longhand_protocol::wire::resources::SessionResource;
use longhand_protocol::wire::{self, Session, SessionAgent, SessionStats, SessionUsage, Thread, ThreadStats};
use longhand_session_log::store::SessionState;
use serde_json::Value;

use super::{session_resources, threads};
use crate::api::error::Result;
use crate::app::App;
use crate::resources::ResourceError;
use crate::resources::named;

/// A session's resource with the identifiers of what it names. What is gone is shown by its name.
struct Named {
    spec: AgentSessionSpec,
    environment: Option<String>,
    vaults: Vec<String>,
    resources: Vec<SessionResource>,
}

/// The session. Without its resource it has neither title nor metadata.
pub(super) async fn shown(app: &App, state: SessionState, resource: Option<AgentSession>) -> Result<Session> {
    let resource = match resource {
        Some(resource) => Some(named(app, resource).await?),
        None => None,
    };
    Ok(session(state, resource, Timestamp::now()))
}

async fn named(app: &App, resource: AgentSession) -> Result<Named> {
    let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
    let environment = match resource.spec.sandboxes.first() {
        None => None,
        Some(first) => Some(
            id_of::<SandboxTemplate>(&*app.environments, prefix::ENVIRONMENT, namespace, &first.template_ref.name)
                .await?,
        ),
    };
    let vaults = resource.spec.vault_refs.iter();
    let vaults = vaults.map(|vault| id_of::<Vault>(&*app.vaults, prefix::VAULT, namespace, &vault.name));
    let vaults = futures::future::try_join_all(vaults).await?;
    Ok(Named { environment, vaults, resources: session_resources::shown(&resource)?, spec: resource.spec })
}

async fn id_of<K: kube::Resource>(
    objects: &(impl named::Named<K> + ?Sized),
    prefix: &str,
    namespace: &str,
    name: &str,
) -> Result<String, ResourceError> {
    let object = objects.named(namespace, name).await?;
    Ok(object.map_or_else(|| name.to_owned(), |object| wire_id(prefix, object.meta())))
}

fn session(state: SessionState, resource: Option<Named>, now: Timestamp) -> Session {
    let (spec, environment_id, vault_ids, resources) = match resource {
        Some(Named { spec, environment, vaults, resources }) => (Some(spec), environment, vaults, resources),
        None => (None, None, Vec::new(), Vec::new()),
    };
    let metadata = spec.as_ref().map(|spec| spec.metadata.clone()).unwrap_or_default();
    Session {
        kind: "session".to_owned(),
        agent: SessionAgent::from(&state.meta.agent),
        status: state.status,
        environment_id,
        title: spec.as_ref().and_then(|spec| spec.title.clone()),
        metadata: metadata.into_iter().map(|(key, value)| (key, Value::String(value))).collect(),
        resources,
        vault_ids,
        outcome_evaluations: Vec::new(),
        stats: SessionStats { active_seconds: Some(active(&state, now)), duration_seconds: duration(&state, now) },
        usage: used(&state, now),
        budget: spec.and_then(|spec| spec.budget).as_ref().map(budget),
        deployment_id: None,
        created_at: state.meta.created_at,
        updated_at: state.updated_at,
        archived_at: state.archived_at,
        id: state.meta.id,
    }
}

/// The primary thread of a session.
pub(super) fn thread(state: SessionState, now: Timestamp) -> Thread {
    let begun = state.head > 0;
    let stats = ThreadStats {
        active_seconds: Some(active(&state, now)),
        duration_seconds: Some(duration(&state, now)),
        startup_seconds: None,
    };
    Thread {
        id: threads::primary(&state.meta),
        kind: "session_thread".to_owned(),
        parent_thread_id: None,
        workflow_run_id: None,
        agent: SessionAgent::from(&state.meta.agent),
        status: state.status,
        stats: begun.then_some(stats),
        usage: begun.then(|| used(&state, now)),
        created_at: state.meta.created_at,
        updated_at: state.updated_at,
        archived_at: state.archived_at,
        session_id: state.meta.id,
    }
}

/// Seconds since it was made, until it ended.
fn duration(state: &SessionState, now: Timestamp) -> f64 {
    let end = state.archived_at.unwrap_or(now);
    end.duration_since(state.meta.created_at).as_secs_f64().max(0.0)
}

/// Seconds in which it ran, with those of the turn that goes on.
fn active(state: &SessionState, now: Timestamp) -> f64 {
    state.active.total(now).as_secs_f64()
}

/// A session has one thread, so that it has run as long as its turns have.
fn used(state: &SessionState, now: Timestamp) -> SessionUsage {
    SessionUsage { active_seconds: Some(active(state, now)), list_cost: state.list_cost.clone(), ..state.usage.into() }
}

fn budget(budget: &Budget) -> wire::Budget {
    let Budget { amount, currency } = budget.clone();
    wire::Budget::Limit { max_list_cost: wire::Money { amount, currency } }
}
