//! What leaves etcd is read as if it had stayed; nothing is lost wherever the process ends, and nothing is left for ever.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::SessionId;
use longhand_protocol::event::{NewEvent, Record};
use longhand_session_log::archive::{ArchivePolicy, Reach};
use longhand_session_log::caps::Caps;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use longhand_session_log::objects::{DEADLINE, Objects};
use longhand_session_log::store::{CallState, FinishFrom, Query};
use longhand_session_log::{SessionStore, StoreError};
use tokio::task::JoinHandle;

use crate::conformance::{
    Fixture, PATIENCE, assert_err, claim, message, messages, running, session, tool_result, tool_use,
};
use crate::etcd::{Etcd, etcd_with};
use crate::support::Server;
use crate::support::cut::Cut;
use crate::support::faulty::{Faulty, Last};

pub(crate) const SMALL: ArchivePolicy =
    ArchivePolicy { hot_events: 10, segment_events: 20, segment_bytes: 1024 * 1024 };
pub(crate) const DAY: SignedDuration = SignedDuration::from_hours(24);
/// More than what is stored as it is.
const LARGE: usize = 100_000;

pub(crate) fn memory() -> (Faulty, Objects) {
    let faulty = Faulty::default();
    (faulty.clone(), Objects::over(Arc::new(faulty), DEADLINE))
}

pub(crate) fn later() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(25)
}

pub(crate) async fn names(objects: &Objects) -> Vec<String> {
    let mut names: Vec<String> = objects.list("").map_ok(|listed| listed.name).try_collect().await.unwrap();
    names.sort();
    names
}

pub(crate) async fn archive_all(store: &EtcdStore, id: &SessionId, reach: Reach) -> u64 {
    let mut events = 0;
    while let Some(archived) = store.archive_segment(id, &SMALL, reach).await.unwrap() {
        events += archived.events;
    }
    events
}

pub(crate) async fn everything(store: &dyn SessionStore, id: &SessionId) -> Vec<Record> {
    let (mut records, mut after) = (Vec::new(), 0);
    loop {
        let slice = store.read(id, after, 1_000).await.unwrap();
        records.extend(slice.records);
        after = records.last().map_or(0, |record: &Record| record.seq);
        if after == slice.head {
            return records;
        }
    }
}

/// Etcd under an archiver that takes every event away as soon as it sees it.
struct Archiving {
    etcd: Etcd,
    archiver: JoinHandle<()>,
}

#[async_trait]
impl Fixture for Archiving {
    fn store(&self) -> Arc<dyn SessionStore> {
        self.etcd.store()
    }

    async fn replica(&self) -> Arc<dyn SessionStore> {
        self.etcd.replica().await
    }

    async fn capped(&self, caps: Caps) -> Arc<dyn SessionStore> {
        self.etcd.capped(caps).await
    }

    async fn expire_claim(&self, id: &SessionId) {
        self.etcd.expire_claim(id).await;
    }

    fn bounds_bytes(&self) -> bool {
        false
    }
}

impl Drop for Archiving {
    fn drop(&mut self) {
        self.archiver.abort();
    }
}

