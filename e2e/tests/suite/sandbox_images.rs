//! Sandboxes of images that know nothing of Longhand: `sandboxd` is put into them, and a program of theirs runs beside it.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use longhand_crds::{Sandbox, labels};
use longhand_e2e::cluster::log::messages;
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, harness_python_image, in_namespace, model_image, script,
    wait_for,
};
use serde_json::json;

use crate::online::LONG;
use crate::sandbox_security::says;

async fn sandbox_pod(namespace: &TestNamespace) -> TestResult<Pod> {
    let pods = namespace.api::<Pod>();
    let selector = format!("{}={}", labels::ROLE, labels::SANDBOX);
    Ok(pods.list(&ListParams::default().labels(&selector)).await?.items.pop().ok_or("there is no sandbox pod")?)
}

#[tokio::test]
async fn sandboxd_is_mounted_into_an_image_and_a_program_of_it_runs_beside() {
    in_namespace("sandbox-image", |namespace| async move {
        let spec = json!({
            "image": harness_python_image(),
            "command": ["python3", "-m", "http.server", "--bind", "127.0.0.1", "8123"],
        });
        let command = "for _ in $(seq 100); do curl -sf http://127.0.0.1:8123/ >/dev/null && break; sleep 0.1; done; \
                       echo mine > file; curl -sS http://127.0.0.1:8123/file; touch /run/longhand/x /run/longhand/sandboxd 2>/dev/null || echo refused; ls /run/longhand /usr/local/bin/sandboxd";
        let said = says(&namespace, spec, command).await?;
        assert!(said.contains("mine\nrefused\n") && said.contains("/run/longhand:\nsandboxd") && said.contains("No such file"), "{said}");
        let pod = sandbox_pod(&namespace).await?.spec.ok_or("a pod without a spec")?;
        let mounted = pod.volumes.iter().flatten().any(|volume| volume.image.is_some());
        let minor = namespace.client.apiserver_version().await?.minor;
        // An older server does not take such volumes.
        assert_eq!(mounted, minor.trim_end_matches('+').parse::<u32>()? >= 36, "{minor} {:?}", pod.volumes);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn in_an_image_without_a_shell_files_can_be_worked_on() {
    in_namespace("sandbox-empty-image", |namespace| async move {
        let fixture = Fixture::install(&namespace, &script("true"), 60).await?;
        let rules = json!({ "rules": [
            { "when": { "turn": 0 }, "then": { "tool_uses": [
                { "name": "write", "input": { "file_path": "a/b", "content": "needle" } },
            ]}},
            { "when": { "turn": 1 }, "then": { "tool_uses": [{ "name": "grep", "input": { "pattern": "need" } }] } },
            { "when": { "turn": 2 }, "then": {
                "text": "{{last_tool_result}}",
                "tool_uses": [{ "name": "bash", "input": { "command": "true" } }],
            }},
            { "then": { "text": "{{last_tool_result}}" } },
        ]});
        fixture.model.set_script(&rules.to_string()).await?;
        let template = json!({
            "apiVersion": "longhand.dev/v1alpha1", "kind": "SandboxTemplate", "metadata": { "name": "small" },
            "spec": { "image": model_image() },
        });
        namespace.apply(&template.to_string()).await?;
        let session = fixture.session("empty", &SessionOptions::saying(&["go"])).await?;
        fixture.service.until_idle(&session, 0, LONG).await?;
        let said = messages(&fixture.service.log(&session).await?);
        assert!(said.iter().any(|text| text.contains("a/b")), "{said:?}");
        assert!(said.last().is_some_and(|text| text.contains("neither bash nor sh")), "{said:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_cannot_start_is_made_anew_ever_more_rarely_and_says_why() {
    in_namespace("sandbox-no-start", |namespace| async move {
        let objects = format!(
            "apiVersion: longhand.dev/v1alpha1\nkind: SandboxTemplate\nmetadata: {{name: broken}}\nspec: {{image: '{}', command: [nonesuch], provisioningSeconds: 20}}\n---\n\
             apiVersion: longhand.dev/v1alpha1\nkind: Sandbox\nmetadata: {{name: broken}}\nspec: {{templateRef: {{name: broken}}}}\n",
            harness_python_image()
        );
        namespace.apply(&objects).await?;
        let what = "it has been given up";
        let (restarts, cause) = wait_for(namespace.api::<Sandbox>(), "broken", what, LONG, |sandbox| {
            let status = sandbox?.status.as_ref()?;
            let finished = status.conditions.iter().find(|one| one.type_ == "Finished" && one.status == "True")?;
            assert_eq!(finished.reason, "ProvisioningDeadlineExceeded");
            Some((status.restarts, status.last_loss.clone()?.message))
        })
        .await?;
        // At once, and after 2, 4, 8 and 16 s, which are no time of the pods.
        assert!((1..=6).contains(&restarts), "{restarts} restarts in 20 s");
        assert!(cause.contains("nonesuch cannot run beside the tools") && cause.contains("this image has no nonesuch"), "{cause}");
        Ok(())
    })
    .await;
}
