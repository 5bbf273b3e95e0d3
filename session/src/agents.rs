//! Agents and their versions.

use jiff::Timestamp;
use longhand_crds::Agent;
use longhand_crds::agent_version::{self, Recorded, Step, revision, revision_name};
use longhand_crds::wire_id::prefix;

use crate::api::error::{ApiError, Result};
use crate::app::App;
use crate::resources::named::{archived_at, created_at, find};
use crate::resources::objects::Created;

/// Whoever records a version first wins; so many times in a row another does.
const ATTEMPTS: usize = 4;

/// An agent as it is in one of its versions.
#[derive(Clone, Debug)]
pub(crate) struct Versioned {
    /// The agent, whose spec is that of the version.
    pub(crate) agent: Agent,
    /// Which version.
    pub(crate) version: u64,
    /// When the version was made.
    pub(crate) at: Timestamp,
}

/// The agent that a name or an identifier means.
///
/// # Errors
/// Those of the API server.
pub(crate) async fn lookup(app: &App, namespace: &str, name_or_id: &str) -> Result<Option<Agent>> {
    Ok(find(&*app.agents, prefix::AGENT, namespace, name_or_id).await?)
}

/// The agent that a name or an identifier means, as it is in a version, or as it is now. What is not recorded yet is
/// recorded.
///
/// # Errors
/// 404 if there is no such agent or version, and those of the API server.
pub(crate) async fn agent_at(app: &App, namespace: &str, name_or_id: &str, version: Option<u64>) -> Result<Versioned> {
    let agent = lookup(app, namespace, name_or_id).await?.ok_or_else(|| missing(namespace, name_or_id))?;
    let now = current(app, agent).await?;
    match version {
        Some(version) if version != now.version => at(app, now.agent, version).await,
        _ => Ok(now),
    }
}

pub(crate) fn missing(namespace: &str, name_or_id: &str) -> ApiError {
    ApiError::not_found(format!("there is no agent `{name_or_id}` in namespace {namespace}"))
}

/// The agent with the version that it is now, recorded if it was not.
///
/// # Errors
/// 404 if it is gone, and those of the API server.
pub(crate) async fn current(app: &App, mut agent: Agent) -> Result<Versioned> {
    for _ in 0..ATTEMPTS {
        let (namespace, name, uid) = identity(&agent)?;
        match agent_version::step(&agent, &recorded(app, namespace, uid).await?) {
            Step::Current(recorded) => return Ok(Versioned { agent, version: recorded.version, at: recorded.at }),
            Step::Record(version) => {
                let new = revision(&agent, version).map_err(|error| ApiError::internal(error.to_string()))?;
                if let Created::New(made) = app.revisions.create(namespace, &new).await? {
                    return Ok(Versioned { agent, version, at: created_at(&made.metadata).unwrap_or_default() });
                }
            }
            Step::Outdated => {
                let again = app.agents.named(namespace, name).await?;
                let again = again.filter(|again| again.metadata.uid == agent.metadata.uid);
                agent = again.ok_or_else(|| missing(namespace, name))?;
            }
        }
    }
    let (namespace, name, _) = identity(&agent)?;
    Err(ApiError::unavailable(format!("the version of agent {namespace}/{name} could not be recorded: try again")))
}

/// The agent as it was in a version.
///
/// # Errors
/// 404 if there is no such version, and those of the API server.
pub(crate) async fn at(app: &App, mut agent: Agent, version: u64) -> Result<Versioned> {
    let (namespace, name, uid) = identity(&agent)?;
    let found = app.revisions.named(namespace, &revision_name(name, version)).await?;
    let found = found.and_then(|found| Some((Recorded::of(&found.metadata, uid)?, found)));
    let Some((recorded, revision)) = found.filter(|(recorded, _)| recorded.version == version) else {
        return Err(ApiError::not_found(format!("agent {namespace}/{name} has no version {version}")));
    };
    let spec = agent_version::spec_of(revision).map_err(|error| {
        ApiError::internal(format!("version {version} of agent {namespace}/{name} cannot be read: {error}"))
    })?;
    agent.spec = spec;
    Ok(Versioned { agent, version, at: recorded.at })
}

/// The agent as a session has it that is made now: as it is, or as it was in a version.
///
/// # Errors
/// 404 if there is no such version, and those of the API server.
pub(crate) async fn pinned(app: &App, agent: Agent, version: Option<i64>) -> Result<Versioned> {
    let now = current(app, agent).await?;
    match version.and_then(|version| u64::try_from(version).ok()) {
        Some(version) if version != now.version => at(app, now.agent, version).await,
        _ => Ok(now),
    }
}

/// Every version of the agent that is recorded, the newest first.
///
/// # Errors
/// Those of the API server.
pub(crate) async fn versions(app: &App, agent: &Agent) -> Result<Vec<u64>> {
    let (namespace, _, uid) = identity(agent)?;
    let mut versions: Vec<u64> = recorded(app, namespace, uid).await?.iter().map(|recorded| recorded.version).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    Ok(versions)
}

/// An error unless a new session can be made of the agent.
///
/// # Errors
/// 400 if it is archived, or names no credential for its model where there is no default one, and those of the API server.
pub(crate) async fn check_usable(app: &App, agent: &Agent) -> Result<()> {
    let (namespace, name, _) = identity(agent)?;
    if archived_at(&agent.metadata).is_some() {
        return Err(ApiError::bad_request(format!(
            "agent {namespace}/{name} is archived: no session can be made of it"
        )));
    }
    if agent.spec.model.credential.is_some() {
        return Ok(());
    }
    let Some(default) = &app.default_model else {
        return Err(ApiError::bad_request(format!(
            "agent {namespace}/{name} has no credential for its model: set spec.model.credential of the Agent, or session.defaultModel in the chart's values"
        )));
    };
    let wanted = &default.credential;
    let vault = app.vaults.named(namespace, &wanted.vault).await?;
    if vault.is_some_and(|vault| vault.spec.credentials.iter().any(|found| found.name == wanted.name)) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "agent {namespace}/{name} has no credential for its model: make the Vault `{}` with a credential `{}` in namespace {namespace}, or set spec.model.credential of the Agent",
        wanted.vault, wanted.name
    )))
}

async fn recorded(app: &App, namespace: &str, uid: &str) -> Result<Vec<Recorded>> {
    let metas = app.revisions.recorded(namespace, uid).await?;
    Ok(metas.iter().filter_map(|meta| Recorded::of(meta, uid)).collect())
}

/// Namespace, name and UID.
///
/// # Errors
/// When the agent is not from the API server.
pub(crate) fn identity(agent: &Agent) -> Result<(&str, &str, &str)> {
    let metadata = &agent.metadata;
    match (&metadata.namespace, &metadata.name, &metadata.uid) {
        (Some(namespace), Some(name), Some(uid)) => Ok((namespace, name, uid)),
        _ => Err(ApiError::internal("the Agent has no namespace, name or UID")),
    }
}
