//! The work of self-hosted environments, for the workers that serve them.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::wire::work::{StopWork, UpdateWork, Work, WorkData, WorkHeartbeat, WorkState, WorkStats};
use longhand_protocol::wire::{Order, Page};
use longhand_session_log::StoreError;
use longhand_session_log::work::{Queue, WorkItem};
use serde::{Deserialize, Serialize};

use super::{cursor, namespace_for};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Body, Caller, JsonOf, PathOf, parse, shortened};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::{Access, Identity};

const PAGE: usize = 20;
const LONGEST_PAGE: usize = 1_000;
/// The longest that a poll may ask to wait, in milliseconds.
const LONGEST_BLOCK: u64 = 999;
/// What was taken and not acknowledged for this long is given to another, in milliseconds.
const RECLAIM: u64 = 5_000;
const LONGEST_RECLAIM: u64 = 24 * 60 * 60 * 1_000;
const LONGEST_WORKER_ID: usize = 256;
/// Sessions that are gone are passed over by one poll.
const PASSED_OVER: usize = 32;

/// An environment and what of its work the path names.
struct Place {
    queue: Queue,
    environment_id: String,
}

/// What is done with the work of an environment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Looking at all of it, or taking some.
    Queue(Right),
    /// Looking at one piece, or speaking for it.
    Item(Right),
}

/// The right that it takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    See,
    Do,
}

/// The environment that the path names, if the caller may do this with its work.
async fn place(app: &App, identity: &Identity, path: &PathOf, doing: Doing) -> Result<Place> {
    let namespace = namespace_for(identity, path)?;
    let reference = path.of("environment")?;
    let template = app.templates.template(namespace, reference).await?;
    let missing = || {
        let message = format!("there is no environment `{}` in namespace {namespace}", shortened(reference));
        ApiError::not_found(message)
    };
    let queue = |environment: &str| Queue { namespace: namespace.to_owned(), environment: environment.to_owned() };
    if let Some(worker) = &identity.worker {
        let found = template.filter(|found| worker.queue == queue(&found.name));
        let own = matches!(doing, Doing::Item(_)) && path.of("work")? == worker.work;
        return match found {
            Some(found) if own => Ok(Place { queue: queue(&found.name), environment_id: found.id }),
            _ => Err(ApiError::forbidden(format!("the token of the work {} is good for that work only", worker.work))),
        };
    }
    let Some(found) = template else {
        app.auth.require(identity, Access::Kind("sandboxtemplates", "get"), namespace).await?;
        return Err(missing());
    };
    let (Doing::Queue(right) | Doing::Item(right)) = doing;
    let access = match right {
        Right::See => Access::SeeWork(&found.name),
        Right::Do => Access::DoWork(&found.name),
    };
    app.auth.require(identity, access, namespace).await?;
    if !found.self_hosted {
        return Err(ApiError::bad_request(format!(
            "the environment {} is not self_hosted: it has no work",
            found.name
        )));
    }
    Ok(Place { queue: queue(&found.name), environment_id: found.id })
}

impl Place {
    fn shown(&self, item: WorkItem, secret: Option<String>) -> Work {
        Work {
            id: item.id,
            kind: "work".to_owned(),
            state: item.state,
            data: WorkData { kind: "session".to_owned(), id: item.session.to_string() },
            environment_id: self.environment_id.clone(),
            secret,
            metadata: item.metadata,
            created_at: item.created_at,
            acknowledged_at: item.acknowledged_at,
            started_at: item.started_at,
            latest_heartbeat_at: item.latest_heartbeat_at,
            stop_requested_at: item.stop_requested_at,
            stopped_at: item.stopped_at,
        }
    }
}

/// `GET work/poll`: the oldest work that waits, or null.
pub async fn poll(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Json<Option<Work>>> {
    let within = |key: &'static str, value: Option<u64>, range: std::ops::RangeInclusive<u64>| match value {
        Some(value) if !range.contains(&value) => {
            Err(ApiError::bad_request(format!("`{key}` is {value}, and must be {} to {}", range.start(), range.end())))
        }
        value => Ok(value),
    };
    let block = within("block_ms", params.number("block_ms")?, 1..=LONGEST_BLOCK)?;
    let reclaim = within("reclaim_older_than_ms", params.number("reclaim_older_than_ms")?, 0..=LONGEST_RECLAIM)?;
    params.end()?;
    let place = place(&app, &identity, &path, Doing::Queue(Right::Do)).await?;
    let worker = worker_id(&headers)?;
    let reclaim = Duration::from_millis(reclaim.unwrap_or(RECLAIM));
    let mut wait = Duration::from_millis(block.unwrap_or(0));
    let work = &app.executor.hosted.work;
    for _ in 0..PASSED_OVER {
        let taken = app.stop.run_until_cancelled(work.take(&place.queue, worker, reclaim, wait)).await;
        let Some(item) = taken.transpose()?.flatten() else { return Ok(Json(None)) };
        if is_wanted(&app, &item).await? {
            let secret = app.auth.workers().secret(&place.queue, &item);
            let secret = secret.map_err(|error| ApiError::internal(error.to_string()))?;
            return Ok(Json(Some(place.shown(item, Some(secret)))));
        }
        // It was this poll's, and nobody else may have begun with it.
        work.change(&place.queue, &item.id, |found, now| found.stop(true, Some(item.attempt), now)).await.map(drop)?;
        wait = Duration::ZERO;
    }
    Ok(Json(None))
}

