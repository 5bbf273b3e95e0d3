//! Sessions that share a history.

use futures::StreamExt as _;
use longhand_protocol::event::{EventBody, NewEvent, Usage};
use longhand_protocol::wire::SessionStatus;
use longhand_protocol::{EventId, Record, SessionId};
use longhand_session_log::store::{FinishFrom, Parent, Query, SessionMeta};
use longhand_session_log::{SessionStore, StoreError};

use super::exports::proved;
use super::{
    Fixture, assert_err, claim, idle_event, kinds, message, messages, meta, running, session, tool_result, tool_use,
};

/// A fork of this session at this event.
pub(crate) async fn fork(store: &dyn SessionStore, of: &SessionId, seq: u64) -> SessionId {
    let id = store.fork_id(of);
    store.fork(meta(&id), &Parent { session: of.clone(), seq }).await.unwrap();
    id
}

async fn records(store: &dyn SessionStore, id: &SessionId) -> Vec<Record> {
    store.read(id, 0, 1_000).await.unwrap().records
}

/// A session with so many messages.
async fn spoken(store: &dyn SessionStore, count: usize) -> SessionId {
    let id = session(store).await;
    for _ in 0..count.div_ceil(50) {
        store.append_unfenced(&id, messages(&vec!["x"; count.min(50)])).await.unwrap();
    }
    id
}

pub(crate) async fn a_fork_shares_history_and_goes_on(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let parent = spoken(&*store, 200).await;
    let id = fork(&*store, &parent, 150).await;
    let history = records(&*store, &parent).await;
    assert_eq!(records(&*other, &id).await, history[..150]);
    let state = other.state(&id).await.unwrap();
    assert_eq!((state.head, state.epoch, state.wake_revision), (150, 0, None));
    assert_eq!(state.meta.parent, Some(Parent { session: parent.clone(), seq: 150 }));
    assert_eq!(Some(state.updated_at), history[149].event.processed_at);

    // Both go on, and neither sees of the other.
    store.append_unfenced(&parent, messages(&["of the parent"])).await.unwrap();
    let own = message("of the fork");
    store.enqueue(&id, vec![own.clone()]).await.unwrap();
    assert_eq!(claim(&*store, &id, "a").await, (1, 151));
    store.promote(&id, 1, 151, &[own.id.clone()], vec![]).await.unwrap();
    let forked = records(&*store, &id).await;
    assert_eq!(forked[..150], history[..150]);
    assert_eq!(forked.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=152).collect::<Vec<_>>());
    assert_eq!(forked[151].event.id, own.id);
    assert_eq!(forked[150].prev_hash, history[150].prev_hash, "both follow the same record");
    assert_eq!(records(&*store, &parent).await.len(), 201);
    proved(&*other, &id).await;
}

pub(crate) async fn a_fork_is_asked_like_any_session(fixture: &dyn Fixture) {
    let store = fixture.store();
    let parent = spoken(&*store, 20).await;
    let id = fork(&*store, &parent, 10).await;
    store.append_unfenced(&id, vec![running(), idle_event()]).await.unwrap();
    let seqs = |records: Vec<Record>| records.iter().map(|record| record.seq).collect::<Vec<_>>();
    let slice = store.slice(&id, &Query::last(4)).await.unwrap();
    assert_eq!((seqs(slice.records), slice.next), (vec![12, 11, 10, 9], Some(9)));
    let query = Query { types: vec!["user.*".into()], before: Some(12), ..Query::after(7, 100) };
    assert_eq!(seqs(store.slice(&id, &query).await.unwrap().records), [8, 9, 10]);
    let history = records(&*store, &parent).await;
    let query = Query { since: history[9].event.processed_at, ..Query::after(0, 100) };
    assert_eq!(seqs(store.slice(&id, &query).await.unwrap().records).last(), Some(&12));
    let own = records(&*store, &id).await;
    for (event, position) in
        [(&history[6], Some(7)), (&history[9], Some(10)), (&history[10], None), (&own[11], Some(12))]
    {
        assert_eq!(store.position(&id, &event.event.id).await.unwrap(), position);
    }
}

