//! An installation that leaves the cluster through a proxy of somebody else's: a request with a credential arrives by it, what is in the
//! cluster does not, and what it refuses is told to the program.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use longhand_e2e::cluster::{
    Fixture, Forge, SYSTEM_NAMESPACE, TestNamespace, TestResult, exec, helm, in_namespace, script, skipped,
};

const PROXY: &str = include_str!("../../fixtures/connect.yaml");
/// A name that only the proxy knows, and one that it does not know.
const NAME: &str = "forge.test";
const UNKNOWN: &str = "unknown.test";
const OBJECTS: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: forge}
spec:
  credentials:
    - name: forge
      secretRef: {name: forge, key: value}
      allow: {hosts: [forge.test, unknown.test]}
      placement: {type: environmentVariable, variable: {name: FORGE_TOKEN, locations: [header]}}
---
apiVersion: longhand.dev/v1alpha1
kind: AgentSession
metadata: {name: proxied}
spec:
  agentRef: {name: agent}
  harnessIdleSeconds: 300
  vaultRefs: [{name: forge}]
  sandboxes: [{name: main, templateRef: {name: small}}]
  input: [{text: go}]
"#;
const COMMAND: &str = "for host in forge.test unknown.test; do curl -sS -m 30 -o answer -w 'status %{http_code}\\n' \
     -H \"Authorization: Bearer $FORGE_TOKEN\" https://$host/echo; grep -o 'credential removed' answer | head -1; \
     grep -o 'with status [0-9]*' answer; done";
const PATIENCE: Duration = Duration::from_secs(120);

/// Changes the proxy of the installation, and waits until it is used. No URL stands for none.
async fn leave_by(url: &str) -> TestResult {
    let value = format!("proxy.upstream.proxy={url:?}");
    let upgrade = ["upgrade", "longhand", "charts/longhand", "-n", SYSTEM_NAMESPACE, "--reuse-values", "--wait"];
    helm(&[&upgrade[..], &["--timeout", "4m", "--set-json", &value]].concat()).await.map(drop)
}

/// Starts the proxy, and returns its pod once it is ready.
async fn start(namespace: &TestNamespace, forge: &Forge) -> TestResult<String> {
    let yaml = PROXY.replace("${IMAGE}", &forge.image).replace("${NAME}", NAME).replace("${HOST}", &forge.host);
    namespace.apply(&yaml).await?;
    namespace.ready_pod("connect", PATIENCE).await
}

async fn proxied(namespace: &TestNamespace, forge: &Forge) -> TestResult {
    let pod = start(namespace, forge).await?;
    leave_by(&format!("http://connect.{}.svc:3128", namespace.name)).await?;
    let fixture = Fixture::install(namespace, &script(COMMAND), 60).await?;
    namespace.apply(OBJECTS).await?;
    let session = fixture.session_id("proxied").await?;
    let (log, said) = fixture.service.last_words(&session, 0, PATIENCE).await?;
    assert_eq!(said.trim(), "status 200\ncredential removed\nstatus 502\nwith status 403", "{log:?}");
    assert!(!serde_json::to_string(&log)?.contains(&forge.value), "the log holds the credential");

    assert_eq!(forge.seen().await?.get("echo"), Some(&1), "it did not arrive once");
    let command = ["curl", "-sS", "http://127.0.0.1:3128/asked"];
    let (asked, _) = exec(&namespace.api::<Pod>(), &pod, None, &command, PATIENCE).await?;
    let asked: BTreeMap<String, u64> = serde_json::from_slice(&asked)?;
    // Not the model, nor anything else that is in the cluster.
    let names: Vec<_> = asked.keys().map(String::as_str).collect();
    assert_eq!(names, [format!("{NAME}:443"), format!("{UNKNOWN}:443")]);
    Ok(())
}

/// Whatever comes of it, the installation leaves the cluster directly again.
pub(crate) async fn serve() {
    in_namespace("upstream-proxy", |namespace| async move {
        let Some(forge) = Forge::install(&namespace, NAME).await? else {
            skipped("the proxy of somebody else's", "the cluster trusts no authority of the tests");
            return Ok(());
        };
        let outcome = AssertUnwindSafe(proxied(&namespace, &forge)).catch_unwind().await;
        let restored = leave_by("").await;
        match outcome {
            Ok(outcome) => outcome.and(restored),
            Err(panicked) => std::panic::resume_unwind(panicked),
        }
    })
    .await;
}
