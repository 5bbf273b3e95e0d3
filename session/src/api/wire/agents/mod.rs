//! Agents: made, listed, looked at, changed and archived. Each change is a version.

pub(super) mod read;

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::api::ObjectMeta;
use longhand_crds::wire_id::prefix;
use longhand_crds::{Agent, labels, wire_id};
use longhand_protocol::wire::agents as wire;
use longhand_protocol::wire::{Order, Page};

use super::checks::NewName;
use super::listing::Listing;
use super::once::MaybeSeed;
use super::{cursor, namespace_for};
use crate::agents::{self, Versioned};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Body, Caller, PathOf, parse};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;
use crate::resources::ResourceError;
use crate::resources::named::{archived_at, created_at};
use crate::resources::objects::Created;

/// As RBAC knows the kind.
const AGENTS: &str = "agents";
const READS_AT_ONCE: usize = 16;
const PAGE: usize = 20;
const LONGEST_PAGE: usize = 100;
/// The operator writes the status of an agent now and then, which makes a change of the spec begin anew.
const ATTEMPTS: usize = 5;

/// `POST agents`.
pub async fn create(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    MaybeSeed(seed): MaybeSeed,
    Body(body): Body,
) -> Result<Json<wire::Agent>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(AGENTS, "create"), namespace).await?;
    let spec = read::created(parse(&body)?)?;
    if let Some(default) = &app.default_model {
        // It names no credential, so that it uses this one.
        app.auth.require(&identity, Access::UseVault(&default.credential.vault), namespace).await?;
    }
    let name = NewName::of("agent", prefix::AGENT, seed.as_ref());
    let new = Agent { metadata: new_metadata("agent", &name), spec, status: None };
    let made = app.agents.create(namespace, &new).await.map_err(|error| ApiError::from(error).of_change())?;
    let agent = match (made, name.name) {
        (Created::New(agent), _) => agent,
        (Created::Exists, Some(name)) => {
            // Made when the request was carried out before.
            app.agents.named(namespace, &name).await?.ok_or_else(|| made_and_gone("agent"))?
        }
        (Created::Exists, None) => return Err(ApiError::unavailable("no free name was found: try again")),
    };
    Ok(Json(view(&agents::current(&app, agent).await?)))
}

/// `GET agents`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Page<wire::Agent>>> {
    let listing = Listing::take(&mut params)?.with_dates(&mut params)?;
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(AGENTS, "list"), namespace).await?;
    let (found, next_page) = listing.of(&*app.agents, namespace).await?;
    let app = &app;
    let data = stream::iter(found).map(|agent| async move { agents::current(app, agent).await.map(|now| view(&now)) });
    Ok(Json(Page { data: data.buffered(READS_AT_ONCE).try_collect().await?, next_page }))
}

/// `GET agents/{agent}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<wire::Agent>> {
    let version = params.positive::<u64>("version")?;
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(AGENTS, "get"), namespace).await?;
    Ok(Json(view(&agents::agent_at(&app, namespace, path.of("agent")?, version).await?)))
}

/// `POST agents/{agent}`.
pub async fn update(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    Body(body): Body,
) -> Result<Json<wire::Agent>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(AGENTS, "update"), namespace).await?;
    let update: wire::UpdateAgent = parse(&body)?;
    let changed = change(&app, namespace, path.of("agent")?, |now| {
        if update.version.is_some_and(|version| version != now.version) {
            return Err(ApiError::conflict(format!(
                "`version`: the agent is at version {}: read it again and repeat what is still wanted",
                now.version
            )));
        }
        if archived_at(&now.agent.metadata).is_some() {
            return Err(ApiError::bad_request("the agent is archived: it cannot be changed"));
        }
        let mut agent = now.agent.clone();
        agent.spec = read::updated(agent.spec, update.clone())?;
        Ok(agent)
    });
    Ok(Json(view(&changed.await?)))
}

