//! Sessions: made, listed, looked at and deleted.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use longhand_crds::AgentSession;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::wire::{CreateSession, Order, Session, SessionDeleted, SessionStatus};
use longhand_session_log::StoreError;
use serde::Serialize;
use serde_json::{Map, Value};

use super::session_page::{At, Key, Selection};
use super::{cursor, events, namespace_for, session_for, view};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Body, Caller, PathOf, is_name, parse};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;
use crate::resources::plan::{Wanted, agent_session};
use crate::sessions;

const PAGE: usize = 20;
const LONGEST_PAGE: usize = 200;
const READS_AT_ONCE: usize = 16;
const LONGEST_TITLE: usize = 256;
const MOST_METADATA: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;

/// A page of sessions, which other than pages of anything else can be turned back.
#[derive(Debug, Serialize)]
pub struct SessionPage {
    data: Vec<Session>,
    next_page: Option<String>,
    prev_page: Option<String>,
}

/// `GET sessions`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<SessionPage>> {
    let order = cursor::order(params.one("order")?.as_deref(), Order::Desc)?;
    let at: Option<At> = params.one("page")?.map(|page| cursor::decode(&page, order)).transpose()?;
    let limit = params.limit(PAGE, LONGEST_PAGE)?;
    // There is no archive yet, so that including it changes nothing.
    params.flag("include_archived")?;
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::ListSessions, namespace).await?;
    let mut selection = Selection::new(order, at, limit);
    let mut from = None;
    loop {
        let (resources, next) = app.resources.sessions(namespace, from).await?;
        for resource in resources {
            selection.offer(key(&resource), resource);
        }
        from = next;
        if from.is_none() {
            break;
        }
    }
    let selected = selection.select();
    let now = Timestamp::now();
    let app = &app;
    let data: Vec<Option<Session>> = stream::iter(selected.items)
        .map(|resource| async move { view_of(app, resource, now).await })
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await?;
    let page = |at: Option<At>| at.map(|at| cursor::encode(order, at)).transpose();
    Ok(Json(SessionPage {
        data: data.into_iter().flatten().collect(),
        next_page: page(selected.next)?,
        prev_page: page(selected.prev)?,
    }))
}

fn key(resource: &AgentSession) -> Key {
    let created = resource.metadata.creation_timestamp.as_ref().map_or(0, |created| created.0.as_second());
    Key { created, name: resource.metadata.name.clone().unwrap_or_default() }
}

/// A resource whose log has not been made is not a session yet.
async fn view_of(app: &App, resource: AgentSession, now: Timestamp) -> Result<Option<Session>> {
    let (_, _, uid) = sessions::identity(&resource)?;
    match app.store.state(&longhand_crds::session_id(uid)).await {
        Ok(state) => Ok(Some(view::session(state, Some(resource), now))),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `POST sessions`.
pub async fn create(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    Body(body): Body,
) -> Result<Json<Session>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::CreateSession, namespace).await?;
    let (wanted, events) = read_create(parse(&body)?)?;
    if app.resources.agent(namespace, &wanted.agent).await?.is_none() {
        return Err(ApiError::not_found(format!("`agent`: there is no Agent {namespace}/{}", wanted.agent)));
    }
    if let Some(template) = &wanted.template
        && !app.resources.has_template(namespace, template).await?
    {
        let message = format!("`environment_id`: there is no SandboxTemplate {namespace}/{template}");
        return Err(ApiError::not_found(message));
    }
    let resource = agent_session(wanted).map_err(|error| ApiError::internal(error.to_string()))?;
    let resource = app.resources.create_session(namespace, resource).await;
    let resource = resource.map_err(|error| ApiError::from(error).of_change())?;
    match begin(&app, &resource, events).await {
        Ok(()) => {}
        Err(error) => {
            // What the client is told has failed must not go on by itself.
            let (namespace, name, uid) = sessions::identity(&resource)?;
            if let Err(error) = app.resources.delete_session(namespace, name, uid).await {
                tracing::warn!(%error, "a session that could not be begun is left over");
            }
            return Err(error.of_change());
        }
    }
    let (_, _, uid) = sessions::identity(&resource)?;
    let state = app.store.state(&longhand_crds::session_id(uid)).await?;
    Ok(Json(view::session(state, Some(resource), Timestamp::now())))
}

async fn begin(app: &App, resource: &AgentSession, first: Vec<NewEvent>) -> Result<()> {
    let state = sessions::ensure(app, resource).await?;
    if !first.is_empty() {
        events::enqueue(app, &state.meta.id, first).await?;
    }
    Ok(())
}

/// Reads the body of a creation, or names the field that is wrong.
fn read_create(mut body: Map<String, Value>) -> Result<(Wanted, Vec<NewEvent>)> {
    let initial = match body.remove("initial_events") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(events)) => events::read_events("initial_events", events)?,
        Some(_) => return Err(ApiError::bad_request("`initial_events` is not a list")),
    };
    if let Some(index) = initial.iter().position(|event| !matches!(event.body, EventBody::UserMessage { .. })) {
        let message = format!("`initial_events[{index}]`: only user.message can begin a session");
        return Err(ApiError::bad_request(message));
    }
    check_agent(body.get("agent"))?;
    // What an SDK sends for "nothing" asks for nothing.
    body.retain(|_, value| !value.is_null() && *value != Value::Array(Vec::new()));
    let request: CreateSession = serde_json::from_value(Value::Object(body))
        .map_err(|error| ApiError::bad_request(format!("the body is malformed: {error}")))?;
    let wanted = Wanted {
        agent: name("agent", request.agent.name().to_owned())?,
        template: request.environment_id.map(|id| name("environment_id", id)).transpose()?,
        title: title(request.title)?,
        metadata: metadata(request.metadata)?,
    };
    Ok((wanted, initial))
}

