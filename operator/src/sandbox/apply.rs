//! The only writer of sandbox pods, and of the volumes of their workspaces.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use longhand_crds::Sandbox;
use longhand_protocol::internal::DrainSandbox;

use super::observe::Observed;
use super::plan::{Drain, Plan};
use super::pod::{self, SANDBOX};
use super::take::take;
use super::{Sandboxes, ground, volume};
use crate::calls::call;
use crate::error::Error;
use crate::metrics;
use crate::pods::{self, Made, PodView};

/// When a sandbox is looked at again that has changed since it was seen.
const CHANGED: Duration = Duration::from_secs(1);

/// The pod that there is after a plan was carried out.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    pub(super) pod: Option<PodView>,
    /// It was started beforehand.
    pub(super) taken: bool,
}

/// Puts the fence up and replaces pods as the plan says; returns the pod that there is then.
pub(super) async fn apply(observed: &Observed, plan: &Plan, sandboxes: &Sandboxes) -> Result<Applied, Error> {
    let Plan { fence, remove, forget, make, volume, pod, incarnation, .. } = plan;
    let namespace = observed.sandbox.namespace().unwrap_or_default();
    // They count for quotas, and hold volumes.
    for (name, uid) in forget {
        pods::forget(&sandboxes.context.client, &namespace, name, uid).await?;
    }
    let applied = match make {
        Some(name) => make_pod(observed, name, *incarnation, (*fence, *volume), sandboxes).await?,
        None => {
            if *fence {
                ground::put_fence(&sandboxes.context, &namespace).await?;
            }
            Applied { pod: pod.clone(), taken: false }
        }
    };
    for (name, uid) in remove {
        pods::delete(&sandboxes.context.client, &namespace, name, uid).await?;
    }
    Ok(applied)
}

async fn make_pod(
    observed: &Observed,
    name: &str,
    incarnation: i64,
    (fence, volume): (bool, bool),
    sandboxes: &Sandboxes,
) -> Result<Applied, Error> {
    let Some(template) = &observed.template else { return Ok(Applied::default()) };
    let (sandbox, context) = (&observed.sandbox, &sandboxes.context);
    let (namespace, owner) = (sandbox.namespace().unwrap_or_default(), sandbox.uid().unwrap_or_default());
    if !fence && let Some(pod) = take(observed, incarnation, sandboxes).await? {
        return Ok(Applied { pod: Some(pod), taken: true });
    }
    let fenced = async { if fence { ground::put_fence(context, &namespace).await } else { Ok(()) } };
    let claimed = async { if volume { make_volume(sandbox, template, sandboxes).await } else { Ok(()) } };
    let ((), (), key) = futures::try_join!(fenced, claimed, ground::verify_key(context))?;
    let pod = pod::build(context.parts(), sandbox, template, &key, name, incarnation);
    match pods::create(&context.client, &namespace, &pod, &owner).await? {
        Made::Ours(pod) => {
            metrics::pod_created("sandbox");
            Ok(Applied { pod: Some(PodView::of(&pod, SANDBOX)), taken: false })
        }
        Made::Foreign => Err(Error::NameTaken { namespace, name: name.to_owned() }),
    }
}

async fn make_volume(
    sandbox: &Sandbox,
    template: &longhand_crds::SandboxTemplate,
    sandboxes: &Sandboxes,
) -> Result<(), Error> {
    let (namespace, owner) = (sandbox.namespace().unwrap_or_default(), sandbox.uid().unwrap_or_default());
    let claim = volume::build(sandbox, template);
    let name = claim.name_any();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(sandboxes.context.client.clone(), &namespace);
    let params = PostParams { field_manager: Some(crate::MANAGER.to_owned()), ..PostParams::default() };
    let what = || format!("create PersistentVolumeClaim {namespace}/{name}");
    let Err(error) = call(what, api.create(&params, &claim)).await else { return Ok(()) };
    if !error.is_already_exists() {
        return Err(error.into());
    }
    let found = call(|| format!("get PersistentVolumeClaim {namespace}/{name}"), api.get(&name)).await?;
    if found.owner_references().iter().any(|reference| reference.uid == owner) {
        return Ok(());
    }
    Err(Error::VolumeNameTaken { namespace, name })
}

/// What became of a drain.
pub(super) enum Reclaimed {
    /// Its pod is gone.
    Yes,
    /// It is in use, or was a moment ago: ask again after this time.
    NotBefore(Duration),
}

/// Drains an idle sandbox and removes its pod; the sandbox too, unless it is suspended.
pub(super) async fn reclaim(sandbox: &Sandbox, drain: &Drain, sandboxes: &Sandboxes) -> Result<Reclaimed, Error> {
    let (namespace, name) = (sandbox.namespace().unwrap_or_default(), sandbox.name_any());
    let Drain { pod_name, pod_uid, idle_seconds, background_counts, suspend } = drain;
    let request = DrainSandbox {
        pod_uid: pod_uid.clone(),
        idle_seconds: *idle_seconds,
        background_counts: *background_counts,
        suspend: *suspend,
    };
    let answer = sandboxes.context.log.drain(&namespace, &name, &request).await?;
    if !answer.drained {
        let left = idle_seconds.saturating_sub(answer.idle_seconds).max(1);
        return Ok(Reclaimed::NotBefore(Duration::from_secs(left)));
    }
    if !suspend && !remove_as_seen(sandbox, sandboxes).await? {
        return Ok(Reclaimed::NotBefore(CHANGED));
    }
    // It takes no more calls, so it goes whatever is wanted by now. Of a sandbox that is gone the garbage collector would remove
    // it too, a little later.
    pods::delete(&sandboxes.context.client, &namespace, pod_name, pod_uid).await?;
    Ok(Reclaimed::Yes)
}

/// Removes the sandbox, and with it all that it owns, unless it has changed: somebody may want its workspace now.
pub(super) async fn remove_as_seen(sandbox: &Sandbox, sandboxes: &Sandboxes) -> Result<bool, Error> {
    let seen = Preconditions { uid: sandbox.uid(), resource_version: sandbox.resource_version() };
    delete(sandbox, seen, sandboxes).await
}

/// Removes the sandbox, and with it all that it owns.
pub(super) async fn remove(sandbox: &Sandbox, sandboxes: &Sandboxes) -> Result<(), Error> {
    let meant = Preconditions { uid: sandbox.uid(), ..Preconditions::default() };
    // One that is another by now is gone too.
    delete(sandbox, meant, sandboxes).await.map(drop)
}

/// Whether it is gone, which it is not if it is another than it should be.
async fn delete(sandbox: &Sandbox, if_it_is: Preconditions, sandboxes: &Sandboxes) -> Result<bool, Error> {
    let (namespace, name) = (sandbox.namespace().unwrap_or_default(), sandbox.name_any());
    let api: Api<Sandbox> = Api::namespaced(sandboxes.context.client.clone(), &namespace);
    let params = DeleteParams::background().preconditions(if_it_is);
    match call(|| format!("delete Sandbox {namespace}/{name}"), api.delete(&name, &params)).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(true),
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error.into()),
    }
}
