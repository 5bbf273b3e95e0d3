//! Whole logs, out and in.

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;
use longhand_protocol::export::Chain;
use longhand_protocol::wire::SessionStatus;
use longhand_session_log::store::{CallState, End, Exported, FinishFrom, Result, Takeover};
use longhand_session_log::{SessionStore, StoreError};

use super::{
    Fixture, TTL, assert_err, claim, idle_event, kinds, message, messages, meta, pod, running, session, tool_result,
    tool_use,
};

/// What is exported, proved.
pub(crate) async fn proved(store: &dyn SessionStore, id: &SessionId) -> (End, Vec<Exported>) {
    let export = store.export(id).await.unwrap();
    let records: Vec<Exported> = export.records.map(|record| record.unwrap()).collect().await;
    let mut chain = Chain::default();
    for (due, record) in (1..).zip(&records) {
        assert_eq!(record.seq, due);
        chain.push(&record.bytes).unwrap();
    }
    chain.end(export.end.head, &export.end.hash).unwrap();
    assert_eq!(store.state(id).await.unwrap().head, export.end.head);
    (export.end, records)
}

async fn import(store: &dyn SessionStore, id: &SessionId, end: &End, records: &[Exported]) -> Result<()> {
    let records: BoxStream<'static, Result<Exported>> = stream::iter(records.to_vec()).map(Ok).boxed();
    store.import(meta(id), end, records).await
}

/// A log that is at rest, with a bit of everything, and its export.
async fn exported(store: &dyn SessionStore, pages: usize) -> (SessionId, End, Vec<Exported>) {
    let id = session(store).await;
    let call = tool_use();
    let (epoch, head) = claim(store, &id, "a").await;
    store.append(&id, epoch, head, vec![running(), call.clone()]).await.unwrap();
    store.finish_call(&id, &call.id, &FinishFrom::Open, vec![tool_result(&call.id, "done")]).await.unwrap();
    for _ in 0..pages {
        store.append_unfenced(&id, messages(&["x"; 50])).await.unwrap();
    }
    store.append_unfenced(&id, vec![idle_event()]).await.unwrap();
    let (end, records) = proved(store, &id).await;
    (id, end, records)
}

pub(crate) async fn an_export_is_the_log_up_to_its_head(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (id, end, records) = exported(&*store, 3).await;
    assert_eq!((end.head, end.epoch, records.len()), (155, 1, 155));
    let export = store.export(&id).await.unwrap();
    store.append_unfenced(&id, messages(&["late"])).await.unwrap();
    assert_eq!(export.records.count().await, 155, "what comes later is not a part of it");
    let empty = session(&*store).await;
    let (end, records) = proved(&*store, &empty).await;
    assert_eq!((end.head, end.hash.as_str(), records.len()), (0, "", 0));
}

pub(crate) async fn an_import_is_the_same_log(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let (id, end, records) = exported(&*store, 3).await;
    let before = store.read(&id, 0, 1_000).await.unwrap().records;
    assert_err!(import(&*store, &id, &end, &records).await, StoreError::Exists(_));
    store.delete(&id).await.unwrap();
    import(&*store, &id, &end, &records).await.unwrap();
    assert_eq!(other.read(&id, 0, 1_000).await.unwrap().records, before);
    assert_eq!(proved(&*other, &id).await.1, records);
    let state = other.state(&id).await.unwrap();
    assert_eq!((state.meta, state.head, state.epoch), (meta(&id), end.head, end.epoch + 1));
    assert_eq!((state.status, state.wake_revision), (SessionStatus::Idle, None));
    let EventBody::AgentToolResult { tool_use_id, .. } = &before[3].event.body else { panic!("a result") };
    assert_eq!(other.call(&id, tool_use_id).await.unwrap(), CallState::Finished { seq: 4 });
    assert_eq!(other.position(&id, &before[7].event.id).await.unwrap(), Some(8));

    // Whoever owned it before owns nothing, and it goes on.
    assert_err!(store.append(&id, end.epoch, end.head, vec![running()]).await, StoreError::Fenced { .. });
    other.enqueue(&id, vec![message("again")]).await.unwrap();
    assert_eq!(claim(&*other, &id, "b").await, (end.epoch + 2, end.head + 1));
    proved(&*store, &id).await;
}

