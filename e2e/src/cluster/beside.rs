//! A look at a container from beside it: an ephemeral container that shares its processes and its user.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};

use super::{TestResult, exec, wait_for};

const START: Duration = Duration::from_secs(60);
const RUN: Duration = Duration::from_secs(180);

/// Runs `command` in a new ephemeral container of `image` beside `container` of `pod`, and returns what it wrote to its
/// standard output. `name` must not have been used in that pod before.
///
/// # Errors
/// When the container does not start within a minute, or the command does not end within three.
pub async fn run_beside(
    pods: &Api<Pod>,
    pod: &Pod,
    container: &str,
    image: &str,
    name: &str,
    command: &[&str],
) -> TestResult<String> {
    let spec = pod.spec.as_ref().ok_or("a pod without a spec")?;
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let target = containers.find(|found| found.name == container).ok_or("there is no such container")?;
    let debug = serde_json::json!({ "spec": { "ephemeralContainers": [{
        "name": name,
        "image": image,
        "command": ["sleep", "600"],
        "targetContainerName": container,
        "securityContext": target.security_context,
    }]}});
    let pod = pod.name_any();
    pods.patch_ephemeral_containers(&pod, &PatchParams::default(), &Patch::Strategic(debug)).await?;
    wait_for(pods.clone(), &pod, "the ephemeral container runs", START, |pod| {
        let statuses = pod?.status.as_ref()?.ephemeral_container_statuses.as_ref()?;
        let status = statuses.iter().find(|status| status.name == name)?;
        status.state.as_ref()?.running.as_ref().map(|_| ())
    })
    .await?;
    let (output, _) = exec(pods, &pod, Some(name), command, RUN).await?;
    Ok(String::from_utf8(output)?)
}