/// `POST agents/{agent}/archive`.
pub async fn archive(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<wire::Agent>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(AGENTS, "update"), namespace).await?;
    let archived = change(&app, namespace, path.of("agent")?, |now| {
        let mut agent = now.agent.clone();
        super::set_archived(&mut agent.metadata, Timestamp::now());
        Ok(agent)
    });
    Ok(Json(view(&archived.await?)))
}

/// `GET agents/{agent}/versions`: the newest first.
pub async fn versions(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Page<wire::Agent>>> {
    let below = params.one("page")?.map(|page| cursor::decode::<u64>(&page, Order::Desc)).transpose()?;
    let limit = params.limit(PAGE, LONGEST_PAGE)?;
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(AGENTS, "get"), namespace).await?;
    let now = agents::agent_at(&app, namespace, path.of("agent")?, None).await?;
    let mut all = agents::versions(&app, &now.agent).await?;
    all.retain(|version| below.is_none_or(|below| *version < below));
    let more = all.len() > limit;
    all.truncate(limit);
    let next_page = all.last().filter(|_| more).map(|last| cursor::encode(Order::Desc, *last)).transpose()?;
    let (app, agent) = (&app, &now.agent);
    let data = stream::iter(all)
        .map(|version| async move { agents::at(app, agent.clone(), version).await.map(|then| view(&then)) });
    Ok(Json(Page { data: data.buffered(READS_AT_ONCE).try_collect().await?, next_page }))
}

/// Changes an agent as it is now; begins anew when another was faster. An agent that stays as it is is not written.
async fn change(
    app: &App,
    namespace: &str,
    name_or_id: &str,
    change: impl Fn(&Versioned) -> Result<Agent>,
) -> Result<Versioned> {
    for _ in 0..ATTEMPTS {
        let now = agents::agent_at(app, namespace, name_or_id, None).await?;
        let wanted = change(&now)?;
        if (&wanted.metadata, &wanted.spec) == (&now.agent.metadata, &now.agent.spec) {
            return Ok(now);
        }
        match app.agents.replace(&wanted).await {
            Ok(written) => return agents::current(app, written).await,
            Err(ResourceError::Conflict { .. }) => {}
            Err(error) => return Err(ApiError::from(error).of_change()),
        }
    }
    Err(ApiError::conflict(format!("agent {name_or_id} is being changed by others: read it again and repeat")))
}

/// Metadata of an object that the wire API makes.
pub(super) fn new_metadata(kind: &str, name: &NewName) -> ObjectMeta {
    let mut meta = ObjectMeta {
        labels: Some(BTreeMap::from([
            (labels::MANAGED_BY.to_owned(), labels::LONGHAND.to_owned()),
            (labels::ID.to_owned(), name.id.clone()),
        ])),
        ..ObjectMeta::default()
    };
    name.put(kind, &mut meta);
    meta
}

/// A request that is carried out again made something that is not there any more.
pub(super) fn made_and_gone(what: &str) -> ApiError {
    ApiError::conflict(format!("the {what} that this request made was deleted: use a new `Idempotency-Key`"))
}

/// The agent in the shape of the public API.
fn view(now: &Versioned) -> wire::Agent {
    let Versioned { agent, version, at } = now;
    let (meta, spec) = (&agent.metadata, &agent.spec);
    let archived_at = archived_at(meta);
    wire::Agent {
        id: wire_id(prefix::AGENT, meta),
        kind: "agent".to_owned(),
        version: *version,
        name: agent.display_name().to_owned(),
        description: spec.description.clone(),
        model: (&spec.model).into(),
        system: spec.system.clone(),
        tools: spec.tools.iter().map(Into::into).collect(),
        mcp_servers: spec.mcp_servers.iter().map(Into::into).collect(),
        skills: Vec::new(),
        multiagent: None,
        metadata: spec.metadata.clone(),
        execution_identity: wire::ExecutionIdentity::ServiceAccount,
        created_at: created_at(meta).unwrap_or_default(),
        updated_at: archived_at.map_or(*at, |archived| archived.max(*at)),
        archived_at,
    }
}
