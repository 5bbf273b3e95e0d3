//! Sessions as a whole.

use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent, Usage};
use longhand_protocol::harness::AgentSnapshot;
use longhand_protocol::wire::SessionStatus;
use longhand_session_log::StoreError;
use longhand_session_log::store::{FinishFrom, Incarnation, Parent, Takeover};
use std::time::Duration;

use super::{Fixture, TTL, assert_err, claim, idle_event, message, meta, pod, running, session, tool_result, tool_use};

pub(crate) async fn a_session_is_made_once(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    assert_err!(store.create(meta(&id)).await, StoreError::Exists(found) if found == id);
    let state = store.state(&id).await.unwrap();
    assert_eq!(state.meta, meta(&id));
    assert_eq!((state.epoch, state.head, state.owner, state.wake_revision), (0, 0, None, None));
    assert_eq!((state.status, state.usage), (SessionStatus::Idle, Usage::default()));
    assert_eq!(state.updated_at, meta(&id).created_at);
}

pub(crate) async fn unknown_sessions_are_not_found(fixture: &dyn Fixture) {
    let (store, id) = (fixture.store(), SessionId::generate());
    let (call, sandbox) = (running().id, Incarnation { sandbox: "s".into(), pod_uid: "p".into(), attempt: "1".into() });
    assert_err!(store.state(&id).await, StoreError::NotFound(_));
    assert_err!(store.deliver_inputs(&id, 0, vec![message("a")]).await, StoreError::NotFound(_));
    assert_err!(store.enqueue(&id, vec![message("a")]).await, StoreError::NotFound(_));
    assert_err!(store.inbox(&id).await, StoreError::NotFound(_));
    assert_err!(store.wait_inbox(&id, 0, Duration::ZERO).await, StoreError::NotFound(_));
    assert_err!(store.claim(&id, &pod("a"), Takeover::Always, TTL).await, StoreError::NotFound(_));
    assert_err!(store.renew(&id, 1).await, StoreError::NotFound(_));
    assert_err!(store.append(&id, 1, 0, vec![running()]).await, StoreError::NotFound(_));
    assert_err!(store.promote(&id, 1, 0, &[], vec![running()]).await, StoreError::NotFound(_));
    assert_err!(store.idle(&id, 1, 0, 1, vec![idle_event()]).await, StoreError::NotFound(_));
    assert_err!(store.append_unfenced(&id, vec![running()]).await, StoreError::NotFound(_));
    assert_err!(store.read(&id, 0, 1).await, StoreError::NotFound(_));
    assert_err!(store.position(&id, &call).await, StoreError::NotFound(_));
    assert_err!(store.archive(&id).await, StoreError::NotFound(_));
    assert_err!(store.leap(&id).await, StoreError::NotFound(_));
    let from = Parent { session: id.clone(), seq: 0 };
    assert_err!(store.fork(meta(&store.fork_id(&id)), &from).await, StoreError::NotFound(_));
    assert_err!(store.export(&id).await.map(drop), StoreError::NotFound(_));
    assert_err!(store.tail(&id, 0).await.map(drop), StoreError::NotFound(_));
    assert_err!(store.call(&id, &call).await, StoreError::NotFound(_));
    assert_err!(store.open_calls(&id).await, StoreError::NotFound(_));
    assert_err!(store.dispatch(&id, 1, &call, &sandbox).await, StoreError::NotFound(_));
    assert_err!(store.undispatch(&id, &call, &sandbox).await, StoreError::NotFound(_));
    let result = vec![tool_result(&call, "")];
    assert_err!(store.finish_call(&id, &call, &FinishFrom::Open, result).await, StoreError::NotFound(_));
    store.delete(&id).await.unwrap();
}

