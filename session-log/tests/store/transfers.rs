//! Logs that go from one etcd and object store to another, with everything that is kept elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use longhand_protocol::event::{EventBody, NewEvent, Record};
use longhand_protocol::export::{FORMAT, Header, Reader, Step, VERSION, Writer};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::archive::Reach;
use longhand_session_log::etcd::EtcdStore;
use longhand_session_log::objects::{DEADLINE, Objects};
use longhand_session_log::store::{CallState, End, Exported, FinishFrom, Parent, Result};
use longhand_session_log::{SessionStore, StoreError};

use crate::archive::{DAY, archive_all, everything, later, memory, names};
use crate::conformance::exports::proved;
use crate::conformance::{
    assert_err, claim, idle_event, message, messages, meta, running, session, tool_result, tool_use,
};
use crate::etcd::etcd_with;
use crate::support::s3::S3;

const LARGE: usize = 70_000;

fn large(text: &str) -> NewEvent {
    message(&text.repeat(LARGE / text.len()))
}

fn stream_of(records: &[Exported]) -> BoxStream<'static, Result<Exported>> {
    stream::iter(records.to_vec()).map(Ok).boxed()
}

async fn export(store: &dyn SessionStore, id: &SessionId) -> (End, Vec<Exported>) {
    let (end, _) = proved(store, id).await;
    (end, store.export(id).await.unwrap().records.try_collect().await.unwrap())
}

/// What the service writes of it.
fn file(end: &End, records: &[Exported]) -> Vec<u8> {
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        session: serde_json::json!({"id": "sesn_1"}),
        epoch: end.epoch,
        head: end.head,
        hash: end.hash.clone(),
        archived_at: end.archived_at,
        spec: None,
    };
    let mut writer = Writer::default();
    let mut file = writer.header(header).unwrap();
    for Exported { seq, bytes, payloads } in records {
        file.extend(writer.event(*seq, bytes.clone(), payloads).unwrap());
    }
    file.extend(writer.end().unwrap());
    file
}

/// What the service reads of a file, if it is whole.
fn read(file: &[u8]) -> Vec<Exported> {
    let (mut reader, mut records) = (Reader::default(), Vec::new());
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        if let Step::Event { seq, record, payloads } = reader.line(line).unwrap() {
            records.push(Exported { seq, bytes: record, payloads: payloads.into_values().collect() });
        }
    }
    reader.finish().unwrap();
    records
}

