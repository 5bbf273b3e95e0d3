//! The store on two etcd clusters keeps the contract.

use std::sync::Arc;

use async_trait::async_trait;
use longhand_protocol::SessionId;
use longhand_session_log::caps::Caps;
use longhand_session_log::etcd::{Endpoints, EtcdOptions, ShardedStore};
use longhand_session_log::{SessionStore, StoreError};
use tokio::sync::OnceCell;

use crate::conformance::{Fixture, INBOX_LIMIT, assert_err, session};
use crate::support::Server;

/// Both for all tests of this file; each has a prefix of its own.
static SERVERS: OnceCell<[Server; 2]> = OnceCell::const_new();

pub(crate) struct Sharded {
    store: ShardedStore,
    clusters: Vec<Endpoints>,
    options: EtcdOptions,
}

#[async_trait]
impl Fixture for Sharded {
    fn store(&self) -> Arc<dyn SessionStore> {
        Arc::new(self.store.clone())
    }

    async fn replica(&self) -> Arc<dyn SessionStore> {
        Arc::new(ShardedStore::connect(&self.clusters, &self.options).await.unwrap())
    }

    async fn capped(&self, caps: Caps) -> Arc<dyn SessionStore> {
        let options = EtcdOptions { caps, ..self.options.clone() };
        Arc::new(ShardedStore::connect(&self.clusters, &options).await.unwrap())
    }

    async fn expire_claim(&self, id: &SessionId) {
        let key = format!("{}s/{id}/owner", self.options.prefix);
        for cluster in &self.clusters {
            let client = etcd_client::Client::connect(&cluster.0, None).await.unwrap();
            let owner = client.kv_client().get(key.as_str(), None).await.unwrap();
            if let Some(owner) = owner.kvs().first() {
                client.lease_client().revoke(owner.lease()).await.unwrap();
            }
        }
    }
}

pub(crate) async fn fixture() -> Sharded {
    let start = || async { [Server::start(false).await, Server::start(false).await] };
    let servers = SERVERS.get_or_init(start).await;
    let clusters: Vec<Endpoints> = servers.iter().map(|server| Endpoints(vec![server.endpoint()])).collect();
    let prefix = format!("/test/{}/", SessionId::generate());
    let options = EtcdOptions { prefix, inbox_limit: INBOX_LIMIT, ..EtcdOptions::default() };
    let store = ShardedStore::connect(&clusters, &options).await.unwrap();
    Sharded { store, clusters, options }
}

crate::conformance::suite!(fixture);

#[tokio::test]
async fn both_clusters_hold_sessions() {
    let fixture = fixture().await;
    for _ in 0..40 {
        session(&fixture.store).await;
    }
    let mut counts = Vec::new();
    for shard in fixture.store.shards() {
        counts.push(shard.list(None, 100).await.unwrap().len());
    }
    assert_eq!(counts.iter().sum::<usize>(), 40);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[tokio::test]
async fn clusters_in_another_order_are_noticed() {
    let fixture = fixture().await;
    fixture.store.check().await.unwrap();
    fixture.store.check().await.unwrap();
    let turned: Vec<Endpoints> = fixture.clusters.iter().rev().cloned().collect();
    let wrong = ShardedStore::connect(&turned, &fixture.options).await.unwrap();
    assert_err!(wrong.check().await, StoreError::Corrupt { .. });
    let fewer = ShardedStore::connect(&fixture.clusters[..1], &fixture.options).await.unwrap();
    assert_err!(fewer.check().await, StoreError::Corrupt { .. });
}
