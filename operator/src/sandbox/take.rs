//! Taking a pod that waits in a template's pool: one write, which only one sandbox can win.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource as _, ResourceExt as _};

use super::Sandboxes;
use super::observe::{Observed, Warm};
use super::pod::{self, SANDBOX};
use crate::calls::call;
use crate::error::Error;
use crate::metrics;
use crate::pods::{self, PodView};

/// Takes the first pod of the pool that nobody else has taken. `None` if there is none.
///
/// The write names the state of the pod that was seen. When it is another one by now, the pod may be ours all the same, taken by
/// a reconcile that this one knows nothing of yet.
pub(super) async fn take(
    observed: &Observed,
    incarnation: i64,
    sandboxes: &Sandboxes,
) -> Result<Option<PodView>, Error> {
    let sandbox = &observed.sandbox;
    let (namespace, owner) = (sandbox.namespace().unwrap_or_default(), sandbox.uid().unwrap_or_default());
    let api: Api<Pod> = Api::namespaced(sandboxes.context.client.clone(), &namespace);
    for Warm { pod, resource_version } in &observed.warm {
        let patch = serde_json::json!({ "metadata": {
            "uid": pod.uid,
            "resourceVersion": resource_version,
            "labels": pod::labels(sandbox, incarnation),
            "ownerReferences": sandbox.controller_owner_ref(&()).as_slice(),
        } });
        let params = PatchParams { field_manager: Some(crate::MANAGER.to_owned()), ..PatchParams::default() };
        let what = || format!("take pod {namespace}/{}", pod.name);
        match call(what, api.patch(&pod.name, &params, &Patch::Merge(&patch))).await {
            Ok(taken) => {
                metrics::warm_taken();
                return Ok(Some(PodView::of(&taken, SANDBOX)));
            }
            Err(error) if error.is_conflict() => {
                metrics::warm_conflict();
                if let Some(ours) = pods::get(&sandboxes.context.client, &namespace, &pod.name, &owner).await? {
                    return Ok(Some(PodView::of(&ours, SANDBOX)));
                }
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
