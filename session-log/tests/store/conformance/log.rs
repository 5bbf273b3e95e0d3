//! How a log grows.

use longhand_protocol::event::NewEvent;
use longhand_session_log::store::{FinishFrom, Parent};
use longhand_session_log::{SessionStore, StoreError};
use sha2::{Digest as _, Sha256};

use super::{
    Fixture, assert_err, claim, custom_tool_use, idle_event, kinds, message, messages, meta, running, session,
    tool_result, tool_use,
};

pub(crate) async fn records_are_dense_and_chained(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    let first = store.append(&id, epoch, head, vec![running(), tool_use(), message("a")]).await.unwrap();
    let second = store.append_unfenced(&id, vec![message("b"), message("c")]).await.unwrap();
    let third = store.append(&id, epoch, second.head, vec![message("d")]).await.unwrap();
    assert_eq!((first.head, second.head, third.head), (4, 6, 7));

    let records = store.read(&id, 0, 100).await.unwrap().records;
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(records.iter().map(|record| record.epoch).collect::<Vec<_>>(), [1, 1, 1, 1, 0, 0, 1]);
    assert_eq!(records[1..], [first.records, second.records, third.records].concat());
    assert_eq!(records[0].prev_hash, "");
    for pair in records.windows(2) {
        let bytes = serde_json::to_vec(&pair[0]).unwrap();
        assert_eq!(pair[1].prev_hash, format!("{:x}", Sha256::digest(bytes)));
        assert!(pair[0].event.processed_at.unwrap() <= pair[1].event.processed_at.unwrap());
    }
}

pub(crate) async fn a_zombie_changes_nothing(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    store.enqueue(&id, vec![message("a")]).await.unwrap();
    let queued = store.inbox(&id).await.unwrap();
    let (zombie, old_head) = claim(&*store, &id, "a").await;
    let (_, head) = claim(&*store, &id, "b").await;
    for expected in [old_head, head] {
        let wake = queued.wake_revision.unwrap();
        let fenced = [
            store.append(&id, zombie, expected, vec![running()]).await,
            store.promote(&id, zombie, expected, &[queued.items[0].event.id.clone()], vec![]).await,
            store.idle(&id, zombie, expected, wake, vec![idle_event()]).await,
        ];
        for refused in fenced {
            assert_err!(refused, StoreError::Fenced { given: 1, current: 2 });
        }
    }
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.head, state.owner.unwrap().epoch, state.wake_revision), (2, 2, queued.wake_revision));
    assert_eq!(store.inbox(&id).await.unwrap(), queued);
}

pub(crate) async fn nobody_is_the_brain_of_epoch_0(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let refused = store.append(&id, 0, 0, vec![running()]).await;
    assert_err!(refused, StoreError::Fenced { given: 0, current: 0 });
    assert_err!(store.renew(&id, 0).await, StoreError::Fenced { given: 0, current: 0 });
}

pub(crate) async fn a_moved_head_is_named(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    let moved = other.append_unfenced(&id, vec![message("audit")]).await.unwrap().head;
    let refused = store.append(&id, epoch, head, vec![running()]).await;
    assert_err!(refused, StoreError::HeadMoved { head } if head == moved);
    assert_err!(store.append(&id, epoch, moved + 5, vec![running()]).await, StoreError::HeadMoved { head: 2 });
    store.append(&id, epoch, moved, vec![running()]).await.unwrap();
    assert_eq!(kinds(&*store, &id).await, ["x.session.woken", "user.message", "session.status_running"]);
}

pub(crate) async fn an_append_may_be_repeated(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    let events = vec![running(), message("a")];
    let first = store.append(&id, epoch, head, events.clone()).await.unwrap();
    let audit = vec![message("audit")];
    let audited = store.append_unfenced(&id, audit.clone()).await.unwrap();
    for again in [&store, &other] {
        assert_eq!(again.append(&id, epoch, head, events.clone()).await.unwrap(), first);
        assert_eq!(again.append_unfenced(&id, audit.clone()).await.unwrap(), audited);
    }
    claim(&*other, &id, "b").await;
    assert_eq!(store.append(&id, epoch, head, events).await.unwrap(), first);
    assert_eq!(store.state(&id).await.unwrap().head, 5);
}

