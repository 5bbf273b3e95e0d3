//! What every kind of place for objects promises: in memory, in a folder, in a bucket of a real S3 server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::SessionId;
use longhand_session_log::SessionStore as _;
use longhand_session_log::archive::{ArchivePolicy, Reach};
use longhand_session_log::objects::{DEADLINE, Objects, ObjectsError, Put};
use object_store::memory::InMemory;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::conformance::{PATIENCE, assert_err, message, messages, session};
use crate::etcd::etcd_with;
use crate::support::s3::S3;

static S3_SERVER: OnceCell<S3> = OnceCell::const_new();

/// A place, and what has to live as long as it.
struct Place(Objects, #[expect(dead_code, reason = "it is removed when dropped")] Option<tempfile::TempDir>);

async fn memory() -> Place {
    Place(Objects::over(Arc::new(InMemory::new()), DEADLINE), None)
}

async fn folder() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/objects", dir.path().display());
    Place(Objects::open(&url, DEADLINE).unwrap(), Some(dir))
}

async fn s3() -> Place {
    let server = S3_SERVER.get_or_init(S3::start).await;
    Place(server.objects(&format!("a/{}", SessionId::generate())), None)
}

fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn names(objects: &Objects, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = objects.list(prefix).map_ok(|listed| listed.name).try_collect().await.unwrap();
    names.sort();
    names
}

async fn an_object_is_written_once(objects: &Objects) {
    let content = Bytes::from(vec![7; 3_000_000]);
    let name = "store/payload/ns/0123";
    assert_eq!(objects.put(name, content.clone()).await.unwrap(), Put::Created);
    assert_eq!(objects.put(name, Bytes::from_static(b"other")).await.unwrap(), Put::Existed);
    let (size, sha256) = (3_000_000, hash(&content));
    assert_eq!(objects.get(name, size, &sha256).await.unwrap(), content);
    assert_err!(objects.get(name, size - 1, &sha256).await, ObjectsError::Damaged { .. });
    assert_err!(objects.get(name, size, &hash(b"other")).await, ObjectsError::Damaged { .. });
    assert_err!(objects.get("store/payload/ns/0124", size, &sha256).await, ObjectsError::NotFound { .. });
}

async fn one_of_many_writers_wins(objects: &Objects) {
    let writes = (0..8_u8).map(|number| async move {
        let put = objects.put("store/one", Bytes::from(vec![number; 100_000])).await.unwrap();
        (put == Put::Created).then_some(number)
    });
    let winners: Vec<u8> = futures::future::join_all(writes).await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    let content = vec![winners[0]; 100_000];
    assert_eq!(objects.get("store/one", 100_000, &hash(&content)).await.unwrap(), content);
}

async fn names_are_listed_by_prefix(objects: &Objects) {
    let begin = Timestamp::now() - SignedDuration::from_secs(5);
    for name in ["s/session/sesn_1/a", "s/session/sesn_1/b.ndjson.zst", "s/session/sesn_2/c", "s2/session/d"] {
        objects.put(name, Bytes::from_static(b"four")).await.unwrap();
    }
    assert_eq!(
        names(objects, "s").await,
        ["s/session/sesn_1/a", "s/session/sesn_1/b.ndjson.zst", "s/session/sesn_2/c"]
    );
    assert_eq!(names(objects, "s/session/sesn_2").await, ["s/session/sesn_2/c"]);
    assert!(names(objects, "none").await.is_empty());
    let listed: Vec<_> = objects.list("s2").try_collect().await.unwrap();
    assert_eq!(listed[0].bytes, 4);
    assert!(listed[0].modified >= begin && listed[0].modified <= Timestamp::now() + SignedDuration::from_secs(5));
    objects.delete("s2/session/d").await.unwrap();
    objects.delete("s2/session/d").await.unwrap();
    assert!(names(objects, "s2").await.is_empty());
}

/// More than one page of a bucket.
async fn long_lists_are_whole(objects: &Objects) {
    let puts = (0..1_050).map(|number| async move {
        objects.put(&format!("many/{number:04}"), Bytes::new()).await.unwrap();
    });
    futures::stream::iter(puts).buffer_unordered(16).collect::<()>().await;
    assert_eq!(names(objects, "many").await.len(), 1_050);
}

/// The whole way of a session's events there and back.
async fn a_log_is_kept(objects: &Objects) {
    let policy = ArchivePolicy { hot_events: 5, segment_events: 20, ..ArchivePolicy::default() };
    let etcd = etcd_with(Some(objects.clone())).await;
    let store = etcd.inner();
    let id = session(&store).await;
    store.append_unfenced(&id, vec![message(&"x".repeat(200_000))]).await.unwrap();
    store.append_unfenced(&id, messages(&["y"; 50])).await.unwrap();
    let before = store.read(&id, 0, 100).await.unwrap();
    while store.archive_segment(&id, &policy, Reach::All).await.unwrap().is_some() {}
    assert_eq!(etcd.another().await.read(&id, 0, 100).await.unwrap(), before);
    let later = Timestamp::now() + SignedDuration::from_hours(25);
    assert_eq!(store.collect(SignedDuration::from_hours(24), later).await.unwrap().removed, 0);
    assert_eq!(etcd.another().await.read(&id, 0, 100).await.unwrap(), before);
    store.delete(&id).await.unwrap();
    let collected = store.collect(SignedDuration::from_hours(24), later).await.unwrap();
    assert_eq!((collected.segments, collected.payloads, collected.removed), (3, 1, 4));
    assert!(names(objects, "").await.is_empty());
}

macro_rules! places {
    ($($place:ident),+; $cases:tt) => {
        $(mod $place {
            places!(@cases $place $cases);
        })+
    };
    (@cases $place:ident [$($case:ident),+]) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let place = super::super::$place().await;
            tokio::time::timeout(super::super::PATIENCE * 4, super::super::$case(&place.0)).await.expect("it ends in time");
        })+
    };
}

mod places {
    places!(memory, folder, s3; [an_object_is_written_once, one_of_many_writers_wins, names_are_listed_by_prefix,
        long_lists_are_whole, a_log_is_kept]);
}

#[tokio::test]
async fn a_place_that_does_not_answer_is_said_to_be_away() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let env = [
        ("AWS_ACCESS_KEY_ID", "a".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "b".to_owned()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_ENDPOINT", format!("http://{}", listener.local_addr().unwrap())),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let objects = Objects::open_with("s3://bucket", &env, Duration::from_millis(200)).unwrap();
    assert_err!(objects.put("a", Bytes::new()).await, ObjectsError::Unavailable { .. });
    assert_err!(objects.get("a", 1, "").await, ObjectsError::Unavailable { .. });
    assert_err!(objects.delete("a").await, ObjectsError::Unavailable { .. });
    assert_err!(objects.list("a").try_collect::<Vec<_>>().await, ObjectsError::Unavailable { .. });
}