pub(crate) async fn a_tail_of_a_fork_has_no_gap(fixture: &dyn Fixture) {
    let store = fixture.store();
    let parent = spoken(&*store, 10).await;
    let id = fork(&*store, &parent, 8).await;
    let mut tail = store.tail(&id, 5).await.unwrap();
    for due in 6..=8 {
        assert_eq!(tail.next().await.unwrap().unwrap().seq, due);
    }
    store.append_unfenced(&parent, messages(&["elsewhere"])).await.unwrap();
    let new = store.append_unfenced(&id, messages(&["here"])).await.unwrap().records.remove(0);
    assert_eq!(tail.next().await.unwrap().unwrap(), new);
}

pub(crate) async fn forks_of_forks(fixture: &dyn Fixture) {
    let store = fixture.store();
    let first = spoken(&*store, 10).await;
    let second = fork(&*store, &first, 6).await;
    store.append_unfenced(&second, messages(&["a", "b", "c", "d"])).await.unwrap();
    let third = fork(&*store, &second, 8).await;
    store.append_unfenced(&third, messages(&["e"])).await.unwrap();
    let early = fork(&*store, &third, 3).await;
    let nothing = fork(&*store, &third, 0).await;

    let (of_first, of_second) = (records(&*store, &first).await, records(&*store, &second).await);
    let of_third = records(&*store, &third).await;
    assert_eq!(of_third[..6], of_first[..6]);
    assert_eq!(of_third[..8], of_second[..8]);
    assert_eq!(of_third.len(), 9);
    assert_eq!(records(&*store, &early).await, of_first[..3]);
    assert_eq!(records(&*store, &nothing).await, []);
    store.append_unfenced(&nothing, messages(&["first"])).await.unwrap();
    for id in [&third, &early, &nothing] {
        proved(&*store, id).await;
    }
    assert_eq!(store.position(&third, &of_second[7].event.id).await.unwrap(), Some(8));
    assert_eq!(store.position(&third, &of_second[8].event.id).await.unwrap(), None);
}

pub(crate) async fn a_history_is_kept_for_its_forks(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let parent = spoken(&*store, 3).await;
    let (one, two) = (fork(&*store, &parent, 2).await, fork(&*store, &parent, 3).await);
    assert_err!(other.delete(&parent).await, StoreError::HasForks { session, .. } if session == parent);
    store.append_unfenced(&parent, messages(&["it lives"])).await.unwrap();
    store.delete(&one).await.unwrap();
    assert_err!(other.delete(&parent).await, StoreError::HasForks { fork, .. } if fork == two);
    assert_eq!(records(&*other, &two).await.len(), 3);
    other.delete(&two).await.unwrap();
    store.delete(&parent).await.unwrap();
    assert_err!(store.state(&parent).await, StoreError::NotFound(_));
}

pub(crate) async fn a_fork_needs_what_it_forks(fixture: &dyn Fixture) {
    let store = fixture.store();
    let parent = spoken(&*store, 3).await;
    let id = store.fork_id(&parent);
    let at = |seq| Parent { session: parent.clone(), seq };
    assert_err!(store.fork(meta(&id), &at(4)).await, StoreError::NoSuchEvent { seq: 4, head: 3, .. });
    let elsewhere = SessionMeta { namespace: "other".into(), ..meta(&id) };
    assert_err!(store.fork(elsewhere, &at(1)).await, StoreError::NotFound(session) if session == parent);
    assert_err!(store.state(&id).await, StoreError::NotFound(_));
    store.fork(meta(&id), &at(1)).await.unwrap();
    assert_err!(store.fork(meta(&id), &at(2)).await, StoreError::Exists(_));
    assert_err!(store.create(meta(&id)).await, StoreError::Exists(_));
    store.delete(&id).await.unwrap();
    store.delete(&parent).await.unwrap();
    assert_err!(store.fork(meta(&id), &at(1)).await, StoreError::NotFound(_));
}

