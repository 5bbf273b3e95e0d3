//! What must hold however the calls of several clients fall together.

use std::sync::Arc;

use longhand_protocol::SessionId;
use longhand_session_log::store::{CallState, FinishFrom, Takeover};
use longhand_session_log::{SessionStore, StoreError};

use super::calls::{open_call, sandbox};
use super::{Fixture, TTL, claim, idle_event, message, messages, meta, pod, running, session, tool_result};

/// A message that arrives while a brain goes idle is either seen by it, or leaves a wake key behind.
pub(crate) async fn no_wake_up_is_lost(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    for round in 0_u32..300 {
        store.enqueue(&id, vec![message("first")]).await.unwrap();
        let (epoch, head) = claim(&*store, &id, "a").await;
        let inbox = store.inbox(&id).await.unwrap();
        let items: Vec<_> = inbox.items.iter().map(|item| item.event.id.clone()).collect();
        let head = store.promote(&id, epoch, head, &items, vec![running()]).await.unwrap().head;
        let (idle, queued) = tokio::join!(
            async {
                if round % 2 == 0 {
                    tokio::task::yield_now().await;
                }
                store.idle(&id, epoch, head, inbox.wake_revision.unwrap(), vec![idle_event()]).await
            },
            other.enqueue(&id, vec![message("second")]),
        );
        queued.unwrap();
        let gave_up = match idle {
            Ok(_) => true,
            Err(StoreError::WakeMoved) => false,
            Err(error) => panic!("{error}"),
        };
        let after = store.inbox(&id).await.unwrap();
        assert!(after.wake_revision.is_some(), "round {round}: a message is queued and nobody is woken");
        assert_eq!(after.items.len(), 1);
        assert_eq!(store.state(&id).await.unwrap().owner.is_none(), gave_up);
        let (epoch, head) = claim(&*store, &id, "b").await;
        let head = store.promote(&id, epoch, head, &[after.items[0].event.id.clone()], vec![]).await.unwrap().head;
        store.idle(&id, epoch, head, after.wake_revision.unwrap(), vec![idle_event()]).await.unwrap();
    }
}

pub(crate) async fn one_of_many_sandboxes_gets_the_call(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    for _ in 0..20 {
        let (id, epoch, _, call) = open_call(&*store).await;
        let tasks: Vec<_> = (0..6)
            .map(|number| {
                let store = if number % 2 == 0 { store.clone() } else { other.clone() };
                let (id, call) = (id.clone(), call.clone());
                tokio::spawn(async move { store.dispatch(&id, epoch, &call, &sandbox(&number.to_string())).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (number, task) in tasks.into_iter().enumerate() {
            match task.await.unwrap() {
                Ok(()) => winners.push(number),
                Err(StoreError::CallState { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let incarnation = sandbox(&winners[0].to_string());
        assert_eq!(store.call(&id, &call).await.unwrap(), CallState::Dispatched { incarnation });
    }
}

/// A result that says "never dispatched" and a dispatch cannot both be true.
pub(crate) async fn a_result_and_a_dispatch_exclude_each_other(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    for _ in 0..60 {
        let (id, epoch, _, call) = open_call(&*store).await;
        let to = sandbox("one");
        let (finished, dispatched) = tokio::join!(
            store.finish_call(&id, &call, &FinishFrom::Open, vec![tool_result(&call, "never ran")]),
            other.dispatch(&id, epoch, &call, &to),
        );
        assert_ne!(finished.is_ok(), dispatched.is_ok(), "{finished:?} {dispatched:?}");
        let state = store.call(&id, &call).await.unwrap();
        assert_eq!(matches!(state, CallState::Finished { .. }), finished.is_ok(), "{state:?}");
    }
}

pub(crate) async fn many_writers_leave_no_gap(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let (epoch, _) = claim(&*store, &id, "a").await;
    let brain = tokio::spawn(write_as_brain(store.clone(), id.clone(), epoch));
    let mut services = Vec::new();
    for number in 0..4 {
        let (store, id) = (if number % 2 == 0 { store.clone() } else { other.clone() }, id.clone());
        services.push(tokio::spawn(async move {
            for _ in 0..10 {
                store.append_unfenced(&id, messages(&["s", "s"])).await.unwrap();
            }
        }));
    }
    brain.await.unwrap();
    for service in services {
        service.await.unwrap();
    }
    let records = store.read(&id, 0, 1_000).await.unwrap().records;
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=91).collect::<Vec<_>>());
    let mut ids: Vec<_> = records.iter().map(|record| &record.event.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 91);
}

async fn write_as_brain(store: Arc<dyn SessionStore>, id: SessionId, epoch: u64) {
    let mut head = 1;
    for _ in 0..10 {
        let event = message("b");
        head = loop {
            match store.append(&id, epoch, head, vec![event.clone()]).await {
                Ok(appended) => break appended.head,
                Err(StoreError::HeadMoved { head: moved }) => head = moved,
                Err(error) => panic!("{error}"),
            }
        };
    }
}

pub(crate) async fn one_of_many_brains_owns_the_session(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    for round in 1..=20 {
        let id = session(&*store).await;
        let tasks: Vec<_> = (0..4)
            .map(|number| {
                let store = if number % 2 == 0 { store.clone() } else { other.clone() };
                let id = id.clone();
                tokio::spawn(async move { store.claim(&id, &pod(&number.to_string()), Takeover::IfFree, TTL).await })
            })
            .collect();
        let mut epochs = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok((epoch, _)) => epochs.push(epoch),
                Err(StoreError::Owned { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(epochs, [1], "round {round}");
        assert_eq!(store.state(&id).await.unwrap().head, 1);
    }
}

/// Whatever is under way when a session is deleted, nothing comes back.
pub(crate) async fn a_deletion_is_final(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    for _ in 0..60 {
        let (id, epoch, head, call) = open_call(&*store).await;
        let (to, claimant) = (sandbox("one"), pod("b"));
        let (deleted, ..) = tokio::join!(
            other.delete(&id),
            store.enqueue(&id, vec![message("late")]),
            store.append(&id, epoch, head, vec![running()]),
            other.append_unfenced(&id, vec![running()]),
            store.dispatch(&id, epoch, &call, &to),
            other.claim(&id, &claimant, Takeover::Always, TTL),
            store.deliver_inputs(&id, 0, vec![message("input")]),
        );
        deleted.unwrap();
        store.create(meta(&id)).await.unwrap();
        let state = store.state(&id).await.unwrap();
        assert_eq!((state.head, state.epoch, state.owner, state.wake_revision), (0, 0, None, None));
        assert!(store.inbox(&id).await.unwrap().items.is_empty());
        assert!(store.open_calls(&id).await.unwrap().is_empty());
        assert!(store.read(&id, 0, 10).await.unwrap().records.is_empty());
        store.delete(&id).await.unwrap();
    }
}
