//! Sessions with a way out: a vault, a template with a network, and a model that has their sandboxes run a command.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use longhand_crds::{AgentSession, labels};
use longhand_e2e::cluster::{Fixture, TestNamespace, TestResult};
use longhand_protocol::SessionId;

pub(crate) const LONG: Duration = Duration::from_secs(120);
/// An address that the template allows and no credential is for. Nothing is ever sent there.
pub(crate) const UNBOUND: &str = "9.9.9.9";

/// A vault with two credentials that sandboxes may use by placeholders, one at the scripted model and one by TLS at a host that
/// nothing is behind, and a template that allows hardly anything else.
const VAULT: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: work}
spec:
  credentials:
    - name: model
      secretRef: {name: model-key, key: api-key}
      allow: {scheme: http, hosts: [scripted-model.${NAMESPACE}.svc], methods: [POST], pathPrefixes: [/v1/messages], privateAddresses: Allow}
      placement: {type: environmentVariable, variable: {name: MODEL_KEY, locations: [header, body]}}
    - name: tls
      secretRef: {name: model-key, key: api-key}
      allow: {hosts: [tls.${NAMESPACE}.svc], methods: [GET], pathPrefixes: [/repos], privateAddresses: Allow}
      placement: {type: environmentVariable, variable: {name: TLS_KEY, locations: [header]}}
---
apiVersion: v1
kind: Service
metadata: {name: tls}
spec: {selector: {app: nothing}, ports: [{port: 443}]}
---
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: online}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 512Mi}}
  workspace: {size: 256Mi}
  network: {allowedHosts: [allowed.test, ${UNBOUND}]}
"#;

const SESSION: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: AgentSession
metadata: {name: ${NAME}}
spec:
  agentRef: {name: agent}
  harnessIdleSeconds: 300
  vaultRefs: [{name: work}]
  sandboxes: [{name: main, templateRef: {name: online}}]
  input: [{text: go}]
"#;

/// Applies the vault and the template.
pub(crate) async fn allow(namespace: &TestNamespace) -> TestResult {
    namespace.apply(&VAULT.replace("${NAMESPACE}", &namespace.name).replace("${UNBOUND}", UNBOUND)).await?;
    Ok(())
}

/// Runs a session until it is idle, and returns what its agent said last.
pub(crate) async fn said(fixture: &Fixture, name: &str) -> TestResult<(SessionId, String)> {
    fixture.namespace.apply(&SESSION.replace("${NAME}", name)).await?;
    let session = fixture.session_id(name).await?;
    let (_, said) = fixture.service.last_words(&session, 0, LONG).await?;
    Ok((session, said))
}

/// The pod of a session that is there as `role`.
pub(crate) async fn pod_of(namespace: &TestNamespace, session: &str, role: &str) -> TestResult<Pod> {
    let session = namespace.api::<AgentSession>().get(session).await?;
    let uid = session.metadata.uid.ok_or("a session without a UID")?;
    let selector = format!("{}={role},{}={uid}", labels::ROLE, labels::SESSION_UID);
    let pods = namespace.api::<Pod>().list(&ListParams::default().labels(&selector)).await?;
    Ok(pods.items.into_iter().next().ok_or_else(|| format!("the session has no pod with the role {role}"))?)
}
