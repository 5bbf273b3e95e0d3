//! How large a log may become.

use futures::StreamExt as _;
use futures::stream;
use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent, RetryStatus, SessionError, SessionErrorType};
use longhand_session_log::caps::{Caps, RESERVE_EVENTS};
use longhand_session_log::store::{Capped, FinishFrom, Parent, Takeover};
use longhand_session_log::{SessionStore, StoreError};

use super::exports::proved;
use super::{
    Fixture, TTL, assert_err, claim, idle_event, kinds, message, messages, meta, pod, running, session, tool_result,
    tool_use,
};

const LIMIT: u64 = 10;
/// Ten events, and not a word before.
const TEN: Caps = Caps { events: LIMIT, bytes: 0, warning_percent: 0 };

fn request() -> NewEvent {
    NewEvent::new(EventBody::SpanModelRequestStart {})
}

fn answer() -> NewEvent {
    NewEvent::new(EventBody::AgentMessage { content: Vec::new() })
}

fn interrupt() -> NewEvent {
    NewEvent::new(EventBody::UserInterrupt { session_thread_id: None })
}

fn sorry() -> NewEvent {
    let (kind, retry_status) = (SessionErrorType::UnknownError, RetryStatus::Terminal);
    NewEvent::new(EventBody::SessionError {
        error: SessionError { kind, mcp_server_name: None, message: "full".into(), retry_status },
    })
}

/// A session in a turn, whose log has so many events; the epoch.
async fn running_with(store: &dyn SessionStore, events: u64) -> (SessionId, u64) {
    let id = session(store).await;
    let queued = message("a");
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    let (epoch, head) = claim(store, &id, "a").await;
    let mut head = store.promote(&id, epoch, head, &[queued.id], vec![running()]).await.unwrap().head;
    while head < events {
        head = store.append(&id, epoch, head, vec![answer()]).await.unwrap().head;
    }
    (id, epoch)
}

async fn head(store: &dyn SessionStore, id: &SessionId) -> u64 {
    store.state(id).await.unwrap().head
}

pub(crate) async fn a_full_log_ends_its_turn_and_takes_nothing_new(fixture: &dyn Fixture) {
    let store = fixture.capped(TEN).await;
    let store = &*store;
    let (id, epoch) = running_with(store, LIMIT).await;
    let full = |error: &StoreError| matches!(error, StoreError::LimitReached { session, what: Capped::Events, limit: LIMIT } if *session == id);
    assert_err!(store.append(&id, epoch, LIMIT, vec![request()]).await, error if full(&error));
    assert_err!(store.enqueue(&id, vec![message("b")]).await, error if full(&error));
    assert_err!(store.deliver_inputs(&id, 0, vec![message("c")]).await, error if full(&error));
    assert_eq!(head(store, &id).await, LIMIT);

    // What was begun comes to an end.
    let call = tool_use();
    let at = store.append(&id, epoch, LIMIT, vec![answer(), call.clone()]).await.unwrap().head;
    store.finish_call(&id, &call.id, &FinishFrom::Open, vec![tool_result(&call.id, "done")]).await.unwrap();
    let stop = interrupt();
    store.enqueue(&id, vec![stop.clone()]).await.unwrap();
    let at = store.promote(&id, epoch, at + 1, &[stop.id], vec![sorry()]).await.unwrap().head;
    let wake = store.inbox(&id).await.unwrap().wake_revision.unwrap();
    store.idle(&id, epoch, at, wake, vec![idle_event()]).await.unwrap();

    // Nobody can wake it, and it can be ended and removed.
    assert_err!(store.enqueue(&id, vec![interrupt()]).await, error if full(&error));
    assert_err!(store.enqueue(&id, vec![message("d")]).await, error if full(&error));
    store.claim(&id, &pod("b"), Takeover::IfFree, TTL).await.unwrap();
    store.archive(&id).await.unwrap();
    store.delete(&id).await.unwrap();
}

pub(crate) async fn a_reserve_is_for_what_was_begun(fixture: &dyn Fixture) {
    let store = fixture.capped(TEN).await;
    let (id, epoch) = running_with(&*store, LIMIT).await;
    let mut at = LIMIT;
    while at < LIMIT + RESERVE_EVENTS {
        let room = usize::try_from((LIMIT + RESERVE_EVENTS - at).min(50)).unwrap();
        let events = (0..room).map(|_| answer()).collect();
        at = store.append(&id, epoch, at, events).await.unwrap().head;
    }
    assert_err!(store.append(&id, epoch, at, vec![answer()]).await, StoreError::LimitReached { .. });
    assert_err!(store.append(&id, epoch, at, vec![sorry(), tool_use()]).await, StoreError::LimitReached { .. });
    assert_eq!(store.append(&id, epoch, at, vec![sorry()]).await.unwrap().head, at + 1);
}

