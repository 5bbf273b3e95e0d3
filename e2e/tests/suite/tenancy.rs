//! Two teams in two namespaces: nothing of one is the other's to read, write, follow, run or use.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use longhand_crds::labels;
use longhand_e2e::cluster::{Fixture, SessionOptions, TestNamespace, TestResult, exec, in_namespace, token};
use longhand_protocol::SessionId;
use longhand_sandbox::wire::{TERMINAL_PROTOCOL, TUNNEL_PROTOCOL};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo mine > note.txt"}}]}
  - then: {text: "Done."}
"#;
const TURN: Duration = Duration::from_secs(120);

struct Team {
    fixture: Fixture,
    session: SessionId,
    /// A file that was uploaded.
    file: String,
    /// Of a client.
    token: String,
    /// Of a pod of the namespace, as a harness has one.
    pod_token: String,
}

#[tokio::test]
async fn two_teams_reach_nothing_of_each_other() {
    in_namespace("team-one", |namespace| async move {
        let other = TestNamespace::create(namespace.client.clone(), "team-two").await?;
        let outcome = pairwise(&namespace, &other).await;
        other.delete().await;
        outcome
    })
    .await;
}

async fn pairwise(one: &TestNamespace, two: &TestNamespace) -> TestResult {
    let (one, two) = tokio::try_join!(team(one), team(two))?;
    for (me, them) in [(&one, &two), (&two, &one)] {
        let (own, theirs) = (&me.fixture.namespace.name, &them.fixture.namespace.name);
        for (method, path, body) in requests(them) {
            // A session is known by its identifier wherever it is; what has a name in my namespace is mine.
            let named = !path.starts_with("sessions/");
            for prefix in ["v1".to_owned(), format!("namespaces/{own}/v1")].iter().filter(|_| !named) {
                let status = call(me, &method, &format!("{prefix}/{path}"), &me.token, &body).await?;
                assert!(matches!(status.as_u16(), 403 | 404), "{own}: {method} {prefix}/{path}: {status}");
            }
            let path = format!("namespaces/{theirs}/v1/{path}");
            assert_eq!(
                call(me, &method, &path, &me.token, &body).await?,
                StatusCode::FORBIDDEN,
                "{own}: {method} {path}"
            );
            if method == Method::GET {
                let status = call(them, &method, &path, &them.token, &body).await?;
                assert!(status.is_success(), "{theirs}, whose it is: {method} {path}: {status}");
            }
        }
        for list in ["agents", "environments", "sessions", "vaults"] {
            let path = format!("namespaces/{theirs}/v1/{list}");
            assert_eq!(call(me, &Method::GET, &path, &me.token, &Value::Null).await?, StatusCode::FORBIDDEN, "{path}");
        }
        for (method, path, body) in brain_requests() {
            let path = format!("harness/v1/sessions/{}/{path}", them.session);
            for token in [&me.pod_token, &me.token] {
                let status = call(me, &method, &path, token, &body).await?;
                assert!(matches!(status.as_u16(), 401 | 403 | 404), "{own}: {method} {path}: {status}");
            }
        }
        for (end, upgraded_to) in [("terminal?command=id", "websocket"), ("ports/8000", TUNNEL_PROTOCOL)] {
            let path = format!("namespaces/{theirs}/v1/sessions/{}/sandboxes/main/{end}", them.session);
            assert_eq!(upgrade(me, &path, upgraded_to).await?, StatusCode::FORBIDDEN, "{own}: {path}");
        }
        connects_to_no_pod_of(me, them).await?;
        uses_no_vault_of(me, them).await?;
    }
    Ok(())
}

/// A namespace whose session has run a tool.
async fn team(namespace: &TestNamespace) -> TestResult<Team> {
    let fixture = Fixture::install(namespace, SCRIPT, 3_600).await?;
    let options = SessionOptions { harness_idle_seconds: 600, ..SessionOptions::saying(&["go"]) };
    let session = fixture.session("work", &options).await?;
    fixture.service.until_idle(&session, 0, TURN).await?;
    let pods: Api<Pod> = namespace.api();
    let pod = pods.list(&ListParams::default().labels("app=scripted-model")).await?.items.pop().ok_or("no model")?;
    let pod_token = token(namespace, "default", Some(&pod)).await?;
    let file = fixture.service.wire.create_file("secret.txt", b"theirs").await?.id.to_string();
    Ok(Team { token: token(namespace, "longhand-cli", None).await?, file, pod_token, fixture, session })
}

