//! A node is drained under sessions at work. Apart from the suite, since whatever else ran there would be moved too.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use longhand_crds::labels;
use longhand_e2e::cluster::log::{assert_sound, kinds, messages, text};
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, eventually, in_namespace, kubectl, nodes, session_manifest,
    skipped, takes_any_pod,
};
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;

/// The promise: sessions go on within this time after the drain began.
const MOVED_WITHIN: Duration = Duration::from_secs(60);
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: story}
    then: {text: "one two three four five six seven eight nine ten", delay_per_token_ms: 1000}
  - when: {user_contains: tool, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo run >> counter; sleep 10; cat counter"}}]}
  - when: {user_contains: tool}
    then: {text: "The counter holds: {{last_tool_result}}"}
  - when: {user_contains: write, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo precious > file"}}]}
  - when: {user_contains: read, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "cat file"}}]}
  - when: {user_contains: read, turn: 1}
    then: {tool_uses: [{name: bash, input: {command: "cat file || echo empty"}}]}
  - then: {text: "It says: {{last_tool_result}}"}
"#;

/// Its volume is of the node, as local ones are.
const KEPT: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: kept}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
  workspace: {size: 64Mi, persistence: Persistent}
  provisioningSeconds: 15
"#;

#[tokio::test]
async fn every_session_moves_when_its_node_is_drained() {
    in_namespace("drain", |namespace| async move {
        let all = nodes(&namespace.client).await?;
        let Some(drained) = all.iter().find(|node| takes_any_pod(node)).filter(|_| all.len() > 1) else {
            skipped("the drain of a node", "it needs two nodes (NODES=2 make cluster)");
            return Ok(());
        };
        let drained = drained.name_any();
        let others: Vec<String> =
            all.iter().map(kube::ResourceExt::name_any).filter(|other| *other != drained).collect();
        let tainted: Vec<String> = all
            .iter()
            .filter(|node| {
                let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
                taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == CONTROL_PLANE))
            })
            .map(kube::ResourceExt::name_any)
            .collect();
        // The nodes are put right whatever becomes of it.
        let moved = AssertUnwindSafe(move_all(namespace, drained.clone(), others.clone())).catch_unwind().await;
        for node in others.iter().chain([&drained]) {
            kubectl(&["uncordon", node]).await?;
        }
        for node in &tainted {
            kubectl(&["taint", "node", node, &format!("{CONTROL_PLANE}:NoSchedule"), "--overwrite"]).await?;
        }
        moved.unwrap_or_else(|_| Err("an assertion failed".into()))
    })
    .await;
}

async fn move_all(namespace: TestNamespace, drained: String, others: Vec<String>) -> TestResult {
    // All begin on the node that is to be drained.
    for node in &others {
        kubectl(&["cordon", node]).await?;
    }
    let fixture = Fixture::install(&namespace, SCRIPT, 300).await?;
    namespace.apply(KEPT).await?;
    let options = |said: &str| SessionOptions { harness_idle_seconds: 120, ..SessionOptions::saying(&[said]) };
    namespace.apply(&session_manifest("kept", &options("write")).replace("name: small", "name: kept")).await?;
    let kept = fixture.session_id("kept").await?;
    let parked = fixture.session("parked", &options("hello")).await?;
    for session in [&kept, &parked] {
        fixture.service.until_idle(session, 0, Duration::from_secs(120)).await?;
    }
    let tool = fixture.session("tool", &options("use the tool")).await?;
    let story = fixture.session("story", &options("tell a story")).await?;
    fixture.service.follow_all(&tool, "x.sandbox.ready", Duration::from_secs(60)).await?;
    eventually("the model tells its story", Duration::from_secs(60), || async {
        let recorded = fixture.model.recorded().await?;
        let writes = |request: &longhand_e2e::cluster::RecordedRequest| {
            request.messages().iter().any(|message| message.to_string().contains("story"))
                && request.first_token_unix_ms.is_some()
        };
        Ok(recorded.requests.iter().any(writes).then_some(()))
    })
    .await?;
    let before = pods(&namespace).await?;
    assert!(before.iter().all(|(_, node)| *node == drained), "{before:?}");

    for node in &others {
        kubectl(&["uncordon", node]).await?;
        // It has none where it is a node like any other.
        let _ = kubectl(&["taint", "node", node, &format!("{CONTROL_PLANE}:NoSchedule-")]).await;
    }
    // Longhand's own pods stay, since etcd's volume is of that node. Without --force, kubectl refuses a pod that has no controller.
    let selector = format!("--pod-selector={}", labels::ROLE);
    let began = Instant::now();
    let drain = ["drain", &drained, &selector, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=60s"];
    let (drain, moved) = tokio::join!(kubectl(&drain), async {
        for session in [&tool, &story] {
            let left = MOVED_WITHIN.saturating_sub(began.elapsed());
            fixture.service.until_idle(session, 0, left).await?;
        }
        TestResult::Ok(())
    });
    moved?;
    drain?;
    tracing::info!(seconds = began.elapsed().as_secs_f64(), "all sessions went on");

    assert_eq!(said(&fixture, &story).await?, ["one two three four five six seven eight nine ten"]);
    let counted = said(&fixture, &tool).await?.pop().unwrap_or_default();
    assert_eq!(counted.matches("run").count(), 1, "the tool did not run exactly once to its end: {counted}");
    let after = fixture.service.log(&parked).await?.len() as u64;
    fixture.service.send(&parked, "hello again").await?;
    fixture.service.until_idle(&parked, after, MOVED_WITHIN).await?;
    said(&fixture, &parked).await?;
    let now = pods(&namespace).await?;
    assert!(!now.is_empty() && now.iter().all(|(_, node)| node.is_empty() || *node != drained), "{now:?}");
    loses_its_workspace_and_says_so(&fixture, &kept).await
}

/// The volume of the workspace cannot be mounted on any node that is left.
async fn loses_its_workspace_and_says_so(fixture: &Fixture, session: &SessionId) -> TestResult {
    let after = fixture.service.log(session).await?.len() as u64;
    fixture.service.send(session, "read").await?;
    fixture.service.until_idle(session, after, Duration::from_secs(120)).await?;
    let log = fixture.service.log(session).await?;
    assert_sound(&log);
    let results: Vec<String> = log
        .iter()
        .filter(|event| event.seq > Some(after) && matches!(event.event.body, EventBody::AgentToolResult { .. }))
        .map(|event| text(&event.event.body))
        .collect();
    let [first, second] = results.as_slice() else { return Err(format!("{results:?}: {:?}", kinds(&log)).into()) };
    assert!(first.contains("WorkspaceLost") && first.contains("empty workspace"), "{first}");
    assert!(second.contains("empty"), "{second}");
    Ok(())
}

/// What the agent has said, after the log was found to be whole.
async fn said(fixture: &Fixture, session: &SessionId) -> TestResult<Vec<String>> {
    let log = fixture.service.log(session).await?;
    assert_sound(&log);
    Ok(messages(&log))
}

/// The harness and sandbox pods that are not on their way out, with the node of each.
async fn pods(namespace: &TestNamespace) -> TestResult<Vec<(String, String)>> {
    let all = namespace.api::<Pod>().list(&ListParams::default().labels(labels::ROLE)).await?.items;
    let stay = all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    Ok(stay.map(|pod| (pod.name_any(), node(pod))).collect())
}
