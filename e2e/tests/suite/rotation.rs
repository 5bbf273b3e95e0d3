//! What changes under a session that uses a credential: its Secret is rotated, its proxy dies; and a placeholder is worth nothing in
//! another session.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use longhand_crds::labels;
use longhand_e2e::cluster::{
    Fixture, Forge, Needle, TestNamespace, TestResult, eventually, in_namespace, run_beside, script, skipped, wait_for,
};
use longhand_protocol::SessionId;
use serde_json::json;

use crate::online::{LONG, pod_of};
use crate::resources::asked;

/// The kubelet brings what a Secret has become within its sync period and the lifetime of its cache, about a minute each.
const BROUGHT: Duration = Duration::from_secs(240);

const OBJECTS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: mine}
stringData: {value: ${VALUE}}
---
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: forge}
spec:
  credentials:
    - name: forge
      secretRef: {name: mine, key: value}
      allow: {hosts: [forge.${NAMESPACE}.svc], privateAddresses: Allow}
      placement: {type: environmentVariable, variable: {name: FORGE_TOKEN, locations: [header]}}
---
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: clients}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 512Mi}}
  workspace: {size: 64Mi}
"#;
const SESSION: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: AgentSession
metadata: {name: ${NAME}}
spec:
  agentRef: {name: agent}
  harnessIdleSeconds: 600
  vaultRefs: [{name: forge}]
  sandboxes: [{name: main, templateRef: {name: clients}}]
"#;

/// The sandbox asks for an echo of its request whenever it is told to, and says with which status it was answered; `placeholder` is what
/// it sends.
fn echo(host: &str, placeholder: &str) -> String {
    let command = format!(
        "curl -sS -m 20 -o answer -w 'status %{{http_code}} ' -H \"Authorization: Bearer {placeholder}\" -d '{{}}' https://{host}/echo; \
         grep -c 'credential removed' answer; echo \"own=$FORGE_TOKEN\""
    );
    script(&command)
}

async fn begin(fixture: &Fixture, name: &str) -> TestResult<SessionId> {
    fixture.namespace.apply(&SESSION.replace("${NAME}", name)).await?;
    fixture.session_id(name).await
}

#[tokio::test]
async fn a_secret_is_rotated_and_a_proxy_dies_under_a_session() {
    in_namespace("rotation", |namespace| async move {
        let Some(forge) = Forge::install(&namespace, "rotation").await? else {
            skipped("the rotation of a Secret", "the cluster trusts no authority of the tests");
            return Ok(());
        };
        let fixture = Fixture::install(&namespace, &echo(&forge.host, "$FORGE_TOKEN"), 600).await?;
        namespace.apply(&OBJECTS.replace("${VALUE}", &forge.value).replace("${NAMESPACE}", &namespace.name)).await?;
        let session = begin(&fixture, "rotated").await?;
        let said = asked(&fixture, &session, "ask").await?;
        assert!(said.contains("status 200 1"), "{said}");

        let rotated = format!("forge-{:032x}", rand::random::<u128>());
        for (name, what) in [("forge", "the server's"), ("mine", "the vault's")] {
            let patch = Patch::Merge(json!({ "stringData": { "value": rotated } }));
            let patched = namespace.api::<Secret>().patch(name, &PatchParams::default(), &patch).await;
            patched.map_err(|error| format!("{what} Secret: {error}"))?;
        }
        // From then on nothing but the new value is taken.
        eventually("the server has the new value", BROUGHT, || async {
            Ok((forge.read("value").await? == rotated).then_some(()))
        })
        .await?;
        let said = eventually("the proxy places the new value", BROUGHT, || async {
            let said = asked(&fixture, &session, "ask").await?;
            Ok(said.contains("status 200").then_some(said))
        })
        .await?;
        assert!(said.contains("status 200 1"), "the new value came back: {said}");

        proxy_dies(&namespace).await?;
        let said = eventually("the next proxy serves", LONG, || async {
            let said = asked(&fixture, &session, "ask").await?;
            Ok(said.contains("status 200").then_some(said))
        })
        .await?;
        assert!(said.contains("status 200 1"), "{said}");
        let log = serde_json::to_string(&fixture.service.log(&session).await?)?;
        for value in [&forge.value, &rotated] {
            assert!(!Needle::new(value).is_in(&log), "the log holds a value");
        }
        another_session_s_placeholder(&fixture, &forge, &said).await
    })
    .await;
}

/// Stops the proxy of the session's pod, and waits until the kubelet has started the next one in its place.
async fn proxy_dies(namespace: &TestNamespace) -> TestResult {
    let pod = pod_of(namespace, "rotated", labels::HARNESS).await?;
    let sandbox = namespace.pods(labels::SANDBOX).await?.pop().and_then(|pod| pod.spec).ok_or("there is no sandbox")?;
    let image = sandbox.containers.into_iter().next().and_then(|container| container.image).ok_or("no image")?;
    let pods = namespace.api::<Pod>();
    let name = format!("stop-{:08x}", rand::random::<u32>());
    run_beside(&pods, &pod, "credential-proxy", &image, &name, &["bash", "-c", "kill -TERM 1"]).await?;
    wait_for(pods, &pod.name_any(), "the proxy runs again", LONG, |pod| {
        let statuses = pod?.status.as_ref()?.init_container_statuses.as_ref()?;
        let proxy = statuses.iter().find(|status| status.name == "credential-proxy")?;
        (proxy.restart_count > 0 && proxy.ready).then_some(())
    })
    .await
}

/// What one session may use is refused in another, and its log says so.
async fn another_session_s_placeholder(fixture: &Fixture, forge: &Forge, said: &str) -> TestResult {
    let own = said.lines().find_map(|line| line.strip_prefix("own=")).ok_or("no placeholder")?;
    assert!(own.starts_with("lhp_"), "{own}");
    fixture.model.set_script(&echo(&forge.host, own)).await?;
    let echoes = forge.seen().await?.get("echo").copied();
    let session = begin(fixture, "other").await?;
    let said = asked(fixture, &session, "ask").await?;
    assert!(said.contains("status 403"), "{said}");
    assert_eq!(forge.seen().await?.get("echo").copied(), echoes, "it has arrived");
    fixture.service.follow_all(&session, "x.credential.denied", LONG).await?;
    Ok(())
}
