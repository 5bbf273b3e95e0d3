//! Repositories and files of a session: kept in its resource, with tokens in Secrets of their own.

mod map;
mod place;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Resource as _;
use longhand_crds::AgentSession;
use longhand_crds::session_resource::SessionResource;
use longhand_crds::vault::SecretRef;
use longhand_crds::wire_id::{derived_id, prefix};
use longhand_protocol::secret::SecretValue;
use longhand_protocol::wire::resources::{SessionResource as Shown, UpdateResource, WrittenResource};
use longhand_protocol::wire::vaults::Deleted;
use longhand_protocol::wire::{Order, Page};
use longhand_session_log::store::SessionMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(super) use self::map::Draft;
use self::map::{TOKEN, resource_id};
pub(super) use self::place::settle;
use super::fields::{SecretBody, kind};
use super::once::{MaybeSeed, Seed};
use super::vaults::fresh_id;
use super::{cursor, files, session_for};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf, shortened};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::resources::ResourceError;
use crate::resources::vaults::NewSecret;
use crate::sessions;

/// As many as the resource holds.
const MOST_RESOURCES: usize = 64;
const LONGEST_PAGE: usize = 1_000;
const ATTEMPTS: usize = 5;

/// The resources of a session, as they are shown.
///
/// # Errors
/// 500 for an entry that is none, which the API server does not take.
pub(super) fn shown(session: &AgentSession) -> Result<Vec<Shown>> {
    session.spec.resources.iter().map(|resource| map::shown(session, resource)).collect()
}

/// Reads the resources of a session that is about to be made.
///
/// # Errors
/// 400 naming the one that is wrong.
pub(super) fn read(resources: Vec<Value>, seed: Option<&Seed>) -> Result<Vec<Draft>> {
    let mut drafts: Vec<Draft> = Vec::with_capacity(resources.len());
    for (index, resource) in resources.into_iter().enumerate() {
        let wrong = |what: String| ApiError::bad_request(format!("`resources[{index}]`: {what}"));
        let written: WrittenResource = serde_json::from_value(resource).map_err(|error| wrong(kind(&error)))?;
        let (id, random) = names(seed, index);
        let draft = map::draft(written, id, format!("session-token-{random}"), Timestamp::now());
        let draft = draft.map_err(|error| wrong(error.to_string()))?;
        if drafts.iter().any(|other| other.resource.mount_path == draft.resource.mount_path) {
            return Err(wrong(format!("`mount_path`: another resource is at {}", draft.resource.mount_path)));
        }
        drafts.push(draft);
    }
    if drafts.len() > MOST_RESOURCES {
        return Err(ApiError::bad_request(format!("`resources` has more than {MOST_RESOURCES} entries")));
    }
    Ok(drafts)
}

/// An error unless `identity` may read the files that are among these resources: whoever speaks to a session reads them.
///
/// # Errors
/// 403 naming the file.
pub(super) async fn check_files(
    app: &App,
    identity: &Identity,
    namespace: &str,
    resources: impl Iterator<Item = &SessionResource>,
) -> Result<()> {
    for file in resources.filter_map(|resource| resource.file.as_ref()) {
        app.auth.require(identity, files::access("get", &file.file_id), namespace).await?;
    }
    Ok(())
}

/// Puts the tokens of a new session's resources into Secrets; `again` if that may have been done.
///
/// # Errors
/// Those of the API server.
pub(super) async fn keep_tokens(app: &App, meta: &SessionMeta, drafts: Vec<Draft>, again: bool) -> Result<()> {
    for Draft { resource, token } in drafts {
        let reference = resource.github_repository.and_then(|repository| repository.token_ref);
        let Some((reference, token)) = reference.zip(token) else { continue };
        let secret = NewSecret { name: reference.name, owner: owner(meta), values: vec![(TOKEN, token)] };
        match app.vaults.create_secret(&meta.namespace, secret).await {
            Err(ResourceError::Conflict { .. }) if again => {}
            made => made?,
        }
    }
    Ok(())
}