/// As [`an_append_may_be_repeated`], where its records are not the last ones, or elsewhere by now.
pub(crate) async fn a_repetition_is_found_by_its_place(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    let (call, rest) = (vec![tool_use(), running()], messages(&["b", "c", "d"]));
    let first = store.append(&id, epoch, head, call.clone()).await.unwrap();
    let second = store.append(&id, epoch, first.head, rest.clone()).await.unwrap();
    fixture.move_out(&id, true).await;
    for again in [&store, &other] {
        assert_eq!(again.append(&id, epoch, head, call.clone()).await.unwrap(), first);
        assert_eq!(again.append(&id, epoch, first.head, rest.clone()).await.unwrap(), second);
        // A part of it, more than it, or elsewhere, is something else.
        let more = [rest.clone(), messages(&["e"])].concat();
        for (expected, events) in [(first.head, more), (first.head, rest[1..].to_vec()), (head, rest.clone())] {
            let refused = again.append(&id, epoch, expected, events).await;
            assert_err!(refused, StoreError::HeadMoved { head } if head == second.head);
        }
        assert_eq!(again.append(&id, epoch, first.head, rest[..1].to_vec()).await.unwrap().head, first.head + 1);
    }
    assert_eq!(store.state(&id).await.unwrap().head, second.head);
}

/// The records of a fork's brain are its own, also if those of its parent look like them.
pub(crate) async fn a_fork_has_repeated_nothing(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let fork = store.fork_id(&id);
    let (epoch, head) = claim(&*store, &id, "a").await;
    let events = vec![running(), idle_event()];
    let appended = store.append(&id, epoch, head, events.clone()).await.unwrap();
    store.fork(meta(&fork), &Parent { session: id.clone(), seq: appended.head }).await.unwrap();
    let (of_fork, moved) = claim(&*store, &fork, "b").await;
    assert_eq!(of_fork, epoch);
    let refused = store.append(&fork, of_fork, head, events).await;
    assert_err!(refused, StoreError::HeadMoved { head } if head == moved);
}

pub(crate) async fn a_different_append_is_not_a_repetition(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (epoch, before) = claim(&*store, &id, "a").await;
    let events = vec![tool_use(), tool_use()];
    let head = store.append(&id, epoch, before, events.clone()).await.unwrap().head;
    let changed = NewEvent { id: events[1].id.clone(), ..tool_use() };
    let changed = NewEvent { body: custom_tool_use().body, ..changed };
    let cases = [
        vec![events[1].clone(), message("new")],
        vec![message("new"), events[0].clone()],
        vec![changed],
        vec![events[1].clone(), events[0].clone()],
    ];
    for case in cases {
        for expected in [before, head] {
            assert_err!(store.append(&id, epoch, expected, case.clone()).await, StoreError::Duplicate(_));
        }
        assert_err!(store.append_unfenced(&id, case).await, StoreError::Duplicate(_));
    }
    let twice = message("twice");
    assert_err!(store.append(&id, epoch, head, vec![twice.clone(), twice]).await, StoreError::Duplicate(_));
    let (epoch, head) = claim(&*store, &id, "b").await;
    assert_err!(store.append(&id, epoch, head, events).await, StoreError::Duplicate(_));
    assert_eq!(store.state(&id).await.unwrap().head, 4);
}

