//! The events of a session: a page of them, and new ones from a client.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use longhand_protocol::event::{Event, NewEvent};
use longhand_protocol::fields::{self, Fields, InvalidField};
use longhand_protocol::harness::InboxItem;
use longhand_protocol::wire::{EventsSent, NumberedEvent, Order, Page};
use longhand_protocol::{ClientEvent, EventId, SessionId};
use longhand_session_log::SessionStore;
use serde_json::Value;
use tokio::time::Instant;

use super::event_query::{EventQuery, Position};
use super::once::{MaybeSeed, Seed};
use super::{cursor, event_checks, permitted, session_for, tool_results};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf, PathOf};
use crate::api::place::Span;
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;
use crate::expected::Expected;
use crate::warm::Offering;

/// How long a queued event's acceptance is remembered, to tell how long it was queued.
pub(crate) const ACCEPTED_FOR: Duration = Duration::from_secs(600);

/// For how long a page looks for something to hold.
const PATIENCE: Duration = Duration::from_secs(10);

/// `GET events`.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Page<NumberedEvent>>> {
    let query = EventQuery::parse(params)?;
    let state = session_for(&app, &identity, &path, Access::ReadEvents).await?;
    page_of(&app, &state.meta.id, &query).await
}

/// A page of the log and what is queued.
pub(super) async fn page_of(app: &App, id: &SessionId, query: &EventQuery) -> Result<Json<Page<NumberedEvent>>> {
    let store = app.store.as_ref();
    let page = Filling::new(query, query.place.find(store, id).await?);
    let (data, next) = match query.order {
        Order::Asc => ascending(store, id, page).await?,
        Order::Desc => descending(store, id, page).await?,
    };
    let next_page = next.map(|next| cursor::encode(query.order, next)).transpose()?;
    Ok(Json(Page { data, next_page }))
}

/// A page that is being filled.
struct Filling<'a> {
    query: &'a EventQuery,
    span: Span,
    data: Vec<NumberedEvent>,
    shown: HashSet<EventId>,
}

impl<'a> Filling<'a> {
    fn new(query: &'a EventQuery, span: Span) -> Self {
        Self { query, span, data: Vec::new(), shown: HashSet::new() }
    }

    fn is_full(&self) -> bool {
        self.data.len() >= self.query.limit
    }

    /// Takes records of the log from `at` on.
    ///
    /// A page is empty only at the end, since clients take an empty page for the last one; or when it took too long.
    async fn fill(&mut self, store: &dyn SessionStore, id: &SessionId, mut at: Option<u64>) -> Result<Filled> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let room = self.query.limit.saturating_sub(self.data.len());
            // A page that is full of what is queued asks whether the log has more.
            let slice = store.slice(id, &self.query.of_log(self.span, at, room.max(1))).await?;
            if room == 0 {
                let more = !slice.records.is_empty() || slice.next.is_some();
                return Ok(if more { Filled::More(at.unwrap_or(u64::MAX)) } else { Filled::End { head: slice.head } });
            }
            for record in slice.records {
                self.show(record.event, Some(record.seq));
            }
            let Some(next) = slice.next else { return Ok(Filled::End { head: slice.head }) };
            if !self.data.is_empty() || Instant::now() >= deadline {
                return Ok(Filled::More(next));
            }
            at = Some(next);
        }
    }

    /// An event may be promoted while the page is made: it is shown once.
    fn show(&mut self, event: Event, seq: Option<u64>) {
        if self.query.types.admits(&event.body) && self.shown.insert(event.id.clone()) {
            self.data.push(NumberedEvent { event, seq: seq.filter(|_| self.query.include_seq) });
        }
    }
}

/// How far into the log a page reaches.
enum Filled {
    /// The next page goes on here.
    More(u64),
    /// All of it was looked at, when this was its head.
    End {
        /// The last sequence number.
        head: u64,
    },
}

type Shown = (Vec<NumberedEvent>, Option<Position>);

