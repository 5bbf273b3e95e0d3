//! The only writer of sandbox pods and of the fence.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use longhand_crds::Sandbox;
use longhand_protocol::internal::DrainSandbox;

use super::observe::Observed;
use super::plan::{Drain, Plan};
use super::pod::{self, SANDBOX};
use super::{Sandboxes, network_policy};
use crate::calls::{call, unless_gone};
use crate::error::Error;
use crate::metrics;
use crate::pods::{self, Made, PodView};

/// Where the session service publishes the key that sandboxes know it by.
const KEYS: &str = "longhand-session-keys";
const VERIFY_KEY: &str = "sandboxd-verify-key";

/// Puts the fence up and replaces pods as the plan says; returns the pod that there is then.
pub(super) async fn apply(observed: &Observed, plan: &Plan, sandboxes: &Sandboxes) -> Result<Option<PodView>, Error> {
    let Plan { fence, loss: _, remove, make, drain: _, pod, restarts: _, view: _, requeue: _ } = plan;
    let namespace = observed.sandbox.namespace().unwrap_or_default();
    let pod = match make {
        Some(name) => make_pod(observed, name, *fence, sandboxes).await?,
        None => {
            if *fence {
                put_fence(&namespace, sandboxes).await?;
            }
            pod.clone()
        }
    };
    for (name, uid) in remove {
        pods::delete(&sandboxes.context.client, &namespace, name, uid).await?;
    }
    Ok(pod)
}

async fn put_fence(namespace: &str, sandboxes: &Sandboxes) -> Result<(), Error> {
    let policy = network_policy::build(namespace, &sandboxes.context.namespace);
    let api: Api<NetworkPolicy> = Api::namespaced(sandboxes.context.client.clone(), namespace);
    let params = PatchParams::apply(crate::MANAGER).force();
    let what = || format!("apply NetworkPolicy {namespace}/{}", network_policy::NAME);
    call(what, api.patch(network_policy::NAME, &params, &Patch::Apply(&policy))).await?;
    Ok(())
}

async fn make_pod(
    observed: &Observed,
    name: &str,
    fence: bool,
    sandboxes: &Sandboxes,
) -> Result<Option<PodView>, Error> {
    let Some(template) = &observed.template else { return Ok(None) };
    let sandbox = &observed.sandbox;
    let (namespace, owner) = (sandbox.namespace().unwrap_or_default(), sandbox.uid().unwrap_or_default());
    let fenced = async { if fence { put_fence(&namespace, sandboxes).await } else { Ok(()) } };
    let ((), key) = futures::try_join!(fenced, verify_key(sandboxes))?;
    let context = &sandboxes.context;
    let pod = pod::build(&context.images, sandbox, template, &key, name);
    match pods::create(&context.client, &namespace, &pod, &owner).await? {
        Made::Ours(pod) => {
            metrics::pod_created("sandbox");
            Ok(Some(PodView::of(&pod, SANDBOX)))
        }
        Made::Foreign => Err(Error::NameTaken { namespace, name: name.to_owned() }),
    }
}

async fn verify_key(sandboxes: &Sandboxes) -> Result<String, Error> {
    let namespace = &sandboxes.context.namespace;
    let api: Api<ConfigMap> = Api::namespaced(sandboxes.context.client.clone(), namespace);
    let map = call(|| format!("get ConfigMap {namespace}/{KEYS}"), api.get_opt(KEYS)).await?;
    let key = map.and_then(|map| map.data).and_then(|mut data| data.remove(VERIFY_KEY));
    key.ok_or_else(|| Error::NoVerifyKey { namespace: namespace.clone(), name: KEYS, key: VERIFY_KEY })
}

/// What became of a drain.
pub(super) enum Reclaimed {
    /// The sandbox is gone.
    Yes,
    /// It is in use, or was a moment ago: ask again after this time.
    NotBefore(Duration),
}

/// Drains an idle sandbox and removes it with its pod.
pub(super) async fn reclaim(sandbox: &Sandbox, drain: &Drain, sandboxes: &Sandboxes) -> Result<Reclaimed, Error> {
    let (namespace, name) = (sandbox.namespace().unwrap_or_default(), sandbox.name_any());
    let Drain { pod_name, pod_uid, idle_seconds } = drain;
    let request = DrainSandbox { pod_uid: pod_uid.clone(), idle_seconds: *idle_seconds };
    let answer = sandboxes.context.log.drain(&namespace, &name, &request).await?;
    if !answer.drained {
        let left = idle_seconds.saturating_sub(answer.idle_seconds).max(1);
        return Ok(Reclaimed::NotBefore(Duration::from_secs(left)));
    }
    let api: Api<Sandbox> = Api::namespaced(sandboxes.context.client.clone(), &namespace);
    let params =
        DeleteParams::background().preconditions(Preconditions { uid: sandbox.uid(), ..Preconditions::default() });
    unless_gone(|| format!("delete Sandbox {namespace}/{name}"), api.delete(&name, &params)).await?;
    // The garbage collector would do it too, a little later.
    pods::delete(&sandboxes.context.client, &namespace, pod_name, pod_uid).await?;
    Ok(Reclaimed::Yes)
}
