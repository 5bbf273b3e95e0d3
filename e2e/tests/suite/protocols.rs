//! What programs do besides plain requests, in a sandbox, with placeholders, at a server that runs in the cluster: HTTP/2, events, uploads in
//! chunks, large bodies, WebSockets, redirects, and requests that are signed for AWS. What comes back has no credential in it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use longhand_e2e::cluster::{
    Fixture, Forge, Needle, TestNamespace, TestResult, eventually, exec, in_namespace, script_within, skipped,
};
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;

use crate::online::LONG;
use crate::secrets::{assert_in_no_log, assert_in_no_object, assert_only_the_proxy_mounts_it};

const SERVER: &str = include_str!("../../fixtures/protocols.yaml");
const OBJECTS: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: protocols}
spec:
  credentials:
    - name: one
      secretRef: {name: protocols, key: one}
      allow: {hosts: [server.${NAMESPACE}.svc], privateAddresses: Allow}
      placement: {type: environmentVariable, variable: {name: PROTOCOL_TOKEN, locations: [header]}}
    - name: other
      secretRef: {name: protocols, key: other}
      allow: {hosts: [other.${NAMESPACE}.svc], privateAddresses: Allow}
      placement: {type: environmentVariable, variable: {name: OTHER_TOKEN, locations: [header]}}
    - name: keys
      secretRef: {name: protocols, key: secret-access-key}
      allow: {hosts: [s3.${NAMESPACE}.svc], privateAddresses: Allow}
      placement: {type: aws, aws: {accessKeyIDKey: access-key-id, services: [s3], regions: [us-east-1]}}
---
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: protocols}
spec:
  image: ${IMAGE}
  resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {cpu: "2", memory: 1Gi}}
  workspace: {size: 512Mi}
---
apiVersion: longhand.dev/v1alpha1
kind: AgentSession
metadata: {name: protocols}
spec:
  agentRef: {name: agent}
  harnessIdleSeconds: 300
  vaultRefs: [{name: protocols}]
  sandboxes: [{name: main, templateRef: {name: protocols}}]
  input: [{text: go}]
"#;

/// A file of 100 MiB is made, and the image's own `/tmp` may be small.
const COMMAND: &str = "export TMPDIR=/workspace BEHIND_PROXY=1 SERVER=server.${NAMESPACE}.svc OTHER=other.${NAMESPACE}.svc \
     OBJECTS=s3.${NAMESPACE}.svc REFUSED=forge.${NAMESPACE}.svc; python3 -B /opt/clients/protocols.py 2>&1";
const CHECKS: [&str; 8] = ["versions", "events", "chunked", "large", "websocket", "echo", "redirects", "objects"];
/// Of the command, which moves 400 MiB.
const RUN: Duration = Duration::from_secs(420);
/// What the server has to have seen, in which version and with which credential.
const SEEN: [&str; 18] = [
    "/whoami 2.0 one",
    "/whoami 1.1 one",
    "/whoami 2.0 nothing",
    "/events 2.0 one",
    "/events 1.1 one",
    "/upload 2.0 one",
    "/upload 1.1 one",
    "/download 2.0 one",
    "/download 1.1 one",
    "/echo 2.0 one",
    "/echo 1.1 one",
    "/redirect 2.0 one",
    "websocket 1.1 one",
    "object PUT 2.0 signed",
    "object PUT 1.1 signed",
    "object GET 2.0 signed",
    "object GET 1.1 signed",
    "object GET 1.1 SignatureDoesNotMatch",
];

/// The server, and what it takes.
struct Server {
    pod: String,
    values: Vec<String>,
}

impl Server {
    async fn install(namespace: &TestNamespace, forge: &Forge) -> TestResult<Self> {
        let random = || rand::random::<u128>();
        // In a URL and in Base64 it is another text than as it is.
        let one = format!("pr/o+to={:032x}", random());
        let other = format!("other-{:032x}", random());
        let id = format!("AKIA{:016X}", rand::random::<u64>());
        let secret = format!("se/cret+{:032x}", random());
        let yaml = SERVER
            .replace("${ONE}", &one)
            .replace("${OTHER}", &other)
            .replace("${ACCESS_KEY_ID}", &id)
            .replace("${SECRET_ACCESS_KEY}", &secret)
            .replace("${IMAGE}", &forge.image);
        namespace.apply(&yaml).await?;
        let pod = namespace.ready_pod("protocols", LONG).await?;
        Ok(Self { pod, values: vec![one, other, secret] })
    }

    /// What a command in its container says.
    async fn run(&self, namespace: &TestNamespace, command: &str) -> TestResult<String> {
        let command = ["bash", "-c", command];
        let (output, _) = exec(&namespace.api::<Pod>(), &self.pod, None, &command, LONG).await?;
        Ok(String::from_utf8(output)?)
    }

