//! What clients send.

use std::time::Duration;

use longhand_protocol::event::NewEvent;
use longhand_protocol::harness::Inbox;
use longhand_protocol::trace::{self, TraceParent};
use longhand_session_log::StoreError;
use tokio::time::Instant;

use super::{Fixture, INBOX_LIMIT, PATIENCE, assert_err, claim, idle_event, message, messages, session, tool_use};

fn texts(inbox: &Inbox) -> Vec<String> {
    let text = |item: &longhand_protocol::harness::InboxItem| {
        serde_json::to_value(&item.event).unwrap()["content"][0]["text"].as_str().unwrap().to_owned()
    };
    inbox.items.iter().map(text).collect()
}

pub(crate) async fn queued_events_keep_their_order(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    assert_eq!(store.inbox(&id).await.unwrap(), Inbox::default());
    for batch in [&["1", "2", "3"][..], &["4"], &["5", "6"]] {
        let items = store.enqueue(&id, messages(batch)).await.unwrap();
        assert_eq!(items.len(), batch.len());
        assert!(items.iter().all(|item| item.event.processed_at.is_none()));
    }
    assert_eq!(texts(&store.inbox(&id).await.unwrap()), ["1", "2", "3", "4", "5", "6"]);
    assert!(store.enqueue(&id, vec![]).await.unwrap().is_empty());
}

pub(crate) async fn an_enqueue_may_be_repeated(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let events = messages(&["a", "b"]);
    let first = store.enqueue(&id, events.clone()).await.unwrap();
    assert_eq!(store.enqueue(&id, events.clone()).await.unwrap(), first);
    assert_eq!(store.inbox(&id).await.unwrap().items, first);

    let part = vec![events[1].clone(), message("c")];
    assert_err!(store.enqueue(&id, part).await, StoreError::Duplicate(event) if event == events[1].id);
    let mut changed = events.clone();
    changed[0].body = message("other").body;
    assert_err!(store.enqueue(&id, changed).await, StoreError::Duplicate(_));

    let (epoch, head) = claim(&*store, &id, "a").await;
    let appended = store.promote(&id, epoch, head, &[events[0].id.clone()], vec![]).await.unwrap();
    let again = store.enqueue(&id, events).await.unwrap();
    assert_eq!(again[0].event, appended.records[0].event);
    assert_eq!(again[1], first[1]);
    assert_eq!(texts(&store.inbox(&id).await.unwrap()), ["b"]);
}

/// A brain gives an event of its own the identifier of one that is queued.
pub(crate) async fn an_identifier_stands_in_the_log_once(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let queued = message("a");
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    store.inbox(&id).await.unwrap();
    let own = NewEvent { id: queued.id.clone(), ..tool_use() };
    let appended = store.append(&id, epoch, head, vec![own]).await.unwrap();
    let head = appended.records[0].seq;
    let again = store.promote(&id, epoch, head, std::slice::from_ref(&queued.id), vec![]).await;
    assert_err!(again, StoreError::NotQueued(event) if event == queued.id);
    assert_eq!(store.read(&id, 0, 100).await.unwrap().records.last().unwrap().seq, head);
}

pub(crate) async fn an_inbox_is_bounded(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    for _ in 0..INBOX_LIMIT / 50 {
        store.enqueue(&id, messages(&["x"; 50])).await.unwrap();
    }
    assert_err!(store.enqueue(&id, vec![message("y")]).await, StoreError::InboxFull { limit: INBOX_LIMIT });
    assert_err!(store.deliver_inputs(&id, 0, vec![message("y")]).await, StoreError::InboxFull { .. });
    assert_eq!(store.inbox(&id).await.unwrap().items.len(), INBOX_LIMIT);
}

