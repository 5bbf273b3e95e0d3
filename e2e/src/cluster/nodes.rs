//! The cluster's nodes, and what a person does to them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams};

use super::TestResult;

const KUBECTL_DEADLINE: Duration = Duration::from_secs(120);

/// All nodes.
///
/// # Errors
/// What the API server says.
pub async fn nodes(client: &Client) -> TestResult<Vec<Node>> {
    Ok(Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items)
}

/// Whether pods without tolerations are placed on the node.
#[must_use]
pub fn takes_any_pod(node: &Node) -> bool {
    let Some(spec) = &node.spec else { return false };
    let repels = |effect: &str| effect == "NoSchedule" || effect == "NoExecute";
    spec.unschedulable != Some(true) && !spec.taints.iter().flatten().any(|taint| repels(&taint.effect))
}

/// Runs kubectl, and returns what it prints.
///
/// # Errors
/// When it fails, with what it says, or does not end within two minutes.
pub async fn kubectl(arguments: &[&str]) -> TestResult<String> {
    let run = tokio::process::Command::new("kubectl").args(arguments).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(KUBECTL_DEADLINE, run).await.map_err(|_| format!("kubectl {arguments:?} hangs"))??;
    if !output.status.success() {
        return Err(format!("kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
