//! Tool calls: opened, given to one sandbox, closed once.

use longhand_protocol::{EventId, SessionId};
use longhand_session_log::store::{CallState, FinishFrom, Incarnation};
use longhand_session_log::{SessionStore, StoreError};

use super::{Fixture, assert_err, claim, message, session, tool_result, tool_use};

pub(crate) fn sandbox(pod: &str) -> Incarnation {
    Incarnation { sandbox: "box".into(), pod_uid: pod.into(), attempt: "1".into() }
}

fn at(pod: &str) -> CallState {
    CallState::Dispatched { incarnation: sandbox(pod) }
}

/// A session with an open call: its epoch, its head, the call.
pub(crate) async fn open_call(store: &dyn SessionStore) -> (SessionId, u64, u64, EventId) {
    let id = session(store).await;
    let (epoch, head) = claim(store, &id, "a").await;
    let call = tool_use();
    let head = store.append(&id, epoch, head, vec![call.clone()]).await.unwrap().head;
    (id, epoch, head, call.id)
}

pub(crate) async fn a_tool_use_opens_a_call(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (id, _, _, call) = open_call(&*store).await;
    assert_eq!(store.call(&id, &call).await.unwrap(), CallState::Open);
    assert_eq!(store.open_calls(&id).await.unwrap(), [(call.clone(), CallState::Open)]);
    let intent = tool_use();
    store.append_unfenced(&id, vec![intent.clone()]).await.unwrap();
    let mut both = [call, intent.id];
    both.sort();
    let open: Vec<_> = store.open_calls(&id).await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(open, both);
    let unknown = message("no call").id;
    assert_err!(store.call(&id, &unknown).await, StoreError::UnknownCall(event) if event == unknown);
}

pub(crate) async fn a_call_goes_to_one_sandbox(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let (id, epoch, _, call) = open_call(&*store).await;
    store.dispatch(&id, epoch, &call, &sandbox("one")).await.unwrap();
    other.dispatch(&id, epoch, &call, &sandbox("one")).await.unwrap();
    let refused = other.dispatch(&id, epoch, &call, &sandbox("two")).await;
    assert_err!(refused, StoreError::CallState { state, .. } if state == at("one"));
    assert_eq!(store.call(&id, &call).await.unwrap(), at("one"));
    assert_eq!(store.open_calls(&id).await.unwrap(), [(call, at("one"))]);
    let unknown = message("no call").id;
    assert_err!(store.dispatch(&id, epoch, &unknown, &sandbox("one")).await, StoreError::UnknownCall(_));
}

pub(crate) async fn a_call_is_taken_back(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (id, epoch, _, call) = open_call(&*store).await;
    store.dispatch(&id, epoch, &call, &sandbox("one")).await.unwrap();
    let refused = store.undispatch(&id, &call, &sandbox("two")).await;
    assert_err!(refused, StoreError::CallState { state, .. } if state == at("one"));
    for _ in 0..2 {
        store.undispatch(&id, &call, &sandbox("one")).await.unwrap();
        assert_eq!(store.call(&id, &call).await.unwrap(), CallState::Open);
    }
    store.dispatch(&id, epoch, &call, &sandbox("two")).await.unwrap();
    assert_eq!(store.call(&id, &call).await.unwrap(), at("two"));
}

pub(crate) async fn a_call_is_finished_once(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let (id, epoch, head, call) = open_call(&*store).await;
    store.dispatch(&id, epoch, &call, &sandbox("one")).await.unwrap();
    let from = FinishFrom::Dispatched(sandbox("one"));
    let events = vec![message("audit"), tool_result(&call, "done"), message("after")];
    let first = store.finish_call(&id, &call, &from, events.clone()).await.unwrap();
    assert_eq!((first.head, first.records.len()), (head + 3, 3));
    assert!(first.records.iter().all(|record| record.epoch == 0));
    store.append_unfenced(&id, vec![message("more")]).await.unwrap();
    assert_eq!(other.finish_call(&id, &call, &from, events).await.unwrap(), first);

    let finished = CallState::Finished { seq: head + 2 };
    assert_eq!(store.call(&id, &call).await.unwrap(), finished);
    assert!(store.open_calls(&id).await.unwrap().is_empty());
    for from in [from, FinishFrom::Open] {
        let late = store.finish_call(&id, &call, &from, vec![tool_result(&call, "late")]).await;
        assert_err!(late, StoreError::CallState { state, .. } if state == finished);
    }
    assert_err!(store.dispatch(&id, epoch, &call, &sandbox("one")).await, StoreError::CallState { .. });
    assert_err!(store.undispatch(&id, &call, &sandbox("one")).await, StoreError::CallState { .. });
    assert_eq!(store.state(&id).await.unwrap().head, head + 4);
}

pub(crate) async fn a_result_must_find_the_call_as_it_says(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (id, epoch, head, call) = open_call(&*store).await;
    let result = || vec![tool_result(&call, "done")];
    let from = FinishFrom::Dispatched(sandbox("one"));
    let never = store.finish_call(&id, &call, &from, result()).await;
    assert_err!(never, StoreError::CallState { state: CallState::Open, .. });
    store.dispatch(&id, epoch, &call, &sandbox("two")).await.unwrap();
    for from in [from, FinishFrom::Open] {
        let refused = store.finish_call(&id, &call, &from, result()).await;
        assert_err!(refused, StoreError::CallState { state, .. } if state == at("two"));
    }
    let unknown = message("no call").id;
    assert_err!(store.finish_call(&id, &unknown, &FinishFrom::Open, vec![]).await, StoreError::UnknownCall(_));
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.head, state.wake_revision), (head, None));
}

pub(crate) async fn a_zombie_dispatches_nothing(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let (id, zombie, _, call) = open_call(&*store).await;
    claim(&*other, &id, "b").await;
    let refused = store.dispatch(&id, zombie, &call, &sandbox("one")).await;
    assert_err!(refused, StoreError::Fenced { given: 1, current: 2 });
    assert_eq!(store.call(&id, &call).await.unwrap(), CallState::Open);
}
