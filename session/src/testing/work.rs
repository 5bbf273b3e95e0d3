//! Self-hosted environments in a cluster of make-believe.

use std::time::Duration;

use async_trait::async_trait;
use longhand_crds::wire_id::{derived_id, prefix};

use super::cluster::FakeCluster;
use crate::resources::ResourceError;
use crate::resources::quantity;
use crate::resources::templates::{Template, Templates};

impl FakeCluster {
    /// Somebody applies a self-hosted environment.
    pub(crate) fn add_hosted(&self, namespace: &str, name: &str) {
        self.hosted.lock().unwrap().insert((namespace.to_owned(), name.to_owned()));
    }
}

#[async_trait]
impl Templates for FakeCluster {
    async fn template(&self, namespace: &str, reference: &str) -> Result<Option<Template>, ResourceError> {
        let spec = |name: &str| self.environments.get(namespace, name).map(|template| template.spec);
        let of = |name: &str, self_hosted| Template {
            name: name.to_owned(),
            id: derived_id(prefix::ENVIRONMENT, &format!("{namespace}/{name}")),
            self_hosted,
            provision: spec(name).map(|spec| spec.provision).unwrap_or_default(),
            provisioning: Duration::from_secs(
                spec(name).map_or(120, |spec| u64::try_from(spec.provisioning_seconds).unwrap()),
            ),
            workspace_bytes: spec(name).and_then(|spec| quantity::bytes(&spec.workspace.size.0)),
            network: self.networks.lock().unwrap().contains(&(namespace.to_owned(), name.to_owned())),
        };
        let hosted: Vec<Template> = self
            .hosted
            .lock()
            .unwrap()
            .iter()
            .filter(|(space, _)| space == namespace)
            .map(|(_, name)| of(name, true))
            .collect();
        let all = hosted.into_iter().chain([of("tools", false)]);
        Ok(all.into_iter().find(|template| template.name == reference || template.id == reference))
    }
}
