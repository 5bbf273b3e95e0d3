//! A vault's status says of each credential whether it can be used, as the proxies of sessions have seen it.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use longhand_crds::Vault;
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, in_namespace, session_manifest, wait_for,
};

const SCRIPT: &str = "rules:\n  - then: {text: \"Hello.\"}";
const DEADLINE: Duration = Duration::from_secs(60);
/// The kubelet looks for a Secret that was missing about once a minute.
const SECRET_DEADLINE: Duration = Duration::from_secs(150);

/// Waits until the vault says this of its credential.
async fn says(namespace: &TestNamespace, reason: &str, deadline: Duration) -> TestResult<Condition> {
    let what = format!("the credential of the vault is {reason}");
    wait_for(namespace.api::<Vault>(), "late", &what, deadline, |vault| {
        let credentials = &vault?.status.as_ref()?.credentials;
        let of_key = credentials.iter().find(|credential| credential.name == "api-key")?;
        let usable = of_key.conditions.iter().find(|condition| condition.type_ == "Usable")?;
        (usable.reason == reason).then(|| usable.clone())
    })
    .await
}

/// A vault whose credential is in the Secret `late-key`, and an agent that has it for its model.
async fn install(namespace: &TestNamespace) -> TestResult<Fixture> {
    let fixture = Fixture::install(namespace, SCRIPT, 60).await?;
    let yaml = format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: Vault\nmetadata: {{name: late}}\nspec: {{credentials: [{{name: api-key, secretRef: {{name: late-key, key: api-key}}, allow: {{scheme: http, hosts: [scripted-model.{0}.svc], privateAddresses: Allow}}, placement: {{type: header, header: x-api-key}}}}]}}\n---\napiVersion: longhand.dev/v1alpha1\nkind: Agent\nmetadata: {{name: late}}\nspec: {{model: {{id: m, baseURL: 'http://scripted-model.{0}.svc', credential: {{vault: late, name: api-key}}}}}}\n",
        namespace.name
    );
    namespace.apply(&yaml).await?;
    Ok(fixture)
}

async fn secret(namespace: &TestNamespace, value: &str) -> TestResult {
    let yaml =
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: late-key}}\nstringData: {{api-key: {value}}}\n");
    namespace.apply(&yaml).await.map(drop)
}

async fn session(namespace: &TestNamespace, name: &str) -> TestResult {
    let options =
        SessionOptions { agent: "late".to_owned(), harness_idle_seconds: 60, ..SessionOptions::saying(&["hi"]) };
    namespace.apply(&session_manifest(name, &options)).await.map(drop)
}

#[tokio::test]
async fn a_credential_without_its_secret_is_missing_until_there_is_one() {
    in_namespace("vault-missing", |namespace| async move {
        let fixture = install(&namespace).await?;
        assert_eq!(says(&namespace, "NotSeen", DEADLINE).await?.status, "Unknown");
        session(&namespace, "first").await?;
        let missing = says(&namespace, "SecretMissing", DEADLINE).await?;
        assert_eq!(missing.status, "False");
        assert!(missing.message.contains("late-key") && missing.message.contains("session first"), "{missing:?}");

        secret(&namespace, &fixture.api_key).await?;
        let usable = says(&namespace, "Usable", SECRET_DEADLINE).await?;
        assert_eq!(usable.status, "True");
        assert!(!usable.message.contains(&fixture.api_key), "{usable:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_credential_that_its_upstream_refuses_is_said_to_be_until_it_takes_one() {
    in_namespace("vault-refused", |namespace| async move {
        let fixture = install(&namespace).await?;
        secret(&namespace, "sk-of-nobody").await?;
        session(&namespace, "first").await?;
        let refused = says(&namespace, "RefusedUpstream", SECRET_DEADLINE).await?;
        assert_eq!(refused.status, "False");
        assert!(refused.message.contains("session first") && !refused.message.contains("sk-of-nobody"), "{refused:?}");

        secret(&namespace, &fixture.api_key).await?;
        session(&namespace, "second").await?;
        let usable = says(&namespace, "Usable", SECRET_DEADLINE).await?;
        assert!(usable.message.contains("session second"), "{usable:?}");
        Ok(())
    })
    .await;
}
