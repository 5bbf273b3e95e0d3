//! What there is, as far as a sandbox is concerned.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};
use longhand_crds::sandbox::DesiredState;
use longhand_crds::sandbox_template::Persistence;
use longhand_crds::{Sandbox, SandboxTemplate, annotations, labels};

use super::pod::{self, SANDBOX};
use super::volume::{self, Volume};
use super::{Sandboxes, network_policy};
use crate::calls::call;
use crate::context::lookup;
use crate::error::Error;
use crate::pods::{self, Pending, PodView, Stage, elapsed};

/// A pod is ready within this time after it has begun to run.
const SOON_READY: Duration = Duration::from_secs(15);

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
    let mut volume = Volume::of(sandboxes.claims.get(&claim).as_deref(), &uid);
    // A workspace that there was is not given up because a watch is late.
    let known = status.workspace_claim.as_ref().is_some_and(|known| *known == claim.name);
    if volume.is_missing() && known {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(sandboxes.context.client.clone(), &namespace);
        let found = call(|| format!("get PersistentVolumeClaim {namespace}/{}", claim.name), api.get_opt(&claim.name));
        volume = Volume::of(found.await?.as_ref(), &uid);
    }
    let fence = sandboxes.policies.get(&ObjectRef::new(network_policy::NAME).within(&namespace));
    let fence_wanted = network_policy::build(&namespace, &sandboxes.context.namespace);
    let fenced = network_policy::holds(fence.as_deref(), &fence_wanted);
    Ok(Observed { sandbox, template, pods, current, fenced, volume, warm })
}

/// How good a pod of a pool is for a sandbox that needs one; not at all if it would rather start its own. One that runs and is not
/// ready for a while hangs, or was ready and its node is lost: Kubernetes takes that from the pods of a node when it does not answer.
pub(super) fn rank(pod: &PodView, now: Timestamp) -> Option<u8> {
    match pod.stage {
        Stage::Running { ready_since: Some(_), .. } => Some(0),
        Stage::Running { ready_since: None, since } if elapsed(since, now) <= SOON_READY => Some(1),
        Stage::Pending(Pending::Starting) => Some(1),
        _ => None,
    }
}

/// The pods that wait in the template's pool and are made as its pods are now: those that are ready, then those that start, the
/// oldest first, so that whoever looks again with the same store tries the same pod first.
fn warm(template: &SandboxTemplate, sandboxes: &Sandboxes) -> Vec<Warm> {
    let uid = template.uid().unwrap_or_default();
    let (hash, now) = (pod::pool_hash(sandboxes.context.parts(), template), Timestamp::now());
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
            Some((rank(&pod, now)?, Warm { pod, resource_version }))
        })
        .collect();
    found.sort_by(|(rank, warm), (other_rank, other)| {
        (rank, warm.pod.created, &warm.pod.name).cmp(&(other_rank, other.pod.created, &other.pod.name))
    });
    found.into_iter().map(|(_, warm)| warm).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::rank;
    use crate::pods::{Cause, Pending, PodView, Stage};
    use crate::sandbox::plan::tests::{NOW, at, pod, ready};

    fn unready(since: i64) -> PodView {
        pod(0, Stage::Running { since: at(since), ready_since: None })
    }

    #[rstest]
    #[case::ready(pod(0, ready(1)), Some(0))]
    #[case::starting(pod(0, Stage::Pending(Pending::Starting)), Some(1))]
    #[case::soon_ready(unready(NOW - 15), Some(1))]
    #[case::on_a_node_that_is_lost(PodView { unready_since: Some(at(NOW - 1)), ..unready(1) }, None)]
    #[case::hangs(unready(NOW - 16), None)]
    #[case::cannot_start(pod(0, Stage::Pending(Pending::Stuck(Cause::new("ErrImagePull", "")))), None)]
    fn a_pod_that_will_not_be_ready_soon_is_not_taken(#[case] pod: PodView, #[case] expected: Option<u8>) {
        assert_eq!(rank(&pod, at(NOW)), expected);
    }
}
