//! Sandbox templates, as far as work for self-hosted ones is concerned.

use std::time::Duration;

use async_trait::async_trait;
use longhand_crds::template_resource::TemplateResource;
use longhand_crds::wire_id::prefix;
use longhand_crds::{SandboxTemplate, wire_id};

use super::cluster::Cluster;
use super::named::find;
use super::{ResourceError, quantity};

/// A sandbox template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// The identifier of the environment that it is.
    pub id: String,
    /// Whether workers of others run the tools.
    pub self_hosted: bool,
    /// Whether it says what its sandboxes may reach.
    pub network: bool,
    /// What workspaces are given from the start.
    pub provision: Vec<TemplateResource>,
    /// How long that may take.
    pub provisioning: Duration,
    /// How many bytes a workspace may hold, if that is understood.
    pub workspace_bytes: Option<u64>,
}

impl Template {
    /// What matters of it.
    #[must_use]
    pub fn of(template: &SandboxTemplate) -> Self {
        Self {
            name: template.metadata.name.clone().unwrap_or_default(),
            id: wire_id(prefix::ENVIRONMENT, &template.metadata),
            self_hosted: template.spec.self_hosted,
            network: template.spec.network.is_some(),
            provision: template.spec.provision.clone(),
            provisioning: Duration::from_secs(u64::try_from(template.spec.provisioning_seconds).unwrap_or(0)),
            workspace_bytes: quantity::bytes(&template.spec.workspace.size.0),
        }
    }
}

/// Finds sandbox templates.
#[async_trait]
pub trait Templates: Send + Sync + 'static {
    /// The template that an identifier or a name stands for.
    async fn template(&self, namespace: &str, reference: &str) -> Result<Option<Template>, ResourceError>;
}

#[async_trait]
impl Templates for Cluster {
    async fn template(&self, namespace: &str, reference: &str) -> Result<Option<Template>, ResourceError> {
        let found = find::<SandboxTemplate>(self, prefix::ENVIRONMENT, namespace, reference).await?;
        Ok(found.as_ref().map(Template::of))
    }
}
