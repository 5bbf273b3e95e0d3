//! A sandbox's pod is lost, and the sandbox says how.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::EvictParams;
use longhand_crds::Sandbox;
use longhand_e2e::cluster::{TestNamespace, TestResult, in_namespace, kubectl, wait_for};

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
        kubectl(&["--namespace", &namespace.name, "exec", &pod, "--", "sh", "-c", "kill -TERM 1"]).await?;
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