/// The identifier of a resource, and what makes the name of its Secret unlike any other: the same for a request that is
/// carried out again.
fn names(seed: Option<&Seed>, index: usize) -> (String, String) {
    match seed {
        None => (fresh_id(prefix::RESOURCE), format!("{:016x}", rand::random::<u64>())),
        Some(seed) => {
            let secret = seed.of(&format!("token/{index}"));
            (derived_id(prefix::RESOURCE, &seed.of(&format!("resource/{index}"))), secret[..16].to_owned())
        }
    }
}

/// Where a page of resources begins.
#[derive(Serialize, Deserialize)]
struct After {
    resource: String,
}

/// `GET resources`, in the order in which they were added; all of them without `limit`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Page<Shown>>> {
    let page = params.one("page")?.filter(|page| !page.is_empty());
    let after: Option<After> = page.map(|page| cursor::decode(&page, Order::Asc)).transpose()?;
    let limit = params.limit(LONGEST_PAGE, LONGEST_PAGE)?;
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::GetSession).await?;
    let session = resource_of(&app, &state.meta).await?;
    let all = &session.spec.resources;
    let skip = match after {
        None => 0,
        Some(after) => all.iter().position(|found| found.name == after.resource).map_or(all.len(), |at| at + 1),
    };
    let page: Vec<&SessionResource> = all.iter().skip(skip).take(limit).collect();
    let more = skip + page.len() < all.len();
    let last = page.last().filter(|_| more).map(|last| After { resource: last.name.clone() });
    let next_page = last.map(|after| cursor::encode(Order::Asc, after)).transpose()?;
    let data = page.into_iter().map(|resource| map::shown(&session, resource)).collect::<Result<_>>()?;
    Ok(Json(Page { data, next_page }))
}

/// `POST resources`.
pub async fn add(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    MaybeSeed(seed): MaybeSeed,
    body: SecretBody,
) -> Result<Json<Shown>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::UpdateSession).await?;
    let written: WrittenResource = body.parse()?;
    let (id, random) = names(seed.as_ref(), 0);
    let secret = secret_name(&state.meta, &random);
    let Draft { mut resource, token } = map::draft(written, id.clone(), secret, Timestamp::now())?;
    check_files(&app, &identity, &state.meta.namespace, [&resource].into_iter()).await?;
    let session = resource_of(&app, &state.meta).await?;
    let templates: Vec<_> = session.spec.sandboxes.into_iter().map(|sandbox| sandbox.template_ref.name).collect();
    settle(&app, &state.meta.namespace, &templates, &mut [&mut resource]).await?;
    let add = |session: &mut AgentSession| {
        let resources = &mut session.spec.resources;
        if resources.iter().any(|other| other.name == resource.name) {
            // Added when the request was carried out before.
            return Ok(());
        }
        if resources.len() >= MOST_RESOURCES {
            return Err(ApiError::bad_request(format!("the session has {MOST_RESOURCES} resources, and no more fit")));
        }
        if resources.iter().any(|other| other.mount_path == resource.mount_path) {
            let message = format!("`mount_path`: another resource is at {}", resource.mount_path);
            return Err(ApiError::bad_request(message));
        }
        resources.push(resource.clone());
        Ok(())
    };
    let secret = resource.github_repository.as_ref().and_then(|repository| repository.token_ref.as_ref());
    let session = change(&app, &state.meta, secret.zip(token), seed.is_some(), add).await?;
    app.executor.resources_changed(&state.meta);
    one(&session, &id)
}

/// `GET resources/{resource}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Shown>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::GetSession).await?;
    one(&resource_of(&app, &state.meta).await?, path.of("resource")?)
}