    /// How often it was asked for what.
    async fn seen(&self, namespace: &TestNamespace) -> TestResult<BTreeMap<String, u64>> {
        Ok(serde_json::from_str(&self.run(namespace, "curl -sSk -m 20 https://127.0.0.1:8443/seen").await?)?)
    }

    /// A signature with another key is none to it: what is signed through the proxy counts for something.
    async fn assert_strict(&self, namespace: &TestNamespace) -> TestResult {
        let host = format!("s3.{}.svc", namespace.name);
        for (secret, expected) in [("not-the-key", "SignatureDoesNotMatch"), ("$(cat secret-access-key)", "NoSuchKey")]
        {
            let command = format!(
                "cd /var/run/secrets/protocols && curl -sSk -m 20 --http1.1 --connect-to {host}:443:127.0.0.1:8443 \
                 --user \"$(cat access-key-id):{secret}\" --aws-sigv4 aws:amz:us-east-1:s3 https://{host}/bucket/none"
            );
            let said = self.run(namespace, &command).await?;
            assert!(said.contains(expected), "with {secret}: {said}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_credential_goes_with_every_protocol_and_comes_back_with_none() {
    in_namespace("protocols", |namespace| async move { run(&namespace).await }).await;
}

async fn run(namespace: &TestNamespace) -> TestResult {
    // Its certificate is for every service of the namespace.
    let Some(forge) = Forge::install(namespace, "*").await? else {
        skipped("protocols", "the cluster trusts no authority of the tests");
        return Ok(());
    };
    let server = Server::install(namespace, &forge).await?;
    server.assert_strict(namespace).await?;
    let script = script_within(&COMMAND.replace("${NAMESPACE}", &namespace.name), Duration::from_secs(400));
    let fixture = Fixture::install(namespace, &script, 300).await?;
    namespace.apply(&OBJECTS.replace("${NAMESPACE}", &namespace.name).replace("${IMAGE}", &forge.image)).await?;
    let session = fixture.session_id("protocols").await?;
    let (_, said) = fixture.service.last_words(&session, 0, RUN + LONG).await?;
    for check in CHECKS {
        assert!(said.lines().any(|line| line == format!("ok {check}")), "{check}: {said}");
    }

    let seen = server.seen(namespace).await?;
    for what in SEEN {
        assert!(seen.contains_key(what), "{what}: {seen:?}");
    }
    let wrong = |what: &&String| what.ends_with("a placeholder") || what.ends_with("another credential");
    assert_eq!(seen.keys().find(wrong), None, "{seen:?}");
    // The only one that it refused is of its own pod.
    assert_eq!(seen.get("object GET 1.1 SignatureDoesNotMatch"), Some(&1), "{seen:?}");
    let of_forge = forge.seen().await?;
    assert!(of_forge.is_empty(), "a redirect led to the forge: {of_forge:?}");

    recorded(&fixture, &session).await?;
    assert_only_the_proxy_mounts_it(namespace).await?;
    let log = serde_json::to_string(&fixture.service.log(&session).await?)?;
    for value in &server.values {
        let value = Needle::new(value);
        assert!(!value.is_in(&said) && !value.is_in(&log), "a credential came back");
        assert_in_no_object(namespace, &value).await?;
        assert_in_no_log(namespace, &value).await?;
    }
    Ok(())
}

/// What was used and what was refused is in the log, with the reason.
async fn recorded(fixture: &Fixture, session: &SessionId) -> TestResult {
    let name = &fixture.namespace.name;
    let [server, other, s3, forge] = ["server", "other", "s3", "forge"].map(|of| format!("{of}.{name}.svc"));
    let used = [("protocols/one", &server), ("protocols/keys", &s3)];
    let denied = [
        (Some("protocols/one"), &other, "it allows hosts server."),
        (Some("protocols/keys"), &s3, "it signs for the regions us-east-1 only"),
        (None, &s3, "carries a credential that is none of this session's (authorization)"),
        (None, &forge, "this sandbox may not reach forge."),
    ];
    // Refusals follow within a second or so.
    eventually("uses and refusals are in the log", LONG, || async {
        let log = fixture.service.log(session).await?;
        let bodies = || log.iter().map(|event| &event.event.body);
        let all_used = used.iter().all(|(of, at)| {
            bodies().any(|body| {
                matches!(body, EventBody::CredentialUsed { credential, host, .. } if credential == of && host == *at)
            })
        });
        let all_denied = denied.iter().all(|(of, at, why)| {
            bodies().any(|body| match body {
                EventBody::CredentialDenied { credential, host, reason, .. } => {
                    credential.as_deref() == *of && host == *at && reason.contains(why)
                }
                _ => false,
            })
        });
        Ok((all_used && all_denied).then_some(()))
    })
    .await
}
