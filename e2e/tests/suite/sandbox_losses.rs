//! A sandbox's pod is lost, and the sandbox says how.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{EvictParams, ListParams, Patch, PatchParams};
use longhand_crds::{Sandbox, SandboxTemplate};
use longhand_e2e::cluster::log::{assert_sound, kinds, text};
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, exec, in_namespace, kubectl, skipped, wait_for,
};
use longhand_protocol::event::EventBody;
use serde_json::json;

const TEMPLATES: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: replaced}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
---
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: given-up}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
  onFailure: Fail
---
apiVersion: longhand.dev/v1alpha1
kind: Sandbox
metadata: {name: replaced}
spec: {templateRef: {name: replaced}}
---
apiVersion: longhand.dev/v1alpha1
kind: Sandbox
metadata: {name: given-up}
spec: {templateRef: {name: given-up}}
"#;

async fn running(namespace: &TestNamespace, name: &str) -> TestResult<String> {
    wait_for(namespace.api::<Sandbox>(), name, "it takes calls", Duration::from_secs(120), |sandbox| {
        let status = sandbox?.status.as_ref()?;
        status.address.is_some().then(|| status.pod_name.clone()).flatten()
    })
    .await
}

#[tokio::test]
async fn an_evicted_pod_is_replaced_and_one_that_ends_is_given_up_as_its_template_says() {
    in_namespace("sandbox-losses", |namespace| async move {
        namespace.apply(TEMPLATES).await?;
        let pod = running(&namespace, "replaced").await?;
        namespace.api::<Pod>().evict(&pod, &EvictParams::default()).await?;
        let what = "it was evicted, and there is another pod";
        wait_for(namespace.api::<Sandbox>(), "replaced", what, Duration::from_secs(90), |sandbox| {
            let status = sandbox?.status.as_ref()?;
            let evicted = status.last_loss.as_ref().is_some_and(|loss| loss.reason == "Evicted");
            (evicted && status.restarts == 1 && status.address.is_some()).then_some(())
        })
        .await?;

        let pod = running(&namespace, "given-up").await?;
        // Whether the shell is told of its own end is of no matter.
        let _ = kubectl(&["--namespace", &namespace.name, "exec", &pod, "--", "sh", "-c", "kill -TERM 1"]).await;
        let what = "it has ended, since its pod has";
        wait_for(namespace.api::<Sandbox>(), "given-up", what, Duration::from_secs(60), |sandbox| {
            let status = sandbox?.status.as_ref()?;
            let finished = status.conditions.iter().find(|one| one.type_ == "Finished" && one.status == "True")?;
            (finished.reason == "Exited" && status.pod_name.is_none()).then_some(())
        })
        .await
    })
    .await;
}

/// It takes a megabyte more every 20 ms, until somebody stops it.
const GREEDY: &str = r#"
rules:
  - when: {turn: 0}
    then:
      tool_uses:
        - {name: bash, input: {command: "echo precious > file; while head -c 1000000 /dev/zero; do sleep 0.02; done | tail -c 2000000000 | wc -c"}}
  - when: {turn: 1}
    then: {tool_uses: [{name: bash, input: {command: "cat file"}}]}
  - then: {text: "It says: {{last_tool_result}}"}
"#;

#[tokio::test]
async fn a_command_that_takes_all_memory_dies_and_its_sandbox_lives() {
    in_namespace("sandbox-greedy", |namespace| async move {
        let fixture = Fixture::install(&namespace, GREEDY, 300).await?;
        let small =
            json!({ "spec": { "resources": { "requests": { "memory": "64Mi" }, "limits": { "memory": "256Mi" } } } });
        namespace.api::<SandboxTemplate>().patch("small", &PatchParams::default(), &Patch::Merge(small)).await?;
        let session = fixture.session("greedy", &SessionOptions::saying(&["go"])).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(180)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        let results: Vec<String> = log
            .iter()
            .filter(|event| matches!(event.event.body, EventBody::AgentToolResult { .. }))
            .map(|event| text(&event.event.body))
            .collect();
        let [greedy, next] = results.as_slice() else { return Err(format!("{results:?}: {:?}", kinds(&log)).into()) };
        assert!(greedy.contains("out of") && greedy.contains("memory") && greedy.contains("256 MiB"), "{greedy}");
        assert!(next.contains("precious"), "{next}");
        assert_eq!(kinds(&log).iter().filter(|kind| **kind == "x.sandbox.ready").count(), 1, "{:?}", kinds(&log));
        let sandbox = namespace.api::<Sandbox>().list(&ListParams::default()).await?.items.pop();
        assert_eq!(sandbox.and_then(|sandbox| sandbox.status).map(|status| status.restarts), Some(0));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_whose_memory_is_used_up_is_replaced_and_its_loss_has_the_name() {
    in_namespace("sandbox-oom", |namespace| async move {
        namespace.apply(TEMPLATES).await?;
        let pod = running(&namespace, "replaced").await?;
        let pods = namespace.api::<Pod>();
        let as_one = "cat /sys/fs/cgroup/memory.oom.group || echo 0";
        let said = exec(&pods, &pod, Some("sandbox"), &["sh", "-c", as_one], Duration::from_secs(30)).await?.0;
        if String::from_utf8_lossy(&said).trim() != "1" {
            skipped("the loss of a pod by memory", "the kernel of this node kills one process after the other");
            return Ok(());
        }
        // Beside sandboxd, which can stop only what it has started: the kernel ends the whole container.
        let greedy = "x=x; while :; do x=$x$x; done";
        let _ = exec(&pods, &pod, Some("sandbox"), &["sh", "-c", greedy], Duration::from_secs(60)).await;
        let what = "it was out of memory, and there is another pod";
        let loss = wait_for(namespace.api::<Sandbox>(), "replaced", what, Duration::from_secs(90), |sandbox| {
            let status = sandbox?.status.as_ref()?;
            let again = status.restarts == 1 && status.address.is_some();
            status.last_loss.clone().filter(|_| again)
        })
        .await?;
        assert_eq!((loss.reason.as_str(), loss.in_a_row), ("OOMKilled", 1), "{loss:?}");
        assert!(loss.time.is_some() && loss.message.contains("more memory than its limit"), "{loss:?}");
        Ok(())
    })
    .await;
}