/// `POST resources/{resource}`: another token for a repository.
pub async fn update(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    body: SecretBody,
) -> Result<Json<Shown>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::UpdateSession).await?;
    let UpdateResource { authorization_token } = body.parse()?;
    let id = path.of("resource")?;
    let (_, random) = names(None, 0);
    let reference = SecretRef { name: secret_name(&state.meta, &random), key: TOKEN.to_owned() };
    let now = Timestamp::now();
    let rotate = |session: &mut AgentSession| {
        let at = index(session, id)?;
        let resource = &mut session.spec.resources[at];
        let Some(repository) = &mut resource.github_repository else {
            return Err(ApiError::bad_request("`authorization_token`: the resource is not a github_repository"));
        };
        repository.token_ref = Some(reference.clone());
        resource.updated_at = Some(Time(now));
        Ok(())
    };
    let session = change(&app, &state.meta, Some((&reference, authorization_token)), false, rotate).await?;
    one(&session, id)
}

/// `DELETE resources/{resource}`. The Secret of its token stays until the session goes, and nothing names it any more.
pub async fn delete(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Deleted>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::UpdateSession).await?;
    let reference = path.of("resource")?;
    let session = resource_of(&app, &state.meta).await?;
    let id = resource_id(&session, &session.spec.resources[index(&session, reference)?]);
    let remove = |session: &mut AgentSession| {
        let at = index(session, reference)?;
        session.spec.resources.remove(at);
        Ok(())
    };
    change(&app, &state.meta, None, false, remove).await?;
    app.executor.resources_changed(&state.meta);
    Ok(Json(Deleted { id, kind: "session_resource_deleted".to_owned() }))
}

/// The session's resource, which has to be there.
async fn resource_of(app: &App, meta: &SessionMeta) -> Result<AgentSession> {
    let found = sessions::resource_of(app, meta).await?;
    found.ok_or_else(|| ApiError::conflict(format!("the AgentSession {}/{} is gone", meta.namespace, meta.name)))
}

/// Changes the session's resource, beside others who do; first a token goes into a Secret, if the change is one that would
/// be accepted as things stand; it may be there if this is done `again`.
async fn change(
    app: &App,
    meta: &SessionMeta,
    token: Option<(&SecretRef, SecretValue)>,
    again: bool,
    change: impl Fn(&mut AgentSession) -> Result<()>,
) -> Result<AgentSession> {
    let mut session = resource_of(app, meta).await?;
    if let Some((reference, token)) = token {
        change(&mut session.clone())?;
        let secret = NewSecret { name: reference.name.clone(), owner: owner(meta), values: vec![(TOKEN, token)] };
        match app.vaults.create_secret(&meta.namespace, secret).await {
            Err(ResourceError::Conflict { .. }) if again => {}
            made => made.map_err(|error| ApiError::from(error).of_change())?,
        }
    }
    for _ in 0..ATTEMPTS {
        change(&mut session)?;
        match app.sessions.replace(&session).await {
            Ok(session) => return Ok(session),
            Err(ResourceError::Conflict { .. }) => session = resource_of(app, meta).await?,
            Err(error) => return Err(ApiError::from(error).of_change()),
        }
    }
    Err(ApiError::conflict(format!(
        "AgentSession {}/{} changes faster than it can be changed",
        meta.namespace, meta.name
    )))
}

fn owner(meta: &SessionMeta) -> OwnerReference {
    OwnerReference {
        api_version: AgentSession::api_version(&()).into_owned(),
        kind: AgentSession::kind(&()).into_owned(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        ..OwnerReference::default()
    }
}

/// The name of a new Secret.
fn secret_name(meta: &SessionMeta, random: &str) -> String {
    let stem: String = meta.name.chars().take(200).collect();
    format!("{}-token-{random}", stem.trim_end_matches(['-', '.']))
}

fn index(session: &AgentSession, reference: &str) -> Result<usize> {
    let named = |resource: &SessionResource| resource_id(session, resource) == reference || resource.name == reference;
    let found = session.spec.resources.iter().position(named);
    found.ok_or_else(|| ApiError::not_found(format!("the session has no resource `{}`", shortened(reference))))
}

fn one(session: &AgentSession, reference: &str) -> Result<Json<Shown>> {
    map::shown(session, &session.spec.resources[index(session, reference)?]).map(Json)
}
