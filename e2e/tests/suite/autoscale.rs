//! No node has room: the pending pod is what an autoscaler needs to see, and the session goes on when a node has come.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use longhand_crds::{Sandbox, SandboxTemplate, labels};
use longhand_e2e::cluster::log::kinds;
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, eventually, in_namespace, nodes, takes_any_pod,
};
use serde_json::json;

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo room"}}]}
  - when: {turn: 1}
    then: {text: "It said: {{last_tool_result}}"}
"#;

const POOL: &str = "longhand.dev/e2e-pool";

async fn label(namespace: &TestNamespace, node: &str, value: Option<&str>) -> TestResult {
    let patch = Patch::Merge(json!({ "metadata": { "labels": { POOL: value } } }));
    Api::<Node>::all(namespace.client.clone()).patch(node, &PatchParams::default(), &patch).await?;
    Ok(())
}

#[tokio::test]
async fn a_session_that_waits_for_a_node_goes_on_when_there_is_one() {
    in_namespace("autoscale", |namespace| async move {
        let all = nodes(&namespace.client).await?;
        let node = all.iter().find(|node| takes_any_pod(node)).ok_or("no node takes pods")?.name_any();
        let outcome = waits_and_goes_on(&namespace, &node).await;
        label(&namespace, &node, None).await?;
        outcome
    })
    .await;
}

async fn waits_and_goes_on(namespace: &TestNamespace, node: &str) -> TestResult {
    let fixture = Fixture::install(namespace, SCRIPT, 60).await?;
    let selective = Patch::Merge(json!({ "spec": { "nodeSelector": { POOL: namespace.name } } }));
    namespace.api::<SandboxTemplate>().patch("small", &PatchParams::default(), &selective).await?;
    let session = fixture.session("waits", &SessionOptions::saying(&["go"])).await?;
    eventually("the sandbox says that no node takes it", Duration::from_secs(60), || async {
        let sandboxes = namespace.api::<Sandbox>().list(&ListParams::default()).await?.items;
        let conditions = sandboxes.iter().filter_map(|sandbox| sandbox.status.as_ref()).flat_map(|s| &s.conditions);
        let unschedulable = |reason: &str| reason == "Unschedulable";
        Ok(conditions.into_iter().any(|one| one.type_ == "Ready" && unschedulable(&one.reason)).then_some(()))
    })
    .await?;
    let pod = namespace.pods(labels::SANDBOX).await?.pop().ok_or("there is no pod for an autoscaler to see")?;
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let scheduled = conditions.iter().find(|one| one.type_ == "PodScheduled").ok_or("the scheduler said nothing")?;
    assert_eq!((scheduled.status.as_str(), scheduled.reason.as_deref()), ("False", Some("Unschedulable")));
    let resources = pod.spec.as_ref().and_then(|spec| spec.containers[0].resources.clone()).unwrap_or_default();
    for amount in ["cpu", "memory"] {
        let given =
            [&resources.requests, &resources.limits].map(|all| all.iter().flatten().any(|(name, _)| name == amount));
        assert_eq!(given, [true, true], "an autoscaler must know what {amount} is needed: {resources:?}");
    }

    label(namespace, node, Some(&namespace.name)).await?;
    let (log, said) = fixture.service.last_words(&session, 0, Duration::from_secs(60)).await?;
    assert!(said.contains("room"), "{said}: {:?}", kinds(&log));
    Ok(())
}
