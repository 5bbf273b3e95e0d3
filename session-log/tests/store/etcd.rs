//! The store on a real etcd keeps the contract.

use std::sync::Arc;

use async_trait::async_trait;
use longhand_protocol::SessionId;
use longhand_session_log::SessionStore;
use longhand_session_log::caps::Caps;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use longhand_session_log::objects::Objects;
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

    async fn capped(&self, caps: Caps) -> Arc<dyn SessionStore> {
        let options = EtcdOptions { caps, ..self.options.clone() };
        Arc::new(EtcdStore::connect(&[self.endpoint.clone()], options).await.unwrap())
    }

    async fn expire_claim(&self, id: &SessionId) {
        let key = format!("{}s/{id}/owner", self.options.prefix);
        let owner = self.client.kv_client().get(key, None).await.unwrap();
        if let Some(owner) = owner.kvs().first() {
            self.client.lease_client().revoke(owner.lease()).await.unwrap();
        }
    }
}

impl Etcd {
    pub(crate) fn inner(&self) -> EtcdStore {
        self.store.clone()
    }

    /// Another replica's store, which remembers nothing.
    pub(crate) async fn another(&self) -> EtcdStore {
        EtcdStore::connect(&[self.endpoint.clone()], self.options.clone()).await.unwrap()
    }

    pub(crate) async fn without_objects(&self) -> EtcdStore {
        let options = EtcdOptions { objects: None, ..self.options.clone() };
        EtcdStore::connect(&[self.endpoint.clone()], options).await.unwrap()
    }

    async fn kvs(&self, prefix: &str) -> Vec<etcd_client::KeyValue> {
        let options = etcd_client::GetOptions::new().with_prefix();
        let key = format!("{}{prefix}", self.options.prefix);
        self.client.kv_client().get(key, Some(options)).await.unwrap().kvs().to_vec()
    }

    /// Ends the lease of a key.
    pub(crate) async fn revoke(&self, key: &str) {
        let kvs = self.kvs(key).await;
        self.client.lease_client().revoke(kvs[0].lease()).await.unwrap();
    }

    /// How many keys there are below a prefix.
    pub(crate) async fn count(&self, prefix: &str) -> usize {
        self.kvs(prefix).await.len()
    }

    /// What they hold.
    pub(crate) async fn bytes(&self, prefix: &str) -> usize {
        self.kvs(prefix).await.iter().map(|kv| kv.value().len()).sum()
    }
}

pub(crate) async fn fixture() -> Etcd {
    etcd_with(None).await
}

pub(crate) async fn bounded(caps: Caps) -> Etcd {
    etcd_as(EtcdOptions { caps, ..EtcdOptions::default() }).await
}

pub(crate) async fn etcd_with(objects: Option<Objects>) -> Etcd {
    etcd_as(EtcdOptions { objects, ..EtcdOptions::default() }).await
}

async fn etcd_as(options: EtcdOptions) -> Etcd {
    let endpoint = SERVER.get_or_init(|| Server::start(false)).await.endpoint();
    let prefix = format!("/test/{}/", SessionId::generate());
    let options = EtcdOptions { prefix, inbox_limit: INBOX_LIMIT, ..options };
    let store = EtcdStore::connect(&[endpoint.clone()], options.clone()).await.unwrap();
    let client = etcd_client::Client::connect([&endpoint], None).await.unwrap();
    Etcd { store, client, endpoint, options }
}

crate::conformance::suite!(fixture);