/// What a client may ask of a session, an agent, an environment and a vault of `team`.
fn requests(team: &Team) -> Vec<(Method, String, Value)> {
    let session = &team.session;
    let message = json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": "hi"}]}]});
    let read = |path: String| (Method::GET, path, Value::Null);
    vec![
        read(format!("sessions/{session}")),
        read(format!("sessions/{session}/events")),
        read(format!("sessions/{session}/events/stream")),
        read(format!("sessions/{session}/export")),
        read(format!("sessions/{session}/threads")),
        read(format!("sessions/{session}/resources")),
        read(format!("sessions/{session}/sandboxes/main/files?path=note.txt")),
        (Method::POST, format!("sessions/{session}/events"), message),
        (Method::POST, format!("sessions/{session}"), json!({"title": "mine now"})),
        (Method::POST, format!("sessions/{session}/archive"), Value::Null),
        (Method::DELETE, format!("sessions/{session}"), json!({})),
        (Method::PUT, format!("sessions/{session}/sandboxes/main/files?path=note.txt"), json!("mine now")),
        read(format!("sessions/{session}/sandboxes/main/archive?path=.")),
        (Method::POST, format!("sessions/{session}/sandboxes/main/ports/8000"), Value::Null),
        (Method::POST, format!("sessions/{session}/sandboxes/main/handoff"), json!({"to_session": session})),
        read(format!("files/{}", team.file)),
        read(format!("files/{}/content", team.file)),
        (Method::DELETE, format!("files/{}", team.file), Value::Null),
        read("agents/agent".to_owned()),
        (Method::POST, "agents/agent".to_owned(), json!({"name": "mine now"})),
        read("environments/small".to_owned()),
        (Method::DELETE, "environments/small".to_owned(), Value::Null),
        read("vaults/model".to_owned()),
        read("vaults/model/credentials".to_owned()),
        (Method::DELETE, "vaults/model".to_owned(), Value::Null),
    ]
}

/// What only the session's own brain may ask.
fn brain_requests() -> Vec<(Method, &'static str, Value)> {
    vec![
        (Method::POST, "claim", json!({})),
        (Method::GET, "events", Value::Null),
        (Method::GET, "inbox", Value::Null),
        (
            Method::POST,
            "append",
            json!({"epoch": 1, "expected_head": 1, "events": [{"id": "sevt_1", "type": "agent.thinking"}]}),
        ),
        (Method::POST, "execute", json!({"epoch": 1, "tool_use_id": "sevt_1"})),
        (Method::POST, "mcp", json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})),
    ]
}

/// The sandbox of one team gets no connection to the sandbox and the harness of another.
async fn connects_to_no_pod_of(me: &Team, them: &Team) -> TestResult {
    let mut targets = Vec::new();
    for (role, port) in [(labels::SANDBOX, 8090), (labels::HARNESS, 8082), (labels::HARNESS, 8084)] {
        let pod = them.fixture.namespace.pods(role).await?.pop().ok_or_else(|| format!("there is no pod of {role}"))?;
        targets
            .push(format!("{}/{port}", pod.status.and_then(|status| status.pod_ip).ok_or("a pod without an address")?));
    }
    let tries = format!(
        "for to in {}; do timeout 3 bash -c \"exec 3<>/dev/tcp/$to\" 2>/dev/null; echo \"$to $?\"; done",
        targets.join(" ")
    );
    let pods: Api<Pod> = me.fixture.namespace.api();
    let own = me.fixture.namespace.pods(labels::SANDBOX).await?.pop().ok_or("there is no sandbox pod")?;
    let (output, _) = exec(&pods, &own.name_any(), None, &["bash", "-c", &tries], TURN).await?;
    // What is dropped is waited for: 124. A refusal would say that the packet has arrived.
    let silent: String = targets.iter().map(|to| format!("{to} 124\n")).collect();
    assert_eq!(String::from_utf8_lossy(&output), silent);
    Ok(())
}

/// What is said to who wants to speak another protocol.
async fn upgrade(team: &Team, path: &str, to: &str) -> TestResult<StatusCode> {
    let (client, base) = team.fixture.service.server.connect()?;
    let request = client.get(base.join(path)?).bearer_auth(&team.token).timeout(TURN);
    let request = request.header("connection", "upgrade").header("upgrade", to);
    let request = request.header("sec-websocket-protocol", TERMINAL_PROTOCOL);
    let request = request.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    Ok(request.send().await?.status())
}

/// A vault is named in its own namespace: one of the same name elsewhere is another one, and one that is only elsewhere is none.
async fn uses_no_vault_of(me: &Team, them: &Team) -> TestResult {
    let secret = "{name: only-here, key: k}";
    let vault = format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: Vault\nmetadata: {{name: only-here}}\nspec:\n  credentials:\n  \
         - {{name: c, secretRef: {secret}, allow: {{hosts: [a.test]}}, placement: {{type: bearer}}}}\n"
    );
    them.fixture.namespace.apply(&vault).await?;
    let body = json!({"agent": "agent", "vault_ids": ["only-here"]});
    let status = call(me, &Method::POST, "v1/sessions", &me.token, &body).await?;
    let api: Api<longhand_crds::Vault> = them.fixture.namespace.api();
    api.delete("only-here", &kube::api::DeleteParams::default()).await?;
    assert_eq!(status, StatusCode::NOT_FOUND, "a vault of another namespace");
    Ok(())
}

async fn call(team: &Team, method: &Method, path: &str, token: &str, body: &Value) -> TestResult<StatusCode> {
    let (client, base) = team.fixture.service.server.connect()?;
    let mut request = client.request(method.clone(), base.join(path)?).bearer_auth(token).timeout(TURN);
    if !body.is_null() {
        request = request.json(body);
    }
    // Only the head: a stream has no end.
    Ok(request.send().await?.status())
}