/// The log, then what is queued.
async fn ascending(store: &dyn SessionStore, id: &SessionId, mut page: Filling<'_>) -> Result<Shown> {
    let query = page.query;
    // Before the log: what leaves the queue meanwhile is then in the log.
    let queue = queued(store, id, query).await?;
    let head = match page.fill(store, id, query.from.seq).await? {
        Filled::More(seq) => return Ok((page.data, Some(Position { seq: Some(seq), queued: None }))),
        Filled::End { head } => head,
    };
    let mut last = query.from.queued.clone();
    for item in not_yet_shown(queue, query.from.queued.as_ref()) {
        if page.is_full() {
            return Ok((page.data, Some(Position { seq: Some(head), queued: last })));
        }
        last = Some(item.event.id.clone());
        page.show(item.event, None);
    }
    Ok((page.data, None))
}

async fn queued(store: &dyn SessionStore, id: &SessionId, query: &EventQuery) -> Result<Vec<InboxItem>> {
    if query.wants_queued() { Ok(store.inbox(id).await?.items) } else { Ok(Vec::new()) }
}

/// What is behind the queued event that was shown last; everything, when that one is no longer queued.
fn not_yet_shown(queue: Vec<InboxItem>, last: Option<&EventId>) -> impl Iterator<Item = InboxItem> {
    let shown = queue.iter().position(|item| Some(&item.event.id) == last).map_or(0, |position| position + 1);
    queue.into_iter().skip(shown)
}

/// What is queued, newest first, then the log, newest first.
async fn descending(store: &dyn SessionStore, id: &SessionId, mut page: Filling<'_>) -> Result<Shown> {
    let query = page.query;
    if query.from.seq.is_none() {
        let mut last = query.from.queued.clone();
        for item in older_in_queue(queued(store, id, query).await?, query.from.queued.as_ref()) {
            if page.is_full() {
                return Ok((page.data, Some(Position { seq: None, queued: last })));
            }
            last = Some(item.event.id.clone());
            page.show(item.event, None);
        }
    }
    let next = match page.fill(store, id, query.from.seq).await? {
        Filled::More(seq) => Some(Position { seq: Some(seq), queued: None }),
        Filled::End { .. } => None,
    };
    Ok((page.data, next))
}

/// What was queued before the event that was shown last, newest first. If that one has been promoted, all of them have.
fn older_in_queue(mut queue: Vec<InboxItem>, last: Option<&EventId>) -> impl Iterator<Item = InboxItem> {
    if let Some(last) = last {
        queue.truncate(queue.iter().position(|item| item.event.id == *last).unwrap_or(0));
    }
    queue.into_iter().rev()
}

/// `POST events`: taken all or none.
pub async fn send(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    MaybeSeed(seed): MaybeSeed,
    JsonOf(body): JsonOf<Value>,
) -> Result<Json<EventsSent>> {
    params.end()?;
    let state = app.store.state(path.session()?).await?;
    // What the API server says of the session is asked for while it is asked about the caller.
    let offering = Offering::begin(&app, &state);
    Expected::begin(&app, &state);
    permitted(&app, &identity, &path, Access::SendEvents, &state.meta).await?;
    let events = read(body)?;
    app.limits.events(&state.meta.namespace, &state.meta.id, events.len())?;
    if tool_results::are_results(&identity, &events)? {
        return Ok(Json(EventsSent { data: tool_results::take(&app, &identity, &state, events).await? }));
    }
    event_checks::check(&app, &state, &events).await?;
    if !events.iter().all(|event| matches!(event, ClientEvent::UserInterrupt { .. })) {
        app.quota.check_bytes(&*app.store, &state.meta.namespace).await?;
    }
    // A harness that is ready need not wait for the answer to this request.
    let data = enqueue(&app, &state.meta.id, named(events, seed.as_ref())).await?;
    offering.make();
    Ok(Json(EventsSent { data }))
}

/// The events with their identifiers. The log finds those of a request that is carried out again.
pub(super) fn named(events: Vec<ClientEvent>, seed: Option<&Seed>) -> Vec<NewEvent> {
    let id = |index| seed.map_or_else(EventId::generate, |seed| seed.event(index));
    events.into_iter().enumerate().map(|(index, event)| event.into_event(id(index))).collect()
}

fn read(body: Value) -> fields::Result<Vec<ClientEvent>> {
    let mut fields = Fields::of("", body)?;
    let events = ClientEvent::read_all("events", fields.required("events")?)?;
    fields.end()?;
    if events.is_empty() { Err(InvalidField::new("events", "needs at least one event")) } else { Ok(events) }
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