/// A fork of a log with a bit of everything: contents elsewhere, segments, large calls and results.
async fn history(store: &EtcdStore) -> (SessionId, EventId) {
    let parent = session(store).await;
    let (epoch, head) = claim(store, &parent, "a").await;
    let mut call = tool_use();
    if let EventBody::AgentToolUse { input, .. } = &mut call.body {
        *input = serde_json::json!({"command": "c".repeat(LARGE)});
    }
    store.append(&parent, epoch, head, vec![running(), large("same"), call.clone()]).await.unwrap();
    let result = vec![tool_result(&call.id, &"r".repeat(LARGE))];
    store.finish_call(&parent, &call.id, &FinishFrom::Open, result).await.unwrap();
    archive_all(store, &parent, Reach::All).await;
    store.append_unfenced(&parent, vec![large("beyond the fork")]).await.unwrap();
    let id = store.fork_id(&parent);
    store.fork(meta(&id), &Parent { session: parent, seq: 5 }).await.unwrap();
    for number in 0..3 {
        store.append_unfenced(&id, messages(&["x"; 50])).await.unwrap();
        store.append_unfenced(&id, vec![large(&format!("own {number}")), large("same")]).await.unwrap();
    }
    store.append_unfenced(&id, vec![idle_event()]).await.unwrap();
    archive_all(store, &id, Reach::Old).await;
    (id, call.id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_elsewhere_travels_along() {
    let (_, objects) = memory();
    let etcd = etcd_with(Some(objects.clone())).await;
    let (id, call) = history(&etcd.inner()).await;
    let before = everything(&etcd.inner(), &id).await;
    let (end, records) = export(&etcd.inner(), &id).await;
    let contents = records.iter().map(|record| record.payloads.len()).collect::<Vec<_>>();
    assert_eq!((contents.iter().sum::<usize>(), contents[2]), (9, 1));
    let file = file(&end, &records);
    // Nothing is left where it comes from.
    for name in names(&objects).await {
        objects.delete(&name).await.unwrap();
    }

    let s3 = S3::start().await;
    let elsewhere = etcd_with(Some(s3.objects("there"))).await;
    let (store, as_another) = (elsewhere.inner(), SessionId::generate());
    store.import(meta(&as_another), &end, stream_of(&read(&file))).await.unwrap();
    assert_eq!(everything(&store, &as_another).await, before);
    assert_eq!(store.call(&as_another, &call).await.unwrap(), CallState::Finished { seq: 5 });
    assert_eq!(export(&store, &as_another).await.1, records);
    // It is as good as any other, also for those who move, collect and remove.
    archive_all(&store, &as_another, Reach::All).await;
    for _ in 0..2 {
        store.collect(DAY, later()).await.unwrap();
        assert_eq!(everything(&elsewhere.another().await, &as_another).await, before);
    }
    store.delete(&as_another).await.unwrap();
    assert_eq!(elsewhere.leftovers().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_content_that_is_missing_or_another_is_refused() {
    let etcd = etcd_with(Some(memory().1)).await;
    let store = etcd.inner();
    let (id, _) = history(&store).await;
    let (end, records) = export(&store, &id).await;
    let to = SessionId::generate();
    for payloads in [vec![], vec![b"another".to_vec()]] {
        let mut changed = records.clone();
        changed[2].payloads = payloads;
        let refused = store.import(meta(&to), &end, stream_of(&changed)).await;
        assert_err!(refused, StoreError::BadImport(reason) if reason.contains("event 3"));
    }
    store.import(meta(&to), &end, stream_of(&records)).await.unwrap();
}

/// A call whose input is elsewhere is closed like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_call_that_ran_is_closed_by_an_import() {
    let etcd = etcd_with(Some(memory().1)).await;
    let store = etcd.inner();
    let id = session(&store).await;
    let (epoch, head) = claim(&store, &id, "a").await;
    let mut call = tool_use();
    if let EventBody::AgentToolUse { input, .. } = &mut call.body {
        *input = serde_json::json!({"command": "c".repeat(LARGE)});
    }
    store.append(&id, epoch, head, vec![running(), call.clone()]).await.unwrap();
    let (end, records) = export(&store, &id).await;
    let to = SessionId::generate();
    store.import(meta(&to), &end, stream_of(&records)).await.unwrap();
    assert_eq!(store.call(&to, &call.id).await.unwrap(), CallState::Finished { seq: 4 });
}

/// An export of any size is read as it is taken: contents one by one, records by pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_read_than_is_taken() {
    let (faulty, objects) = memory();
    let etcd = etcd_with(Some(objects)).await;
    let store = etcd.inner();
    let id = session(&store).await;
    for number in 0..20 {
        store.append_unfenced(&id, vec![large(&format!("{number} "))]).await.unwrap();
    }
    for _ in 0..6 {
        store.append_unfenced(&id, messages(&["x"; 50])).await.unwrap();
    }
    let read = faulty.read();
    let mut export = store.export(&id).await.unwrap();
    for taken in 1..=20 {
        assert_eq!(export.records.next().await.unwrap().unwrap().payloads.len(), 1);
        assert_eq!(faulty.read() - read, taken);
    }
    // What comes later is not in memory yet.
    let mut kv = etcd.client().kv_client();
    let last = format!("{}log/{id}/{:016x}", etcd.prefix(), 320);
    kv.delete(last, None).await.unwrap();
    let rest: Vec<Result<Exported>> = export.records.collect().await;
    assert!(rest.len() < 300 && rest.last().unwrap().is_err(), "{}", rest.len());
}

/// The content is there already, and nobody holds it: a collector is about to remove it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_takes_nothing_that_is_being_imported() {
    let (faulty, objects) = memory();
    let etcd = etcd_with(Some(objects)).await;
    let store = etcd.inner();
    let id = session(&store).await;
    store.append_unfenced(&id, vec![large("content"), idle_event()]).await.unwrap();
    let before: Vec<Record> = everything(&store, &id).await;
    let (end, records) = export(&store, &id).await;
    store.delete(&id).await.unwrap();

    let (gate, to) = (faulty.gate(), SessionId::generate());
    let importing = tokio::spawn({
        let (store, meta, records) = (store.clone(), meta(&to), stream_of(&records));
        async move { store.import(meta, &end, records).await }
    });
    gate.reached().await;
    let collector = etcd.with_objects(Objects::over(Arc::new(faulty.untroubled()), DEADLINE)).await;
    assert_eq!(collector.collect(DAY, later()).await.unwrap().removed, 0);
    gate.open();
    importing.await.unwrap().unwrap();
    assert_eq!(everything(&etcd.another().await, &to).await, before);
    // It is known by now who holds it.
    collector.collect(DAY, later()).await.unwrap();
    let holds: BTreeMap<String, String> = etcd.values("payload/").await;
    assert!(holds.values().all(|hold| hold.contains("\"confirmed\":true")) && holds.len() == 1, "{holds:?}");
    assert_eq!(everything(&etcd.another().await, &to).await, before);
}
