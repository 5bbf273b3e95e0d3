//! What etcd does to a store: it dies, loses answers, compacts, is away.

use std::future::Future;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _};
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::internal::Wake;
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::etcd::{Endpoints, EtcdOptions, EtcdStore};
use longhand_session_log::store::{FinishFrom, Takeover};
use longhand_session_log::wake::{WakeEvent, WakeWatch};
use longhand_session_log::{SessionStore as _, StoreError};

use crate::conformance::{
    PATIENCE, TTL, assert_err, claim, idle_event, message, messages, meta, pod, running, session, tool_result, tool_use,
};
use crate::support::Server;
use crate::support::cut::Cut;

async fn connect(endpoint: String) -> EtcdStore {
    EtcdStore::connect(&[endpoint], EtcdOptions::default()).await.unwrap()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends in time")
}

async fn compact(server: &Server) {
    let client = etcd_client::Client::connect([server.endpoint()], None).await.unwrap();
    let revision = client.kv_client().get("any", None).await.unwrap().header().unwrap().revision();
    client.kv_client().compact(revision, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_etcd_is_killed() {
    let mut server = Server::start(true).await;
    let store = connect(server.endpoint()).await;
    let id = session(&store).await;
    let mut tail = store.tail(&id, 0).await.unwrap();
    let (acknowledged, mut seen) = tokio::sync::watch::channel(0_usize);
    let writer = tokio::spawn({
        let (store, id) = (store.clone(), id.clone());
        async move {
            let mut ids: Vec<EventId> = Vec::new();
            while ids.len() < 300 {
                let event = message("x");
                while let Err(error) = store.append_unfenced(&id, vec![event.clone()]).await {
                    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
                }
                ids.push(event.id);
                acknowledged.send_replace(ids.len());
            }
            ids
        }
    });
    for count in [60, 160] {
        in_time(seen.wait_for(|acknowledged| *acknowledged >= count)).await.unwrap();
        server.restart().await;
    }
    let ids = in_time(writer).await.unwrap();
    let records = store.read(&id, 0, 1_000).await.unwrap().records;
    let logged: Vec<EventId> = records.iter().map(|record| record.event.id.clone()).collect();
    assert_eq!(logged, ids);
    for record in records {
        assert_eq!(in_time(tail.next()).await.unwrap().unwrap(), record);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_leaves_no_gap_in_a_tail() {
    let server = Server::start(false).await;
    let cut = Cut::to(server.address()).await;
    let (store, direct) = (connect(cut.endpoint()).await, connect(server.endpoint()).await);
    let id = session(&direct).await;
    let mut tail = store.tail(&id, 0).await.unwrap();
    for round in 0..3 {
        direct.append_unfenced(&id, messages(&["x"; 3])).await.unwrap();
        for expected in 1..=3 {
            assert_eq!(in_time(tail.next()).await.unwrap().unwrap().seq, round * 53 + expected);
        }
        cut.block(true);
        direct.append_unfenced(&id, messages(&["y"; 50])).await.unwrap();
        compact(&server).await;
        cut.block(false);
        for expected in 4..=53 {
            assert_eq!(in_time(tail.next()).await.unwrap().unwrap().seq, round * 53 + expected);
        }
    }
}

/// The change is made and its answer lost: the caller learns that it was made, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_looked_up() {
    let server = Server::start(false).await;
    let cut = Cut::to(server.address()).await;
    let (store, direct) = (connect(cut.endpoint()).await, connect(server.endpoint()).await);
    for _ in 0..5 {
        let id = SessionId::generate();
        cut.lose_next_answer();
        in_time(store.create(meta(&id))).await.unwrap();
        assert!(cut.has_lost());
        assert_err!(store.create(meta(&id)).await, StoreError::Exists(_));

        store.state(&id).await.unwrap();
        cut.lose_next_answer();
        assert_eq!(in_time(store.deliver_inputs(&id, 0, messages(&["a"]))).await.unwrap(), 1);
        cut.lose_next_answer();
        in_time(store.enqueue(&id, messages(&["b"]))).await.unwrap();
        let inbox = direct.inbox(&id).await.unwrap();
        assert_eq!(inbox.items.len(), 2);

        let (epoch, head) = claim(&store, &id, "a").await;
        let call = tool_use();
        cut.lose_next_answer();
        let appended = in_time(store.append(&id, epoch, head, vec![running(), call.clone()])).await.unwrap();
        assert_eq!(appended.head, head + 2);
        cut.lose_next_answer();
        let items: Vec<_> = inbox.items.iter().map(|item| item.event.id.clone()).collect();
        let head = in_time(store.promote(&id, epoch, appended.head, &items, vec![])).await.unwrap().head;
        cut.lose_next_answer();
        let result = vec![tool_result(&call.id, "done")];
        let head =
            in_time(store.finish_call(&id, &call.id, &FinishFrom::Open, result)).await.map(|done| (head, done.head));
        let (before, head) = head.unwrap();
        assert_eq!(head, before + 1);
        let wake = direct.inbox(&id).await.unwrap().wake_revision.unwrap();
        cut.lose_next_answer();
        assert_eq!(in_time(store.idle(&id, epoch, head, wake, vec![idle_event()])).await.unwrap().head, head + 1);
        assert!(cut.has_lost());
        let kinds = crate::conformance::kinds(&direct, &id).await;
        assert_eq!(
            kinds,
            [
                "x.session.woken",
                "session.status_running",
                "agent.tool_use",
                "user.message",
                "user.message",
                "agent.tool_result",
                "session.status_idle",
            ]
        );
        cut.lose_next_answer();
        in_time(store.delete(&id))
            .await
            .or_else(|error| match error {
                StoreError::Unavailable(_) => Ok(()),
                error => Err(error),
            })
            .unwrap();
        store.delete(&id).await.unwrap();
        assert!(direct.list(None, 10).await.unwrap().is_empty());
    }
}

/// A claim whose answer is lost has raised the epoch once, and it is the claimant's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_a_claim_is_looked_up() {
    let server = Server::start(false).await;
    let cut = Cut::to(server.address()).await;
    let (store, direct) = (connect(cut.endpoint()).await, connect(server.endpoint()).await);
    let id = session(&direct).await;
    let mut claimed = 0;
    for _ in 0..20 {
        store.state(&id).await.unwrap();
        cut.lose_next_answer();
        match in_time(store.claim(&id, &pod("a"), Takeover::Always, TTL)).await {
            Ok((epoch, record)) => {
                claimed += 1;
                let body = EventBody::SessionWoken { epoch, harness: "a".into() };
                assert_eq!((epoch, &record.event.body), (claimed, &body));
                assert_eq!(direct.state(&id).await.unwrap().epoch, epoch);
                direct.renew(&id, epoch).await.unwrap();
            }
            Err(error) => assert_err!(Err::<(), _>(error), StoreError::Unavailable(_)),
        }
    }
    assert_eq!(direct.state(&id).await.unwrap().head, claimed);
}

#[tokio::test]
async fn a_deletion_that_was_broken_off_is_seen_and_finished() {
    let server = Server::start(false).await;
    let store = connect(server.endpoint()).await;
    let client = etcd_client::Client::connect([server.endpoint()], None).await.unwrap();
    let (id, whole) = (session(&store).await, session(&store).await);
    let (epoch, head) = claim(&store, &id, "a").await;
    let events: Vec<NewEvent> = (0..40).map(|_| tool_use()).collect();
    let mut head = store.append(&id, epoch, head, events).await.unwrap().head;
    for _ in 0..10 {
        head = store.append_unfenced(&id, messages(&["x"; 60])).await.unwrap().head;
    }
    store.enqueue(&id, messages(&["queued"])).await.unwrap();

    let mut kv = client.kv_client();
    let key = |part: &str| format!("/longhand/{part}");
    let stored = kv.get(key(&format!("meta/{id}")), None).await.unwrap().kvs()[0].value().to_vec();
    kv.put(key(&format!("deleting/{id}")), stored, None).await.unwrap();
    for gone in [format!("meta/{id}"), format!("s/{id}/head"), format!("wake/{id}")] {
        kv.delete(key(&gone), None).await.unwrap();
    }

    let mut listed: Vec<_> = store.list(None, 10).await.unwrap().into_iter().map(|meta| meta.id).collect();
    let mut both = vec![id.clone(), whole.clone()];
    both.sort();
    assert_eq!(listed, both);
    assert_err!(store.state(&id).await, StoreError::NotFound(_));
    assert_err!(store.append(&id, epoch, head, vec![running()]).await, StoreError::NotFound(_));
    assert_err!(store.enqueue(&id, messages(&["late"])).await, StoreError::NotFound(_));
    assert_err!(store.create(meta(&id)).await, StoreError::Exists(_));
    store.delete(&id).await.unwrap();
    listed = store.list(None, 10).await.unwrap().into_iter().map(|meta| meta.id).collect();
    assert_eq!(listed, [whole.clone()]);
    store.delete(&whole).await.unwrap();
    let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
    let left = kv.get("/longhand/", Some(options)).await.unwrap();
    assert!(left.kvs().is_empty(), "{:?}", left.kvs().iter().map(etcd_client::KeyValue::key_str).collect::<Vec<_>>());
}

async fn next(events: &mut (impl Stream<Item = WakeEvent> + Unpin)) -> WakeEvent {
    in_time(events.next()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_sees_wake_keys_whatever_becomes_of_etcd() {
    let mut server = Server::start(true).await;
    let cut = Cut::to(server.address()).await;
    let direct = connect(server.endpoint()).await;
    let wake = Wake { namespace: "ns".into(), name: "name".into(), uid: "uid".into(), ..Wake::default() };
    let (one, two) = (session(&direct).await, session(&direct).await);
    direct.enqueue(&one, messages(&["a"])).await.unwrap();

    let watch = WakeWatch::connect(&[Endpoints(vec![cut.endpoint()])], &EtcdOptions::default()).await.unwrap();
    let mut events = watch.stream().boxed();
    assert_eq!(next(&mut events).await, WakeEvent::Snapshot(vec![(one.clone(), wake.clone())]));
    direct.enqueue(&two, messages(&["a"])).await.unwrap();
    assert_eq!(next(&mut events).await, WakeEvent::Set(two.clone(), wake.clone()));
    direct.delete(&one).await.unwrap();
    assert_eq!(next(&mut events).await, WakeEvent::Cleared(one));

    cut.block(true);
    direct.delete(&two).await.unwrap();
    let three = session(&direct).await;
    direct.enqueue(&three, messages(&["a"])).await.unwrap();
    compact(&server).await;
    cut.block(false);
    assert_eq!(next(&mut events).await, WakeEvent::Snapshot(vec![(three.clone(), wake.clone())]));

    server.restart().await;
    direct.enqueue(&three, messages(&["b"])).await.unwrap();
    assert_eq!(next(&mut events).await, WakeEvent::Set(three, wake));
}

/// Revisions begin again, so that what a watch waits for has been long ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_etcd_is_noticed() {
    let mut server = Server::start(true).await;
    let direct = connect(server.endpoint()).await;
    let id = session(&direct).await;
    for _ in 0..30 {
        direct.enqueue(&id, messages(&["a"])).await.unwrap();
    }
    let watch = WakeWatch::connect(&[Endpoints(vec![server.endpoint()])], &EtcdOptions::default()).await.unwrap();
    let mut events = watch.stream().boxed();
    assert!(matches!(next(&mut events).await, WakeEvent::Snapshot(woken) if woken.len() == 1));
    server.restart_empty().await;
    assert_eq!(next(&mut events).await, WakeEvent::Snapshot(vec![]));
    let id = session(&direct).await;
    let mut records = direct.tail(&id, 0).await.unwrap();
    for seq in 1..=2 {
        direct.append_unfenced(&id, messages(&["a"])).await.unwrap();
        assert_eq!(in_time(records.next()).await.unwrap().unwrap().seq, seq);
    }
}

#[tokio::test]
async fn replicas_share_what_the_first_has_set() {
    let server = Server::start(false).await;
    let (one, two) = (connect(server.endpoint()).await, connect(server.endpoint()).await);
    for name in ["a", "b", "c"] {
        let (first, second) = tokio::join!(one.get_or_create(name, b"one"), two.get_or_create(name, b"two"));
        let first = first.unwrap();
        assert_eq!(first, second.unwrap());
        assert!([&b"one"[..], b"two"].contains(&first.as_slice()));
        assert_eq!(one.get_or_create(name, b"three").await.unwrap(), first);
    }
}

#[tokio::test]
async fn an_etcd_that_is_away_is_said_to_be() {
    let mut server = Server::start(false).await;
    let options =
        EtcdOptions { timeout: Duration::from_secs(2), away_limit: Duration::from_secs(1), ..EtcdOptions::default() };
    let store = EtcdStore::connect(&[server.endpoint()], options).await.unwrap();
    let id = session(&store).await;
    let (epoch, head) = claim(&store, &id, "a").await;
    let mut tail = store.tail(&id, head).await.unwrap();
    server.kill();
    let begin = Instant::now();
    assert_err!(store.append(&id, epoch, head, vec![running()]).await, StoreError::Unavailable(_));
    assert_err!(store.state(&id).await, StoreError::Unavailable(_));
    assert_err!(store.ping().await, StoreError::Unavailable(_));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_err!(in_time(tail.next()).await.unwrap(), StoreError::Unavailable(_));
    assert!(tail.next().await.is_none());
}

/// The claim's time is kept by etcd.
#[tokio::test]
async fn a_claim_that_is_not_renewed_runs_out() {
    let server = Server::start(false).await;
    let store = connect(server.endpoint()).await;
    let client = etcd_client::Client::connect([server.endpoint()], None).await.unwrap();
    let id = session(&store).await;
    let mut watch = client.watch_client().watch(format!("/longhand/s/{id}/owner"), None).await.unwrap();
    let (epoch, _) = store.claim(&id, &pod("a"), Takeover::IfFree, Duration::from_secs(2)).await.unwrap();
    store.renew(&id, epoch).await.unwrap();
    let expired = async {
        while let Some(response) = watch.message().await.unwrap() {
            if response.events().iter().any(|event| event.event_type() == etcd_client::EventType::Delete) {
                break;
            }
        }
    };
    in_time(expired).await;
    assert_err!(store.renew(&id, epoch).await, StoreError::ClaimLost { epoch: 1 });
    assert_eq!(store.claim(&id, &pod("b"), Takeover::IfFree, TTL).await.unwrap().0, 2);
}
