//! `SandboxTemplate`: accepted as it is, since what could not work, the API server refuses; and its pool of pods that wait for
//! sandboxes to come.
//!
//! A pod of the pool is controlled by the template until a sandbox takes it, see [`crate::sandbox`]. Its name has the number of a
//! slot, and slots are free by what there is, so that a reconcile which has not seen the last one's pods makes no more of them.

mod apply;
mod observe;
mod plan;
mod refill;
mod status;

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use longhand_crds::{SandboxTemplate, labels};
use tokio_util::sync::CancellationToken;

use self::observe::Observed;
use self::refill::{Refill, Refills};
use crate::context::{Context, Guarded, GuardedStore};
use crate::drive;
use crate::error::Error;
use crate::lists::Lists;
use crate::owned_pods::{self, OwnedPods};

/// What the reconcile of a template looks at.
struct Pools {
    context: Arc<Context>,
    pods: OwnedPods,
    policies: Store<NetworkPolicy>,
    refills: Refills,
}

/// Reconciles every `SandboxTemplate` until `token` is cancelled.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let managed = format!("{}={}", labels::MANAGED_BY, labels::LONGHAND);
    let of_pools = format!("{managed},{}={},{}", labels::ROLE, labels::SANDBOX, labels::POOL_UID);
    let config = watcher::Config::default;
    let mut lists = Lists::default();
    let (store, templates) = drive::watch::<Guarded<SandboxTemplate>>(&context, &config(), &mut lists);
    let (pods, pod_stream) = owned_pods::watch(&context, &config().labels(&of_pools), &mut lists);
    let (policies, policy_stream) = drive::watch::<NetworkPolicy>(&context, &config().labels(&managed), &mut lists);
    let (known, fenced) = (store.clone(), store.clone());
    // A pod that was taken has another controller, and its template must make the next one.
    let by_pod = pod_stream.filter_map(async |pod| pod.ok()).flat_map(move |pod| stream::iter(whose(&known, &pod)));
    // Pods that wait are behind the fence too.
    let by_policy = policy_stream.filter_map(async |policy| policy.ok()).flat_map(move |policy| {
        let found = fenced.state_filter(|template| template.namespace() == policy.namespace());
        stream::iter(found.into_iter().map(|template| ObjectRef::from_obj(&*template)).collect::<Vec<_>>())
    });
    let controller = Controller::for_stream(templates, store).reconcile_on(by_pod).reconcile_on(by_policy);
    let pools = Pools { context, pods, policies, refills: Refills::default() };
    drive::run(controller, lists, Arc::new(pools), token, reconcile).await;
}

fn whose(templates: &GuardedStore<SandboxTemplate>, pod: &Pod) -> Option<ObjectRef<Guarded<SandboxTemplate>>> {
    let uid = pod.labels().get(labels::POOL_UID)?;
    let namespace = pod.namespace();
    let found = templates.find(|template| template.namespace() == namespace && template.uid().as_ref() == Some(uid))?;
    Some(ObjectRef::from_obj(&*found))
}

async fn reconcile(template: Arc<SandboxTemplate>, pools: Arc<Pools>) -> Result<Action, Error> {
    if template.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let decided = pools.context.nodes.decide(SandboxTemplate::clone(&template)).await;
    let mut observed = observe::observe(decided, &pools);
    let taken = observed.names.len().saturating_sub(observed.pods.len());
    match pools.refills.next(&observed.template.uid().unwrap_or_default(), taken) {
        Refill::Wait(left) => return Ok(Action::requeue(left)),
        Refill::Hold(again) => observed.burst = Some(again),
        Refill::Fill => {}
    }
    proceed(&observed, &pools, Timestamp::now()).await
}

/// Acts on what was observed. Whatever fails, the status is written.
async fn proceed(observed: &Observed, pools: &Pools, now: Timestamp) -> Result<Action, Error> {
    let plan = plan::plan(observed, now);
    let applied = apply::apply(observed, &plan, pools).await;
    let template = &observed.template;
    // How many wait changes with each that is taken: it is written when the burst pauses, as all is well.
    if observed.burst.is_some() && applied.is_ok() && plan.stuck.is_none() && plan.failed.is_none() {
        return Ok(drive::action(plan.requeue));
    }
    let status = status::status(observed, &plan, applied.as_ref().err(), now);
    crate::status::write(&pools.context.client, template, template.status.as_ref(), &status).await?;
    applied?;
    Ok(drive::action(plan.requeue))
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