/// The two forms that are understood, spelled out, so that a version or an override is not passed over in silence.
fn check_agent(agent: Option<&Value>) -> Result<()> {
    let wrong = |what: String| Err(ApiError::bad_request(format!("`agent`: {what}")));
    match agent {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Object(fields)) => {
            if fields.get("type").and_then(Value::as_str) != Some("agent") {
                return wrong("`type` must be `agent`".to_owned());
            }
            if !fields.get("id").is_some_and(Value::is_string) {
                return wrong("`id` must be the name of an Agent".to_owned());
            }
            match fields.iter().find(|(key, value)| !matches!(key.as_str(), "type" | "id") && !value.is_null()) {
                Some((key, _)) => wrong(format!("`{key}` is not supported: a session gets the Agent as it is now")),
                None => Ok(()),
            }
        }
        _ => wrong("it must be the name of an Agent, or {\"type\": \"agent\", \"id\": <name>}".to_owned()),
    }
}

fn name(field: &str, value: String) -> Result<String> {
    if is_name(&value, 253) {
        return Ok(value);
    }
    Err(ApiError::bad_request(format!("`{field}` is not the name of a Kubernetes object: `{value}`")))
}

fn title(title: Option<String>) -> Result<Option<String>> {
    match title {
        Some(title) if title.chars().count() > LONGEST_TITLE => {
            Err(ApiError::bad_request(format!("`title` is longer than {LONGEST_TITLE} characters")))
        }
        title => Ok(title),
    }
}

fn metadata(pairs: Map<String, Value>) -> Result<BTreeMap<String, String>> {
    if pairs.len() > MOST_METADATA {
        return Err(ApiError::bad_request(format!("`metadata` has more than {MOST_METADATA} pairs")));
    }
    let pair = |(key, value): (String, Value)| {
        if key.is_empty() || key.chars().count() > LONGEST_KEY {
            return Err(ApiError::bad_request(format!(
                "a key of `metadata` is not 1 to {LONGEST_KEY} characters long"
            )));
        }
        match value {
            Value::String(value) if value.chars().count() <= LONGEST_VALUE => Ok((key, value)),
            _ => Err(ApiError::bad_request(format!(
                "`metadata.{key}` is not a string of at most {LONGEST_VALUE} characters"
            ))),
        }
    };
    pairs.into_iter().map(pair).collect()
}

/// `GET sessions/{session}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Session>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::GetSession).await?;
    let resource = sessions::resource_of(&app, &state.meta).await?;
    Ok(Json(view::session(state, resource, Timestamp::now())))
}

/// `DELETE sessions/{session}`.
pub async fn delete(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<SessionDeleted>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::DeleteSession).await?;
    if matches!(state.status, SessionStatus::Running | SessionStatus::Rescheduling) {
        let message = format!("session {} is {}; interrupt it first", state.meta.id, state.status.as_str());
        return Err(ApiError::conflict(message));
    }
    let meta = state.meta;
    // The resource first: should the log be left, the sweep takes it.
    let deleted = app.resources.delete_session(&meta.namespace, &meta.name, &meta.uid).await;
    deleted.map_err(|error| ApiError::from(error).of_change())?;
    app.store.delete(&meta.id).await.map_err(|error| ApiError::from(error).of_change())?;
    tracing::info!(session = %meta.id, "session deleted");
    Ok(Json(SessionDeleted { id: meta.id, kind: "session_deleted".to_owned() }))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::read_create;

    fn read(body: Value) -> Result<(), String> {
        let Value::Object(body) = body else { panic!("an object") };
        read_create(body).map(|_| ()).map_err(|error| error.to_string())
    }

    #[rstest]
    #[case(json!({"agent": "helper"}))]
    #[case(json!({"agent": {"type": "agent", "id": "helper"}}))]
    #[case(json!({"agent": {"type": "agent", "id": "helper", "version": null}, "vault_ids": [], "budget": null}))]
    #[case(json!({"agent": "helper", "environment_id": "tools", "title": "t", "metadata": {"a": "b"},
        "initial_events": [{"type": "user.message", "content": [{"type": "text", "text": "hi"}]}]}))]
    fn what_is_supported_is_read(#[case] body: Value) {
        assert_eq!(read(body), Ok(()));
    }

    #[rstest]
    #[case(json!({}), "`agent`")]
    #[case(json!({"agent": 1}), "`agent`")]
    #[case(json!({"agent": "Not a name"}), "`agent`")]
    #[case(json!({"agent": {"type": "agent", "id": "helper", "version": 3}}), "`version`")]
    #[case(json!({"agent": {"type": "agent_with_overrides", "id": "helper"}}), "`type`")]
    #[case(json!({"agent": "helper", "vault_ids": ["v"]}), "`vault_ids`")]
    #[case(json!({"agent": "helper", "budget": {"usd": 1}}), "`budget`")]
    #[case(json!({"agent": "helper", "environment_id": "../x"}), "`environment_id`")]
    #[case(json!({"agent": "helper", "title": "x".repeat(257)}), "`title`")]
    #[case(json!({"agent": "helper", "metadata": {"a": 1}}), "`metadata.a`")]
    #[case(json!({"agent": "helper", "initial_events": [{"type": "user.interrupt"}]}), "`initial_events[0]`")]
    #[case(json!({"agent": "helper", "initial_events": [{"type": "system.message", "content": []}]}), "unknown variant")]
    #[case(json!({"agent": "helper", "initial_events": {}}), "`initial_events`")]
    fn what_is_not_is_named(#[case] body: Value, #[case] part: &str) {
        let message = read(body).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
}