pub(crate) async fn a_transaction_is_bounded(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    assert_err!(store.append(&id, epoch, head, messages(&["x"; 61])).await, StoreError::TooLarge(_));
    let large = "x".repeat(800_000);
    if fixture.bounds_bytes() {
        assert_err!(store.append(&id, epoch, head, messages(&[&large, &large])).await, StoreError::TooLarge(_));
    }
    let calls: Vec<NewEvent> = (0..40).map(|_| tool_use()).collect();
    let head = store.append(&id, epoch, head, calls.clone()).await.unwrap().head;
    let head = store.append(&id, epoch, head, messages(&["x"; 60])).await.unwrap().head;
    let result = vec![message("audit"), tool_result(&calls[0].id, &"x".repeat(1_048_576))];
    let head = store.finish_call(&id, &calls[0].id, &FinishFrom::Open, result).await.map(|a| (head, a.head)).unwrap();
    assert_eq!(head.1, head.0 + 2);
    let most = [store.read(&id, 0, 60).await.unwrap(), store.read(&id, 60, 1_000).await.unwrap()];
    assert_eq!(most.iter().map(|slice| slice.records.len()).sum::<usize>(), 103);

    store.enqueue(&id, messages(&["x"; 40])).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    let inbox: Vec<_> = store.inbox(&id).await.unwrap().items.into_iter().map(|item| item.event.id).collect();
    let too_many = store.promote(&id, epoch, head, &inbox, vec![running()]).await;
    assert_err!(too_many, StoreError::TooLarge(_));
    assert_eq!(store.promote(&id, epoch, head, &inbox, vec![]).await.unwrap().records.len(), 40);
}

pub(crate) async fn promotion_moves_events_in_the_given_order(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let events = messages(&["a", "b", "c"]);
    store.enqueue(&id, events.clone()).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    let inbox = [events[2].id.clone(), events[0].id.clone()];
    let appended = store.promote(&id, epoch, head, &inbox, vec![running()]).await.unwrap();
    let bodies: Vec<_> = appended.records.iter().map(|record| record.event.body.clone()).collect();
    assert_eq!(bodies, [events[2].body.clone(), events[0].body.clone(), running().body]);
    assert!(appended.records.iter().all(|record| record.epoch == epoch && record.event.processed_at.is_some()));
    let left: Vec<_> = store.inbox(&id).await.unwrap().items.into_iter().map(|item| item.event.id).collect();
    assert_eq!(left, [events[1].id.clone()]);
    assert!(store.inbox(&id).await.unwrap().wake_revision.is_some());
}

pub(crate) async fn a_promotion_may_be_repeated(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let queued = message("a");
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    let then = vec![running()];
    let first = store.promote(&id, epoch, head, &[queued.id.clone()], then.clone()).await.unwrap();
    store.append_unfenced(&id, vec![message("audit")]).await.unwrap();
    assert_eq!(other.promote(&id, epoch, head, &[queued.id.clone()], then).await.unwrap(), first);
    assert_eq!(store.state(&id).await.unwrap().head, 4);
}

pub(crate) async fn what_is_not_queued_is_not_promoted(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (known, unknown) = (message("a"), message("b").id);
    store.enqueue(&id, vec![known.clone()]).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    let refused = store.promote(&id, epoch, head, &[known.id.clone(), unknown.clone()], vec![]).await;
    assert_err!(refused, StoreError::NotQueued(event) if event == unknown);
    assert_eq!(store.inbox(&id).await.unwrap().items.len(), 1);
    let head = store.promote(&id, epoch, head, &[known.id.clone()], vec![]).await.unwrap().head;
    let (epoch, head) = (claim(&*store, &id, "b").await.0, head + 1);
    let again = store.promote(&id, epoch, head, &[known.id.clone()], vec![]).await;
    assert_err!(again, StoreError::NotQueued(event) if event == known.id);
    assert_eq!(store.state(&id).await.unwrap().head, head);
}

pub(crate) async fn idle_needs_the_wake_key_as_it_was(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    for absent in [0, -1, 7] {
        assert_err!(store.idle(&id, epoch, head, absent, vec![idle_event()]).await, StoreError::WakeMoved);
    }
    store.enqueue(&id, vec![message("a")]).await.unwrap();
    let wake = store.inbox(&id).await.unwrap().wake_revision.unwrap();
    other.enqueue(&id, vec![message("b")]).await.unwrap();
    assert_err!(store.idle(&id, epoch, head, wake, vec![idle_event()]).await, StoreError::WakeMoved);
    let wake = store.inbox(&id).await.unwrap().wake_revision.unwrap();
    let queued = store.idle(&id, epoch, head, wake, vec![idle_event()]).await;
    assert_err!(queued, StoreError::WakeMoved);
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.head, state.owner.is_some(), state.wake_revision), (head, true, Some(wake)));
}

