//! Objects of make-believe, with the API server's rules for names, versions and generations.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;
use longhand_crds::{Agent, SandboxTemplate, labels};
use serde_json::Value;

use super::cluster::FakeCluster;
use crate::resources::ResourceError;
use crate::resources::named::{Named, PageOf};
use crate::resources::objects::{Created, Kind, Objects};
use crate::resources::revisions::Revisions;

type Key = (String, String);

/// The first object of a kind is made a second later.
const FIRST: i64 = 1_767_225_600;

/// The objects of one kind.
pub(crate) struct FakeObjects<K>(Mutex<State<K>>);

struct State<K> {
    objects: BTreeMap<Key, K>,
    writes: i64,
    /// So many of the next changes find that another was faster.
    conflicts: usize,
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn spec<K: Kind>(object: &K) -> Value {
    serde_json::to_value(object).unwrap()["spec"].clone()
}

impl<K: Kind> FakeObjects<K> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State { objects: BTreeMap::new(), writes: 0, conflicts: 0 }))
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.0.lock().unwrap()
    }

    /// As kubectl makes it.
    pub(crate) fn apply(&self, namespace: &str, object: Value) {
        self.made(namespace, serde_json::from_value(object).unwrap()).expect("a free name");
    }

    /// As kubectl edits it.
    pub(crate) fn edit(&self, namespace: &str, name: &str, change: impl FnOnce(&mut K)) {
        let mut object = self.get(namespace, name).unwrap();
        change(&mut object);
        self.written(object).unwrap();
    }

    pub(crate) fn lose_races(&self, count: usize) {
        self.state().conflicts = count;
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().objects.keys().map(|(_, name)| name.clone()).collect()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<K> {
        self.state().objects.get(&key(namespace, name)).cloned()
    }

    fn all(&self, namespace: &str) -> Vec<K> {
        let state = self.state();
        state.objects.iter().filter(|((space, _), _)| space == namespace).map(|(_, object)| object.clone()).collect()
    }

    fn made(&self, namespace: &str, mut object: K) -> Option<K> {
        let mut state = self.state();
        state.writes += 1;
        let writes = state.writes;
        let meta = object.meta_mut();
        if let Some(prefix) = meta.generate_name.take() {
            meta.name.get_or_insert_with(|| format!("{prefix}{writes}"));
        }
        let key = key(namespace, meta.name.as_deref().unwrap());
        if state.objects.contains_key(&key) {
            return None;
        }
        meta.namespace = Some(namespace.to_owned());
        meta.uid = Some(format!("{}-{writes}", K::plural(&())));
        meta.generation = Some(1);
        meta.resource_version = Some(writes.to_string());
        // A second apart, so that lists have an order.
        meta.creation_timestamp = Some(Time(Timestamp::from_second(FIRST + writes).unwrap()));
        state.objects.insert(key, object.clone());
        Some(object)
    }

    fn written(&self, mut object: K) -> Option<K> {
        let mut state = self.state();
        let key = key(object.meta().namespace.as_deref()?, object.meta().name.as_deref()?);
        let before = state.objects.get(&key)?;
        let changed = spec(before) != spec(&object);
        if before.meta().resource_version != object.meta().resource_version || state.conflicts > 0 {
            state.conflicts = state.conflicts.saturating_sub(1);
            return None;
        }
        state.writes += 1;
        let writes = state.writes;
        let meta = object.meta_mut();
        meta.resource_version = Some(writes.to_string());
        meta.generation = meta.generation.map(|generation| generation + i64::from(changed));
        state.objects.insert(key, object.clone());
        Some(object)
    }

    fn remove(&self, namespace: &str, name: &str, uid: &str) {
        let removed = self.state().objects.remove(&key(namespace, name)).unwrap();
        assert_eq!(removed.meta().uid.as_deref(), Some(uid));
    }
}

#[async_trait]
impl<K: Kind> Named<K> for FakeObjects<K> {
    async fn named(&self, namespace: &str, name: &str) -> Result<Option<K>, ResourceError> {
        Ok(self.get(namespace, name))
    }

    async fn labelled(&self, namespace: &str, id: &str) -> Result<Vec<K>, ResourceError> {
        let carries = |meta: &ObjectMeta| meta.labels.iter().flatten().any(|(k, v)| k == labels::ID && v == id);
        Ok(self.all(namespace).into_iter().filter(|object| carries(object.meta())).collect())
    }

    /// In pages of two.
    async fn page(&self, namespace: &str, from: Option<String>) -> Result<PageOf<K>, ResourceError> {
        let skip: usize = from.map_or(0, |from| from.parse().unwrap());
        let all = self.all(namespace);
        let next = (skip + 2 < all.len()).then(|| (skip + 2).to_string());
        Ok((all.into_iter().skip(skip).take(2).collect(), next))
    }
}

#[async_trait]
impl<K: Kind> Objects<K> for FakeObjects<K> {
    async fn create(&self, namespace: &str, object: &K) -> Result<Created<K>, ResourceError> {
        Ok(self.made(namespace, object.clone()).map_or(Created::Exists, Created::New))
    }

    async fn replace(&self, object: &K) -> Result<K, ResourceError> {
        let what = K::kind(&()).into_owned();
        let reason = "the object has been modified".to_owned();
        self.written(object.clone()).ok_or(ResourceError::Conflict { what, reason })
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        self.remove(namespace, name, uid);
        Ok(())
    }
}

/// The cluster has the objects of a kind in a field.
macro_rules! field {
    ($kind:ty, $field:ident) => {
        #[async_trait]
        impl Named<$kind> for FakeCluster {
            async fn named(&self, namespace: &str, name: &str) -> Result<Option<$kind>, ResourceError> {
                self.$field.named(namespace, name).await
            }

            async fn labelled(&self, namespace: &str, id: &str) -> Result<Vec<$kind>, ResourceError> {
                self.$field.labelled(namespace, id).await
            }

            async fn page(&self, namespace: &str, from: Option<String>) -> Result<PageOf<$kind>, ResourceError> {
                self.$field.page(namespace, from).await
            }
        }

        #[async_trait]
        impl Objects<$kind> for FakeCluster {
            async fn create(&self, namespace: &str, object: &$kind) -> Result<Created<$kind>, ResourceError> {
                self.$field.create(namespace, object).await
            }

            async fn replace(&self, object: &$kind) -> Result<$kind, ResourceError> {
                self.$field.replace(object).await
            }

            async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
                self.$field.delete(namespace, name, uid).await
            }
        }
    };
}

field!(Agent, agents);
field!(SandboxTemplate, environments);
field!(ControllerRevision, revisions);

#[async_trait]
impl Revisions for FakeCluster {
    async fn recorded(&self, namespace: &str, agent_uid: &str) -> Result<Vec<ObjectMeta>, ResourceError> {
        let of_agent = |meta: &ObjectMeta| meta.labels.as_ref().unwrap()[labels::AGENT_UID] == agent_uid;
        let all = self.revisions.all(namespace).into_iter().map(|revision| revision.metadata);
        Ok(all.filter(of_agent).collect())
    }
}
