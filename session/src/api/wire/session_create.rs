//! Making a session.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use longhand_crds::agent_session::Budget;
use longhand_crds::wire_id::prefix;
use longhand_crds::{Agent, AgentSession, SandboxTemplate, session_id};
use longhand_protocol::SessionId;
use longhand_protocol::event::{ClientEvent, NewEvent};
use longhand_protocol::fields::{Fields, InvalidField};
use longhand_protocol::wire::Session;
use serde_json::{Map, Value};

use super::agents::made_and_gone;
use super::checks::NewName;
use super::fields::{SecretBody, patch_metadata};
use super::once::{MaybeSeed, Seed};
use super::session_agent::Choice;
use super::session_fields::{budget, metadata, title, vault_ids};
use super::session_resources::{self, Draft};
use super::vault_use::check_vaults;
use super::{events, fork, namespace_for, view};
use crate::agents;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf, is_reference, shortened};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::resources::ResourceError;
use crate::resources::named::{archived_at, find};
use crate::resources::plan::{Wanted, agent_session};
use crate::sessions;

const MOST_RESOURCES: usize = 1_000;

/// A request, as far as it can be judged by itself.
struct Request {
    agent: Choice,
    environment: Option<String>,
    vaults: Vec<String>,
    title: Option<String>,
    metadata: BTreeMap<String, String>,
    budget: Option<Budget>,
    resources: Vec<Draft>,
    events: Vec<ClientEvent>,
}

/// `POST sessions`.
pub async fn create(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    MaybeSeed(seed): MaybeSeed,
    body: SecretBody,
) -> Result<Json<Session>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::CreateSession, namespace).await?;
    let Value::Object(mut body) = body.parse()? else {
        return Err(InvalidField::new("body", "must be an object").into());
    };
    app.quota.check_session(&*app.store, namespace).await?;
    let seed = seed.as_ref();
    if let Some(fork) = body.remove("fork").filter(|fork| !fork.is_null()) {
        return fork::create(&app, &identity, namespace, read_fork(fork, body, seed)?, seed).await.map(Json);
    }
    let mut request = read(Value::Object(body), seed)?;
    let first = events::named(std::mem::take(&mut request.events), seed);
    let mut drafts = std::mem::take(&mut request.resources);
    let wanted = resolve(&app, &identity, namespace, request, &mut drafts).await?;
    let resource = agent_session(wanted, &SessionId::generate());
    let resource = resource.map_err(|error| ApiError::internal(error.to_string()))?;
    let made = Made::make(&app, namespace, resource, seed).await?;
    if let Err(error) = begin(&app, &made, drafts, first).await {
        return Err(made.give_up(&app, error).await);
    }
    let resource = made.resource;
    let state = app.store.state(&session_id(&resource.metadata)).await?;
    view::shown(&app, state, Some(resource)).await.map(Json)
}

/// The resource of a session that is about to be made.
pub(super) struct Made {
    pub(super) resource: AgentSession,
    /// It was made when the request was carried out before.
    pub(super) again: bool,
    /// The request may be carried out again, and goes on then with what there is.
    resumable: bool,
}

impl Made {
    /// Makes the resource, or finds it.
    pub(super) async fn make(
        app: &App,
        namespace: &str,
        mut resource: AgentSession,
        seed: Option<&Seed>,
    ) -> Result<Self> {
        let name = NewName::of("sesn", prefix::SESSION, seed);
        name.put("sesn", &mut resource.metadata);
        let resumable = seed.is_some();
        let error = match (app.resources.create_session(namespace, resource).await, &name.name) {
            (Ok(resource), _) => return Ok(Self { resource, again: false, resumable }),
            (Err(ResourceError::Conflict { .. }), Some(name)) => {
                let resource = app.resources.session(namespace, name).await?;
                let resource = resource.ok_or_else(|| made_and_gone("session"))?;
                return Ok(Self { resource, again: true, resumable });
            }
            (Err(error), _) => error,
        };
        Err(ApiError::from(error).of_change())
    }

