//! A free-standing sandbox, from a pod that cannot start to one that is suspended, resumed and lost.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use longhand_crds::{Sandbox, SandboxTemplate, labels};
use longhand_e2e::cluster::{TestNamespace, TestResult, eventually, in_namespace, wait_for};
use serde_json::json;

const TEMPLATES: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: kept}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
  workspace: {size: 64Mi, persistence: Persistent}
---
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: too-large}
spec:
  resources: {requests: {cpu: "500", memory: 64Mi}}
  provisioningSeconds: 8
  retentionSeconds: 10
---
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: short-lived}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
  lifetimeSeconds: 15
  retentionSeconds: 600
---
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: no-image}
spec:
  image: registry.invalid/none:1
  resources: {requests: {cpu: 20m, memory: 64Mi}}
"#;

fn manifest(name: &str, template: &str) -> String {
    format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: Sandbox\nmetadata: {{name: {name}}}\nspec: {{templateRef: {{name: {template}}}}}\n"
    )
}

/// Waits until the condition has this status and one of these reasons, and returns its message.
async fn until(namespace: &TestNamespace, name: &str, kind: &str, truth: &str, reasons: &[&str]) -> TestResult<String> {
    let what = format!("{kind} of {name} is {truth}, {reasons:?}");
    wait_for(namespace.api::<Sandbox>(), name, &what, Duration::from_secs(120), |sandbox| {
        let conditions = &sandbox?.status.as_ref()?.conditions;
        let found = conditions.iter().find(|condition| condition.type_ == kind && condition.status == truth)?;
        reasons.contains(&found.reason.as_str()).then(|| found.message.clone())
    })
    .await
}

