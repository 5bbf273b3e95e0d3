//! Sessions and threads in the shape of the public API, from their log and their resource.

use jiff::Timestamp;
use longhand_crds::agent_session::Budget;
use longhand_crds::wire_id::prefix;
use longhand_crds::{AgentSession, AgentSessionSpec, SandboxTemplate, Vault, wire_id};
use longhand_protocol::harness::AgentSnapshot;
use longhand_protocol::wire::agents::{EffortTag, ExecutionIdentity, ModelConfig};
use longhand_protocol::wire::resources::SessionResource;
use longhand_protocol::wire::{Session, SessionStats, SessionUsage, Thread, ThreadStats};
use longhand_session_log::store::SessionState;
use serde_json::{Value, json};

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
        agent: agent(&state.meta.agent),
        status: state.status,
        environment_id,
        title: spec.as_ref().and_then(|spec| spec.title.clone()),
        metadata: metadata.into_iter().map(|(key, value)| (key, Value::String(value))).collect(),
        resources: resources.iter().map(|resource| json!(resource)).collect(),
        vault_ids,
        outcome_evaluations: Vec::new(),
        stats: SessionStats { active_seconds: None, duration_seconds: duration(&state, now) },
        usage: state.usage.into(),
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
    let stats =
        ThreadStats { active_seconds: None, duration_seconds: Some(duration(&state, now)), startup_seconds: None };
    Thread {
        id: threads::primary(&state.meta),
        kind: "session_thread".to_owned(),
        parent_thread_id: None,
        workflow_run_id: None,
        agent: agent(&state.meta.agent),
        status: state.status,
        stats: begun.then_some(stats),
        usage: begun.then(|| SessionUsage::from(state.usage)),
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

fn budget(budget: &Budget) -> Value {
    json!({ "type": "limit", "max_list_cost": { "amount": budget.amount, "currency": budget.currency } })
}

fn agent(snapshot: &AgentSnapshot) -> Value {
    let model = &snapshot.model;
    json!({
        "id": snapshot.id,
        "type": "agent",
        "version": snapshot.version,
        "name": snapshot.name,
        "description": snapshot.description,
        "model": ModelConfig {
            id: model.id.clone(),
            effort: model.effort.map(|level| EffortTag { level }),
            speed: model.speed,
            inference_geo: model.inference_geo.clone(),
        },
        "system": snapshot.system,
        "tools": snapshot.tools,
        "mcp_servers": snapshot.mcp_servers,
        "skills": [],
        "multiagent": null,
        "execution_identity": ExecutionIdentity::default(),
    })
}