    /// What the client is told has failed must not go on by itself: takes the resource away, unless the request is carried
    /// out again and may find it.
    pub(super) async fn give_up(&self, app: &App, error: ApiError) -> ApiError {
        let is_left = self.again || self.resumable && error.status().is_server_error();
        let Ok((namespace, name, uid)) = sessions::identity(&self.resource) else { return error.of_last_step() };
        if is_left {
            return error.of_last_step();
        }
        if let Err(left) = app.resources.delete_session(namespace, name, uid).await {
            tracing::warn!(error = %left, "a session that could not be begun is left over");
            return error.of_last_step();
        }
        error.of_change()
    }
}

async fn begin(app: &App, made: &Made, drafts: Vec<Draft>, first: Vec<NewEvent>) -> Result<()> {
    let state = sessions::ensure(app, &made.resource).await?;
    session_resources::keep_tokens(app, &state.meta, drafts, made.again).await?;
    if !first.is_empty() {
        events::enqueue(app, &state.meta.id, first).await?;
    }
    Ok(())
}

/// Finds what the request names.
async fn resolve(
    app: &App,
    identity: &Identity,
    namespace: &str,
    request: Request,
    drafts: &mut [Draft],
) -> Result<Wanted> {
    let agent = agent(app, namespace, &request.agent).await?;
    let template = match &request.environment {
        None => None,
        Some(reference) => Some(template(app, namespace, reference).await?),
    };
    let files = drafts.iter().map(|draft| &draft.resource);
    session_resources::check_files(app, identity, namespace, files).await?;
    let mut resources: Vec<_> = drafts.iter_mut().map(|draft| &mut draft.resource).collect();
    session_resources::settle(app, namespace, template.as_slice(), &mut resources).await?;
    let vaults = check_vaults(app, identity, namespace, &request.vaults).await?;
    Ok(Wanted {
        agent: request.agent.reference(agent.metadata.name.unwrap_or_default()),
        template,
        vaults: vaults.into_iter().map(|vault| vault.name).collect(),
        title: request.title,
        metadata: request.metadata,
        budget: request.budget,
        resources: drafts.iter().map(|draft| draft.resource.clone()).collect(),
    })
}

/// The agent, if a session with these overrides can be made of it.
async fn agent(app: &App, namespace: &str, choice: &Choice) -> Result<Agent> {
    let missing = || {
        let agent = shortened(&choice.agent);
        ApiError::not_found(format!("`agent`: there is no agent `{agent}` in {namespace}"))
    };
    if !is_reference(&choice.agent) {
        return Err(missing());
    }
    let agent = agents::lookup(app, namespace, &choice.agent).await?.ok_or_else(missing)?;
    agents::check_usable(app, &agent).await?;
    if choice.overrides.is_some() {
        choice.check(agents::pinned(app, agent.clone(), choice.version).await?.agent.spec)?;
    }
    Ok(agent)
}

async fn template(app: &App, namespace: &str, reference: &str) -> Result<String> {
    let shown = shortened(reference);
    let missing = || ApiError::not_found(format!("`environment_id`: there is no environment `{shown}` in {namespace}"));
    if !is_reference(reference) {
        return Err(missing());
    }
    let found = find::<SandboxTemplate>(&*app.environments, prefix::ENVIRONMENT, namespace, reference).await?;
    let template = found.ok_or_else(missing)?;
    if archived_at(&template.metadata).is_some() {
        return Err(ApiError::bad_request(format!("`environment_id`: {shown} is archived")));
    }
    Ok(template.metadata.name.unwrap_or_default())
}

/// Reads the body of a fork, or names the field that is wrong.
fn read_fork(fork: Value, body: Map<String, Value>, seed: Option<&Seed>) -> Result<fork::Forked> {
    let fork = fork::read(fork)?;
    let mut fields = Fields::of("", Value::Object(body))?;
    let first = events::named(initial_events(&mut fields)?, seed);
    let title = title(&mut fields)?;
    fork::check_rest(&fields.rest())?;
    Ok(fork::Forked { fork, title, first })
}

