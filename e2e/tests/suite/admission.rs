//! A Vault is no way to a Secret that one may not get, and not everybody's to use.

use std::time::Duration;

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding};
use kube::api::{Api, PostParams};
use kube::{Client, Config};
use longhand_e2e::cluster::{TestNamespace, TestResult, eventually, in_namespace};
use serde_json::{Value, json};

/// Until the API server's authorizer knows a Role.
const DEADLINE: Duration = Duration::from_secs(30);
/// The developer, of whom the API server asks what they may do.
const DEVELOPER: &str = "dev";

#[tokio::test]
async fn a_vault_names_only_secrets_that_its_author_may_get() {
    in_namespace("vault-secrets", |namespace| async move {
        let developer = developer(&namespace, &["mine"], &[]).await?;
        developer.apply(&vault("own", "mine", "a.test")).await?;
        refused(&developer, &vault("theft", "other", "a.test"), "may not get secret other").await?;

        // Somebody else's: it may be named otherwise, but not sent elsewhere.
        namespace.apply(&vault("theirs", "other", "a.test")).await?;
        let renamed = vault("theirs", "other", "a.test").replace("spec:", "spec:\n  displayName: a name");
        developer.apply(&renamed).await?;
        refused(&developer, &vault("theirs", "other", "evil.test"), "may not get secret other").await
    })
    .await;
}

#[tokio::test]
async fn a_vault_is_named_only_by_whom_may_use_it() {
    in_namespace("vault-use", |namespace| async move {
        let developer = developer(&namespace, &[], &["mine"]).await?;
        for name in ["mine", "other"] {
            namespace.apply(&vault(name, "secret", "a.test")).await?;
        }
        developer.apply(&agent("own", "mine")).await?;
        refused(&developer, &agent("theft", "other"), "may not use vault other").await?;
        developer.apply(&session("own", "[{name: mine}]")).await?;
        refused(&developer, &session("theft", "[{name: mine}, {name: other}]"), "may not use vault other").await?;

        // An agent of somebody who may is applied again as it is, but its vault is not used otherwise.
        namespace.apply(&agent("theirs", "other")).await?;
        developer.apply(&agent("theirs", "other").replace("spec:", "spec:\n  system: Be kind.")).await?;
        let credential = "credential: {vault: other, name: c}";
        for (from, to) in [
            ("name: c}", "name: d}".to_owned()),
            (credential, format!("{credential}, baseURL: 'https://a.test/other'")),
            (credential, format!("{credential}, fallbacks: [{{id: n, baseURL: 'https://a.test/other'}}]")),
            ("spec:", format!("spec:\n  tools: [{{type: mcp_toolset, mcpServerName: s}}]\n  mcpServers: [{{name: s, url: 'https://a.test/mcp', {credential}}}]")),
        ] {
            refused(&developer, &agent("theirs", "other").replace(from, &to), "may not use vault other").await?;
        }
        // Without one of its own it would be run with the installation's.
        refused(&developer, &without_credential("default"), "may not use vault models").await
    })
    .await;
}

