//! Bad input gets a clear error at the earliest point, and heals when it can.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use longhand_crds::AgentSession;
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, in_namespace, session_manifest, token, wait_for,
};
use serde_json::json;

const SCRIPT: &str = "rules:\n  - then: {text: \"Hello.\"}";
const DEADLINE: Duration = Duration::from_secs(30);
/// The kubelet looks for a Secret that was missing about once a minute.
const SECRET_DEADLINE: Duration = Duration::from_secs(150);

#[tokio::test]
async fn the_api_server_refuses_what_cannot_work_and_names_the_field() {
    in_namespace("bad-yaml", |namespace| async move {
        let cases = [
            ("AgentSession", "spec: {}", "spec.agentRef"),
            ("AgentSession", "spec: {agentRef: {name: ''}}", "spec.agentRef.name"),
            ("AgentSession", "spec: {agentRef: {name: a}, harnessIdleSeconds: -1}", "spec.harnessIdleSeconds"),
            ("AgentSession", "spec: {agentRef: {name: a}, sandboxes: [{name: Not_A_Name, templateRef: {name: t}}]}", "spec.sandboxes[0].name"),
            ("AgentSession", "spec: {agentRef: {name: a}, agnet: 1}", "agnet"),
            ("Agent", "spec: {model: {credential: {vault: v, name: c}}}", "spec.model.id"),
            ("Agent", "spec: {model: {id: m}, tools: [{type: mcp_toolset, mcpServerName: s}]}", "must be the name of one of mcpServers"),
            ("Agent", "spec: {model: {id: m}, mcpServers: [{name: s, url: 'https://s.test'}]}", "must be named by a tool"),
            ("Agent", "spec: {model: {id: m}, tools: [{type: agent_toolset_20260401, configs: [{name: rm}]}]}", "has the tools bash"),
            ("Agent", "spec: {model: {id: m}, tools: [{type: agent_toolset_20260401, configs: [{name: bash, web: {allowedDomains: [a]}}]}]}", "web belongs to"),
            ("Agent", "spec: {model: {id: m, api: Ollama}}", "spec.model.api"),
            ("Agent", "spec: {model: {id: m, api: OpenAI, thinking: {type: adaptive}}}", "for models of the Anthropic API"),
            ("Agent", "spec: {model: {id: m, thinking: {type: enabled}}}", "thinking.budgetTokens is given with type enabled"),
            ("Agent", "spec: {model: {id: m, contextManagement: {edits: [{type: forget}]}}}", "spec.model.contextManagement.edits[0].type"),
            ("Agent", "spec: {model: {id: m, fallbacks: [{id: a}, {id: b}, {id: c}, {id: d}, {id: e}]}}", "spec.model.fallbacks"),
            ("SandboxTemplate", "spec: {packages: {pip: [a]}}", "packages need"),
            ("SandboxTemplate", "spec: {selfHosted: true, network: {}}", "belong to sandboxes that Longhand makes"),
            ("SandboxTemplate", "spec: {network: {egress: Unrestricted, allowedHosts: [a.test]}}", "belong to egress Limited"),
            ("Agent", "spec: {model: {id: m, baseURL: 'ftp://x.y', credential: {vault: v, name: c}}}", "spec.model.baseURL"),
            ("Agent", "spec: {model: {id: m, credential: {vault: v, name: c}}, tools: [{type: custom, name: t}]}", "name, description and inputSchema"),
            ("SandboxTemplate", "spec: {idleSeconds: 0}", "spec.idleSeconds"),
            ("SandboxTemplate", "spec: {lifetimeSeconds: 1}", "spec.lifetimeSeconds"),
            ("SandboxTemplate", "spec: {warm: 2, workspace: {persistence: Persistent}}", "gains no volume"),
            ("SandboxTemplate", "spec: {runAsUser: 0}", "needs podSecurity Baseline"),
            ("SandboxTemplate", "spec: {userNamespace: Auto, runtimeClassName: gvisor}", "default runtimes only"),
            ("SandboxTemplate", "spec: {podSecurity: Privileged}", "spec.podSecurity"),
            ("SandboxTemplate", "spec: {workspace: {storageClassName: fast}}", "a workspace that is Persistent"),
            ("SandboxTemplate", "spec: {workspace: {size: plenty}}", "spec.workspace.size: Invalid value"),
            ("SandboxTemplate", "spec: {workspace: {size: plenty}}", "size is an amount above 0, such as 4Gi"),
            ("SandboxTemplate", "spec: {workspace: {size: 4 GiB}}", "size is an amount above 0"),
            ("SandboxTemplate", "spec: {workspace: {size: 0}}", "size is an amount above 0"),
            ("SandboxTemplate", "spec: {workspace: {size: '0'}}", "size is an amount above 0"),
            ("SandboxTemplate", "spec: {workspace: {size: -1Gi}}", "size is an amount above 0"),
            ("SandboxTemplate", "spec: {scratch: {size: much}}", "spec.scratch.size: Invalid value"),
            ("SandboxTemplate", "spec: {scratch: {size: 0Gi}}", "size is an amount above 0"),
            ("SandboxTemplate", "spec: {resources: {requests: {cpu: two}}}", "spec.resources.requests[cpu]"),
            ("SandboxTemplate", "spec: {resources: {limits: {memory: 2 GB}}}", "an amount is a number with or without a unit"),
            ("SandboxTemplate", "spec: {resources: {limits: {memory: -1}}}", "and not below 0"),
            ("SandboxTemplate", "spec: {resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}", "a request is above its limit"),
            ("SandboxTemplate", "spec: {resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}}", "a request is above its limit"),
            ("SandboxTemplate", "spec: {resources: {requests: {cpu: 1100m}, limits: {cpu: 1}}}", "a request is above its limit"),
            ("SandboxTemplate", "spec: {resources: {requests: {cpu: 3}, limits: {cpu: 2}}}", "a request is above its limit"),
            ("Agent", "spec: {model: {id: m}, harness: {resources: {requests: {cpu: two}}}}", "spec.harness.resources.requests[cpu]"),
            ("Agent", "spec: {model: {id: m}, harness: {resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}}}", "a request is above its limit"),
            ("Sandbox", "spec: {}", "spec.templateRef"),
            ("Vault", "spec: {credentials: 1}", "spec.credentials"),
            ("Vault", "spec: {credentials: [{name: c, secretRef: {name: s, key: k}, allow: {hosts: [h]}, placement: {type: header}}]}", "header belongs to"),
            ("Vault", "spec: {credentials: [{name: c, secretRef: {name: s, key: k}, allow: {hosts: [h]}, placement: {type: header, header: Host}}]}", "header frames or routes"),
            ("Vault", "spec: {credentials: [{name: c, secretRef: {name: s, key: k}, allow: {hosts: [a..b]}, placement: {type: bearer}}]}", "spec.credentials[0].allow.hosts[0]"),
            ("Agent", "spec: {model: {id: m, credential: {vault: v, name: c}}, tools: [{type: agent_toolset_20260401}, {type: custom, name: bash, description: d, inputSchema: {type: object}}]}", "switch that one off"),
        ];
        for (kind, spec, field) in cases {
            let yaml = format!("apiVersion: longhand.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: bad}}\n{spec}\n");
            let refused = namespace.apply(&yaml).await.err().ok_or_else(|| format!("{kind} {spec} was taken"))?;
            assert!(refused.to_string().contains(field), "{kind} {spec}: {refused} does not name {field}");
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_api_server_takes_amounts_in_every_form() {
    in_namespace("amounts", |namespace| async move {
        for (name, spec) in [
            ("units", "{workspace: {size: 500M}, scratch: {size: 1.5Gi}, resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: '0.1', memory: 67108864}}}"),
            ("numbers", "{workspace: {size: 1073741824}, scratch: {size: '1e9'}, resources: {requests: {cpu: 1, memory: 0}, limits: {cpu: 1000m}}}"),
            ("one-side", "{resources: {requests: {cpu: 3}, limits: {memory: 1Gi, 'example.com/gpu': 1}}}"),
        ] {
            let yaml = format!("apiVersion: longhand.dev/v1alpha1\nkind: SandboxTemplate\nmetadata: {{name: {name}}}\nspec: {spec}\n");
            namespace.apply(&yaml).await.map_err(|refused| format!("{spec}: {refused}"))?;
        }
        Ok(())
    })
    .await;
}

/// Waits until a condition of the session, of any type, is false with a message that names `name`.
async fn condition_names(
    namespace: &TestNamespace,
    session: &str,
    name: &str,
    deadline: Duration,
) -> TestResult<Condition> {
    let what = format!("a condition of {session} names {name}");
    wait_for(namespace.api::<AgentSession>(), session, &what, deadline, |session| {
        let conditions = &session?.status.as_ref()?.conditions;
        conditions.iter().find(|condition| condition.status == "False" && condition.message.contains(name)).cloned()
    })
    .await
}

async fn answered(fixture: &Fixture, session: &str, deadline: Duration) -> TestResult {
    let id = fixture.session_id(session).await?;
    let events = fixture.service.until_idle(&id, 0, deadline).await?;
    let said = events.iter().any(|event| longhand_e2e::cluster::log::text(&event.body) == "Hello.");
    assert!(said, "the session went idle without an answer: {events:?}");
    Ok(())
}

#[tokio::test]
async fn a_missing_agent_template_or_vault_is_named_and_heals() {
    in_namespace("missing", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let with = |agent: &str, template: &str| {
            let options = SessionOptions { agent: agent.to_owned(), ..SessionOptions::saying(&["hi"]) };
            session_manifest("NAME", &options).replace("{name: small}", &format!("{{name: {template}}}"))
        };
        let agent = |name: &str, vault: &str| {
            format!(
                "apiVersion: longhand.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {name}}}\nspec: {{model: {{id: m, baseURL: 'http://scripted-model.{}.svc', credential: {{vault: {vault}, name: api-key}}}}}}\n",
                namespace.name
            )
        };
        namespace.apply(&with("agent-to-come", "small").replace("NAME", "no-agent")).await?;
        namespace.apply(&with("agent", "template-to-come").replace("NAME", "no-template")).await?;
        namespace.apply(&agent("without-vault", "vault-to-come")).await?;
        namespace.apply(&with("without-vault", "small").replace("NAME", "no-vault")).await?;
        condition_names(&namespace, "no-agent", "agent-to-come", DEADLINE).await?;
        condition_names(&namespace, "no-template", "template-to-come", DEADLINE).await?;
        condition_names(&namespace, "no-vault", "vault-to-come", DEADLINE).await?;

        namespace.apply(&agent("agent-to-come", "model")).await?;
        answered(&fixture, "no-agent", Duration::from_secs(60)).await?;
        namespace
            .apply("apiVersion: longhand.dev/v1alpha1\nkind: SandboxTemplate\nmetadata: {name: template-to-come}\nspec: {}\n")
            .await?;
        answered(&fixture, "no-template", Duration::from_secs(60)).await?;
        namespace
            .apply(&format!(
                "apiVersion: longhand.dev/v1alpha1\nkind: Vault\nmetadata: {{name: vault-to-come}}\nspec: {{credentials: [{{name: api-key, secretRef: {{name: model-key, key: api-key}}, allow: {{scheme: http, hosts: [scripted-model.{}.svc], privateAddresses: Allow}}, placement: {{type: header, header: x-api-key}}}}]}}\n",
                namespace.name
            ))
            .await?;
        answered(&fixture, "no-vault", Duration::from_secs(60)).await
    })
    .await;
}

#[tokio::test]
async fn a_missing_secret_is_named_and_heals() {
    in_namespace("missing-secret", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        namespace
            .apply(&format!(
                "apiVersion: longhand.dev/v1alpha1\nkind: Vault\nmetadata: {{name: late}}\nspec: {{credentials: [{{name: api-key, secretRef: {{name: secret-to-come, key: api-key}}, allow: {{scheme: http, hosts: [scripted-model.{0}.svc], privateAddresses: Allow}}, placement: {{type: header, header: x-api-key}}}}]}}\n---\napiVersion: longhand.dev/v1alpha1\nkind: Agent\nmetadata: {{name: late}}\nspec: {{model: {{id: m, baseURL: 'http://scripted-model.{0}.svc', credential: {{vault: late, name: api-key}}}}}}\n",
                namespace.name
            ))
            .await?;
        let options = SessionOptions { agent: "late".to_owned(), ..SessionOptions::saying(&["hi"]) };
        namespace.apply(&session_manifest("late", &options)).await?;
        condition_names(&namespace, "late", "secret-to-come", Duration::from_secs(60)).await?;
        namespace
            .apply(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: secret-to-come}}\nstringData: {{api-key: {}}}\n", fixture.api_key))
            .await?;
        answered(&fixture, "late", SECRET_DEADLINE).await
    })
    .await;
}

#[tokio::test]
async fn a_malformed_event_is_a_400_that_says_what_is_wrong() {
    in_namespace("bad-event", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let session = fixture.session("talk", &SessionOptions::default()).await?;
        let token = token(&namespace, "longhand-cli", None).await?;
        let (client, base) = fixture.service.server.connect()?;
        let url = base.join(&format!("v1/sessions/{session}/events"))?;
        let cases = [
            (json!({"events": [{"type": "user.message"}]}), "content"),
            (
                json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": "a"}], "extra": 1}]}),
                "extra",
            ),
            (json!({"events": [{"type": "user.message", "content": []}]}), "content"),
            (json!({"events": [{"type": "agent.message", "content": []}]}), "agent.message"),
            (json!({"events": []}), "events"),
            (json!({"event": []}), "event"),
            (json!("text"), "must be an object"),
        ];
        for (body, named) in cases {
            let answer = client.post(url.clone()).bearer_auth(&token).json(&body).send().await?;
            assert_eq!(answer.status(), 400, "{body}");
            let error: serde_json::Value = answer.json().await?;
            assert_eq!(error["type"], "error");
            assert_eq!(error["error"]["type"], "invalid_request_error");
            let message = error["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains(named), "{body}: `{message}` does not name {named}");
        }
        assert!(fixture.service.log(&session).await?.is_empty(), "a refused event is in the log");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_wrong_token_is_a_401_and_another_namespace_a_403() {
    in_namespace("bad-token", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let session = fixture.session("talk", &SessionOptions::default()).await?;
        let status = |error: longhand_protocol::client::Error| match error {
            longhand_protocol::client::Error::Api(error) => error.status.as_u16(),
            other => panic!("no answer: {other}"),
        };
        let nobody = fixture.service.wire_as("not-a-token")?;
        assert_eq!(nobody.session(&session).await.map_err(status), Err(401));

        let other = TestNamespace::create(namespace.client.clone(), "bad-token-other").await?;
        let attempt = async {
            let stranger = Fixture::install(&other, SCRIPT, 60).await?;
            assert_eq!(stranger.service.wire.session(&session).await.map_err(status), Err(403));
            let sent = stranger.service.wire.send_events(&session, Vec::new()).await.map_err(status).map(|_| ());
            assert!(matches!(sent, Err(400 | 403)), "{sent:?}");
            let sent =
                stranger.service.send(&session, "let me in").await.err().ok_or("a stranger's message was taken")?;
            assert!(sent.to_string().contains("403"), "{sent}");
            let read = stranger.service.log(&session).await.err().ok_or("a stranger read the log")?;
            assert!(read.to_string().contains("403"), "{read}");
            TestResult::Ok(())
        };
        let outcome = attempt.await;
        other.delete().await;
        outcome?;
        assert!(fixture.service.log(&session).await?.is_empty());
        Ok(())
    })
    .await;
}