/// Whether the session still has something to do.
async fn is_wanted(app: &App, item: &WorkItem) -> Result<bool> {
    match app.store.state(&item.session).await {
        Ok(state) => Ok(state.status != longhand_protocol::wire::SessionStatus::Terminated),
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn worker_id(headers: &HeaderMap) -> Result<Option<&str>> {
    let Some(value) = headers.get("anthropic-worker-id") else { return Ok(None) };
    let id = value.to_str().ok().filter(|id| id.len() <= LONGEST_WORKER_ID);
    id.map(Some).ok_or_else(|| {
        ApiError::bad_request(format!("`Anthropic-Worker-ID` is not a text of at most {LONGEST_WORKER_ID} characters"))
    })
}

/// Where a page of work begins.
#[derive(Serialize, Deserialize)]
struct After {
    work: String,
}

/// `GET work`, the oldest first.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Page<Work>>> {
    let page = params.one("page")?.filter(|page| !page.is_empty());
    let after: Option<After> = page.map(|page| cursor::decode(&page, Order::Asc)).transpose()?;
    let limit = params.limit(PAGE, LONGEST_PAGE)?;
    params.end()?;
    let place = place(&app, &identity, &path, Doing::Queue(Right::See)).await?;
    let items = app.executor.hosted.work.list(&place.queue).await?;
    let skip = match after {
        None => 0,
        Some(after) => items.iter().position(|item| item.id == after.work).map_or(items.len(), |at| at + 1),
    };
    let more = items.len() > skip + limit;
    let data: Vec<Work> = items.into_iter().skip(skip).take(limit).map(|item| place.shown(item, None)).collect();
    let last = data.last().filter(|_| more).map(|last| After { work: last.id.clone() });
    let next_page = last.map(|after| cursor::encode(Order::Asc, after)).transpose()?;
    Ok(Json(Page { data, next_page }))
}

/// `GET work/stats`.
pub async fn stats(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<WorkStats>> {
    params.end()?;
    let place = place(&app, &identity, &path, Doing::Queue(Right::See)).await?;
    let items = app.executor.hosted.work.list(&place.queue).await?;
    Ok(Json(count(&items, Timestamp::now())))
}

fn count(items: &[WorkItem], now: Timestamp) -> WorkStats {
    let reclaim = SignedDuration::from_millis(i64::try_from(RECLAIM).unwrap_or(i64::MAX));
    let waiting = |item: &&WorkItem| item.waits(now, reclaim);
    let pending = |item: &&WorkItem| item.state == WorkState::Queued && !item.waits(now, reclaim);
    WorkStats {
        kind: "work_queue_stats".to_owned(),
        depth: items.iter().filter(waiting).count(),
        pending: items.iter().filter(pending).count(),
        oldest_queued_at: items.iter().filter(|item| waiting(item) || pending(item)).map(|item| item.created_at).min(),
        workers_polling: None,
    }
}

/// `GET work/{work}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Work>> {
    params.end()?;
    let place = place(&app, &identity, &path, Doing::Item(Right::See)).await?;
    let item = app.executor.hosted.work.get(&place.queue, path.of("work")?).await?;
    Ok(Json(place.shown(item, None)))
}

/// `POST work/{work}`.
pub async fn update(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    JsonOf(body): JsonOf<UpdateWork>,
) -> Result<Json<Work>> {
    params.end()?;
    let place = place(&app, &identity, &path, Doing::Item(Right::Do)).await?;
    let work = &app.executor.hosted.work;
    let (item, ()) = work.change(&place.queue, path.of("work")?, |item, _| item.patch(&body.metadata)).await?;
    Ok(Json(place.shown(item, None)))
}

/// `POST work/{work}/ack`: a worker that took it begins.
pub async fn ack(State(app): State<App>, Caller(identity): Caller, path: PathOf, params: Params) -> Result<Json<Work>> {
    params.end()?;
    let place = place(&app, &identity, &path, Doing::Item(Right::Do)).await?;
    let (work, attempt) = (&app.executor.hosted.work, attempt(&identity));
    let (item, ()) = work.change(&place.queue, path.of("work")?, |item, now| item.acknowledge(attempt, now)).await?;
    Ok(Json(place.shown(item, None)))
}

/// `POST work/{work}/heartbeat`: its worker is at work.
pub async fn heartbeat(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<WorkHeartbeat>> {
    let expected = params.one("expected_last_heartbeat")?;
    let ttl: Option<u32> = params.number("desired_ttl_seconds")?;
    params.end()?;
    let place = place(&app, &identity, &path, Doing::Item(Right::Do)).await?;
    let attempt = attempt(&identity);
    let beat = |item: &mut WorkItem, now: Timestamp| item.heartbeat(expected.as_deref(), ttl, attempt, now);
    let (item, beat) = app.executor.hosted.work.change(&place.queue, path.of("work")?, beat).await?;
    Ok(Json(WorkHeartbeat {
        kind: "work_heartbeat".to_owned(),
        last_heartbeat: beat.last_heartbeat.map(|at| at.to_string()).unwrap_or_default(),
        lease_extended: beat.extended,
        state: item.state,
        ttl_seconds: item.ttl_seconds,
    }))
}

/// `POST work/{work}/stop`.
pub async fn stop(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    Body(body): Body,
) -> Result<Json<Work>> {
    params.end()?;
    let place = place(&app, &identity, &path, Doing::Item(Right::Do)).await?;
    let StopWork { force } = if body.is_empty() { StopWork::default() } else { parse(&body)? };
    let (work, attempt) = (&app.executor.hosted.work, attempt(&identity));
    let (item, ()) = work.change(&place.queue, path.of("work")?, |item, now| item.stop(force, attempt, now)).await?;
    Ok(Json(place.shown(item, None)))
}

fn attempt(identity: &Identity) -> Option<u64> {
    identity.worker.as_ref().map(|worker| worker.attempt)
}
