//! Programs that fetch code and packages, in a sandbox, from servers that run in the cluster: git with LFS, pip, npm, cargo and curl. The proxy
//! between them places a credential that none of them sees.

use std::time::Duration;

use longhand_e2e::cluster::{Fixture, Forge, Needle, TestNamespace, TestResult, in_namespace, script_within, skipped};

use crate::etcd_dump::assert_not_in_etcd;
use crate::online::LONG;
use crate::secrets::{assert_in_no_log, assert_in_no_object, assert_only_the_proxy_mounts_it};

/// The token of a repository goes to public addresses only. One of these is the servers' in the cluster as long as the test runs: a
/// connection to it does not leave the node.
const PUBLIC: &str = "9.9.8.";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: forge-outside}
spec:
  selector: {app: forge}
  externalIPs: ["${PUBLIC}"]
  ports: [{name: https, port: 443, targetPort: https}]
---
apiVersion: v1
kind: Service
metadata: {name: public}
spec: {clusterIP: None, ports: [{name: https, port: 443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: public, labels: {kubernetes.io/service-name: public}}
addressType: IPv4
ports: [{name: https, port: 443}]
endpoints: [{addresses: ["${PUBLIC}"]}]
---
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: forge}
spec:
  credentials:
    - name: forge
      secretRef: {name: forge, key: value}
      allow: {hosts: [forge.${NAMESPACE}.svc], privateAddresses: Allow}
      placement: {type: environmentVariable, variable: {name: FORGE_TOKEN, locations: [header]}}
---
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: clients}
spec:
  image: ${IMAGE}
  resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {cpu: "2", memory: 1Gi}}
  workspace: {size: 512Mi}
---
apiVersion: longhand.dev/v1alpha1
kind: AgentSession
metadata: {name: clients}
spec:
  agentRef: {name: agent}
  harnessIdleSeconds: 300
  vaultRefs: [{name: forge}]
  sandboxes: [{name: main, templateRef: {name: clients}}]
  resources:
    - name: app
      mountPath: /workspace/app
      githubRepository: {url: "https://public.${NAMESPACE}.svc/git/app.git", branch: main, tokenRef: {name: forge, key: value}}
  input: [{text: go}]
"#;

/// Ends with what was cloned before the first call, and what its configuration knows.
const COMMAND: &str = r#"
export FORGE=https://${HOST} BEHIND_PROXY=1
bash /opt/clients/clients.sh
cat /workspace/app/README
git -C /workspace/app fetch --quiet && echo ok fetch-of-resource
grep -ci "extraheader = authorization: basic" /workspace/app/.git/config
"#;
const CLIENTS: [&str; 9] = ["curl", "git-clone", "git-lfs", "git-fetch", "git-push", "pip", "npm", "cargo", "foreign"];

#[tokio::test]
async fn real_programs_fetch_and_push_with_a_credential_that_they_do_not_see() {
    in_namespace("clients", |namespace| async move { run(&namespace).await }).await;
}

async fn run(namespace: &TestNamespace) -> TestResult {
    let Some(forge) = Forge::install(namespace, "public").await? else {
        skipped("real programs", "the cluster trusts no authority of the tests");
        return Ok(());
    };
    let script = script_within(&COMMAND.replace("${HOST}", &forge.host), Duration::from_secs(300));
    let fixture = Fixture::install(namespace, &script, 300).await?;
    // The address of a run that has just ended may still lead to its servers.
    let public = format!("{PUBLIC}{}", rand::random_range(1..255_u8));
    let objects = OBJECTS
        .replace("${NAMESPACE}", &namespace.name)
        .replace("${PUBLIC}", &public)
        .replace("${IMAGE}", &forge.image);
    namespace.apply(&objects).await?;
    let session = fixture.session_id("clients").await?;
    let (log, said) = fixture.service.last_words(&session, 0, 3 * LONG).await?;
    for client in CLIENTS {
        assert!(said.lines().any(|line| line == format!("ok {client}")), "{client}: {said}");
    }
    assert!(said.contains("of the forge\nok fetch-of-resource\n1"), "{said}");

    let seen = forge.seen().await?;
    for served in ["git upload-pack", "git receive-pack", "lfs download", "lfs upload", "pypi", "npm", "cargo", "echo"]
    {
        assert!(seen.get(served).is_some_and(|count| *count > 0), "{served}: {seen:?}");
    }
    assert_eq!(seen.get("placeholder"), None, "{seen:?}");

    assert!(!serde_json::to_string(&log)?.contains(&forge.value), "the log holds the credential");
    assert_only_the_proxy_mounts_it(namespace).await?;
    let value = Needle::new(&forge.value);
    assert_in_no_object(namespace, &value).await?;
    assert_in_no_log(namespace, &value).await?;
    assert_not_in_etcd(namespace, &forge.image, &value, session.as_str()).await
}