/// Reads the body of a creation, or names the field that is wrong.
fn read(body: Value, seed: Option<&Seed>) -> Result<Request> {
    let mut fields = Fields::of("", body)?;
    let agent = Choice::read(&mut fields)?;
    let events = initial_events(&mut fields)?;
    let mut pairs = BTreeMap::new();
    patch_metadata(&mut pairs, &metadata(&mut fields)?)?;
    let request = Request {
        agent,
        environment: fields.optional_text("environment_id")?,
        vaults: vault_ids(&mut fields)?.unwrap_or_default(),
        title: title(&mut fields)?,
        metadata: pairs,
        budget: budget(&mut fields)?,
        resources: session_resources::read(
            fields.optional_list("resources", MOST_RESOURCES)?.unwrap_or_default(),
            seed,
        )?,
        events,
    };
    fields.end()?;
    Ok(request)
}

fn initial_events(fields: &mut Fields) -> Result<Vec<ClientEvent>, InvalidField> {
    let Some(events) = fields.optional("initial_events") else { return Ok(Vec::new()) };
    let events = ClientEvent::read_all("initial_events", events)?;
    let begins = |event: &ClientEvent| {
        matches!(
            event,
            ClientEvent::UserMessage { .. } | ClientEvent::UserDefineOutcome { .. } | ClientEvent::SystemMessage { .. }
        )
    };
    match events.iter().position(|event| !begins(event)) {
        None => Ok(events),
        Some(index) => {
            let problem = "only user.message, user.define_outcome and system.message can begin a session";
            Err(fields.wrong(format!("initial_events[{index}].type"), problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::read;

    #[rstest]
    #[case(json!({"agent": "helper"}))]
    #[case(json!({"agent": {"type": "agent", "id": "agent_1", "version": 3}}))]
    #[case(json!({"agent": {"type": "agent", "id": "helper", "version": null}, "vault_ids": [], "resources": [], "budget": null}))]
    #[case(json!({"agent": "helper", "environment_id": "tools", "title": "t", "metadata": {"a": "b"}, "vault_ids": ["vlt_1"],
        "budget": {"type": "limit", "max_list_cost": {"amount": "2500", "currency": "USD"}},
        "resources": [{"type": "file", "file_id": "file_1", "mount_path": "/a"}],
        "initial_events": [{"type": "user.message", "content": [{"type": "text", "text": "hi"}]}]}))]
    fn what_is_supported_is_read(#[case] body: Value) {
        assert_eq!(read(body, None).err().map(|error| error.to_string()), None);
    }

    #[rstest]
    #[case(json!({}), "`agent`")]
    #[case(json!([]), "`body`")]
    #[case(json!({"agent": {"type": "team", "id": "helper"}}), "`agent.type`")]
    #[case(json!({"agent": "helper", "environment_id": 1}), "`environment_id`")]
    #[case(json!({"agent": "helper", "metadata": {"a": 1}}), "`metadata.a`")]
    #[case(json!({"agent": "helper", "resources": [{"type": "memory_store", "memory_store_id": "m"}]}), "`resources[0]`")]
    #[case(json!({"agent": "helper", "resources": [{"type": "file", "file_id": "a", "mount_path": "/a"}, {"type": "file", "file_id": "b", "mount_path": "/a"}]}), "`resources[1]`: `mount_path`")]
    #[case(json!({"agent": "helper", "initial_events": [{"type": "user.interrupt"}]}), "`initial_events[0].type`")]
    #[case(json!({"agent": "helper", "initial_events": {}}), "`initial_events`")]
    #[case(json!({"agent": "helper", "deployment_id": "d"}), "`deployment_id`")]
    fn what_is_not_is_named(#[case] body: Value, #[case] part: &str) {
        let Err(error) = read(body, None) else { panic!("it was read") };
        assert!(error.to_string().contains(part), "{error}");
    }
}