pub(crate) async fn idle_gives_the_session_up_once(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    store.enqueue(&id, vec![message("a")]).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    let inbox = store.inbox(&id).await.unwrap();
    let wake = inbox.wake_revision.unwrap();
    let head = store.promote(&id, epoch, head, &[inbox.items[0].event.id.clone()], vec![]).await.unwrap().head;
    let events = vec![idle_event()];
    let first = store.idle(&id, epoch, head, wake, events.clone()).await.unwrap();
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.owner, state.wake_revision, state.head), (None, None, head + 1));
    store.enqueue(&id, vec![message("b")]).await.unwrap();
    assert_eq!(other.idle(&id, epoch, head, wake, events).await.unwrap(), first);
    let state = store.state(&id).await.unwrap();
    assert!(state.wake_revision.is_some(), "a repeated idle clears nothing");
    assert_eq!(claim(&*store, &id, "b").await, (2, head + 2));
}

/// A turn is open from the promotion to the idle event; as long as it is, there is a wake key.
pub(crate) async fn only_idle_and_delete_clear_the_wake_key(fixture: &dyn Fixture) {
    async fn wake(store: &dyn SessionStore, id: &longhand_protocol::SessionId) -> Option<i64> {
        store.state(id).await.unwrap().wake_revision
    }
    let store = fixture.store();
    let id = session(&*store).await;
    let (queued, call) = (message("a"), tool_use());
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    let set = wake(&*store, &id).await;
    assert!(set.is_some());
    let head = store.promote(&id, epoch, head, &[queued.id], vec![running()]).await.unwrap().head;
    store.append(&id, epoch, head, vec![call.clone()]).await.unwrap();
    store.append_unfenced(&id, vec![message("audit")]).await.unwrap();
    fixture.expire_claim(&id).await;
    let (epoch, head) = claim(&*store, &id, "b").await;
    store.renew(&id, epoch).await.unwrap();
    let sandbox = super::calls::sandbox("one");
    store.dispatch(&id, epoch, &call.id, &sandbox).await.unwrap();
    store.undispatch(&id, &call.id, &sandbox).await.unwrap();
    assert_eq!(wake(&*store, &id).await, set);

    let result = vec![tool_result(&call.id, "done")];
    let head =
        store.finish_call(&id, &call.id, &FinishFrom::Open, result).await.map(|done| (head, done.head)).unwrap().1;
    let rewritten = wake(&*store, &id).await;
    assert!(rewritten > set);
    let stale = store.idle(&id, epoch, head, set.unwrap(), vec![idle_event()]).await;
    assert_err!(stale, StoreError::WakeMoved);
    store.idle(&id, epoch, head, rewritten.unwrap(), vec![idle_event()]).await.unwrap();
    assert_eq!(wake(&*store, &id).await, None);
}

pub(crate) async fn slices_are_what_was_asked_for(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    for _ in 0..3 {
        store.append_unfenced(&id, messages(&["x"; 50])).await.unwrap();
    }
    for (after, limit, first, count) in
        [(0, 10, 1, 10), (0, 1_000, 1, 150), (140, 100, 141, 10), (149, 1, 150, 1), (64, 64, 65, 64), (0, 65, 1, 65)]
    {
        let slice = store.read(&id, after, limit).await.unwrap();
        assert_eq!((slice.head, slice.records.len()), (150, count), "after {after} limit {limit}");
        let seqs: Vec<u64> = slice.records.iter().map(|record| record.seq).collect();
        assert_eq!(seqs, (first..).take(count).collect::<Vec<_>>());
    }
    for (after, limit) in [(150, 10), (1_000, 10), (0, 0), (u64::MAX, 10)] {
        let slice = store.read(&id, after, limit).await.unwrap();
        assert_eq!((slice.head, slice.records.len()), (150, 0), "after {after} limit {limit}");
    }
}