pub(crate) async fn what_runs_is_cut_off_by_a_fork(fixture: &dyn Fixture) {
    let store = fixture.store();
    let parent = session(&*store).await;
    let usage = Usage { input_tokens: 5, ..Usage::default() };
    let (epoch, head) = claim(&*store, &parent, "a").await;
    let (one, two) = (tool_use(), tool_use());
    let start = NewEvent::new(EventBody::SpanModelRequestStart {});
    let used = NewEvent::new(EventBody::SessionUsage { usage: usage.into() });
    store.append(&parent, epoch, head, vec![running(), used, start.clone(), one.clone(), two.clone()]).await.unwrap();
    store.enqueue(&parent, vec![message("queued")]).await.unwrap();
    store.finish_call(&parent, &one.id, &FinishFrom::Open, vec![tool_result(&one.id, "done")]).await.unwrap();

    for (seq, open) in [(7, vec![&two.id]), (6, vec![&one.id, &two.id]), (5, vec![&one.id]), (4, vec![])] {
        let id = fork(&*store, &parent, seq).await;
        let own = store.read(&id, seq, 100).await.unwrap().records;
        let answered: Vec<&EventId> = own
            .iter()
            .filter_map(|record| match &record.event.body {
                EventBody::AgentToolResult { tool_use_id, is_error: Some(true), .. } => Some(tool_use_id),
                _ => None,
            })
            .collect();
        assert_eq!(answered, open, "at {seq}");
        let EventBody::SpanModelRequestEnd { model_request_start_id, .. } = &own[open.len()].event.body else {
            panic!("at {seq}: {own:?}")
        };
        assert_eq!(*model_request_start_id, start.id);
        assert_eq!(own.last().unwrap().event.body, idle_event().body);
        assert!(own.iter().all(|record| record.epoch == 0));
        let state = store.state(&id).await.unwrap();
        assert_eq!((state.status, state.usage, state.wake_revision), (SessionStatus::Idle, usage, None));
        assert!(store.open_calls(&id).await.unwrap().is_empty());
        assert!(store.inbox(&id).await.unwrap().items.is_empty());
        assert_err!(store.call(&id, &two.id).await, StoreError::UnknownCall(_));
        proved(&*store, &id).await;
    }
    assert_eq!(store.open_calls(&parent).await.unwrap().len(), 1, "the parent goes on");
}

pub(crate) async fn a_fork_of_what_has_ended_lives(fixture: &dyn Fixture) {
    let store = fixture.store();
    let parent = spoken(&*store, 2).await;
    store.archive(&parent).await.unwrap();
    let id = fork(&*store, &parent, 3).await;
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.status, state.archived_at), (SessionStatus::Idle, None));
    store.enqueue(&id, vec![message("again")]).await.unwrap();
    assert_eq!(claim(&*store, &id, "a").await.0, 1);
    assert_eq!(kinds(&*store, &id).await[2..4], ["session.status_terminated", "session.status_idle"]);
}

/// Either the fork comes first and the deletion is refused, or the other way round.
pub(crate) async fn a_fork_and_a_deletion_exclude_each_other(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    for _ in 0..10 {
        let parent = spoken(&*store, 2).await;
        let (id, from) = (store.fork_id(&parent), Parent { session: parent.clone(), seq: 2 });
        let (forked, deleted) = tokio::join!(store.fork(meta(&id), &from), other.delete(&parent));
        match (forked, deleted) {
            (Ok(()), Err(StoreError::HasForks { .. })) => assert_eq!(proved(&*store, &id).await.1.len(), 2),
            (Err(StoreError::NotFound(_)), Ok(())) => assert_err!(store.state(&id).await, StoreError::NotFound(_)),
            other => panic!("{other:?}"),
        }
    }
}
