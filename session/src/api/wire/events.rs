//! The events of a session: a page of them, and new ones from a client.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use longhand_protocol::event::{Event, NewEvent};
use longhand_protocol::harness::InboxItem;
use longhand_protocol::wire::{EventsSent, NumberedEvent, Order, Page};
use longhand_protocol::{ClientEvent, EventId, Record, SessionId};
use longhand_session_log::SessionStore;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::event_query::{EventQuery, Position};
use super::{cursor, session_for};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Body, Caller, PathOf, parse};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;

/// How long a queued event's acceptance is remembered, to tell how long it was queued.
pub(crate) const ACCEPTED_FOR: Duration = Duration::from_secs(600);

/// As many records as one read takes.
const WINDOW: u64 = 128;
/// A page ends early, with a cursor, when so many records were passed over.
const SCANNED: u64 = 10_000;
const MOST_EVENTS: usize = 50;

/// `GET events`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Page<NumberedEvent>>> {
    let query = EventQuery::parse(params)?;
    let state = session_for(&app, &identity, &path, Access::ReadEvents).await?;
    let id = &state.meta.id;
    let (data, next) = match query.order {
        Order::Asc => ascending(app.store.as_ref(), id, &query).await?,
        Order::Desc => descending(app.store.as_ref(), id, &query).await?,
    };
    let next_page = next.map(|next| cursor::encode(query.order, next)).transpose()?;
    Ok(Json(Page { data, next_page }))
}

/// A page that is being filled.
struct Filling<'a> {
    query: &'a EventQuery,
    data: Vec<NumberedEvent>,
    shown: HashSet<EventId>,
}

impl<'a> Filling<'a> {
    fn new(query: &'a EventQuery) -> Self {
        Self { query, data: Vec::new(), shown: HashSet::new() }
    }

    fn is_full(&self) -> bool {
        self.data.len() >= self.query.limit
    }

    /// An event may be promoted while the page is made: it is shown once.
    fn show(&mut self, event: Event, seq: Option<u64>) {
        if self.query.types.admits(&event.body) && self.shown.insert(event.id.clone()) {
            self.data.push(NumberedEvent { event, seq: seq.filter(|_| self.query.include_seq) });
        }
    }
}

type Filled = (Vec<NumberedEvent>, Option<Position>);

/// The log, then what is queued.
async fn ascending(store: &dyn SessionStore, id: &SessionId, query: &EventQuery) -> Result<Filled> {
    // Before the log: what leaves the queue meanwhile is then in the log.
    let queue = store.inbox(id).await?.items;
    let mut page = Filling::new(query);
    let mut after = query.from.seq.unwrap_or(0).max(query.after_seq);
    let start = after;
    loop {
        let slice = store.read(id, after, window(WINDOW)).await?;
        for record in slice.records {
            if page.is_full() {
                return Ok((page.data, Some(Position { seq: Some(after), queued: None })));
            }
            after = record.seq;
            page.show(record.event, Some(record.seq));
        }
        if after >= slice.head {
            break;
        }
        if after - start >= SCANNED {
            return Ok((page.data, Some(Position { seq: Some(after), queued: None })));
        }
    }
    let mut last = query.from.queued.clone();
    for item in not_yet_shown(queue, query.from.queued.as_ref()) {
        if page.is_full() {
            return Ok((page.data, Some(Position { seq: Some(after), queued: last })));
        }
        last = Some(item.event.id.clone());
        page.show(item.event, None);
    }
    Ok((page.data, None))
}

/// What is behind the queued event that was shown last; everything, when that one is no longer queued.
fn not_yet_shown(queue: Vec<InboxItem>, last: Option<&EventId>) -> impl Iterator<Item = InboxItem> {
    let shown = queue.iter().position(|item| Some(&item.event.id) == last).map_or(0, |position| position + 1);
    queue.into_iter().skip(shown)
}