async fn archiving() -> Archiving {
    let etcd = etcd_with(Some(memory().1)).await;
    let store = etcd.inner();
    let archiver = tokio::spawn(async move {
        loop {
            for meta in store.list(None, 100).await.unwrap() {
                match store.archive_segment(&meta.id, &SMALL, Reach::All).await {
                    Ok(_) | Err(StoreError::NotFound(_) | StoreError::Unavailable(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    Archiving { etcd, archiver }
}

crate::conformance::suite!(archiving);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_events_leave_etcd_and_are_read_as_before() {
    let (_, objects) = memory();
    let etcd = etcd_with(Some(objects.clone())).await;
    let (store, other) = (etcd.inner(), etcd.replica().await);
    let id = session(&store).await;
    for round in 0..10 {
        let texts: Vec<String> = (0..20).map(|number| format!("{round} {number}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        store.append_unfenced(&id, messages(&texts)).await.unwrap();
    }
    let before = everything(&store, &id).await;
    assert_eq!(archive_all(&store, &id, Reach::Old).await, 180);
    assert_eq!(etcd.count(&format!("log/{id}/")).await, 20);
    assert_eq!(names(&objects).await.len(), 9);
    for reader in [&store as &dyn SessionStore, &*other] {
        assert_eq!(everything(reader, &id).await, before);
        let last = reader.slice(&id, &Query::last(30)).await.unwrap().records;
        assert_eq!(last, before[170..].iter().rev().cloned().collect::<Vec<_>>());
        assert_eq!(reader.slice(&id, &Query::around(180, 5)).await.unwrap().records, before[174..185]);
        let tail = reader.tail(&id, 3).await.unwrap().take(197).try_collect::<Vec<_>>();
        assert_eq!(tokio::time::timeout(PATIENCE, tail).await.unwrap().unwrap(), before[3..]);
    }

    assert_eq!(archive_all(&store, &id, Reach::All).await, 20);
    assert_eq!(etcd.count(&format!("log/{id}/")).await, 0);
    assert_eq!(everything(&*other, &id).await, before);
    let head = store.append_unfenced(&id, messages(&["one more"])).await.unwrap().head;
    assert_eq!(head, 201);
    assert_eq!(everything(&*other, &id).await.len(), 201);
}

/// A small segment is written again with what comes after it, so that their number is bounded by what they hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_segments_are_put_together() {
    let (_, objects) = memory();
    let etcd = etcd_with(Some(objects.clone())).await;
    let store = etcd.inner();
    let id = session(&store).await;
    for _ in 0..40 {
        store.append_unfenced(&id, messages(&["x"])).await.unwrap();
        archive_all(&store, &id, Reach::All).await;
    }
    let collected = store.collect(DAY, later()).await.unwrap();
    assert_eq!(collected.removed, 36, "{collected:?}");
    assert_eq!(names(&objects).await.len(), 4);
    assert_eq!(everything(&store, &id).await.len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repetitions_are_recognised_until_they_are_forgotten() {
    let etcd = etcd_with(Some(memory().1)).await;
    let store = etcd.inner();
    let id = session(&store).await;
    let (queued, appended, call) = (message("queued"), vec![message("a"), message("b")], tool_use());
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    let (epoch, head) = claim(&store, &id, "a").await;
    let promoted = store.promote(&id, epoch, head, &[queued.id.clone()], vec![call.clone()]).await.unwrap();
    let first = store.append(&id, epoch, promoted.head, appended.clone()).await.unwrap();
    let result = vec![tool_result(&call.id, "done")];
    let finished = store.finish_call(&id, &call.id, &FinishFrom::Open, result.clone()).await.unwrap();
    archive_all(&store, &id, Reach::All).await;

    assert_eq!(store.append(&id, epoch, promoted.head, appended.clone()).await.unwrap(), first);
    assert_eq!(store.finish_call(&id, &call.id, &FinishFrom::Open, result).await.unwrap(), finished);
    let again = store.promote(&id, epoch, head, &[queued.id.clone()], vec![call.clone()]).await.unwrap();
    assert_eq!(again, promoted);
    assert_eq!(store.enqueue(&id, vec![queued.clone()]).await.unwrap()[0].event.id, queued.id);
    assert_err!(store.append_unfenced(&id, vec![queued.clone(), message("c")]).await, StoreError::Duplicate(_));
    assert_eq!(store.forget(&id, DAY, Timestamp::now()).await.unwrap(), 0);
    assert_eq!(store.position(&id, &queued.id).await.unwrap(), Some(2));

    assert_eq!(store.forget(&id, DAY, later()).await.unwrap(), 6);
    assert_eq!(store.forget(&id, DAY, later()).await.unwrap(), 0);
    assert_eq!(etcd.count(&format!("s/{id}/idem/")).await + etcd.count(&format!("s/{id}/done/")).await, 0);
    assert_eq!(store.position(&id, &queued.id).await.unwrap(), Some(2));
    assert_err!(store.call(&id, &call.id).await, StoreError::UnknownCall(_));
}

/// Ends an archiver at each call to the object store, on both sides of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archiver_may_end_at_any_step() {
    let (faulty, objects) = memory();
    let etcd = etcd_with(Some(objects.clone())).await;
    let store = etcd.inner();
    let mut stopped = 0;
    for calls in 0..5 {
        for last in [Last::Lost, Last::Done] {
            let id = session(&store).await;
            store.append_unfenced(&id, messages(&["x"; 15])).await.unwrap();
            archive_all(&store, &id, Reach::All).await;
            store.append_unfenced(&id, messages(&["y"; 40])).await.unwrap();
            let before = everything(&store, &id).await;
            faulty.stop_after(calls, last);
            let outcome = store.archive_segment(&id, &SMALL, Reach::All).await;
            stopped += usize::from(outcome.is_err());
            assert_eq!(faulty.heal(), outcome.is_err(), "{outcome:?}");
            let fresh = etcd.another().await;
            assert_eq!(everything(&fresh, &id).await, before);
            archive_all(&fresh, &id, Reach::All).await;
            assert_eq!(everything(&fresh, &id).await, before);
            assert_eq!(etcd.count(&format!("log/{id}/")).await, 0);
            fresh.delete(&id).await.unwrap();
        }
    }
    assert!(stopped >= 4, "{stopped}");
    store.collect(DAY, later()).await.unwrap();
    assert!(names(&objects).await.is_empty());
}

/// A place that acknowledges what it does not keep is noticed before etcd is trimmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_kept_is_not_trimmed() {
    let (faulty, objects) = memory();
    let etcd = etcd_with(Some(objects)).await;
    let store = etcd.inner();
    let id = session(&store).await;
    store.append_unfenced(&id, messages(&["x"; 40])).await.unwrap();
    let before = everything(&store, &id).await;
    faulty.forget(true);
    let outcome = store.archive_segment(&id, &SMALL, Reach::All).await;
    assert_err!(outcome, StoreError::Unavailable(reason) if reason.contains("is not there"));
    assert_eq!(etcd.count(&format!("log/{id}/")).await, 40);
    assert_eq!(everything(&etcd.another().await, &id).await, before);
    faulty.forget(false);
    assert_eq!(archive_all(&store, &id, Reach::All).await, 40);
    assert_eq!(everything(&etcd.another().await, &id).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_moves_nothing_twice() {
    let server = Server::start(false).await;
    let cut = Cut::to(server.address()).await;
    let options = EtcdOptions { objects: Some(memory().1), ..EtcdOptions::default() };
    let connect = async |endpoint| EtcdStore::connect(&[endpoint], options.clone()).await.unwrap();
    let (store, direct) = (connect(cut.endpoint()).await, connect(server.endpoint()).await);
    let id = session(&direct).await;
    for _ in 0..20 {
        direct.append_unfenced(&id, messages(&["x"; 30])).await.unwrap();
        let before = everything(&direct, &id).await;
        store.state(&id).await.unwrap();
        cut.lose_next_answer();
        match tokio::time::timeout(PATIENCE, store.archive_segment(&id, &SMALL, Reach::All)).await.unwrap() {
            Ok(_) | Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
        assert_eq!(everything(&direct, &id).await, before);
    }
    direct.collect(DAY, later()).await.unwrap();
    assert_eq!(everything(&direct, &id).await.len(), 600);
}

/// The one who reads has an old manifest in hand when its segment is replaced and collected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_no_seam_while_segments_are_made_replaced_and_collected() {
    let etcd = etcd_with(Some(memory().1)).await;
    let store = etcd.inner();
    let id = session(&store).await;
    let mut tail = store.tail(&id, 0).await.unwrap();
    let (writer, archiver) = (etcd.another().await, etcd.another().await);
    let writing = {
        let id = id.clone();
        async move {
            for _ in 0..60 {
                writer.append_unfenced(&id, messages(&["x"; 5])).await.unwrap();
            }
        }
    };
    let archiving = {
        let id = id.clone();
        async move {
            loop {
                archiver.archive_segment(&id, &SMALL, Reach::All).await.unwrap();
                archiver.collect(DAY, later()).await.unwrap();
            }
        }
    };
    let reading = {
        let (id, reader) = (id.clone(), etcd.another().await);
        async move {
            loop {
                let records = everything(&reader, &id).await;
                assert!(records.iter().zip(1..).all(|(record, seq)| record.seq == seq));
            }
        }
    };
    let following = async move {
        for seq in 1..=300 {
            assert_eq!(tail.next().await.unwrap().unwrap().seq, seq);
        }
    };
    let all = async {
        tokio::select! {
            ((), ()) = async { tokio::join!(writing, following) } => {}
            () = archiving => {}
            () = reading => {}
        }
    };
    tokio::time::timeout(PATIENCE * 2, all).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_are_kept_by_reference_and_come_back() {
    let (_, objects) = memory();
    let etcd = etcd_with(Some(objects.clone())).await;
    let (store, other) = (etcd.inner(), etcd.replica().await);
    let id = session(&store).await;
    let mut tail = other.tail(&id, 0).await.unwrap();
    let large = |name: &str| message(&name.repeat(LARGE));
    let queued = large("q");
    assert_eq!(store.enqueue(&id, vec![queued.clone()]).await.unwrap()[0].event.body, queued.body);
    assert_eq!(other.inbox(&id).await.unwrap().items[0].event.body, queued.body);
    assert_eq!(store.enqueue(&id, vec![queued.clone()]).await.unwrap().len(), 1);
    let (epoch, head) = claim(&store, &id, "a").await;
    let promoted = store.promote(&id, epoch, head, &[queued.id.clone()], vec![running()]).await.unwrap();
    assert_eq!(promoted.records[0].event.body, queued.body);
    let call = tool_use();
    let pair = vec![large("a"), large("a"), call.clone()];
    let appended = other.append(&id, epoch, promoted.head, pair.clone()).await.unwrap();
    assert_eq!(other.append(&id, epoch, promoted.head, pair.clone()).await.unwrap(), appended);
    let result = tool_result(&call.id, &"r".repeat(2_000_000));
    let done = store.finish_call(&id, &call.id, &FinishFrom::Open, vec![message("x"), result.clone(), message("y")]);
    assert_eq!(done.await.unwrap().records[1].event.body, result.body);
    assert_eq!(store.call(&id, &call.id).await.unwrap(), CallState::Finished { seq: 8 });

    let records = everything(&*other, &id).await;
    let bodies: Vec<_> = records.iter().skip(1).map(|record| &record.event.body).collect();
    let expected: Vec<NewEvent> = [vec![queued, running()], pair, vec![message("x"), result, message("y")]].concat();
    assert_eq!(bodies.len(), expected.len());
    assert!(bodies.iter().zip(&expected).all(|(body, event)| **body == event.body));
    for record in &records {
        assert_eq!(tokio::time::timeout(PATIENCE, tail.next()).await.unwrap().unwrap().unwrap(), *record);
    }
    assert_eq!(names(&objects).await.len(), 3);
    assert!(etcd.bytes(&format!("s/{id}/")).await + etcd.bytes(&format!("log/{id}/")).await < LARGE);

    archive_all(&store, &id, Reach::All).await;
    assert_eq!(everything(&*other, &id).await, records);
    store.collect(DAY, later()).await.unwrap();
    assert_eq!(everything(&etcd.another().await, &id).await, records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nothing_refers_to_is_collected_and_nothing_else() {
    let (faulty, objects) = memory();
    let etcd = etcd_with(Some(objects.clone())).await;
    let store = etcd.inner();
    let (id, gone) = (session(&store).await, session(&store).await);
    let (shared, own, orphan) = (message(&"s".repeat(LARGE)), message(&"o".repeat(LARGE)), message(&"x".repeat(LARGE)));
    store.append_unfenced(&id, vec![shared.clone()]).await.unwrap();
    store.append_unfenced(&gone, vec![NewEvent::new(shared.body.clone()), own]).await.unwrap();
    store.append_unfenced(&id, messages(&["x"; 30])).await.unwrap();
    archive_all(&store, &id, Reach::All).await;
    // It is written, and then the event is refused.
    let twice = vec![NewEvent { id: shared.id.clone(), ..orphan.clone() }];
    assert_err!(store.append_unfenced(&id, twice).await, StoreError::Duplicate(_));
    let before: BTreeSet<String> = names(&objects).await.into_iter().collect();

    assert_eq!(store.collect(DAY, Timestamp::now()).await.unwrap().removed, 0);
    let kept = everything(&store, &id).await;
    assert_eq!(store.collect(DAY, later()).await.unwrap().removed, 1);
    store.delete(&gone).await.unwrap();
    // It ends in the middle of each kind of call, and another goes on.
    for calls in 0..6 {
        faulty.stop_after(calls, if calls % 2 == 0 { Last::Lost } else { Last::Done });
        let outcome = store.collect(DAY, later()).await;
        assert_eq!(faulty.heal(), outcome.is_err(), "{outcome:?}");
    }
    store.collect(DAY, later()).await.unwrap();
    let after: BTreeSet<String> = names(&objects).await.into_iter().collect();
    assert_eq!(before.difference(&after).count(), 2, "{before:?} {after:?}");
    assert_eq!(everything(&etcd.another().await, &id).await, kept);
    assert_eq!(etcd.count("doomed/").await, 0);
    // Content that was collected is written anew.
    store.append_unfenced(&id, vec![orphan.clone()]).await.unwrap();
    assert_eq!(everything(&etcd.another().await, &id).await.last().unwrap().event.body, orphan.body);
}

#[tokio::test]
async fn without_its_objects_a_log_says_what_is_missing() {
    let (_, objects) = memory();
    let etcd = etcd_with(Some(objects.clone())).await;
    let store = etcd.inner();
    let id = session(&store).await;
    store.append_unfenced(&id, vec![message(&"x".repeat(LARGE))]).await.unwrap();
    let bare = etcd.without_objects().await;
    assert_err!(bare.read(&id, 0, 10).await, StoreError::Unavailable(reason) if reason.contains("object store"));
    for name in names(&objects).await {
        objects.delete(&name).await.unwrap();
    }
    assert_err!(etcd.another().await.read(&id, 0, 10).await, StoreError::Corrupt { key, .. } if key.contains("payload"));
}
