//! What there is, as far as a sandbox is concerned.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use longhand_crds::sandbox::DesiredState;
use longhand_crds::sandbox_template::Persistence;
use longhand_crds::{Sandbox, SandboxTemplate, annotations, labels};

use super::pod::{self, SANDBOX};
use super::volume::{self, Volume};
use super::{Sandboxes, network_policy};
use crate::context::lookup;
use crate::error::Error;
use crate::pods::{self, Pending, PodView, Stage};

/// What there is.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) template: Option<SandboxTemplate>,
    /// Every pod that the sandbox controls.
    pub(super) pods: Vec<PodView>,
    /// UID of the pod that is the sandbox: the one in its status, or one that was made for it, or taken, and not written
    /// down yet.
    pub(super) current: Option<String>,
    /// Whether the namespace's fence is as it should be.
    pub(super) fenced: bool,
    /// The workspace that outlives the pods.
    pub(super) volume: Volume,
    /// Pods of the template's pool that may be taken, the best first, if one is needed.
    pub(super) warm: Vec<Warm>,
}

/// A pod of a pool.
#[derive(Clone, Debug)]
pub(super) struct Warm {
    pub(super) pod: PodView,
    /// Which state of it was seen: taking it succeeds for this one only.
    pub(super) resource_version: String,
}

/// Looks at the stores, and at the API server where a store cannot say.
pub(super) async fn observe(sandbox: Arc<Sandbox>, sandboxes: &Sandboxes) -> Result<Observed, Error> {
    let namespace = sandbox.namespace().unwrap_or_default();
    let uid = sandbox.uid().unwrap_or_default();
    let status = sandbox.status.clone().unwrap_or_default();
    let mut found = sandboxes.pods.controlled_by(&uid);
    found.retain(|pod| pod.metadata.namespace.as_deref() == Some(namespace.as_str()));
    let incarnation = status.incarnation.to_string();
    let unwritten = found.iter().find(|pod| pod.annotations().get(annotations::INCARNATION) == Some(&incarnation));
    let mut current = status.pod_uid.clone().or_else(|| unwritten.and_then(|pod| pod.metadata.uid.clone()));
    let mut pods: Vec<PodView> = found.iter().map(|pod| PodView::of(pod, SANDBOX)).collect();
    // The watches may not have brought a pod yet that was made a moment ago, nor the status that names it.
    let unseen = match &current {
        Some(uid) if pods.iter().any(|seen| &seen.uid == uid) => None,
        Some(_) => status.pod_name.clone(),
        None => sandboxes.reservations.pod_of(&uid, status.incarnation),
    };
    if let Some(name) = unseen {
        let pod = pods::get(&sandboxes.context.client, &namespace, &name, &uid).await?;
        let pod = pod.map(|pod| PodView::of(&pod, SANDBOX)).filter(|pod| pods.iter().all(|seen| seen.uid != pod.uid));
        current = current.or_else(|| pod.as_ref().map(|pod| pod.uid.clone()));
        pods.extend(pod);
    }
    pods.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let template = match lookup(&sandboxes.templates, &namespace, &sandbox.spec.template_ref.name) {
        Some(template) => Some(sandboxes.context.nodes.decide(template).await.0),
        None => None,
    };
    let wanted = sandbox.spec.desired_state == DesiredState::Running && current.is_none();
    // A pod that runs gains no volume.
    let ephemeral = |template: &&SandboxTemplate| template.spec.workspace.persistence == Persistence::Ephemeral;
    let warm = template
        .as_ref()
        .filter(|_| wanted && sandbox.spec.workspace_from.as_ref().is_none_or(|from| from.claim.is_none()))
        .filter(ephemeral)
        .map(|template| warm(template, sandboxes))
        .unwrap_or_default();
    let claim = ObjectRef::new(&volume::claim_name(&sandbox)).within(&namespace);
    let volume = Volume::of(sandboxes.claims.get(&claim).as_deref(), &uid);
    let fence = sandboxes.policies.get(&ObjectRef::new(network_policy::NAME).within(&namespace));
    let fence_wanted = network_policy::build(&namespace, &sandboxes.context.namespace);
    let fenced = network_policy::holds(fence.as_deref(), &fence_wanted);
    Ok(Observed { sandbox, template, pods, current, fenced, volume, warm })
}

/// The pods that wait in the template's pool and are made as its pods are now: those that are ready, then those that start, the
/// oldest first, so that whoever looks again with the same store tries the same pod first.
fn warm(template: &SandboxTemplate, sandboxes: &Sandboxes) -> Vec<Warm> {
    let uid = template.uid().unwrap_or_default();
    let hash = pod::pool_hash(sandboxes.context.parts(), template);
    let waiting = |pod: &Pod| {
        pod.namespace() == template.namespace()
            && pod.labels().get(labels::POOL_UID) == Some(&uid)
            && pod.labels().get(labels::POOL_HASH) == Some(&hash)
    };
    let mut found: Vec<(u8, Warm)> = sandboxes
        .pods
        .controlled_by(&uid)
        .iter()
        .filter(|pod| waiting(pod))
        .filter_map(|pod| {
            let resource_version = pod.metadata.resource_version.clone()?;
            let pod = PodView::of(pod, SANDBOX);
            let rank = match pod.stage {
                Stage::Running { ready_since: Some(_), .. } => 0,
                Stage::Running { ready_since: None, .. } | Stage::Pending(Pending::Starting) => 1,
                _ => return None,
            };
            Some((rank, Warm { pod, resource_version }))
        })
        .collect();
    found.sort_by(|(rank, warm), (other_rank, other)| {
        (rank, warm.pod.created, &warm.pod.name).cmp(&(other_rank, other.pod.created, &other.pod.name))
    });
    found.into_iter().map(|(_, warm)| warm).collect()
}
