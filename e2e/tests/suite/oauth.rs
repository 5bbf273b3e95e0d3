//! An OAuth access token that has expired: it is refreshed at its provider, and the Vault names a Secret with the new ones. Where there is no
//! provider, who may refresh it is written to its Vault, a pod with an old refresh token goes, and a Vault that is set back to one says so.

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use longhand_crds::{Vault, labels};
use longhand_e2e::cluster::{
    Fixture, Forge, Needle, TestNamespace, TestResult, eventually, in_namespace, skipped, wait_for,
};

use crate::online::{LONG, pod_of};
use crate::secrets::{assert_in_no_log, assert_in_no_object, assert_only_the_proxy_mounts_it};

/// The namespace lets the service make Secrets.
const SECRETS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: longhand-session-secrets}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: longhand-session-secrets}
subjects: [{kind: ServiceAccount, name: longhand-session, namespace: longhand-system}]
"#;

const TICKETS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: tickets}
stringData: {token: at-e2e-expired, refresh-token: rt-e2e-first}
---
apiVersion: v1
kind: Secret
metadata: {name: tickets-2}
stringData: {token: at-e2e-expired, refresh-token: rt-e2e-second}
---
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: tickets}
spec:
  credentials:
    - name: tickets
      secretRef: {name: tickets, key: token}
      allow: {scheme: http, hosts: [scripted-model.${NAMESPACE}.svc], privateAddresses: Allow}
      placement: {type: bearer}
      mcpServerURL: http://scripted-model.${NAMESPACE}.svc/mcp
      oauth:
        expiresAt: "${EXPIRED}"
        refresh:
          clientID: e2e
          tokenEndpoint: https://provider.${NAMESPACE}.svc/token
          tokenEndpointAuth: none
          refreshTokenRef: {name: tickets, key: refresh-token}
---
apiVersion: longhand.dev/v1alpha1
kind: Agent
metadata: {name: tickets}
spec:
  model:
    id: scripted-1
    baseURL: http://scripted-model.${NAMESPACE}.svc
    credential: {vault: model, name: api-key}
  mcpServers: [{name: tickets, url: "http://scripted-model.${NAMESPACE}.svc/mcp"}]
  tools: [{type: mcp_toolset, mcpServerName: tickets}]
---
apiVersion: longhand.dev/v1alpha1
kind: AgentSession
metadata: {name: tickets}
spec:
  agentRef: {name: tickets}
  harnessIdleSeconds: 300
  vaultRefs: [{name: tickets}]
  input: [{text: go}]
"#;

const SCRIPT: &str = "rules: [{then: {text: done}}]";

#[tokio::test]
async fn an_expired_token_is_asked_for_by_one_pod_and_a_pod_with_an_old_refresh_token_goes() {
    in_namespace("oauth", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        // Not so long ago that somebody should have refreshed it.
        let expired = (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(1)).to_string();
        namespace.apply(SECRETS).await?;
        namespace.apply(&TICKETS.replace("${NAMESPACE}", &namespace.name).replace("${EXPIRED}", &expired)).await?;
        let session = fixture.session_id("tickets").await?;
        fixture.service.until_idle(&session, 0, LONG).await?;
        let log = serde_json::to_string(&fixture.service.log(&session).await?)?;
        assert!(log.contains("mcp_connection_failed_error") && log.contains("tickets"), "{log}");
        assert!(!log.contains("at-e2e") && !log.contains("rt-e2e"), "{log}");
        assert_only_the_proxy_mounts_it(&namespace).await?;

        let pod = pod_of(&namespace, "tickets", labels::HARNESS).await?;
        let uid = pod.uid().ok_or("a pod without a UID")?;
        let vault = namespace.api::<Vault>().get("tickets").await?;
        let record = vault.annotations().get("oauth.longhand.dev/tickets").cloned().ok_or("nobody asked to refresh")?;
        assert!(record.contains("claimed") && record.contains(&uid) && !record.contains("rt-e2e"), "{record}");
        wait_for(namespace.api::<Vault>(), "tickets", "TokensValid", LONG, |vault| {
            let conditions = &vault?.status.as_ref()?.conditions;
            conditions.iter().find(|found| found.type_ == "TokensValid" && found.status == "True").map(|_| ())
        })
        .await?;

        // Somebody gives consent anew: the pod that waits for the next message has the old refresh token.
        let mut credential = serde_json::to_value(&vault.spec.credentials[0])?;
        credential["oauth"]["refresh"]["refreshTokenRef"]["name"] = "tickets-2".into();
        let patch = serde_json::json!({ "spec": { "credentials": [&credential] } });
        namespace.api::<Vault>().patch("tickets", &PatchParams::default(), &Patch::Merge(patch)).await?;
        eventually("the pod is gone", LONG, || async {
            let pods = namespace.api::<Pod>().list(&ListParams::default()).await?;
            let there = pods.items.iter().any(|pod| pod.metadata.uid.as_ref() == Some(&uid));
            Ok((!there).then_some(()))
        })
        .await?;
        fixture.service.send(&session, "again").await?;
        eventually("the next pod has the new one", LONG, || async {
            let Ok(pod) = pod_of(&namespace, "tickets", labels::HARNESS).await else { return Ok(None) };
            let spec = serde_json::to_string(&pod.spec)?;
            Ok((pod.uid().as_ref() != Some(&uid) && spec.contains("tickets-2")).then_some(()))
        })
        .await?;

        // A tool applies the vault as it was, after a refresh.
        credential["oauth"]["refresh"]["refreshTokenRef"]["name"] = "tickets".into();
        let used = r#"{"latest": "tickets-2", "written": ["tickets"]}"#;
        let patch = serde_json::json!({
            "metadata": { "annotations": { "used.oauth.longhand.dev/tickets": used } },
            "spec": { "credentials": [credential] },
        });
        namespace.api::<Vault>().patch("tickets", &PatchParams::default(), &Patch::Merge(patch)).await?;
        wait_for(namespace.api::<Vault>(), "tickets", "TokensValid", LONG, |vault| {
            let conditions = &vault?.status.as_ref()?.conditions;
            let found = conditions.iter().find(|found| found.reason == "RefreshTokenReverted")?;
            found.message.contains("the last one is in tickets-2").then_some(())
        })
        .await
    })
    .await;
}