pub(crate) async fn bytes_are_limited_too(fixture: &dyn Fixture) {
    let store = fixture.capped(Caps { events: 0, bytes: 20_000, warning_percent: 0 }).await;
    let (id, epoch) = running_with(&*store, 3).await;
    let before = store.state(&id).await.unwrap().size;
    assert!((300..1_500).contains(&before.bytes), "{before:?}");
    let large = "x".repeat(18_000);
    assert_err!(
        store.enqueue(&id, messages(&[&large, &large])).await,
        StoreError::LimitReached { what: Capped::Bytes, .. }
    );
    store.enqueue(&id, messages(&[&large])).await.unwrap();
    let queued = store.inbox(&id).await.unwrap().items[0].event.id.clone();
    let at = store.promote(&id, epoch, 3, &[queued], vec![]).await.unwrap().head;
    let after = store.state(&id).await.unwrap().size;
    assert!(after.bytes > before.bytes + 18_000 && after.bytes < before.bytes + 19_000, "{before:?} {after:?}");
    assert_eq!(after.events, 4);
    let at = store.append(&id, epoch, at, vec![request()]).await.unwrap().head;
    let at = store.append(&id, epoch, at, vec![answer_of(2_000)]).await.unwrap().head;
    let refused = store.append(&id, epoch, at, vec![request()]).await;
    assert_err!(refused, StoreError::LimitReached { what: Capped::Bytes, limit: 20_000, .. });
}

fn answer_of(bytes: usize) -> NewEvent {
    let content = vec![serde_json::json!({"type": "text", "text": "x".repeat(bytes)})];
    NewEvent::new(EventBody::AgentMessage { content })
}

/// Who is fenced off, or repeats what was done, is not told of limits.
pub(crate) async fn a_full_log_says_first_what_comes_first(fixture: &dyn Fixture) {
    let store = fixture.capped(TEN).await;
    let (id, epoch) = running_with(&*store, LIMIT - 1).await;
    let last = vec![request()];
    let done = store.append(&id, epoch, LIMIT - 1, last.clone()).await.unwrap();
    assert_eq!(store.append(&id, epoch, LIMIT - 1, last).await.unwrap(), done);
    assert_err!(store.append(&id, epoch, 3, vec![request()]).await, StoreError::HeadMoved { head: LIMIT });
    store.claim(&id, &pod("b"), Takeover::Always, TTL).await.unwrap();
    // Also one whose head, as it was last known, is the very one that it expects.
    for head in [LIMIT, LIMIT + 1] {
        assert_err!(store.append(&id, epoch, head, vec![request()]).await, StoreError::Fenced { .. });
    }
    let queued = store.read(&id, 1, 1).await.unwrap().records.remove(0).event;
    let again = NewEvent { id: queued.id.clone(), body: queued.body.clone() };
    assert_eq!(store.enqueue(&id, vec![again]).await.unwrap()[0].event, queued);
}

async fn warnings(store: &dyn SessionStore, id: &SessionId) -> Vec<(u64, EventBody)> {
    let records = store.read(id, 0, 1_000).await.unwrap().records.into_iter();
    let warnings = records.filter(|record| record.event.body.kind() == "x.session.near_limit");
    warnings.map(|record| (record.seq, record.event.body)).collect()
}

pub(crate) async fn a_log_says_once_that_it_is_nearly_full(fixture: &dyn Fixture) {
    let store = fixture.capped(Caps { warning_percent: 80, ..TEN }).await;
    let (id, epoch) = running_with(&*store, 7).await;
    assert_eq!(warnings(&*store, &id).await, []);
    store.append(&id, epoch, 7, vec![answer()]).await.unwrap();
    let warning = EventBody::SessionNearLimit { what: Capped::Events, used: 8, limit: LIMIT };
    assert_eq!(warnings(&*store, &id).await, [(9, warning.clone())]);
    store.append(&id, epoch, 9, vec![sorry()]).await.unwrap();
    store.append_unfenced(&id, vec![sorry()]).await.unwrap();
    assert_eq!(warnings(&*store, &id).await, [(9, warning)]);
}

pub(crate) async fn a_fork_of_a_full_log_has_room(fixture: &dyn Fixture) {
    let store = fixture.capped(TEN).await;
    let (id, _) = running_with(&*store, LIMIT).await;
    let fork = store.fork_id(&id);
    store.fork(meta(&fork), &Parent { session: id.clone(), seq: LIMIT }).await.unwrap();
    let state = store.state(&fork).await.unwrap();
    assert_eq!((state.head, state.size.events), (LIMIT + 1, 1), "the turn was closed");
    assert!(state.size.bytes > 0 && state.size.bytes < store.state(&id).await.unwrap().size.bytes);
    let nine: Vec<NewEvent> = (0..9).map(|_| message("x")).collect();
    store.enqueue(&fork, nine).await.unwrap();
    assert_err!(store.enqueue(&fork, vec![message("x")]).await, StoreError::LimitReached { .. });
}

pub(crate) async fn an_import_counts_all_of_its_log(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let many = LIMIT + RESERVE_EVENTS * 2 + 1;
    for _ in 0..many.div_ceil(50) {
        store.append_unfenced(&id, messages(&["x"; 50])).await.unwrap();
    }
    let (end, records) = proved(&*store, &id).await;
    let size = store.state(&id).await.unwrap().size;
    store.delete(&id).await.unwrap();
    let capped = fixture.capped(TEN).await;
    let refused = capped.import(meta(&id), &end, stream::iter(records.clone()).map(Ok).boxed()).await;
    assert_err!(refused, StoreError::LimitReached { what: Capped::Events, .. });
    store.delete(&id).await.unwrap();
    store.import(meta(&id), &end, stream::iter(records).map(Ok).boxed()).await.unwrap();
    assert_eq!(store.state(&id).await.unwrap().size, size);
    assert_eq!(kinds(&*store, &id).await.len(), 550);
}
