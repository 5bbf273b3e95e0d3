//! Versions of agents.

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Api;
use kube::api::{ListParams, ObjectMeta};
use longhand_crds::labels;

use super::ResourceError;
use super::cluster::{Cluster, call};
use super::objects::Objects;

const PAGE: u32 = 500;

/// Versions of agents, each a ControllerRevision.
#[async_trait]
pub trait Revisions: Objects<ControllerRevision> {
    /// The metadata of every version of the agent with this UID.
    async fn recorded(&self, namespace: &str, agent_uid: &str) -> Result<Vec<ObjectMeta>, ResourceError>;
}

#[async_trait]
impl Revisions for Cluster {
    async fn recorded(&self, namespace: &str, agent_uid: &str) -> Result<Vec<ObjectMeta>, ResourceError> {
        let api = Api::<ControllerRevision>::namespaced(self.client().clone(), namespace);
        let mut params = ListParams::default().labels(&format!("{}={agent_uid}", labels::AGENT_UID)).limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = call("the versions of an Agent", api.list_metadata(&params)).await?;
            all.extend(page.items.into_iter().map(|item| item.metadata));
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok(all);
            }
        }
    }
}