pub(crate) async fn inputs_are_delivered_once(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    assert_eq!(store.deliver_inputs(&id, 0, messages(&["1", "2"])).await.unwrap(), 2);
    assert_eq!(store.deliver_inputs(&id, 0, messages(&["1", "2"])).await.unwrap(), 2);
    assert_eq!(store.deliver_inputs(&id, 5, messages(&["6"])).await.unwrap(), 2);
    assert_eq!(store.deliver_inputs(&id, 2, vec![]).await.unwrap(), 2);
    let before = store.state(&id).await.unwrap();
    assert_eq!(before.meta.delivered_inputs, 2);
    assert_eq!(store.deliver_inputs(&id, 2, messages(&["3"])).await.unwrap(), 3);
    assert!(store.state(&id).await.unwrap().wake_revision > before.wake_revision);
    assert_eq!(texts(&store.inbox(&id).await.unwrap()), ["1", "2", "3"]);
}

pub(crate) async fn many_inputs_are_delivered(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let names: Vec<String> = (0..95).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(store.deliver_inputs(&id, 0, messages(&names)).await.unwrap(), 95);
    assert_eq!(texts(&store.inbox(&id).await.unwrap()), names);
}

pub(crate) async fn an_enqueue_is_bounded(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    assert_err!(store.enqueue(&id, messages(&["x"; 61])).await, StoreError::TooLarge(_));
    let large = "x".repeat(800_000);
    if fixture.bounds_bytes() {
        assert_err!(store.enqueue(&id, messages(&[&large, &large])).await, StoreError::TooLarge(_));
    }
    assert!(store.inbox(&id).await.unwrap().items.is_empty());
    store.enqueue(&id, messages(&["x"; 60])).await.unwrap();
    store.enqueue(&id, messages(&[&"x".repeat(1_400_000)])).await.unwrap();
    assert_eq!(store.inbox(&id).await.unwrap().items.len(), 61);
}

pub(crate) async fn waiting_ends_with_a_message_from_another_replica(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    store.enqueue(&id, vec![message("a")]).await.unwrap();
    let seen = store.wait_inbox(&id, 0, PATIENCE).await.unwrap();
    assert_eq!(texts(&seen), ["a"]);
    let revision = seen.wake_revision.unwrap();
    let (waited, queued) = tokio::join!(store.wait_inbox(&id, revision, PATIENCE), async {
        tokio::task::yield_now().await;
        other.enqueue(&id, vec![message("b")]).await
    });
    queued.unwrap();
    let waited = waited.unwrap();
    assert_eq!(texts(&waited), ["a", "b"]);
    assert!(waited.wake_revision.unwrap() > revision);
}

pub(crate) async fn waiting_ends_in_time(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (begin, wait) = (Instant::now(), Duration::from_millis(200));
    assert_eq!(store.wait_inbox(&id, 0, wait).await.unwrap().wake_revision, None);
    assert!(begin.elapsed() >= wait);
}

pub(crate) async fn every_enqueue_rewrites_the_wake_key(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    store.enqueue(&id, vec![message("a")]).await.unwrap();
    let first = store.inbox(&id).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    store.enqueue(&id, vec![message("b")]).await.unwrap();
    let second = store.inbox(&id).await.unwrap();
    assert!(second.wake_revision > first.wake_revision);
    let stale = store.idle(&id, epoch, head, first.wake_revision.unwrap(), vec![idle_event()]).await;
    assert_err!(stale, StoreError::WakeMoved);
}

pub(crate) async fn an_inbox_says_what_its_work_belongs_to(fixture: &dyn Fixture) {
    tokio::task_local!(static TRACE: TraceParent);
    trace::set_source(|| TRACE.try_with(|trace| *trace).ok());
    let store = fixture.store();
    let id = session(&*store).await;
    for span in [1, 2] {
        let parent = TraceParent::new(7, span, true).unwrap();
        TRACE.scope(parent, store.enqueue(&id, vec![message("a")])).await.unwrap();
        assert_eq!(fixture.replica().await.inbox(&id).await.unwrap().traceparent, Some(parent));
    }
    store.enqueue(&id, vec![message("a")]).await.unwrap();
    assert_eq!(store.inbox(&id).await.unwrap().traceparent, None);
}
