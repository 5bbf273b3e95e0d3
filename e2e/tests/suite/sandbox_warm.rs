//! Pools: sandboxes take pods that were started beforehand, no pod twice, and a pool follows its template.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use longhand_crds::{Sandbox, SandboxTemplate, labels};
use longhand_e2e::cluster::{TestNamespace, TestResult, eventually, in_namespace, wait_for};
use serde_json::json;

const TEMPLATE: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: pool}
spec:
  resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {cpu: "1", memory: 256Mi}}
  workspace: {size: 64Mi}
  warm: 3
"#;

async fn pool_is(namespace: &TestNamespace, ready: i32, reason: &str) -> TestResult {
    let what = format!("{ready} pods wait, {reason}");
    wait_for(namespace.api::<SandboxTemplate>(), "pool", &what, Duration::from_secs(120), |template| {
        let status = template?.status.as_ref()?;
        let warm = status.conditions.iter().find(|condition| condition.type_ == "WarmReady")?;
        (status.warm_ready == ready && warm.reason == reason).then_some(())
    })
    .await
}

async fn waiting(namespace: &TestNamespace) -> TestResult<BTreeSet<String>> {
    let pods = namespace.api::<Pod>().list(&ListParams::default().labels(labels::POOL_UID)).await?.items;
    let of_pool = |pod: &Pod| pod.owner_references().iter().any(|owner| owner.kind == "SandboxTemplate");
    Ok(pods.iter().filter(|pod| of_pool(pod)).map(ResourceExt::name_any).collect())
}

async fn take(namespace: &TestNamespace, name: &str) -> TestResult<String> {
    namespace
        .apply(&format!(
            "apiVersion: longhand.dev/v1alpha1\nkind: Sandbox\nmetadata: {{name: {name}}}\nspec: {{templateRef: {{name: pool}}}}\n"
        ))
        .await?;
    wait_for(namespace.api::<Sandbox>(), name, "it takes calls", Duration::from_secs(120), |sandbox| {
        let status = sandbox?.status.as_ref()?;
        status.address.is_some().then(|| status.pod_name.clone()).flatten()
    })
    .await
}

#[tokio::test]
async fn sandboxes_take_pods_of_the_pool_and_the_pool_is_filled_again() {
    in_namespace("sandbox-warm", |namespace| async move {
        namespace.apply(TEMPLATE).await?;
        pool_is(&namespace, 3, "AllReady").await?;
        let before = waiting(&namespace).await?;
        let pod = take(&namespace, "one").await?;
        assert!(before.contains(&pod), "{pod} is none of {before:?}");
        pool_is(&namespace, 3, "AllReady").await?;
        assert!(!waiting(&namespace).await?.contains(&pod));

        // Twice as many at once as wait: each has a pod of its own.
        let names: Vec<String> = (0..6).map(|number| format!("burst-{number}")).collect();
        let taken = futures::future::try_join_all(names.iter().map(|name| take(&namespace, name))).await?;
        let distinct: BTreeSet<&String> = taken.iter().collect();
        assert_eq!(distinct.len(), taken.len(), "a pod is two sandboxes': {taken:?}");

        for name in names.iter().map(String::as_str).chain(["one"]) {
            namespace.api::<Sandbox>().delete(name, &DeleteParams::background()).await?;
        }
        pool_is(&namespace, 3, "AllReady").await?;
        eventually("what sandboxes had taken is gone, and nothing else is left", Duration::from_secs(90), || async {
            let pods = namespace.api::<Pod>().list(&ListParams::default().labels(labels::ROLE)).await?.items;
            Ok((pods.len() == 3).then_some(()))
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn a_pool_follows_its_template() {
    in_namespace("sandbox-pool", |namespace| async move {
        namespace.apply(TEMPLATE).await?;
        pool_is(&namespace, 3, "AllReady").await?;
        let before = waiting(&namespace).await?;
        let templates = namespace.api::<SandboxTemplate>();
        let scale = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
        templates.patch_scale("pool", &PatchParams::default(), &scale).await?;
        pool_is(&namespace, 1, "AllReady").await?;
        // The pods that are too many are on their way out when the status says so.
        let scaled = eventually("one pod is left", Duration::from_secs(60), || async {
            let now = waiting(&namespace).await?;
            Ok((now.len() == 1).then_some(now))
        })
        .await?;
        assert!(scaled.is_subset(&before), "{scaled:?} of {before:?}");

        let env = Patch::Merge(json!({ "spec": { "env": [{ "name": "LANG", "value": "C" }] } }));
        templates.patch("pool", &PatchParams::default(), &env).await?;
        eventually("the pool is rolled", Duration::from_secs(90), || async {
            let now = waiting(&namespace).await?;
            Ok((now.len() == 1 && now.is_disjoint(&scaled)).then_some(()))
        })
        .await?;
        pool_is(&namespace, 1, "AllReady").await?;

        let large = Patch::Merge(
            json!({ "spec": { "warm": 4, "resources": { "requests": { "cpu": "500" }, "limits": { "cpu": "500" } } } }),
        );
        templates.patch("pool", &PatchParams::default(), &large).await?;
        pool_is(&namespace, 0, "Unschedulable").await?;
        eventually("no more pods than are wanted", Duration::from_secs(30), || async {
            Ok((waiting(&namespace).await?.len() <= 4).then_some(()))
        })
        .await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_template_without_a_valid_image_is_a_condition() {
    in_namespace("sandbox-image", |namespace| async move {
        namespace.apply(&TEMPLATE.replace("  warm: 3", "  warm: 2\n  image: 'No Image'")).await?;
        pool_is(&namespace, 0, "InvalidImageName").await?;
        let with_volume = TEMPLATE.replace("size: 64Mi", "size: 64Mi, persistence: Persistent");
        let refused = namespace.apply(&with_volume).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("gains no volume")));
        Ok(())
    })
    .await;
}
