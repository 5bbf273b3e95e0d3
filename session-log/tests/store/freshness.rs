//! Which reads any member of etcd may answer by itself, and which it has to ask the others about: what is told of a log's
//! end, its owner, its inbox and its calls is never old, while records, which never change, are read wherever they are.

use std::future::Future;

use futures::StreamExt as _;
use longhand_session_log::SessionStore as _;
use longhand_session_log::StoreError;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use longhand_session_log::requests::Requests as _;
use longhand_session_log::store::{FinishFrom, Incarnation, Query, Takeover};

use crate::conformance::{
    PATIENCE, TTL, claim, idle_event, message, messages, pod, running, session, tool_result, tool_use,
};
use crate::support::Server;
use crate::support::tap::{Read, Tap};

/// What is read meanwhile, without what the watches of the store read.
async fn reads<T>(tap: &Tap, work: impl Future<Output = T>) -> Vec<Read> {
    tap.take();
    tokio::time::timeout(PATIENCE, work).await.expect("it ends in time");
    tap.take()
}

/// Each read of the head is a round trip to etcd before the one that writes.
fn looks(reads: &[Read]) -> usize {
    reads.iter().filter(|read| read.key.ends_with("/head")).count()
}

/// What a message and a tool call wait for on their way through the log. What is known is tried at once; what is not is
/// read once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_reads_nothing_twice() {
    let server = Server::start(false).await;
    let tap = Tap::on(server.address()).await;
    let store = EtcdStore::connect(&[tap.endpoint()], EtcdOptions::default()).await.unwrap();
    let id = session(&store).await;
    let queued = message("a");
    // As a request does, which looks at the session before it queues a message.
    store.state(&id).await.unwrap();
    let read = reads(&tap, async { store.enqueue(&id, vec![queued.clone()]).await.unwrap() }).await;
    assert!(read.is_empty(), "a message: {read:?}");
    let read = reads(&tap, async { store.enqueue(&id, vec![message("b")]).await.unwrap() }).await;
    assert!(!read.is_empty(), "a session that does not rest is looked at");
    let mut claimed = None;
    let read = reads(&tap, async {
        claimed = Some(store.claim(&id, &pod("a"), Takeover::IfFree, TTL).await.unwrap());
    })
    .await;
    assert_eq!(looks(&read), 1, "a claim: {read:?}");
    let (epoch, woken) = claimed.unwrap();
    let call = tool_use();
    // As a harness does, which promotes what it was shown.
    let seen = store.inbox(&id).await.unwrap();
    let seen: Vec<_> = seen.items.into_iter().map(|item| item.event.id).collect();
    assert_eq!(seen[0], queued.id);
    let read = reads(&tap, async {
        store.promote(&id, epoch, woken.seq, &seen, vec![running()]).await.unwrap();
    })
    .await;
    assert_eq!(looks(&read), 0, "a promotion: {read:?}");
    let head = woken.seq + 3;
    let read = reads(&tap, async { store.append(&id, epoch, head, vec![call.clone()]).await.unwrap() }).await;
    assert_eq!(looks(&read), 0, "an append: {read:?}");
    let to = Incarnation { sandbox: "s".to_owned(), pod_uid: "p".to_owned(), attempt: "1".to_owned() };
    let read = reads(&tap, async { store.dispatch(&id, epoch, &call.id, &to).await.unwrap() }).await;
    assert_eq!(looks(&read), 0, "a dispatch: {read:?}");
    // What is assumed refuses nobody: it is read before it is refused, and what was done is found.
    store.dispatch(&id, epoch, &call.id, &to).await.unwrap();
    let other = Incarnation { attempt: "2".to_owned(), ..to.clone() };
    let refused = store.dispatch(&id, epoch, &call.id, &other).await.unwrap_err();
    assert!(matches!(refused, StoreError::CallState { .. }), "{refused:?}");
    let refused = store.dispatch(&id, epoch + 1, &call.id, &other).await.unwrap_err();
    assert!(matches!(refused, StoreError::Fenced { .. }), "{refused:?}");
    let result = vec![tool_result(&call.id, "done")];
    let from = FinishFrom::Dispatched(to);
    let read = reads(&tap, async { store.finish_call(&id, &call.id, &from, result).await.unwrap() }).await;
    assert_eq!(looks(&read), 0, "a result: {read:?}");
}

