//! The store on a real etcd keeps the contract.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use longhand_protocol::SessionId;
use longhand_session_log::SessionStore;
use longhand_session_log::archive::Reach;
use longhand_session_log::caps::Caps;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use longhand_session_log::objects::Objects;
use tokio::sync::OnceCell;

use crate::archive::{DAY, archive_all, later, names};
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

    async fn move_out(&self, id: &SessionId, all: bool) {
        if self.options.objects.is_some() {
            let reach = if all { Reach::All } else { Reach::Old };
            archive_all(&self.store, id, reach).await;
            self.store.collect(DAY, later()).await.unwrap();
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

    /// The same at another address.
    pub(crate) async fn at(&self, endpoint: String) -> EtcdStore {
        EtcdStore::connect(&[endpoint], self.options.clone()).await.unwrap()
    }

    pub(crate) fn address(&self) -> String {
        self.endpoint.trim_start_matches("http://").to_owned()
    }

    pub(crate) async fn without_objects(&self) -> EtcdStore {
        let options = EtcdOptions { objects: None, ..self.options.clone() };
        EtcdStore::connect(&[self.endpoint.clone()], options).await.unwrap()
    }

    pub(crate) async fn with_objects(&self, objects: Objects) -> EtcdStore {
        let options = EtcdOptions { objects: Some(objects), ..self.options.clone() };
        EtcdStore::connect(&[self.endpoint.clone()], options).await.unwrap()
    }

    pub(crate) fn client(&self) -> &etcd_client::Client {
        &self.client
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.options.prefix
    }

    /// The keys below a prefix, with what they hold.
    pub(crate) async fn values(&self, prefix: &str) -> BTreeMap<String, String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        self.kvs(prefix).await.iter().map(|kv| (text(kv.key()), text(kv.value()))).collect()
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

    /// Keys and objects that are there though there is no session: none but those of the service.
    pub(crate) async fn leftovers(&self) -> Vec<String> {
        self.store.collect(DAY, later()).await.unwrap();
        let keys = self.kvs("").await.into_iter().map(|kv| kv.key_str().unwrap().to_owned());
        let mut left: Vec<String> = keys.filter(|key| !key.contains("/service/")).collect();
        if let Some(objects) = &self.options.objects {
            left.extend(names(objects).await);
        }
        left
    }

    /// What they hold.
    pub(crate) async fn bytes(&self, prefix: &str) -> usize {
        self.kvs(prefix).await.iter().map(|kv| kv.value().len()).sum()
    }
}

pub(crate) async fn fixture() -> Etcd {
    etcd_with(None).await
}

pub(crate) async fn bounded(objects: Objects, caps: Caps) -> Etcd {
    etcd_as(EtcdOptions { objects: Some(objects), caps, ..EtcdOptions::default() }).await
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