pub(crate) async fn a_broken_import_leaves_nothing_to_see(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (id, end, records) = exported(&*store, 3).await;
    store.delete(&id).await.unwrap();
    let mut swapped = records.clone();
    swapped.swap(100, 101);
    let mut changed = records.clone();
    let text = String::from_utf8(changed[120].bytes.clone()).unwrap();
    changed[120].bytes = text.replace("\"x\"", "\"y\"").into_bytes();
    assert_ne!(changed[120], records[120]);
    let mut longer = records.clone();
    longer.push(records[0].clone());
    for broken in [records[..130].to_vec(), swapped, changed, longer, vec![]] {
        assert_err!(import(&*store, &id, &end, &broken).await, StoreError::BadImport(_));
        assert_err!(store.state(&id).await, StoreError::NotFound(_));
        assert_err!(store.read(&id, 0, 10).await, StoreError::NotFound(_));
        assert_err!(store.export(&id).await.map(drop), StoreError::NotFound(_));
        assert_err!(store.claim(&id, &pod("a"), Takeover::Always, TTL).await, StoreError::NotFound(_));
        assert_err!(store.enqueue(&id, vec![message("a")]).await, StoreError::NotFound(_));
    }
    let gone = stream::once(async { Err(StoreError::BadImport("the client went away".into())) });
    let fails = stream::iter(records[..100].to_vec()).map(Ok).chain(gone);
    assert_err!(store.import(meta(&id), &end, fails.boxed()).await, StoreError::BadImport(_));
    assert_err!(store.state(&id).await, StoreError::NotFound(_));
    import(&*store, &id, &end, &records).await.unwrap();
    assert_eq!(proved(&*store, &id).await.1, records, "it is repeated, and whole");
}

pub(crate) async fn a_broken_import_is_taken_away(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (id, end, records) = exported(&*store, 2).await;
    store.delete(&id).await.unwrap();
    assert_err!(import(&*store, &id, &end, &records[..90]).await, StoreError::BadImport(_));
    store.delete(&id).await.unwrap();
    assert!(store.list(None, 10).await.unwrap().is_empty());
    store.create(meta(&id)).await.unwrap();
    assert_eq!(store.read(&id, 0, 10).await.unwrap().records, []);
}

pub(crate) async fn what_ran_is_closed_by_an_import(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    let call = tool_use();
    store.append(&id, epoch, head, vec![running(), call.clone()]).await.unwrap();
    let (end, records) = proved(&*store, &id).await;
    store.delete(&id).await.unwrap();
    import(&*store, &id, &end, &records).await.unwrap();
    let expected =
        ["x.session.woken", "session.status_running", "agent.tool_use", "agent.tool_result", "session.status_idle"];
    assert_eq!(kinds(&*store, &id).await, expected);
    assert_eq!(store.call(&id, &call.id).await.unwrap(), CallState::Finished { seq: 4 });
    assert_eq!(store.state(&id).await.unwrap().status, SessionStatus::Idle);
    proved(&*store, &id).await;
}

pub(crate) async fn what_has_ended_stays_ended(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    store.append_unfenced(&id, messages(&["a"])).await.unwrap();
    let archived_at = store.archive(&id).await.unwrap();
    let (end, records) = proved(&*store, &id).await;
    store.delete(&id).await.unwrap();
    import(&*store, &id, &end, &records).await.unwrap();
    assert_eq!(proved(&*store, &id).await.1, records);
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.status, state.archived_at), (SessionStatus::Terminated, Some(archived_at)));
    assert_err!(store.enqueue(&id, vec![message("b")]).await, StoreError::Ended(_));
}

/// A fork's history becomes a log of its own.
pub(crate) async fn a_fork_is_exported_whole(fixture: &dyn Fixture) {
    let store = fixture.store();
    let (parent, ..) = exported(&*store, 2).await;
    let id = super::forks::fork(&*store, &parent, 60).await;
    store.append_unfenced(&id, messages(&["own"])).await.unwrap();
    let (end, records) = proved(&*store, &id).await;
    store.delete(&id).await.unwrap();
    store.delete(&parent).await.unwrap();
    import(&*store, &id, &end, &records).await.unwrap();
    assert_eq!(store.state(&id).await.unwrap().meta.parent, None);
    let after = proved(&*store, &id).await.1;
    assert_eq!(after[..records.len()], records[..]);
}
