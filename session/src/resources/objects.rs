//! Kinds that the wire API makes and changes: one trait for all of them.

use std::fmt::Debug;

use async_trait::async_trait;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ResourceError;
use super::cluster::{Cluster, call};
use super::named::Named;

/// A kind with a namespace.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// What became of an object that was to be made.
#[derive(Clone, Debug, PartialEq)]
pub enum Created<K> {
    /// It was made.
    New(K),
    /// Another one has its name.
    Exists,
}

/// The objects of a kind, to be made and changed.
#[async_trait]
pub trait Objects<K>: Named<K> {
    /// Makes an object.
    async fn create(&self, namespace: &str, object: &K) -> Result<Created<K>, ResourceError>;

    /// Writes an object, if it has not changed since it was read.
    async fn replace(&self, object: &K) -> Result<K, ResourceError>;

    /// Removes an object, if it is still the one with this UID.
    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError>;
}

#[async_trait]
impl<K: Kind> Objects<K> for Cluster {
    async fn create(&self, namespace: &str, object: &K) -> Result<Created<K>, ResourceError> {
        let name = object.meta().name.as_deref().unwrap_or("(new)");
        let api = api::<K>(self, namespace);
        let create = async {
            match api.create(&PostParams::default(), object).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Created::Exists),
                other => other.map(Created::New),
            }
        };
        call(&what::<K>(namespace, name), create).await
    }

    async fn replace(&self, object: &K) -> Result<K, ResourceError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = api::<K>(self, &namespace);
        call(&what::<K>(&namespace, &name), api.replace(&name, &PostParams::default(), object)).await
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api = api::<K>(self, namespace);
        let delete = async {
            match api.delete(name, &params).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                other => other.map(|_| ()),
            }
        };
        call(&what::<K>(namespace, name), delete).await
    }
}

fn api<K: Kind>(cluster: &Cluster, namespace: &str) -> Api<K> {
    Api::namespaced(cluster.client().clone(), namespace)
}

fn what<K: Kind>(namespace: &str, name: &str) -> String {
    format!("{} {namespace}/{name}", K::kind(&()))
}
