//! Harness pods, as far as their addresses are concerned.

use std::net::IpAddr;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use super::ResourceError;
use super::cluster::{Cluster, call};

/// Finds pods.
#[async_trait]
pub trait Pods: Send + Sync + 'static {
    /// The address of the pod of this name, if it is still the one with this UID and has one.
    async fn address(&self, namespace: &str, name: &str, uid: &str) -> Result<Option<IpAddr>, ResourceError>;
}

#[async_trait]
impl Pods for Cluster {
    async fn address(&self, namespace: &str, name: &str, uid: &str) -> Result<Option<IpAddr>, ResourceError> {
        let api = Api::<Pod>::namespaced(self.client().clone(), namespace);
        let pod = call(&format!("Pod {namespace}/{name}"), api.get_opt(name)).await?;
        let pod = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(uid));
        Ok(pod.and_then(|pod| pod.status?.pod_ip?.parse().ok()))
    }
}
