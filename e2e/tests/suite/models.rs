//! A model behind chat completions, and another that is asked when it fails.

use std::time::Duration;

use longhand_e2e::cluster::log::{assert_sound, kinds, messages};
use longhand_e2e::cluster::{Fixture, SessionOptions, in_namespace, session_manifest};

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: count, turn: 0, times: 1}
    then: {error: {status: 404, type: not_found_error, message: "model: first"}}
  - when: {user_contains: count, turn: 0}
    then:
      thinking: It can be computed.
      text: I will run a program that counts them.
      tool_uses: [{name: bash, input: {command: "echo $((6 * 7))"}}]
  - when: {user_contains: count, turn: 1}
    then: {text: "The program says {{last_tool_result}}"}
"#;

/// The fixture's model by its other API, which takes the key as a bearer.
const CHAT: &str = "
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: chat}
spec:
  credentials:
    - name: api-key
      secretRef: {name: model-key, key: api-key}
      allow:
        scheme: http
        hosts: [scripted-model.${NAMESPACE}.svc]
        methods: [POST]
        pathPrefixes: [/v1/chat/completions]
        privateAddresses: Allow
      placement: {type: bearer}
---
apiVersion: longhand.dev/v1alpha1
kind: Agent
metadata: {name: chat}
spec:
  model:
    id: first
    api: OpenAI
    baseURL: http://scripted-model.${NAMESPACE}.svc
    credential: {vault: chat, name: api-key}
    fallbacks: [{id: second}]
  tools:
    - type: agent_toolset_20260401
";

#[tokio::test]
async fn a_chat_completions_server_serves_a_session_and_the_next_model_stands_in() {
    in_namespace("models", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        namespace.apply(&CHAT.replace("${NAMESPACE}", &namespace.name)).await?;
        let manifest = session_manifest("hello", &SessionOptions::saying(&["count, please"]));
        namespace.apply(&manifest.replace("agentRef: {name: agent}", "agentRef: {name: chat}")).await?;
        let session = fixture.session_id("hello").await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(90)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        let count = |kind: &str| kinds(&log).iter().filter(|found| **found == kind).count();
        let found = ["session.error", "x.model.fallback", "agent.thinking", "agent.tool_result"].map(count);
        assert_eq!(found, [1, 1, 1, 1], "{:?}", kinds(&log));
        assert_eq!(messages(&log)[1].trim_end(), "The program says 42");
        let asked = fixture.model.recorded().await?.requests;
        let models: Vec<_> = asked.iter().map(|request| request.body["model"].as_str().unwrap_or_default()).collect();
        assert_eq!(models, ["first", "second", "second"]);
        for request in &asked {
            assert_eq!(request.headers.get("authorization").map(String::as_str), Some("matched"));
        }
        assert!(asked.iter().all(|request| !request.body.to_string().contains("It can be computed.")));
        Ok(())
    })
    .await;
}
