//! How sandboxes are kept from their node: the Pod Security Standard, user namespaces, and another runtime.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{Api, Patch, PatchParams};
use longhand_crds::{Sandbox, SandboxTemplate};
use longhand_e2e::cluster::log::{assert_sound, messages};
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, in_namespace, nodes, runtime_class, skipped, wait_for,
};
use serde_json::{Value, json};

const BASELINE: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: root}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
  podSecurity: Baseline
  runAsUser: 0
---
apiVersion: longhand.dev/v1alpha1
kind: Sandbox
metadata: {name: root}
spec: {templateRef: {name: root}}
"#;

/// What `command` prints in a sandbox whose template has `spec` besides.
pub(crate) async fn says(namespace: &TestNamespace, spec: Value, command: &str) -> TestResult<String> {
    let script = format!(
        "rules:\n  - when: {{turn: 0}}\n    then: {{tool_uses: [{{name: bash, input: {{command: {}}}}}]}}\n  - when: {{turn: 1}}\n    then: {{text: \"{{{{last_tool_result}}}}\"}}\n",
        json!(command)
    );
    let fixture = Fixture::install(namespace, &script, 60).await?;
    let patch = Patch::Merge(json!({ "spec": spec }));
    namespace.api::<SandboxTemplate>().patch("small", &PatchParams::default(), &patch).await?;
    let session = fixture.session("asks", &SessionOptions::saying(&["go"])).await?;
    fixture.service.until_idle(&session, 0, Duration::from_secs(150)).await?;
    let log = fixture.service.log(&session).await?;
    assert_sound(&log);
    messages(&log).pop().ok_or_else(|| "the agent said nothing".into())
}

#[tokio::test]
async fn baseline_is_refused_where_restricted_is_enforced_and_is_root_where_it_is_not() {
    in_namespace("sandbox-baseline", |namespace| async move {
        namespace.apply(BASELINE).await?;
        let what = "its pod is refused";
        wait_for(namespace.api::<Sandbox>(), "root", what, Duration::from_secs(60), |sandbox| {
            let conditions = &sandbox?.status.as_ref()?.conditions;
            conditions.iter().any(|one| one.type_ == "Ready" && one.reason == "PodSecurity").then_some(())
        })
        .await?;
        let label =
            Patch::Merge(json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "baseline" } } }));
        let namespaces: Api<Namespace> = Api::all(namespace.client.clone());
        namespaces.patch(&namespace.name, &PatchParams::default(), &label).await?;
        let spec = json!({ "podSecurity": "Baseline", "runAsUser": 0 });
        let said = says(&namespace, spec, "id -u; touch /usr/local/new && chown 7 /usr/local/new && echo mine").await?;
        assert!(said.contains('0') && said.contains("mine"), "{said}");
        Ok(())
    })
    .await;
}

/// Whether a node says that its default runtime gives pods user IDs of their own.
fn able(node: &Node) -> bool {
    let handlers = node.status.as_ref().and_then(|status| status.runtime_handlers.as_ref());
    handlers.is_some_and(|handlers| {
        let default = handlers.iter().find(|handler| handler.name.as_deref().unwrap_or_default().is_empty());
        default.and_then(|handler| handler.features.as_ref()?.user_namespaces) == Some(true)
    })
}

#[tokio::test]
async fn pods_have_user_ids_of_their_own_where_the_nodes_say_that_they_can() {
    in_namespace("sandbox-userns-auto", |namespace| async move {
        if runtime_class().is_some() {
            skipped("user namespaces by what nodes say", "they say it of the cluster's own runtime");
            return Ok(());
        }
        let supported = nodes(&namespace.client).await?.iter().all(able);
        let said = says(&namespace, json!({ "userNamespace": "Auto" }), "cat /proc/self/uid_map").await?;
        let own = said.split_whitespace().skip(1).step_by(3).all(|id| id != "0");
        assert_eq!(own, supported, "{said}");
        let template = namespace.api::<SandboxTemplate>().get("small").await?;
        let conditions = template.status.map(|status| status.conditions).unwrap_or_default();
        let condition = conditions.iter().find(|one| one.type_ == "UserNamespaces").ok_or("nothing is said of it")?;
        let expected = if supported { ("True", "Supported") } else { ("False", "NodeWithoutSupport") };
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), expected, "{}", condition.message);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_user_namespace_gives_a_pod_user_ids_of_its_own() {
    in_namespace("sandbox-userns", |namespace| async move {
        if !nodes(&namespace.client).await?.iter().all(able) {
            skipped("user namespaces", "not every node supports them");
            return Ok(());
        }
        let said = says(&namespace, json!({ "userNamespace": "Pod" }), "cat /proc/self/uid_map").await?;
        let host: Vec<&str> = said.split_whitespace().skip(1).step_by(3).collect();
        assert!(!host.is_empty() && host.iter().all(|id| *id != "0"), "{said}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_in_gvisor_has_another_kernel() {
    in_namespace("sandbox-gvisor", |namespace| async move {
        let classes: Api<RuntimeClass> = Api::all(namespace.client.clone());
        if classes.get_opt("gvisor").await?.is_none() {
            skipped("gVisor", "there is no RuntimeClass gvisor (RUNTIMES=gvisor make cluster)");
            return Ok(());
        }
        let said = says(&namespace, json!({ "runtimeClassName": "gvisor" }), "cat /proc/version").await?;
        assert!(said.contains("Linux version"), "{said}");
        for node in nodes(&namespace.client).await? {
            let kernel = node.status.and_then(|status| status.node_info).map(|info| info.kernel_version);
            let kernel = kernel.ok_or("a node without a kernel")?;
            assert!(!said.contains(&kernel), "the node's kernel: {said}");
        }
        Ok(())
    })
    .await;
}
