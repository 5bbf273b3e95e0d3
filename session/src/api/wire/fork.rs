//! `POST sessions` with `fork`: a session that begins with the history of another one. A rewind is a fork.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::api::ObjectMeta;
use longhand_crds::{AgentSession, AgentSessionSpec, annotations, labels, session_id};
use longhand_protocol::SessionId;
use longhand_protocol::event::NewEvent;
use longhand_protocol::wire::{Fork, Session};
use longhand_session_log::StoreError;
use longhand_session_log::store::{Parent, SessionMeta, SessionState};
use serde_json::{Map, Value, json};

use super::once::Seed;
use super::session_create::Made;
use super::vault_use::check_spec;
use super::{events, view};
use crate::api::error::{ApiError, Result};
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::resources::named::created_at;
use crate::sessions;

/// What a fork is asked to be, besides what it inherits.
pub(super) struct Forked {
    /// What it begins with.
    pub(super) fork: Fork,
    /// A name for people; that of the other session without.
    pub(super) title: Option<String>,
    /// The first events that are its own.
    pub(super) first: Vec<NewEvent>,
}

/// Reads `fork`.
pub(super) fn read(fork: Value) -> Result<Fork> {
    serde_json::from_value(fork).map_err(|error| ApiError::bad_request(format!("`fork`: {error}")))
}

/// Names a field that a fork inherits and that may not be given.
pub(super) fn check_rest(rest: &Map<String, Value>) -> Result<()> {
    match rest.iter().find(|(_, value)| !value.is_null()) {
        Some((key, _)) => Err(ApiError::bad_request(format!("`{key}`: a fork inherits it from its session"))),
        None => Ok(()),
    }
}

/// Makes the fork.
pub(super) async fn create(
    app: &App,
    identity: &Identity,
    namespace: &str,
    forked: Forked,
    seed: Option<&Seed>,
) -> Result<Session> {
    let Forked { fork, title, first } = forked;
    let parent = app.store.state(&fork.session).await?;
    app.auth.require(identity, Access::ReadEvents, &parent.meta.namespace).await?;
    if parent.meta.namespace != namespace {
        let message = format!("`fork.session`: there is no session {} in namespace {namespace}", fork.session);
        return Err(ApiError::not_found(message));
    }
    let from = Parent { session: fork.session.clone(), seq: fork.seq.unwrap_or(parent.head) };
    let id = app.store.fork_id(&fork.session);
    let inherited = sessions::resource_of(app, &parent.meta).await?;
    let resource = resource(&id, &from, &parent, inherited, title)?;
    check_spec(app, identity, namespace, &resource.spec).await?;
    let made = Made::make(app, namespace, resource, seed).await?;
    match begin(app, &made, &from, parent, first).await {
        Ok(state) => view::shown(app, state, Some(made.resource)).await,
        Err(error) => Err(made.give_up(app, error).await),
    }
}

async fn begin(
    app: &App,
    made: &Made,
    from: &Parent,
    parent: SessionState,
    first: Vec<NewEvent>,
) -> Result<SessionState> {
    let (namespace, name, uid) = sessions::identity(&made.resource)?;
    let id = session_id(&made.resource.metadata);
    let meta = SessionMeta {
        id: id.clone(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        delivered_inputs: 0,
        created_at: created_at(&made.resource.metadata).unwrap_or_else(Timestamp::now),
        thread_id: None,
        parent: None,
        ..parent.meta
    };
    match app.store.fork(meta, from).await {
        Ok(()) => app.quota.made(namespace),
        Err(StoreError::Exists(_)) if made.again => {}
        Err(error) => return Err(error.into()),
    }
    if !first.is_empty() {
        events::enqueue(app, &id, first).await?;
    }
    tracing::info!(session = %id, parent = %from.session, seq = from.seq, "session forked");
    Ok(app.store.state(&id).await?)
}

/// The other session's resource under another name, without the input that its log has.
fn resource(
    id: &SessionId,
    from: &Parent,
    parent: &SessionState,
    inherited: Option<AgentSession>,
    title: Option<String>,
) -> Result<AgentSession> {
    let spec = match inherited {
        Some(resource) => resource.spec,
        None => serde_json::from_value::<AgentSessionSpec>(json!({"agentRef": {"name": parent.meta.agent.name}}))
            .map_err(|error| ApiError::internal(error.to_string()))?,
    };
    let pair = |key: &str, value: String| (key.to_owned(), value);
    Ok(AgentSession {
        metadata: ObjectMeta {
            generate_name: Some("sesn-".to_owned()),
            labels: Some(BTreeMap::from([
                pair(labels::MANAGED_BY, labels::LONGHAND.to_owned()),
                pair(labels::ID, id.to_string()),
            ])),
            annotations: Some(BTreeMap::from([pair(
                annotations::LOG_FROM,
                format!("fork {} {}", from.session, from.seq),
            )])),
            ..ObjectMeta::default()
        },
        spec: AgentSessionSpec { input: Vec::new(), title: title.or(spec.title.clone()), ..spec },
        status: None,
    })
}
