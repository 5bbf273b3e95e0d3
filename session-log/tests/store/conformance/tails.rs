//! Following a log.

use futures::StreamExt as _;
use longhand_session_log::StoreError;

use super::{Fixture, PATIENCE, assert_err, message, messages, session};

pub(crate) async fn a_tail_follows_the_log(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    store.append_unfenced(&id, messages(&["1", "2", "3"])).await.unwrap();
    let mut tail = store.tail(&id, 1).await.unwrap();
    for expected in 2..40 {
        if expected > 3 {
            other.append_unfenced(&id, vec![message("x")]).await.unwrap();
        }
        let record = tokio::time::timeout(PATIENCE, tail.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(record.seq, expected);
        assert_eq!(store.read(&id, expected - 1, 1).await.unwrap().records, [record]);
    }
}

pub(crate) async fn a_tail_ends_with_its_session(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    store.append_unfenced(&id, messages(&["1"])).await.unwrap();
    let mut tail = store.tail(&id, 0).await.unwrap();
    assert_eq!(tail.next().await.unwrap().unwrap().seq, 1);
    let (ended, deleted) = tokio::join!(tokio::time::timeout(PATIENCE, tail.next()), other.delete(&id));
    deleted.unwrap();
    assert_err!(ended.unwrap().unwrap(), StoreError::NotFound(_));
    assert!(tail.next().await.is_none());
}

/// More than any buffer holds, while one reader does not read.
pub(crate) async fn tails_have_no_gap_under_load(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let mut lagging = store.tail(&id, 0).await.unwrap();
    store.append_unfenced(&id, messages(&["x"])).await.unwrap();
    assert_eq!(lagging.next().await.unwrap().unwrap().seq, 1);
    let eager = tokio::spawn({
        let mut tail = store.tail(&id, 0).await.unwrap();
        async move {
            for expected in 1..=601 {
                assert_eq!(tail.next().await.unwrap().unwrap().seq, expected);
            }
        }
    });
    let writer = |store: std::sync::Arc<dyn longhand_session_log::SessionStore>| {
        let id = id.clone();
        async move {
            for _ in 0..30 {
                store.append_unfenced(&id, messages(&["x"; 10])).await.unwrap();
            }
        }
    };
    tokio::join!(writer(store.clone()), writer(other));
    tokio::time::timeout(PATIENCE, eager).await.unwrap().unwrap();
    for expected in 2..=601 {
        let record = tokio::time::timeout(PATIENCE, lagging.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(record.seq, expected);
    }
}