#[tokio::test]
async fn a_handoff_is_not_written_by_hand() {
    in_namespace("handoff-fields", |namespace| async move {
        let sandbox = "apiVersion: longhand.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: s}\nspec:\n  \
             templateRef: {name: none}\n";
        namespace.apply(sandbox).await?;
        for (field, value) in
            [("handoffTo", "{name: other, uid: u, sandbox: s}"), ("workspaceFrom", "{sandbox: other, uid: u}")]
        {
            let written = format!("{sandbox}  {field}: {value}\n");
            // What it begins with is never changed, whoever asks.
            if field != "workspaceFrom" {
                refused(&namespace, &written, "is written by the session service alone").await?;
            }
            let new = written.replace("name: s}", "name: new}");
            refused(&namespace, &new, "is written by the session service alone").await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_repository_s_token_is_only_a_secret_that_its_author_may_get() {
    in_namespace("token-secrets", |namespace| async move {
        let developer = developer(&namespace, &["mine"], &["mine"]).await?;
        developer.apply(&agent("own", "mine")).await?;
        let with = |name: &str, secret: &str| {
            let repository = format!("{{url: 'https://a.test/o/r', tokenRef: {{name: {secret}, key: k}}}}");
            let resource = format!("{{name: r, mountPath: /workspace/r, githubRepository: {repository}}}");
            session(name, "[]") + &format!("  resources: [{resource}]\n")
        };
        developer.apply(&with("own", "mine")).await?;
        refused(&developer, &with("theft", "other"), "may not get secret other").await?;
        namespace.apply(&with("theirs", "other")).await?;
        refused(&developer, &with("theirs", "other").replace("a.test", "evil.test"), "may not get secret other").await
    })
    .await;
}

#[tokio::test]
async fn a_session_s_file_is_only_one_that_its_author_may_get() {
    in_namespace("session-files", |namespace| async move {
        let developer = developer(&namespace, &[], &["mine"]).await?;
        developer.apply(&agent("own", "mine")).await?;
        let with = |name: &str, files: &[&str]| {
            let of =
                |file: &&str| format!("{{name: {file}, mountPath: /workspace/{file}, file: {{fileID: file_{file}}}}}");
            let resources: Vec<String> = files.iter().map(of).collect();
            session(name, "[]") + &format!("  resources: [{}]\n", resources.join(", "))
        };
        developer.apply(&with("own", &["mine"])).await?;
        refused(&developer, &with("theft", &["other"]), "may not get file file_other").await?;
        namespace.apply(&with("theirs", &["other"])).await?;
        developer.apply(&with("theirs", &["other", "mine"])).await?;
        refused(&developer, &with("own", &["mine", "other"]), "may not get file file_other").await
    })
    .await;
}

/// The namespace as a developer sees it who writes our kinds, gets these Secrets, uses these vaults, and gets one file.
async fn developer(namespace: &TestNamespace, secrets: &[&str], vaults: &[&str]) -> TestResult<TestNamespace> {
    let mut rules = vec![json!({
        "apiGroups": ["longhand.dev"],
        "resources": ["vaults", "agents", "agentsessions"],
        "verbs": ["get", "create", "patch"],
    })];
    rules.push(json!({"apiGroups": ["longhand.dev"], "resources": ["files"], "resourceNames": ["file_mine"], "verbs": ["get"]}));
    // No names at all would be all of them.
    if !secrets.is_empty() {
        rules.push(json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": secrets, "verbs": ["get"]}));
    }
    if !vaults.is_empty() {
        rules.push(
            json!({"apiGroups": ["longhand.dev"], "resources": ["vaults"], "resourceNames": vaults, "verbs": ["use"]}),
        );
    }
    let rules: Vec<PolicyRule> = serde_json::from_value(Value::from(rules))?;
    let named = |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": DEVELOPER});
    let role = Role { rules: Some(rules), ..serde_json::from_value(json!({"metadata": {"name": DEVELOPER}}))? };
    namespace.api::<Role>().create(&PostParams::default(), &role).await?;
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": DEVELOPER},
        "roleRef": named("Role"),
        "subjects": [named("User")],
    }))?;
    namespace.api::<RoleBinding>().create(&PostParams::default(), &binding).await?;

    let mut config = Config::infer().await?;
    config.auth_info.impersonate = Some(DEVELOPER.to_owned());
    config.auth_info.impersonate_groups = Some(vec!["system:authenticated".to_owned()]);
    let developer = TestNamespace { client: Client::try_from(config)?, name: namespace.name.clone() };
    let agents: Api<longhand_crds::Agent> = developer.api();
    eventually("the developer's rights", DEADLINE, || async {
        match agents.get_opt("none").await {
            Ok(_) => Ok(Some(())),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    Ok(developer)
}

async fn refused(developer: &TestNamespace, yaml: &str, why: &str) -> TestResult {
    let refusal = developer.apply(yaml).await.err().ok_or_else(|| format!("taken: {yaml}"))?;
    assert!(refusal.to_string().contains(why), "{refusal} does not say: {why}");
    Ok(())
}

fn vault(name: &str, secret: &str, host: &str) -> String {
    format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: Vault\nmetadata: {{name: {name}}}\nspec:\n  credentials:\n  \
         - {{name: c, secretRef: {{name: {secret}, key: k}}, allow: {{hosts: [{host}]}}, placement: {{type: bearer}}}}\n"
    )
}

fn agent(name: &str, vault: &str) -> String {
    format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {name}}}\nspec:\n  \
         model: {{id: m, credential: {{vault: {vault}, name: c}}}}\n"
    )
}

fn without_credential(name: &str) -> String {
    agent(name, "none").replace(", credential: {vault: none, name: c}", "")
}

fn session(name: &str, vaults: &str) -> String {
    format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: AgentSession\nmetadata: {{name: {name}}}\nspec:\n  \
         agentRef: {{name: own}}\n  vaultRefs: {vaults}\n"
    )
}
