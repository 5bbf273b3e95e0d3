//! A pod of the same shape that nobody manages: the least that a pod costs on this cluster.

use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use longhand_cli::backend::is_ready;
use longhand_crds::labels;

use crate::cluster::{TestNamespace, TestResult};

const DEADLINE: Duration = Duration::from_secs(120);
/// By which `sandboxd` looks for a fence before it is ready.
const FENCE_VARIABLES: [&str; 2] = ["SANDBOXD_CANARIES", "SANDBOXD_REQUIRE_FENCE"];

/// The pod of the sandbox whose pods' names begin with this: what a bare one looks like.
///
/// # Errors
/// When there is none.
pub(super) async fn shape(namespace: &TestNamespace, prefix: &str) -> TestResult<Pod> {
    let selector = ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX));
    let pods = namespace.api::<Pod>().list(&selector).await?.items;
    let found = pods.into_iter().find(|pod| pod.name_any().starts_with(prefix));
    let mut pod = found.ok_or("there is no sandbox pod")?;
    // Nobody fences a bare pod in, so that it may not wait for a fence.
    for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        if let Some(env) = &mut container.env {
            env.retain(|variable| !FENCE_VARIABLES.contains(&variable.name.as_str()));
        }
    }
    Ok(pod)
}

/// Milliseconds from the create request to the condition Ready, in a watch that is open before.
///
/// # Errors
/// When it is not ready within two minutes.
pub(super) async fn ready_after(namespace: &TestNamespace, shape: &Pod, name: &str) -> TestResult<f64> {
    let mut pod = Pod { spec: shape.spec.clone(), ..Pod::default() };
    pod.metadata.name = Some(name.to_owned());
    if let Some(spec) = &mut pod.spec {
        spec.node_name = None;
    }
    let pods = namespace.api::<Pod>();
    let ready = async {
        let mut seen = std::pin::pin!(watcher::watch_object(pods.clone(), name));
        let mut begun = None;
        while let Some(pod_now) = seen.try_next().await? {
            // The first item says that there is none yet: the watch is open before the clock starts.
            match (&pod_now, begun) {
                (None, None) => {
                    begun = Some(Instant::now());
                    pods.create(&PostParams::default(), &pod).await?;
                }
                (Some(pod_now), Some(begun)) if is_ready(pod_now) => return TestResult::Ok(Instant::now() - begun),
                _ => {}
            }
        }
        Err("the watch ended".into())
    };
    let took = tokio::time::timeout(DEADLINE, ready).await.map_err(|_| format!("{name} was not ready in time"))??;
    pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(took.as_secs_f64() * 1_000.0)
}
