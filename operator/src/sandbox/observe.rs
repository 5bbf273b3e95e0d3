//! What there is, as far as a sandbox is concerned.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use longhand_crds::{Sandbox, SandboxTemplate, labels};

use super::pod::SANDBOX;
use super::{Sandboxes, network_policy};
use crate::context::lookup;
use crate::error::Error;
use crate::pods::{self, PodView, is_controlled_by};

/// What there is.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) template: Option<SandboxTemplate>,
    /// Every pod that the sandbox controls.
    pub(super) pods: Vec<PodView>,
    /// Whether the namespace's fence is as it should be.
    pub(super) fenced: bool,
}

/// Looks at the stores, and at the API server where a store cannot say.
pub(super) async fn observe(sandbox: Arc<Sandbox>, sandboxes: &Sandboxes) -> Result<Observed, Error> {
    let namespace = sandbox.namespace().unwrap_or_default();
    let uid = sandbox.uid().unwrap_or_default();
    let ours = |pod: &Pod| {
        pod.labels().get(labels::SANDBOX_UID).is_some_and(|label| *label == uid)
            && pod.metadata.namespace.as_deref() == Some(namespace.as_str())
            && is_controlled_by(pod, &uid)
    };
    let mut pods: Vec<PodView> =
        sandboxes.pods.state_filter(ours).iter().map(|pod| PodView::of(pod, SANDBOX)).collect();
    let status = sandbox.status.as_ref();
    if let Some((name, pod_uid)) = status.and_then(|status| status.pod_name.as_ref().zip(status.pod_uid.as_ref()))
        && pods.iter().all(|seen| &seen.uid != pod_uid)
    {
        // The watch may not have brought a pod yet that was made a moment ago: only the API server knows.
        let pod = pods::get(&sandboxes.context.client, &namespace, name, &uid).await?;
        pods.extend(pod.iter().map(|pod| PodView::of(pod, SANDBOX)));
    }
    pods.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let template = lookup(&sandboxes.templates, &namespace, &sandbox.spec.template_ref.name);
    let fence = sandboxes.policies.get(&ObjectRef::new(network_policy::NAME).within(&namespace));
    let wanted = network_policy::build(&namespace, &sandboxes.context.namespace);
    Ok(Observed { sandbox, template, pods, fenced: network_policy::holds(fence.as_deref(), &wanted) })
}