pub(crate) async fn sessions_are_listed_in_order(fixture: &dyn Fixture) {
    let store = fixture.store();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(session(&*store).await);
    }
    ids.sort();
    let listed = |after: Option<SessionId>, limit| {
        let store = store.clone();
        async move {
            let metas = store.list(after.as_ref(), limit).await.unwrap();
            metas.into_iter().map(|meta| meta.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(listed(None, 10).await, ids);
    assert_eq!(listed(None, 2).await, ids[..2]);
    assert_eq!(listed(Some(ids[1].clone()), 2).await, ids[2..4]);
    assert_eq!(listed(Some(ids[4].clone()), 2).await, []);
    assert_eq!(listed(None, 0).await, []);
    store.delete(&ids[2]).await.unwrap();
    ids.remove(2);
    assert_eq!(listed(None, 10).await, ids);
}

pub(crate) async fn nothing_is_left_of_a_deleted_session(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    let call = tool_use();
    store.append(&id, epoch, head, vec![call.clone()]).await.unwrap();
    store.enqueue(&id, vec![message("queued")]).await.unwrap();
    other.delete(&id).await.unwrap();

    assert_err!(store.append(&id, epoch, head + 1, vec![running()]).await, StoreError::NotFound(_));
    assert_err!(store.enqueue(&id, vec![message("late")]).await, StoreError::NotFound(_));
    assert_err!(store.renew(&id, epoch).await, StoreError::NotFound(_));
    assert_err!(store.dispatch(&id, epoch, &call.id, &super::calls::sandbox("s")).await, StoreError::NotFound(_));
    assert!(store.list(None, 10).await.unwrap().is_empty());
    store.delete(&id).await.unwrap();

    store.create(meta(&id)).await.unwrap();
    assert_eq!(store.state(&id).await.unwrap().head, 0);
    assert!(store.inbox(&id).await.unwrap().items.is_empty());
    assert_err!(store.call(&id, &call.id).await, StoreError::UnknownCall(_));
}

pub(crate) async fn status_and_usage_follow_the_events(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let queued = message("a");
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    assert_eq!(store.state(&id).await.unwrap().status, SessionStatus::Running);
    let (epoch, head) = claim(&*store, &id, "a").await;
    let head = store.promote(&id, epoch, head, &[queued.id], vec![]).await.unwrap().head;
    let rescheduled = NewEvent::new(EventBody::SessionStatusRescheduled {});
    let head = store.append(&id, epoch, head, vec![rescheduled]).await.unwrap().head;
    assert_eq!(store.state(&id).await.unwrap().status, SessionStatus::Rescheduling);
    let began = store.append(&id, epoch, head, vec![running()]).await.unwrap().records.pop().unwrap();
    let head = began.seq;
    let state = store.state(&id).await.unwrap();
    assert_eq!(state.status, SessionStatus::Running);
    let begun = began.event.processed_at.unwrap();
    assert_eq!(state.active.total(begun + TTL), TTL.try_into().unwrap(), "the turn goes on");
    let usage = Usage { input_tokens: 3, output_tokens: 4, ..Usage::default() };
    let events = vec![NewEvent::new(EventBody::SessionUsage { usage: usage.into() }), idle_event()];
    let wake = store.inbox(&id).await.unwrap().wake_revision.unwrap();
    let last = store.idle(&id, epoch, head, wake, events).await.unwrap().records.pop().unwrap();
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.status, state.usage, state.head), (SessionStatus::Idle, usage, head + 2));
    let (begun, ended) = (began.event.processed_at.unwrap(), last.event.processed_at.unwrap());
    assert_eq!(state.updated_at, ended);
    assert_eq!(state.active.total(ended + TTL), ended.duration_since(begun), "the time of the turn");
    let ended = NewEvent::new(EventBody::SessionStatusTerminated {});
    store.append_unfenced(&id, vec![ended]).await.unwrap();
    assert_err!(store.enqueue(&id, vec![message("b")]).await, StoreError::Ended(ended) if ended == id);
    assert_err!(store.deliver_inputs(&id, 0, vec![message("b")]).await, StoreError::Ended(_));
    assert_eq!(store.state(&id).await.unwrap().status, SessionStatus::Terminated);
}

pub(crate) async fn an_agent_changes_while_its_session_rests(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let agent = |name: &str| AgentSnapshot { name: name.to_owned(), ..meta(&id).agent };
    let said = |name: &str| {
        let title = Some(name.to_owned());
        NewEvent::new(EventBody::SessionUpdated { agent: None, metadata: None, title })
    };
    let event = said("second");
    let changed = store.change_agent(&id, agent("second"), event.clone()).await.unwrap();
    assert_eq!(changed.records[0].event.body, event.body);
    assert_eq!(store.change_agent(&id, agent("second"), event).await.unwrap(), changed, "a repetition finds itself");
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.meta.agent.name.as_str(), state.head, state.wake_revision), ("second", 1, None));

    let queued = message("a");
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    assert_err!(store.change_agent(&id, agent("third"), said("third")).await, StoreError::AtWork(_));
    let (epoch, head) = claim(&*store, &id, "a").await;
    let head = store.promote(&id, epoch, head, &[queued.id], vec![running()]).await.unwrap().head;
    assert_err!(store.change_agent(&id, agent("third"), said("third")).await, StoreError::AtWork(_));
    let wake = store.inbox(&id).await.unwrap().wake_revision.unwrap();
    store.idle(&id, epoch, head, wake, vec![idle_event()]).await.unwrap();
    assert_eq!(store.state(&id).await.unwrap().meta.agent.name, "second");
    store.change_agent(&id, agent("fourth"), said("fourth")).await.unwrap();
    assert_eq!(store.state(&id).await.unwrap().meta.agent.name, "fourth");
    store.archive(&id).await.unwrap();
    assert_err!(store.change_agent(&id, agent("fifth"), said("fifth")).await, StoreError::Ended(_));
    assert_eq!(store.state(&id).await.unwrap().meta.agent.name, "fourth");
}