/// What is queued, newest first, then the log, newest first.
async fn descending(store: &dyn SessionStore, id: &SessionId, query: &EventQuery) -> Result<Filled> {
    let mut page = Filling::new(query);
    let mut before = match query.from.seq {
        Some(seq) => seq,
        None => {
            let queue = store.inbox(id).await?.items;
            let mut last = query.from.queued.clone();
            for item in older_in_queue(queue, query.from.queued.as_ref()) {
                if page.is_full() {
                    return Ok((page.data, Some(Position { seq: None, queued: last })));
                }
                last = Some(item.event.id.clone());
                page.show(item.event, None);
            }
            store.state(id).await?.head.saturating_add(1)
        }
    };
    let start = before;
    let first = query.after_seq.saturating_add(1);
    while before > first {
        if start - before >= SCANNED {
            return Ok((page.data, Some(Position { seq: Some(before), queued: None })));
        }
        let from = before.saturating_sub(WINDOW + 1).max(query.after_seq);
        for record in read_window(store, id, from, before).await?.into_iter().rev() {
            if page.is_full() {
                return Ok((page.data, Some(Position { seq: Some(before), queued: None })));
            }
            before = record.seq;
            page.show(record.event, Some(record.seq));
        }
        before = before.min(from.saturating_add(1));
    }
    Ok((page.data, None))
}

/// What was queued before the event that was shown last, newest first. If that one has been promoted, all of them have.
fn older_in_queue(mut queue: Vec<InboxItem>, last: Option<&EventId>) -> impl Iterator<Item = InboxItem> {
    if let Some(last) = last {
        queue.truncate(queue.iter().position(|item| item.event.id == *last).unwrap_or(0));
    }
    queue.into_iter().rev()
}

/// Every record after `from` and before `before`: one read may give fewer when they are large.
async fn read_window(store: &dyn SessionStore, id: &SessionId, from: u64, before: u64) -> Result<Vec<Record>> {
    let mut records: Vec<Record> = Vec::new();
    let mut after = from;
    while after + 1 < before {
        let slice = store.read(id, after, window(before - after - 1)).await?;
        let Some(last) = slice.records.last() else { break };
        after = last.seq;
        records.extend(slice.records);
    }
    Ok(records)
}

fn window(records: u64) -> usize {
    usize::try_from(records).unwrap_or(usize::MAX)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    events: Vec<Value>,
}

/// `POST events`: taken all or none.
pub async fn send(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    Body(body): Body,
) -> Result<Json<EventsSent>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::SendEvents).await?;
    let Sent { events } = parse(&body)?;
    let events = read_events("events", events)?;
    if events.is_empty() {
        return Err(ApiError::bad_request("`events` is empty: it needs at least one event"));
    }
    let data = enqueue(&app, &state.meta.id, events).await?;
    Ok(Json(EventsSent { data }))
}

/// Reads events of a client, or says which one is wrong and how.
pub(super) fn read_events(field: &str, events: Vec<Value>) -> Result<Vec<NewEvent>> {
    if events.len() > MOST_EVENTS {
        return Err(ApiError::bad_request(format!("`{field}` has more than {MOST_EVENTS} events; send fewer at once")));
    }
    let read = |(index, event): (usize, Value)| {
        let wrong = |reason: String| ApiError::bad_request(format!("`{field}[{index}]`: {reason}"));
        let event: ClientEvent = serde_json::from_value(event).map_err(|error| wrong(error.to_string()))?;
        event.validate().map_err(|error| wrong(error.to_string()))?;
        Ok(NewEvent::new(event.into()))
    };
    events.into_iter().enumerate().map(read).collect()
}

/// Queues events and remembers when.
pub(super) async fn enqueue(app: &App, session: &SessionId, events: Vec<NewEvent>) -> Result<Vec<Event>> {
    let items = app.store.enqueue(session, events).await.map_err(|error| ApiError::from(error).of_change())?;
    let now = Instant::now();
    for item in &items {
        app.accepted.put(item.event.id.clone(), now, ACCEPTED_FOR);
    }
    Ok(items.into_iter().map(|item| item.event).collect())
}
