//! Logs and the resources that they belong to.

use futures::TryFutureExt as _;
use jiff::Timestamp;
use longhand_crds::agent_session::AgentRef;
use longhand_crds::wire_id::{is_wire_id, prefix};
use longhand_crds::{Agent, AgentSession, annotations, labels, session_id};
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::harness::AgentSnapshot;
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::StoreError;
use longhand_session_log::store::{Retention, SessionMeta, SessionState};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::agents::{self, Versioned};
use crate::allowance::go_on;
use crate::api::error::{ApiError, Result};
use crate::api::wire::check_agent;
use crate::app::App;
use crate::resources::named::created_at;

/// As many inputs as one transaction takes.
const INPUTS_AT_ONCE: usize = 50;

/// Makes sure that the log of a resource exists and holds its `input`, and that it goes on if a limit that has stopped it was
/// raised. Repeating it changes nothing.
///
/// # Errors
/// 409 when the agent does not exist, and those of store and API server.
pub(crate) async fn ensure(app: &App, resource: &AgentSession) -> Result<SessionState> {
    let (namespace, name, uid) = identity(resource)?;
    let id = session_id(&resource.metadata);
    let state = match app.store.state(&id).await {
        Err(StoreError::NotFound(_)) => {
            check_origin(resource)?;
            app.quota.check_session(&*app.store, namespace).await?;
            let agent = &resource.spec.agent_ref.name;
            let agent = agents::lookup(app, namespace, agent).await?.ok_or_else(|| {
                ApiError::conflict(format!("the Agent {namespace}/{agent} of AgentSession {name} does not exist"))
            })?;
            let meta = SessionMeta {
                id: id.clone(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
                agent: snapshot(app, agent, &resource.spec.agent_ref).await?,
                sandboxes: resource.spec.sandboxes.iter().map(|sandbox| sandbox.name.clone()).collect(),
                harness_idle_seconds: u64::try_from(resource.spec.harness_idle_seconds).unwrap_or(0),
                delivered_inputs: 0,
                created_at: created_at(&resource.metadata).unwrap_or_else(Timestamp::now),
                thread_id: thread_id(resource),
                parent: None,
                retention: retention(resource),
            };
            match app.store.create(meta).await {
                Ok(()) => app.quota.made(namespace),
                // Whoever was faster made it from the same resource.
                Err(StoreError::Exists(_)) => {}
                Err(error) => return Err(error.into()),
            }
            app.store.state(&id).await?
        }
        state => state?,
    };
    check_owner(&state.meta, resource)?;
    if state.archived_at.is_some() {
        return Ok(state);
    }
    if deliver(app, resource, &id, state.meta.delivered_inputs).await? || go_on(app, resource, &state).await? {
        return Ok(app.store.state(&id).await?);
    }
    Ok(state)
}

/// The agent as the session keeps it.
async fn snapshot(app: &App, agent: Agent, reference: &AgentRef) -> Result<AgentSnapshot> {
    let Versioned { mut agent, version, .. } = agents::pinned(app, agent, reference.version).await?;
    if let Some(overrides) = &reference.overrides {
        agent.spec = overrides.apply(agent.spec);
        let name = &reference.name;
        check_agent(&agent.spec).map_err(|error| {
            ApiError::conflict(format!("the Agent {name} cannot be had with agentRef.overrides: {error}"))
        })?;
    }
    Ok(agent.snapshot(version))
}

fn retention(resource: &AgentSession) -> Retention {
    let seconds = |seconds: Option<i64>| seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let spec = resource.spec.retention.clone().unwrap_or_default();
    Retention {
        delete_after_seconds: seconds(spec.delete_after_seconds),
        archive_after_seconds: seconds(spec.archive_after_seconds),
    }
}

/// The identifier that the resource's primary thread is said to have.
fn thread_id(resource: &AgentSession) -> Option<String> {
    let id = resource.metadata.labels.as_ref()?.get(labels::THREAD_ID)?;
    is_wire_id(prefix::THREAD, id).then(|| id.clone())
}

/// The log of a fork or an import is made with its history, or not at all.
fn check_origin(resource: &AgentSession) -> Result<()> {
    let annotations = resource.metadata.annotations.as_ref();
    let Some(from) = annotations.and_then(|annotations| annotations.get(annotations::LOG_FROM)) else { return Ok(()) };
    Err(ApiError::conflict(format!(
        "the log comes from another one ({from}) and is not there yet; if that was broken off, delete the AgentSession and \
         do it again"
    )))
}

/// A label that names an identifier must not be a way into a log that belongs to another resource.
fn check_owner(meta: &SessionMeta, resource: &AgentSession) -> Result<()> {
    let (namespace, name, uid) = identity(resource)?;
    if (meta.namespace.as_str(), meta.name.as_str(), meta.uid.as_str()) == (namespace, name, uid) {
        return Ok(());
    }
    Err(ApiError::conflict(format!(
        "the log {} belongs to another AgentSession than {namespace}/{name} with the UID {uid}: choose another label {}, or wait until that log is deleted",
        meta.id,
        labels::ID
    )))
}

/// Delivers what has not been delivered, as long as there is room for it; whether anything was. What is left undelivered is
/// told by the summary of the session.
async fn deliver(app: &App, resource: &AgentSession, id: &SessionId, delivered: u64) -> Result<bool> {
    let (_, _, uid) = identity(resource)?;
    let mut at = delivered;
    if resource.spec.input.len() > usize::try_from(at).unwrap_or(usize::MAX)
        && app.quota.is_full(&*app.store, resource.metadata.namespace.as_deref().unwrap_or_default()).await?
    {
        return Ok(false);
    }
    loop {
        let skipped = usize::try_from(at).unwrap_or(usize::MAX);
        let rest = resource.spec.input.iter().enumerate().skip(skipped).take(INPUTS_AT_ONCE);
        let events: Vec<NewEvent> = rest.map(|(index, input)| user_message(uid, index, &input.text)).collect();
        if events.is_empty() {
            return Ok(at != delivered);
        }
        let ids: Vec<EventId> = events.iter().map(|event| event.id.clone()).collect();
        let after = match app.store.deliver_inputs(id, at, events).await {
            Err(StoreError::LimitReached { .. }) => return Ok(at != delivered),
            after => after?,
        };
        if after <= at {
            return Err(ApiError::internal(format!("the log counts {after} inputs after {at} were delivered")));
        }
        let now = tokio::time::Instant::now();
        ids.into_iter().for_each(|id| app.accepted.put(id, now, crate::api::wire::events::ACCEPTED_FOR));
        at = after;
    }
}

/// The identifier comes from the resource and the position, so that a repeated delivery finds itself.
fn user_message(uid: &str, index: usize, text: &str) -> NewEvent {
    let digest = Sha256::digest(format!("input/{uid}/{index}").as_bytes());
    let body = EventBody::UserMessage { content: vec![json!({ "type": "text", "text": text })] };
    NewEvent { id: EventId::from_digest(&digest.into()), body }
}

/// Namespace, name and UID of a resource.
///
/// # Errors
/// When it is not from the API server.
pub(crate) fn identity(resource: &AgentSession) -> Result<(&str, &str, &str)> {
    let metadata = &resource.metadata;
    match (&metadata.namespace, &metadata.name, &metadata.uid) {
        (Some(namespace), Some(name), Some(uid)) => Ok((namespace, name, uid)),
        _ => Err(ApiError::internal("the AgentSession has no namespace, name or UID")),
    }
}

/// The resource of a log, unless it is gone or another one has its name.
///
/// # Errors
/// Those of the API server.
pub(crate) async fn resource_of(app: &App, meta: &SessionMeta) -> Result<Option<AgentSession>> {
    let resource = app.resources.session(&meta.namespace, &meta.name).map_err(ApiError::from).await?;
    Ok(resource.filter(|resource| resource.metadata.uid.as_ref() == Some(&meta.uid)))
}
