//! Taking a pod that waits in a template's pool: one write, which only one sandbox can win.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource as _, ResourceExt as _};
use longhand_crds::{Sandbox, labels};

use super::Sandboxes;
use super::observe::{Observed, Warm, rank};
use super::pod::{self, SANDBOX};
use crate::calls::call;
use crate::error::Error;
use crate::metrics;
use crate::pods::{PodView, Stage, is_controlled_by};

/// Who loses so many races makes a pod of its own.
const MOST_TRIES: usize = 16;

/// Takes the first pod of the pool that nobody else has taken. `None` if there is none.
///
/// The write names the state of the pod that was seen. When it is another one by now, the pod may be ours all the same, taken by
/// a reconcile whose answer was lost.
pub(super) async fn take(
    observed: &Observed,
    incarnation: i64,
    sandboxes: &Sandboxes,
) -> Result<Option<PodView>, Error> {
    let sandbox = &observed.sandbox;
    let owner = sandbox.uid().unwrap_or_default();
    let reserved = &sandboxes.reservations;
    // The one that was tried before may be ours already.
    let (ours, others): (Vec<&Warm>, Vec<&Warm>) =
        observed.warm.iter().partition(|warm| reserved.is_for(&warm.pod.uid, &owner));
    let free = ours.into_iter().chain(others).filter(|warm| reserved.reserve(&warm.pod.uid, &owner));
    for warm in free.take(MOST_TRIES) {
        let mut version = warm.resource_version.clone();
        // A pod's status changes by itself while it waits.
        for _ in 0..2 {
            match try_take(sandbox, &warm.pod, &version, incarnation, sandboxes).await? {
                Tried::Ours(pod) => return Ok(Some(pod)),
                Tried::Changed(now) => version = now,
                Tried::Gone => break,
            }
        }
    }
    Ok(None)
}

/// What became of an attempt.
enum Tried {
    /// The pod is ours.
    Ours(PodView),
    /// It waits still, in another state, which has this version.
    Changed(String),
    /// It is somebody else's, or none.
    Gone,
}

async fn try_take(
    sandbox: &Sandbox,
    pod: &PodView,
    version: &str,
    incarnation: i64,
    sandboxes: &Sandboxes,
) -> Result<Tried, Error> {
    let (namespace, owner) = (sandbox.namespace().unwrap_or_default(), sandbox.uid().unwrap_or_default());
    let api: Api<Pod> = Api::namespaced(sandboxes.context.client.clone(), &namespace);
    let patch = serde_json::json!({ "metadata": {
        "uid": pod.uid,
        "resourceVersion": version,
        "annotations": pod::incarnation_of(incarnation),
        "ownerReferences": sandbox.controller_owner_ref(&()).as_slice(),
    } });
    let params = PatchParams { field_manager: Some(crate::MANAGER.to_owned()), ..PatchParams::default() };
    let what = || format!("take pod {namespace}/{}", pod.name);
    let patch = Patch::Merge(&patch);
    let taking = call(what, api.patch(&pod.name, &params, &patch));
    let error = match tokio::join!(taking, ask_ahead(pod, &namespace, sandboxes)).0 {
        Ok(taken) => {
            metrics::warm_taken();
            return Ok(Tried::Ours(PodView::of(&taken, SANDBOX)));
        }
        Err(error) => error,
    };
    if error.is_not_found() {
        return Ok(Tried::Gone);
    }
    if !error.is_conflict() {
        return Err(error.into());
    }
    metrics::warm_conflict();
    let found = call(|| format!("get pod {namespace}/{}", pod.name), api.get_opt(&pod.name)).await?;
    Ok(match found.filter(|found| found.metadata.uid.as_ref() == Some(&pod.uid)) {
        Some(found) if is_controlled_by(&found, &owner) => Tried::Ours(PodView::of(&found, SANDBOX)),
        Some(found) if waits(&found) => Tried::Changed(found.resource_version().unwrap_or_default()),
        Some(_) | None => Tried::Gone,
    })
}

/// What the pod says of its fence is in the write that makes the sandbox ready.
async fn ask_ahead(pod: &PodView, namespace: &str, sandboxes: &Sandboxes) {
    if !matches!(pod.stage, Stage::Running { ready_since: Some(_), .. }) {
        return;
    }
    if let Some(found) = sandboxes.pods.store().get(&ObjectRef::new(&pod.name).within(namespace)) {
        sandboxes.fence.ask_ahead(&found, &sandboxes.context.fencing).await;
    }
}

fn waits(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && rank(&PodView::of(pod, SANDBOX), Timestamp::now()).is_some()
        && pod.labels().get(labels::POOL_UID).is_some_and(|pool| is_controlled_by(pod, pool))
}
