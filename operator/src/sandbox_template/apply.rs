//! The only writer of the pods of pools.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use longhand_crds::labels;

use super::Pools;
use super::observe::Observed;
use super::plan::{Plan, wanted};
use crate::calls::call;
use crate::error::Error;
use crate::sandbox::{ground, pod};
use crate::{metrics, pods};

/// Pods that are made at the same time; while others are being taken, one after the other, as those who take them come first.
const CONCURRENCY: usize = 8;

/// Makes and deletes pods as the plan says.
pub(super) async fn apply(observed: &Observed, plan: &Plan, pools: &Pools) -> Result<(), Error> {
    let (template, context) = (&observed.template, &pools.context);
    let namespace = template.namespace().unwrap_or_default();
    for (name, uid) in &plan.remove {
        pods::delete(&context.client, &namespace, name, uid).await?;
    }
    for (name, uid) in &plan.forget {
        pods::forget(&context.client, &namespace, name, uid).await?;
    }
    if wanted(observed) == 0 {
        return Ok(());
    }
    if !observed.fenced {
        ground::put_fence(context, &namespace).await?;
    }
    let key = ground::verify_key(context).await?;
    // Nobody could call what runs with another key.
    let outdated = observed.pods.iter().filter(|found| found.verify_key != key);
    for found in outdated.filter(|found| plan.remove.iter().all(|(_, uid)| *uid != found.pod.uid)) {
        pods::delete(&context.client, &namespace, &found.pod.name, &found.pod.uid).await?;
    }
    let all: Vec<_> = plan.make.iter().map(|name| make(observed, name, &key, pools)).collect();
    let at_once = if observed.burst.is_some() { 1 } else { CONCURRENCY };
    stream::iter(all).buffer_unordered(at_once).try_collect::<Vec<()>>().await?;
    Ok(())
}

async fn make(observed: &Observed, name: &str, key: &str, pools: &Pools) -> Result<(), Error> {
    let (template, context) = (&observed.template, &pools.context);
    let namespace = template.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let pod = pod::build_warm(context.parts(), template, key, name);
    let params = PostParams { field_manager: Some(crate::MANAGER.to_owned()), ..PostParams::default() };
    match call(|| format!("create pod {namespace}/{name}"), api.create(&params, &pod)).await {
        Ok(_) => {
            metrics::pod_created("warm-sandbox");
            Ok(())
        }
        Err(error) if error.is_already_exists() => {
            // One that the watch has not shown yet, even if it was taken since.
            let found = call(|| format!("get pod {namespace}/{name}"), api.get_opt(name)).await?;
            let of_pool = |found: &Pod| found.labels().get(labels::POOL_UID) == template.uid().as_ref();
            match found {
                Some(found) if !of_pool(&found) => Err(Error::NameTaken { namespace, name: name.to_owned() }),
                _ => Ok(()),
            }
        }
        Err(error) => Err(error.into()),
    }
}
