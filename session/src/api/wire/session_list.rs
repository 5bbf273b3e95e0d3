//! A page of sessions, which other than pages of anything else can be turned back.

use axum::Json;
use axum::extract::State;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use longhand_crds::wire_id::prefix;
use longhand_crds::{Agent, AgentSession, session_id};
use longhand_protocol::wire::{Order, Session, SessionStatus};
use longhand_session_log::StoreError;
use longhand_session_log::store::SessionState;
use serde::Serialize;

use super::session_page::{At, Key, Selection};
use super::times::TimeRange;
use super::{cursor, namespace_for, threads, view};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf, is_reference};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;
use crate::resources::named::{created_at, find};

const PAGE: usize = 20;
const LONGEST_PAGE: usize = 200;
const READS_AT_ONCE: usize = 16;
/// So many sessions are looked at more closely at once.
const ROUND: usize = 256;
/// A page ends early, with a cursor, after so many rounds.
const ROUNDS: usize = 16;

/// A page of sessions.
#[derive(Debug, Serialize)]
pub struct SessionPage {
    data: Vec<Session>,
    next_page: Option<String>,
    prev_page: Option<String>,
}

/// What is asked.
#[derive(Debug)]
struct Query {
    order: Order,
    page: Option<String>,
    limit: usize,
    times: TimeRange,
    include_archived: bool,
    statuses: Vec<SessionStatus>,
    agent: Option<String>,
    version: Option<u64>,
    /// No session was made by a deployment or has a memory store.
    nothing: bool,
}

impl Query {
    fn parse(mut params: Params) -> Result<Self> {
        let order = cursor::order(params.one("order")?.as_deref(), Order::Desc)?;
        let query = Self {
            order,
            page: params.one("page")?,
            limit: params.limit(PAGE, LONGEST_PAGE)?,
            times: TimeRange::parse(&mut params)?,
            include_archived: params.flag("include_archived")?,
            statuses: threads::statuses(params.list("statuses"))?,
            agent: params.one("agent_id")?,
            version: params.positive("agent_version")?,
            nothing: params.one("deployment_id")?.is_some() | params.one("memory_store_id")?.is_some(),
        };
        params.end()?;
        if query.version.is_some() && query.agent.is_none() {
            return Err(ApiError::bad_request("`agent_version` needs `agent_id`"));
        }
        Ok(query)
    }

    /// Whether the session is wanted, as far as its log says.
    fn admits(&self, state: &SessionState) -> bool {
        (self.include_archived || state.archived_at.is_none())
            && (self.statuses.is_empty() || self.statuses.contains(&state.status))
            && self.version.is_none_or(|version| state.meta.agent.version == version)
    }
}

/// `GET sessions`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<SessionPage>> {
    let query = Query::parse(params)?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::ListSessions, namespace).await?;
    let agent = match &query.agent {
        None => None,
        Some(reference) => match agent_name(&app, namespace, reference).await? {
            Some(name) => Some(name),
            None => return empty(),
        },
    };
    if query.nothing {
        return empty();
    }
    let begin: Option<At> = query.page.as_deref().map(|page| cursor::decode(page, query.order)).transpose()?;
    let mut found: Vec<(Key, (AgentSession, SessionState))> = Vec::new();
    let mut at = begin.clone();
    for _ in 0..ROUNDS {
        let candidates = candidates(&app, namespace, &query, at.as_ref(), agent.as_deref()).await?;
        let more = candidates.len() > ROUND;
        let last = candidates.last().map(|(key, _)| key.clone());
        found.extend(look_at(&app, &query, candidates).await?);
        if !more || found.len() > query.limit {
            break;
        }
        at = last.map(|key| if matches!(begin, Some(At::Before(_))) { At::Before(key) } else { At::After(key) });
    }
    page(&app, &query, begin, found).await
}

async fn agent_name(app: &App, namespace: &str, reference: &str) -> Result<Option<String>> {
    if !is_reference(reference) {
        return Ok(None);
    }
    let agent = find::<Agent>(&*app.agents, prefix::AGENT, namespace, reference).await?;
    Ok(agent.and_then(|agent| agent.metadata.name))
}

fn empty() -> Result<Json<SessionPage>> {
    Ok(Json(SessionPage { data: Vec::new(), next_page: None, prev_page: None }))
}

/// The next sessions from `at` on, nearest first, which are wanted as far as their resources say.
async fn candidates(
    app: &App,
    namespace: &str,
    query: &Query,
    at: Option<&At>,
    agent: Option<&str>,
) -> Result<Vec<(Key, AgentSession)>> {
    let mut selection = Selection::new(query.order, at.cloned(), ROUND);
    let mut from = None;
    loop {
        let (resources, next) = app.resources.sessions(namespace, from).await?;
        for resource in resources {
            let created = created_at(&resource.metadata).unwrap_or(Timestamp::UNIX_EPOCH);
            if query.times.contains(created) && agent.is_none_or(|agent| resource.spec.agent_ref.name == agent) {
                selection.offer(key(&resource), resource);
            }
        }
        from = next;
        if from.is_none() {
            return Ok(selection.nearest());
        }
    }
}

fn key(resource: &AgentSession) -> Key {
    let created = created_at(&resource.metadata).map_or(0, Timestamp::as_microsecond);
    Key { created, name: resource.metadata.name.clone().unwrap_or_default() }
}

/// Those whose logs are wanted too. A resource whose log has not been made is not a session yet.
async fn look_at(
    app: &App,
    query: &Query,
    candidates: Vec<(Key, AgentSession)>,
) -> Result<Vec<(Key, (AgentSession, SessionState))>> {
    let read = |(key, resource): (Key, AgentSession)| async move {
        match app.store.state(&session_id(&resource.metadata)).await {
            Ok(state) if query.admits(&state) => Ok(Some((key, (resource, state)))),
            Ok(_) | Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(ApiError::from(error)),
        }
    };
    let mut found = Vec::new();
    let mut reads = stream::iter(candidates).map(read).buffered(READS_AT_ONCE);
    while let Some(read) = reads.try_next().await? {
        found.extend(read);
        if found.len() > query.limit {
            break;
        }
    }
    Ok(found)
}

async fn page(
    app: &App,
    query: &Query,
    at: Option<At>,
    found: Vec<(Key, (AgentSession, SessionState))>,
) -> Result<Json<SessionPage>> {
    let mut selection = Selection::new(query.order, at, query.limit);
    for (key, session) in found {
        selection.offer(key, session);
    }
    let selected = selection.select();
    let data = stream::iter(selected.items)
        .map(|(resource, state)| view::shown(app, state, Some(resource)))
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await?;
    let page = |at: Option<At>| at.map(|at| cursor::encode(query.order, at)).transpose();
    Ok(Json(SessionPage { data, next_page: page(selected.next)?, prev_page: page(selected.prev)? }))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::Query;
    use crate::api::query::Params;

    #[rstest]
    #[case(&[("statuses[]", "busy")], "`statuses[]`")]
    #[case(&[("agent_version", "1")], "`agent_id`")]
    #[case(&[("include_archived", "1")], "`include_archived`")]
    #[case(&[("limit", "201")], "`limit`")]
    #[case(&[("color", "red")], "`color`")]
    fn what_is_wrong_is_named(#[case] query: &[(&str, &str)], #[case] part: &str) {
        let params = Params::new(query.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        let message = Query::parse(params).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
