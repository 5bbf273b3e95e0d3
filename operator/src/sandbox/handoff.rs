//! A sandbox that is handed to another session: its workspace gets another owner when its pod has ended, or has been copied before
//! that ends if it is in no volume, and it goes.
//!
//! `spec.handoffTo` is the intent, and each step may be done again: whatever fails, the next reconcile goes on.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, Resource as _, ResourceExt as _};
use longhand_crds::{Sandbox, labels};
use longhand_protocol::internal::{Handoff, SettleHandoff};
use serde_json::{Value, json};

use super::observe::Observed;
use super::plan::Plan;
use super::{Sandboxes, apply};
use crate::calls::{call, unless_gone};
use crate::drive;
use crate::error::Error;
use crate::events::Happened;
use crate::pods::{self, PodView, Stage, is_overdue};

/// When it is asked again of a sandbox in which something runs, or whose workspace is being copied.
const AGAIN: Duration = Duration::from_secs(2);

/// Asks the session service for its part, and does the operator's when nothing runs in the sandbox any more.
pub(super) async fn go_on(
    observed: &Observed,
    plan: &Plan,
    sandboxes: &Sandboxes,
    now: Timestamp,
) -> Result<Action, Error> {
    let sandbox = &observed.sandbox;
    let (namespace, name) = (sandbox.namespace().unwrap_or_default(), sandbox.name_any());
    let (context, regarding) = (&sandboxes.context, sandbox.object_ref(&()));
    let request = SettleHandoff { uid: sandbox.uid().unwrap_or_default() };
    let (to, to_uid) = match context.log.settle_handoff(&namespace, &name, &request).await? {
        Handoff::InUse | Handoff::Moving => return Ok(Action::requeue(AGAIN)),
        Handoff::TakenBack { reason } => {
            context.events.publish(Happened::SandboxHandoffTakenBack, &regarding, &reason).await;
            return Ok(Action::await_change());
        }
        Handoff::Settled { name, uid } => (name, uid),
    };
    for pod in observed.pods.iter().filter(|pod| !matches!(pod.stage, Stage::Terminating { .. })) {
        pods::delete(&context.client, &namespace, &pod.name, &pod.uid).await?;
    }
    // Two pods must not write to one workspace.
    if observed.pods.iter().any(|pod| !has_ended(pod, now)) {
        return Ok(drive::action(plan.requeue));
    }
    if let Some(claim) = observed.volume.name() {
        give(sandbox, claim, (&to, &to_uid), sandboxes).await?;
    }
    apply::remove(sandbox, sandboxes).await?;
    context
        .events
        .publish(Happened::SandboxHandedOff, &regarding, &format!("its workspace went to Sandbox {to}"))
        .await;
    Ok(Action::await_change())
}

/// Of one whose node does not say so, the plan has seen to that it is forgotten.
fn has_ended(pod: &PodView, now: Timestamp) -> bool {
    matches!(pod.stage, Stage::Terminating { due, .. } if is_overdue(due, now))
}

/// Makes the claim belong to the other sandbox, unless it does.
async fn give(sandbox: &Sandbox, claim: &str, to: (&str, &str), sandboxes: &Sandboxes) -> Result<(), Error> {
    let namespace = sandbox.namespace().unwrap_or_default();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(sandboxes.context.client.clone(), &namespace);
    let what = |verb: &str| format!("{verb} PersistentVolumeClaim {namespace}/{claim}");
    let Some(found) = call(|| what("get"), api.get_opt(claim)).await? else { return Ok(()) };
    let owned_by = |uid: &str| found.owner_references().iter().any(|owner| owner.uid == uid);
    if owned_by(to.1) {
        return Ok(());
    }
    if !sandbox.uid().is_some_and(|uid| owned_by(&uid)) {
        return Err(Error::VolumeNameTaken { namespace, name: claim.to_owned() });
    }
    let patch = Patch::Merge(change_of_owner(found.resource_version().as_deref(), to));
    unless_gone(|| what("patch"), api.patch(claim, &PatchParams::default(), &patch)).await?;
    Ok(())
}

/// Only the claim that was seen: nothing that somebody else has changed since.
fn change_of_owner(version: Option<&str>, (name, uid): (&str, &str)) -> Value {
    json!({ "metadata": {
        "resourceVersion": version,
        "labels": { labels::SANDBOX_UID: uid },
        "ownerReferences": [{
            "apiVersion": Sandbox::api_version(&()),
            "kind": Sandbox::kind(&()),
            "name": name,
            "uid": uid,
            "controller": true,
        }],
    } })
}
