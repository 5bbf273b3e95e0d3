//! An etcd whose quota is used up.

use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use longhand_session_log::{SessionStore as _, StoreError};
use tokio::task::JoinSet;

use crate::conformance::{assert_err, claim, message, messages, pod, running, session};
use crate::support::Server;

/// Many at once, so that they go as batches: nested puts are refused too, what makes room goes on, and nothing is half
/// there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_refuses_what_needs_space_and_nothing_else() {
    let quota = 16 * 1024 * 1024;
    let server = Server::start_with(false, false, &[format!("--quota-backend-bytes={quota}")]).await;
    let store = EtcdStore::connect(&[server.endpoint()], EtcdOptions::default()).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(session(&store).await);
    }
    let (epoch, head) = claim(&store, &ids[0], "a").await;
    let text = "x".repeat(50_000);
    let mut tasks = JoinSet::new();
    for id in ids.clone() {
        let (store, text) = (store.clone(), text.clone());
        tasks.spawn(async move {
            let mut written = 0;
            let error = loop {
                match store.append_unfenced(&id, vec![message(&text)]).await {
                    Ok(_) => written += 1,
                    Err(error) => break error,
                }
            };
            (id, written, error)
        });
    }
    for (id, written, error) in tasks.join_all().await {
        assert_err!(Err::<(), _>(error), StoreError::NoSpace);
        let due = if id == ids[0] { written + 1 } else { written };
        assert_eq!(store.state(&id).await.unwrap().head, due);
    }
    let status = etcd_client::Client::connect([server.endpoint()], None).await.unwrap();
    let size = status.maintenance_client().status().await.unwrap().db_size();
    assert!(size < quota + 4 * 1024 * 1024, "the quota holds for batches too: {size}");

    let head_now = store.read(&ids[0], head, 1_000).await.unwrap().head;
    store.renew(&ids[0], epoch).await.unwrap();
    assert_err!(store.append(&ids[0], epoch, head_now, vec![running()]).await, StoreError::NoSpace);
    assert_err!(store.enqueue(&ids[1], messages(&["a"])).await, StoreError::NoSpace);
    let ttl = std::time::Duration::from_secs(60);
    let claimed = store.claim(&ids[1], &pod("b"), longhand_session_log::store::Takeover::Always, ttl).await;
    assert_err!(claimed, StoreError::NoSpace);

    let mut tasks = JoinSet::new();
    for (number, id) in ids.into_iter().enumerate() {
        let store = store.clone();
        tasks.spawn(async move {
            if number % 2 == 0 {
                store.delete(&id).await.unwrap();
            } else {
                assert_err!(store.append_unfenced(&id, vec![message("a")]).await, StoreError::NoSpace);
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(store.list(None, 10).await.unwrap().len(), 4);
}