async fn tell(namespace: &TestNamespace, name: &str, state: &str) -> TestResult {
    let patch = Patch::Merge(json!({ "spec": { "desiredState": state } }));
    namespace.api::<Sandbox>().patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

#[tokio::test]
async fn a_sandbox_that_cannot_start_says_why_and_ends() {
    in_namespace("sandbox-pending", |namespace| async move {
        namespace.apply(TEMPLATES).await?;
        namespace.apply(&manifest("large", "too-large")).await?;
        namespace.apply(&manifest("orphan", "none")).await?;
        namespace.apply(&manifest("pulled", "no-image")).await?;
        until(&namespace, "orphan", "Ready", "False", &["TemplateNotFound"]).await?;
        until(&namespace, "large", "Ready", "False", &["Unschedulable"]).await?;
        let said = until(&namespace, "large", "Finished", "True", &["ProvisioningDeadlineExceeded"]).await?;
        assert!(said.contains("Unschedulable") && said.contains("Insufficient cpu"), "{said}");
        eventually("it is gone when its retention is over", Duration::from_secs(30), || async {
            Ok(namespace.api::<Sandbox>().get_opt("large").await?.is_none().then_some(()))
        })
        .await?;
        until(&namespace, "pulled", "Ready", "False", &["ErrImagePull", "ImagePullBackOff"]).await?;

        // A template that comes late is noticed.
        namespace.apply(&TEMPLATES.replace("name: kept", "name: none")).await?;
        until(&namespace, "orphan", "Ready", "True", &["Running"]).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_quota_is_respected_and_reported() {
    in_namespace("sandbox-quota", |namespace| async move {
        namespace.apply(TEMPLATES).await?;
        let quota = "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: few}\nspec: {hard: {pods: \"0\"}}\n";
        namespace.apply(quota).await?;
        namespace.apply(&manifest("over", "kept")).await?;
        let said = until(&namespace, "over", "Ready", "False", &["QuotaExceeded"]).await?;
        assert!(said.contains("few"), "{said}");
        namespace.apply(&quota.replace("\"0\"", "\"9\"")).await?;
        until(&namespace, "over", "Ready", "True", &["Running"]).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_workspace_outlives_suspension_and_loss() {
    in_namespace("sandbox-suspend", |namespace| async move {
        namespace.apply(TEMPLATES).await?;
        namespace.apply(&manifest("kept", "kept")).await?;
        until(&namespace, "kept", "Ready", "True", &["Running"]).await?;
        let claims = namespace.api::<PersistentVolumeClaim>();
        let claim = claims.list(&ListParams::default()).await?.items.pop().ok_or("there is no claim")?;
        let mut last = namespace.pods(labels::SANDBOX).await?.pop().ok_or("there is no pod")?;
        for _ in 0..2 {
            tell(&namespace, "kept", "Suspended").await?;
            until(&namespace, "kept", "Suspended", "True", &["WorkspaceKept"]).await?;
            assert!(namespace.pods(labels::SANDBOX).await?.is_empty(), "a pod that ends is not suspended yet");
            tell(&namespace, "kept", "Running").await?;
            until(&namespace, "kept", "Suspended", "False", &["Running"]).await?;
            let pod = namespace.pods(labels::SANDBOX).await?.pop().ok_or("there is no pod")?;
            assert_ne!(pod.uid(), last.uid());
            last = pod;
        }
        let sandbox = namespace.api::<Sandbox>().get("kept").await?;
        assert_eq!(sandbox.status.as_ref().map(|status| status.restarts), Some(0), "no pod was lost");

        namespace.api::<Pod>().delete(&last.name_any(), &DeleteParams::default().grace_period(0)).await?;
        wait_for(namespace.api::<Sandbox>(), "kept", "another pod is ready", Duration::from_secs(60), |sandbox| {
            let status = sandbox?.status.as_ref()?;
            (status.restarts == 1 && status.address.is_some()).then_some(())
        })
        .await?;
        let now = claims.list(&ListParams::default()).await?.items.pop().ok_or("the claim is gone")?;
        assert_eq!(now.uid(), claim.uid());

        namespace.api::<Sandbox>().delete("kept", &DeleteParams::background()).await?;
        eventually("all that it owned is gone", Duration::from_secs(60), || async {
            let left =
                claims.list(&ListParams::default()).await?.items.len() + namespace.pods(labels::SANDBOX).await?.len();
            Ok((left == 0).then_some(()))
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn a_workspace_is_kept_while_no_node_has_room_and_is_tried_again() {
    in_namespace("sandbox-rests", |namespace| async move {
        namespace.apply(TEMPLATES).await?;
        namespace.apply(&manifest("kept", "kept")).await?;
        until(&namespace, "kept", "Ready", "True", &["Running"]).await?;
        let claims = namespace.api::<PersistentVolumeClaim>();
        let claim = claims.list(&ListParams::default()).await?.items.pop().ok_or("there is no claim")?;
        tell(&namespace, "kept", "Suspended").await?;
        until(&namespace, "kept", "Suspended", "True", &["WorkspaceKept"]).await?;
        let nowhere = "workspace: {size: 64Mi, persistence: Persistent}\n  provisioningSeconds: 5\n  nodeSelector: {longhand.test/room: none}";
        namespace.apply(&TEMPLATES.replace("workspace: {size: 64Mi, persistence: Persistent}", nowhere)).await?;
        tell(&namespace, "kept", "Running").await?;
        let said = until(&namespace, "kept", "Ready", "False", &["ProvisioningDeadlineExceeded"]).await?;
        assert!(said.contains("its workspace is kept") && said.contains("Unschedulable"), "{said}");
        until(&namespace, "kept", "Suspended", "True", &["WorkspaceKept"]).await?;
        assert!(namespace.pods(labels::SANDBOX).await?.is_empty(), "no pod waits meanwhile");

        // By itself, half a minute after.
        let patch = Patch::Merge(json!({ "spec": { "nodeSelector": null, "provisioningSeconds": 120 } }));
        namespace.api::<SandboxTemplate>().patch("kept", &PatchParams::default(), &patch).await?;
        until(&namespace, "kept", "Ready", "True", &["Running"]).await?;
        let now = claims.list(&ListParams::default()).await?.items.pop().ok_or("the claim is gone")?;
        assert_eq!(now.uid(), claim.uid());
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_lifetime_ends_and_the_spec_cannot_be_changed() {
    in_namespace("sandbox-lifetime", |namespace| async move {
        namespace.apply(TEMPLATES).await?;
        namespace.apply(&manifest("short", "short-lived")).await?;
        let patch = Patch::Merge(json!({ "spec": { "templateRef": { "name": "kept" } } }));
        let refused = namespace.api::<Sandbox>().patch("short", &PatchParams::default(), &patch).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("only desiredState")));
        eventually("it has a pod", Duration::from_secs(15), || async {
            Ok((!namespace.pods(labels::SANDBOX).await?.is_empty()).then_some(()))
        })
        .await?;
        until(&namespace, "short", "Finished", "True", &["LifetimeExceeded"]).await?;
        eventually("its pod is gone", Duration::from_secs(60), || async {
            Ok(namespace.pods(labels::SANDBOX).await?.is_empty().then_some(()))
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn a_pod_of_its_name_that_is_not_ours_is_left_alone() {
    in_namespace("sandbox-foreign", |namespace| async move {
        namespace.apply(&manifest("mine", "kept")).await?;
        let sandbox = namespace.api::<Sandbox>().get("mine").await?;
        let part: String = sandbox.uid().unwrap_or_default().chars().take(5).collect();
        let foreign = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: mine-{part}-0}}\nspec:\n  automountServiceAccountToken: false\n  securityContext: {{runAsNonRoot: true, runAsUser: 1000, seccompProfile: {{type: RuntimeDefault}}}}\n  nodeSelector: {{none: none}}\n  containers: [{{name: c, image: none, securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}}}]\n"
        );
        namespace.apply(&foreign).await?;
        namespace.apply(TEMPLATES).await?;
        let said = until(&namespace, "mine", "Ready", "False", &["PodNameTaken"]).await?;
        assert!(said.contains("left alone"), "{said}");
        namespace.api::<Pod>().get(&format!("mine-{part}-0")).await?;
        Ok(())
    })
    .await;
}