const FORGE: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: access}
stringData: {token: at-e2e-expired}
---
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: forge}
spec:
  credentials:
    - name: forge
      secretRef: {name: access, key: token}
      allow: {hosts: [forge.${NAMESPACE}.svc], privateAddresses: Allow}
      placement: {type: bearer}
      mcpServerURL: https://forge.${NAMESPACE}.svc/mcp
      oauth:
        expiresAt: "${EXPIRED}"
        refresh:
          clientID: e2e
          tokenEndpoint: https://forge.${NAMESPACE}.svc/oauth/token
          tokenEndpointAuth: none
          refreshTokenRef: {name: forge, key: refresh-token}
---
apiVersion: longhand.dev/v1alpha1
kind: Agent
metadata: {name: forge}
spec:
  model:
    id: scripted-1
    baseURL: http://scripted-model.${NAMESPACE}.svc
    credential: {vault: model, name: api-key}
  mcpServers: [{name: forge, url: "https://forge.${NAMESPACE}.svc/mcp"}]
  tools: [{type: mcp_toolset, mcpServerName: forge, defaultConfig: {permissionPolicy: AlwaysAllow}}]
"#;

const SESSION: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: AgentSession
metadata: {name: ${NAME}}
spec:
  agentRef: {name: forge}
  harnessIdleSeconds: 300
  vaultRefs: [{name: forge}]
  input: [{text: go}]
"#;

const WHO: &str = r#"
rules:
  - when: {turn: 0}
    then: {tool_uses: [{name: mcp__forge__whoami, input: {}}]}
  - then: {text: "{{last_tool_result}}"}
"#;

#[tokio::test]
async fn a_token_that_has_expired_is_refreshed_at_its_provider() {
    in_namespace("oauth-provider", |namespace| async move { refreshed(&namespace).await }).await;
}

async fn refreshed(namespace: &TestNamespace) -> TestResult {
    let Some(forge) = Forge::install(namespace, "provider").await? else {
        skipped("a token is refreshed", "the cluster trusts no authority of the tests");
        return Ok(());
    };
    let fixture = Fixture::install(namespace, WHO, 60).await?;
    let expired = (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(1)).to_string();
    namespace.apply(SECRETS).await?;
    namespace.apply(&FORGE.replace("${NAMESPACE}", &namespace.name).replace("${EXPIRED}", &expired)).await?;
    // The second has the tokens that the first one's proxy was given.
    for (name, refreshes) in [("first", 1), ("second", 1)] {
        namespace.apply(&SESSION.replace("${NAME}", name)).await?;
        let session = fixture.session_id(name).await?;
        let (log, said) = fixture.service.last_words(&session, 0, LONG).await?;
        assert!(said.contains("known by a refreshed token"), "{name}: {said} {log:?}");
        assert_eq!(forge.seen().await?.get("oauth refresh"), Some(&refreshes), "{name}");
        let secret = wait_for(namespace.api::<Vault>(), "forge", "it names the new tokens", LONG, |vault| {
            let credential = vault?.spec.credentials.first()?;
            let refresh = credential.oauth.as_ref()?.refresh.as_ref()?;
            (credential.secret_ref.name == refresh.refresh_token_ref.name).then(|| credential.secret_ref.name.clone())
        })
        .await?;
        let tokens = namespace.api::<Secret>().get(&secret).await?.data.unwrap_or_default();
        assert_eq!(tokens.keys().collect::<Vec<_>>(), ["refresh-token", "token"], "{secret}");
        let log = serde_json::to_string(&log)?;
        for token in tokens.values() {
            let token = String::from_utf8(token.0.clone())?;
            assert!(!log.contains(&token), "the log of {name} holds a token");
            let token = Needle::new(&token);
            assert_in_no_object(namespace, &token).await?;
            assert_in_no_log(namespace, &token).await?;
        }
    }
    assert_only_the_proxy_mounts_it(namespace).await?;
    wait_for(namespace.api::<Vault>(), "forge", "TokensValid", LONG, |vault| {
        let conditions = &vault?.status.as_ref()?.conditions;
        conditions.iter().find(|found| found.type_ == "TokensValid" && found.status == "True").map(|_| ())
    })
    .await
}
