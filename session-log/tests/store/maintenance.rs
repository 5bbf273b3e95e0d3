//! Etcd is full and gets room again; one replica at a time is responsible for that.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use longhand_session_log::archive::Reach;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use longhand_session_log::store::Holdings;
use longhand_session_log::{SessionStore as _, StoreError};

use crate::conformance::{assert_err, message, messages, session};
use crate::etcd::etcd_with;
use crate::support::Server;

const MIB: u64 = 1024 * 1024;
const TTL: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_at_a_time_leads() {
    let etcd = etcd_with(None).await;
    let (one, two) = (etcd.inner(), etcd.another().await);
    let (first, second) = tokio::join!(one.lead("job", TTL), two.lead("job", TTL));
    let mut leads: Vec<_> = [first.unwrap(), second.unwrap()].into_iter().flatten().collect();
    assert_eq!(leads.len(), 1);
    let mut lead = leads.pop().unwrap();
    assert!(two.lead("job", TTL).await.unwrap().is_none());
    assert!(two.lead("other job", TTL).await.unwrap().is_some());
    assert!(lead.renew().await);
    lead.resign().await;
    let mut next = two.lead("job", TTL).await.unwrap().unwrap();
    etcd.revoke("service/job").await;
    assert!(!next.renew().await);
    assert!(one.lead("job", TTL).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_takes_new_events_after_it_got_room() {
    let server = Server::start_with(false, false, &[format!("--quota-backend-bytes={}", 16 * MIB)]).await;
    let store = EtcdStore::connect(&[server.endpoint()], EtcdOptions::default()).await.unwrap();
    let (id, other) = (session(&store).await, session(&store).await);
    let large = "x".repeat(1_000_000);
    let refused = loop {
        if let Err(error) = store.append_unfenced(&id, vec![message(&large)]).await {
            break error;
        }
    };
    assert_err!(Err::<(), _>(refused), StoreError::NoSpace);
    let space = store.space().await.unwrap();
    assert!(space.alarm && !space.has_room(), "{space:?}");
    assert_eq!((space.members.len(), space.members[0].quota_bytes), (1, 16 * MIB));
    assert!(!store.read(&id, 0, 5).await.unwrap().records.is_empty());

    store.delete(&id).await.unwrap();
    store.compact(store.revision().await.unwrap()).await.unwrap();
    store.compact(1).await.unwrap();
    assert_err!(store.append_unfenced(&other, vec![message("x")]).await, StoreError::NoSpace);
    store.defragment(&server.endpoint()).await.unwrap();
    assert!(store.space().await.unwrap().has_room());
    store.disarm().await.unwrap();
    assert!(!store.space().await.unwrap().alarm);
    store.append_unfenced(&other, vec![message("x")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survey_sees_every_session_once() {
    let etcd = etcd_with(None).await;
    let store = etcd.inner();
    let mut ids = Vec::new();
    for number in 0..70_u64 {
        let id = session(&store).await;
        if number % 7 == 0 {
            store.append_unfenced(&id, vec![message("x")]).await.unwrap();
        }
        ids.push((id, u64::from(number % 7 == 0)));
    }
    ids.sort();
    store.enqueue(&ids[3].0, vec![message("x")]).await.unwrap();
    store.archive(&ids[4].0).await.unwrap();
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = store.survey(after.as_ref(), 33).await.unwrap();
        all.extend(page);
        if next.is_none() {
            break;
        }
        after = next;
    }
    ids[4].1 += 1;
    let seen: Vec<_> = all.iter().map(|activity| (activity.meta.id.clone(), activity.hot_events)).collect();
    assert_eq!(seen, ids);
    assert!(all.iter().enumerate().all(|(index, activity)| activity.awake == (index == 3)));
    assert!(all.iter().enumerate().all(|(index, activity)| activity.archived_at.is_some() == (index == 4)));
    assert_err!(
        store.archive_segment(&ids[4].0, &longhand_session_log::archive::ArchivePolicy::default(), Reach::All).await,
        StoreError::Unavailable(reason) if reason.contains("none is configured")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_namespaces_hold_is_counted_and_read_by_all() {
    let etcd = etcd_with(None).await;
    let (store, other) = (etcd.inner(), etcd.another().await);
    assert_eq!(other.holdings("ns").await.unwrap(), Holdings::default());
    let mut ids = Vec::new();
    for texts in [&["a"; 40][..], &["b"; 2]] {
        let id = session(&store).await;
        store.append_unfenced(&id, messages(texts)).await.unwrap();
        ids.push(id);
    }
    let mut counted = BTreeMap::new();
    let (page, next) = store.survey(None, 100).await.unwrap();
    assert_eq!((page.len(), next), (2, None));
    for activity in page {
        assert_eq!(activity.size, store.state(&activity.meta.id).await.unwrap().size);
        let held = counted.remove(&activity.meta.namespace).unwrap_or_else(Holdings::default);
        let one = Holdings {
            sessions: 1,
            bytes: activity.size.bytes,
            counted_at: Some(Timestamp::UNIX_EPOCH),
            ..Holdings::default()
        };
        counted.insert(activity.meta.namespace.clone(), held.plus(one));
    }
    counted.insert("of yesterday".to_owned(), Holdings { sessions: 3, ..Holdings::default() });
    store.put_holdings(&counted).await.unwrap();
    let held = other.holdings("ns").await.unwrap();
    assert_eq!((held.sessions, held.counted_at), (2, Some(Timestamp::UNIX_EPOCH)));
    let logs = etcd.bytes(&format!("log/{}/", ids[0])).await + etcd.bytes(&format!("log/{}/", ids[1])).await;
    assert_eq!(held.bytes, u64::try_from(logs).unwrap());
    assert_eq!(other.all_holdings().await.unwrap(), counted);
    counted.remove("of yesterday");
    store.put_holdings(&counted).await.unwrap();
    assert_eq!(other.holdings("of yesterday").await.unwrap(), Holdings::default());
}
