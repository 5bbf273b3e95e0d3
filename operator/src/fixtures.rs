//! Objects for tests.

use longhand_crds::{Agent, AgentSession, Sandbox, SandboxTemplate, Vault, derived_session_id};
use longhand_protocol::event::Usage;
use longhand_protocol::internal::SessionSummary;
use longhand_protocol::wire::SessionStatus;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn object<T: DeserializeOwned>(kind: &str, name: &str, spec: &Value) -> T {
    serde_json::from_value(json!({
        "apiVersion": "longhand.dev/v1alpha1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": format!("3e8f1a2b-{}", name),
            "generation": 1,
            "creationTimestamp": "1970-01-01T00:00:01Z",
        },
        "spec": spec,
    }))
    .unwrap()
}

pub(crate) fn agent() -> Agent {
    let spec = json!({ "model": {
        "id": "claude", "baseURL": "http://model.test:8080", "credential": { "vault": "models", "name": "api-key" },
    } });
    object("Agent", "coder", &spec)
}

pub(crate) fn vault() -> Vault {
    let spec = json!({ "credentials": [{
        "name": "api-key",
        "secretRef": { "name": "model-key", "key": "token" },
        "allow": { "scheme": "http", "hosts": ["model.test"], "port": 8080, "methods": ["POST"], "pathPrefixes": ["/v1/messages"], "privateAddresses": "Allow" },
        "placement": { "type": "header", "header": "x-api-key" },
    }] });
    object("Vault", "models", &spec)
}

pub(crate) fn template() -> SandboxTemplate {
    object("SandboxTemplate", "shell", &json!({ "idleSeconds": 10 }))
}

/// What the session service says of [`session`].
pub(crate) fn summary(owner: Option<&str>, wake: bool) -> SessionSummary {
    SessionSummary {
        session_id: derived_session_id("3e8f1a2b-quickstart"),
        status: if wake { SessionStatus::Running } else { SessionStatus::Idle },
        epoch: 1,
        head: 4,
        delivered_inputs: 1,
        owner_pod_uid: owner.map(ToOwned::to_owned),
        wake,
        usage: Usage::default(),
        limit: None,
    }
}

pub(crate) fn session() -> AgentSession {
    let spec = json!({
        "agentRef": { "name": "coder" },
        "input": [{ "text": "hello" }],
        "sandboxes": [{ "name": "main", "templateRef": { "name": "shell" } }],
    });
    object("AgentSession", "quickstart", &spec)
}

pub(crate) fn sandbox() -> Sandbox {
    let spec = json!({
        "templateRef": { "name": "shell" },
        "sessionRef": { "name": "quickstart", "uid": "3e8f1a2b-quickstart", "sandbox": "main" },
    });
    object("Sandbox", "quickstart-main-3e8f1a", &spec)
}