fn is_record(read: &Read) -> bool {
    read.key.contains("/log/")
}

/// Of a page of history: the log's end as of now, records from wherever they are.
fn assert_history(what: &str, reads: &[Read]) {
    assert!(reads.iter().any(is_record), "{what}: no record was read: {reads:?}");
    assert!(reads.iter().any(|read| read.key.ends_with("/head")), "{what}: the end was not read: {reads:?}");
    for read in reads {
        assert_eq!(read.serializable, is_record(read), "{what}: {read:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_read_from_any_member_and_nothing_else_is() {
    let server = Server::start(false).await;
    let tap = Tap::on(server.address()).await;
    let store = EtcdStore::connect(&[tap.endpoint()], EtcdOptions::default()).await.unwrap();
    let id = session(&store).await;
    for _ in 0..6 {
        store.append_unfenced(&id, messages(&["x"; 50])).await.unwrap();
    }

    let page = reads(&tap, async { store.slice(&id, &Query::after(10, 200)).await.unwrap() }).await;
    assert_history("a slice", &page);
    let last = reads(&tap, async { store.slice(&id, &Query::last(3)).await.unwrap() }).await;
    assert_history("the end", &last);
    let until = Some(jiff::Timestamp::now());
    let by_time = reads(&tap, async { store.slice(&id, &Query { until, ..Query::last(3) }).await.unwrap() }).await;
    assert_history("a slice by time", &by_time);
    let tail = reads(&tap, async {
        let mut tail = store.tail(&id, 0).await.unwrap();
        for _ in 0..300 {
            tail.next().await.unwrap().unwrap();
        }
    })
    .await;
    assert_history("a tail", &tail);
    let export = reads(&tap, async {
        let records = store.export(&id).await.unwrap().records;
        assert_eq!(records.count().await, 300);
    })
    .await;
    assert_history("an export", &export);

    // The life of a session, each step of which needs the present.
    let queued = message("a");
    let (call, mut steps) = (tool_use(), Vec::new());
    tap.take();
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    store.claim(&id, &pod("a"), Takeover::IfFree, TTL).await.unwrap();
    let (epoch, head) = claim(&store, &id, "b").await;
    store.renew(&id, epoch).await.unwrap();
    steps.push(("claim", tap.take()));
    store.inbox(&id).await.unwrap();
    store.wait_inbox(&id, 0, PATIENCE).await.unwrap();
    steps.push(("wake", tap.take()));
    let then = vec![running(), call.clone()];
    let head = store.promote(&id, epoch, head, &[queued.id.clone()], then).await.unwrap().head;
    store.position(&id, &queued.id).await.unwrap();
    steps.push(("promote", tap.take()));
    store.call(&id, &call.id).await.unwrap();
    store.open_calls(&id).await.unwrap();
    let from = FinishFrom::Open;
    store.finish_call(&id, &call.id, &from, vec![tool_result(&call.id, "done")]).await.unwrap();
    steps.push(("calls", tap.take()));
    let wake = store.inbox(&id).await.unwrap().wake_revision.unwrap();
    store.idle(&id, epoch, head + 1, wake, vec![idle_event()]).await.unwrap();
    store.state(&id).await.unwrap();
    store.list(None, 10).await.unwrap();
    store.archive(&id).await.unwrap();
    steps.push(("idle", tap.take()));
    store.requests().begin("name", "digest", jiff::Timestamp::UNIX_EPOCH).await.unwrap();
    steps.push(("request", tap.take()));
    for (step, reads) in steps {
        assert!(!reads.is_empty(), "{step}: nothing was read");
        let old: Vec<&Read> = reads.iter().filter(|read| read.serializable).collect();
        assert!(old.is_empty(), "{step}: {old:?}");
    }

    // What is counted from time to time is old in any case.
    let counted = reads(&tap, async { store.holdings("ns").await.unwrap() }).await;
    assert!(counted.iter().all(|read| read.serializable && read.key.ends_with("holdings/ns")), "{counted:?}");
    assert_eq!(counted.len(), 1);
}
