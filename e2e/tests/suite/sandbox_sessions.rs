//! A session's sandbox: suspended when idle with its files, woken by the next call, and an error that says why it cannot be.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use longhand_crds::{Sandbox, SandboxTemplate, labels};
use longhand_e2e::cluster::log::{assert_sound, text};
use longhand_e2e::cluster::{Fixture, SessionOptions, TestResult, eventually, in_namespace};
use longhand_protocol::event::EventBody;
use serde_json::json;

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: write, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo precious > file"}}]}
  - when: {user_contains: read, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "cat file"}}]}
  - then: {text: "It says: {{last_tool_result}}"}
"#;

#[tokio::test]
async fn files_are_there_again_after_the_sandbox_was_idle() {
    in_namespace("sandbox-idle", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 5).await?;
        let kept = Patch::Merge(json!({ "spec": { "workspace": { "persistence": "Persistent" } } }));
        namespace.api::<SandboxTemplate>().patch("small", &PatchParams::default(), &kept).await?;
        let session = fixture.session("kept", &SessionOptions::saying(&["write"])).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(120)).await?;
        let selector = ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX));
        eventually("the sandbox has no pod", Duration::from_secs(60), || async {
            Ok(namespace.api::<Pod>().list(&selector).await?.items.is_empty().then_some(()))
        })
        .await?;
        let after = fixture.service.log(&session).await?.len() as u64;
        fixture.service.send(&session, "read").await?;
        let (_, said) = fixture.service.last_words(&session, after, Duration::from_secs(120)).await?;
        assert!(said.contains("precious"), "{said}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn files_are_kept_while_there_is_no_node_for_a_sandbox_that_is_woken() {
    in_namespace("sandbox-no-node", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 5).await?;
        let templates = namespace.api::<SandboxTemplate>();
        let patch = |spec: serde_json::Value| {
            let (templates, patch) = (templates.clone(), Patch::Merge(json!({ "spec": spec })));
            async move { templates.patch("small", &PatchParams::default(), &patch).await }
        };
        patch(json!({ "workspace": { "persistence": "Persistent" } })).await?;
        let session = fixture.session("kept", &SessionOptions::saying(&["write"])).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(120)).await?;
        let asleep = || async { Ok(namespace.pods(labels::SANDBOX).await?.is_empty().then_some(())) };
        eventually("the sandbox is asleep", Duration::from_secs(60), asleep).await?;
        let sandboxes = namespace.api::<Sandbox>();
        let before = sandboxes.list(&ListParams::default()).await?.items.pop().ok_or("there is no sandbox")?;

        // No node has this label, and none is made that has.
        patch(json!({ "nodeSelector": { "longhand.test/room": "none" }, "provisioningSeconds": 8 })).await?;
        let ask = || async {
            let after = fixture.service.log(&session).await?.len() as u64;
            fixture.service.send(&session, "read").await?;
            fixture.service.until_idle(&session, after, Duration::from_secs(180)).await?;
            let log = fixture.service.log(&session).await?;
            assert_sound(&log);
            let mut results = log.iter().map(|event| &event.event.body);
            let result = results.rfind(|body| matches!(body, EventBody::AgentToolResult { .. }));
            TestResult::Ok(text(result.ok_or("the call has no result")?))
        };
        // As often as it is asked for.
        for _ in 0..2 {
            let said = ask().await?;
            for part in ["was not run", "its workspace is kept", "Unschedulable"] {
                assert!(said.contains(part), "{said}");
            }
            eventually("it has no pod again", Duration::from_secs(60), asleep).await?;
            let sandbox = sandboxes.list(&ListParams::default()).await?.items.pop().ok_or("the sandbox is gone")?;
            assert_eq!(sandbox.uid(), before.uid());
        }

        patch(json!({ "nodeSelector": null, "provisioningSeconds": 120 })).await?;
        let said = ask().await?;
        assert!(said.contains("precious"), "{said}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_call_whose_sandbox_cannot_be_learns_why() {
    in_namespace("sandbox-why", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let large = json!({ "spec": { "provisioningSeconds": 10, "resources": { "requests": { "cpu": "500" }, "limits": { "cpu": "500" } } } });
        namespace.api::<SandboxTemplate>().patch("small", &PatchParams::default(), &Patch::Merge(large)).await?;
        let session = fixture.session("large", &SessionOptions::saying(&["write"])).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(120)).await?;
        let log = fixture.service.log(&session).await?;
        let mut results = log.iter().map(|event| &event.event.body);
        let result = results.rfind(|body| matches!(body, EventBody::AgentToolResult { .. }));
        let said = text(result.ok_or("the call has no result")?);
        for part in ["was not run", "ProvisioningDeadlineExceeded", "Unschedulable", "Insufficient cpu"] {
            assert!(said.contains(part), "{said}");
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_namespace_that_may_have_no_more_sandboxes_is_an_error_with_the_words_of_its_quota() {
    in_namespace("sandbox-cap", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let quota = "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: few}\nspec: {hard: {count/sandboxes.longhand.dev: \"0\"}}\n";
        namespace.apply(quota).await?;
        eventually("the quota holds", Duration::from_secs(30), || async {
            let found = namespace.api::<ResourceQuota>().get("few").await?;
            Ok(found.status.and_then(|status| status.used).filter(|used| !used.is_empty()).map(|_| ()))
        })
        .await?;
        let session = fixture.session("none", &SessionOptions::saying(&["write"])).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(60)).await?;
        let log = fixture.service.log(&session).await?;
        let mut results = log.iter().map(|event| &event.event.body);
        let result = results.rfind(|body| matches!(body, EventBody::AgentToolResult { .. }));
        let said = text(result.ok_or("the call has no result")?);
        assert!(said.contains("was not run") && said.contains("exceeded quota: few"), "{said}");
        Ok(())
    })
    .await;
}
