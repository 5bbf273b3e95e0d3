//! The store on a real etcd keeps the contract.

use std::sync::Arc;

use async_trait::async_trait;
use longhand_protocol::SessionId;
use longhand_session_log::SessionStore;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use tokio::sync::OnceCell;

use crate::conformance::{Fixture, INBOX_LIMIT};
use crate::support::Server;

/// One etcd for all tests of this file; each has a prefix of its own.
static SERVER: OnceCell<Server> = OnceCell::const_new();

pub(crate) struct Etcd {
    store: EtcdStore,
    client: etcd_client::Client,
    endpoint: String,
    options: EtcdOptions,
}

#[async_trait]
impl Fixture for Etcd {
    fn store(&self) -> Arc<dyn SessionStore> {
        Arc::new(self.store.clone())
    }

    async fn replica(&self) -> Arc<dyn SessionStore> {
        Arc::new(EtcdStore::connect(&[self.endpoint.clone()], self.options.clone()).await.unwrap())
    }

    async fn expire_claim(&self, id: &SessionId) {
        let key = format!("{}s/{id}/owner", self.options.prefix);
        let owner = self.client.kv_client().get(key, None).await.unwrap();
        if let Some(owner) = owner.kvs().first() {
            self.client.lease_client().revoke(owner.lease()).await.unwrap();
        }
    }
}

pub(crate) async fn fixture() -> Etcd {
    let endpoint = SERVER.get_or_init(|| Server::start(false)).await.endpoint();
    let prefix = format!("/test/{}/", SessionId::generate());
    let options = EtcdOptions { prefix, inbox_limit: INBOX_LIMIT, ..EtcdOptions::default() };
    let store = EtcdStore::connect(&[endpoint.clone()], options.clone()).await.unwrap();
    let client = etcd_client::Client::connect([&endpoint], None).await.unwrap();
    Etcd { store, client, endpoint, options }
}

crate::conformance::suite!(fixture);
