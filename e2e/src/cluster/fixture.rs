//! The objects that a test's sessions are made of.

use std::fmt::Write as _;
use std::time::Duration;

use longhand_crds::AgentSession;
use longhand_protocol::SessionId;
use rand::Rng as _;
use serde_json::{Value, json};

use super::namespace::TestNamespace;
use super::{ModelServer, Service, TestResult, model_image, wait_for};

const AGENT: &str = include_str!("../../fixtures/agent.yaml");

/// An agent whose model follows a script, and the ways to reach both.
pub struct Fixture {
    /// The test's namespace.
    pub namespace: TestNamespace,
    /// The session service.
    pub service: Service,
    /// The scripted model.
    pub model: ModelServer,
    /// The model's key, which must be found nowhere but in its Secret and in the proxy.
    pub api_key: String,
}

/// What a session of a test is like.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The agent's name.
    pub agent: String,
    /// User messages.
    pub input: Vec<String>,
    /// Whether it has a sandbox, called `main`.
    pub sandbox: bool,
    /// `spec.harnessIdleSeconds`.
    pub harness_idle_seconds: u32,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { agent: "agent".to_owned(), input: Vec::new(), sandbox: true, harness_idle_seconds: 2 }
    }
}

impl SessionOptions {
    /// A session that begins with these messages.
    #[must_use]
    pub fn saying(input: &[&str]) -> Self {
        Self { input: input.iter().map(|text| (*text).to_owned()).collect(), ..Self::default() }
    }
}

/// The manifest of a session with the template `small`.
#[must_use]
pub fn session_manifest(name: &str, options: &SessionOptions) -> String {
    let mut yaml = format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: AgentSession\nmetadata: {{name: {name}}}\nspec:\n  agentRef: {{name: {}}}\n  harnessIdleSeconds: {}\n",
        options.agent, options.harness_idle_seconds
    );
    if options.sandbox {
        yaml.push_str("  sandboxes: [{name: main, templateRef: {name: small}}]\n");
    }
    if !options.input.is_empty() {
        yaml.push_str("  input:\n");
    }
    for text in &options.input {
        let _ = writeln!(yaml, "  - text: {}", serde_json::Value::from(text.as_str()));
    }
    yaml
}

/// The model has the sandbox run `command`, and repeats what it said.
#[must_use]
pub fn script(command: &str) -> String {
    runs(&json!({ "command": command }))
}

/// The same, of a command that may take `timeout`.
#[must_use]
pub fn script_within(command: &str, timeout: Duration) -> String {
    runs(&json!({ "command": command, "timeout_ms": timeout.as_millis() }))
}

fn runs(input: &Value) -> String {
    let rules = json!({ "rules": [
        { "when": { "turn": 0 }, "then": { "tool_uses": [{ "name": "bash", "input": input }] } },
        { "then": { "text": "{{last_tool_result}}" } },
    ]});
    rules.to_string()
}

impl Fixture {
    /// Makes everything but sessions. Idle sandboxes go after `sandbox_idle_seconds`.
    ///
    /// # Errors
    /// When the API server refuses, or the model is not ready in time.
    pub async fn install(namespace: &TestNamespace, script: &str, sandbox_idle_seconds: u32) -> TestResult<Self> {
        let api_key = format!("sk-e2e-{:032x}", rand::rng().random::<u128>());
        let image = model_image();
        let yaml = AGENT
            .replace("${NAMESPACE}", &namespace.name)
            .replace("${API_KEY}", &api_key)
            .replace("${MODEL_IMAGE}", &image)
            .replace("${SANDBOX_IDLE_SECONDS}", &sandbox_idle_seconds.to_string())
            .replace("${SCRIPT}", &script.trim().replace('\n', "\n    "));
        namespace.apply(&yaml).await?;
        let (service, model) = tokio::try_join!(Service::connect(namespace), ModelServer::connect(namespace))?;
        Ok(Self { namespace: namespace.clone(), service, model, api_key })
    }

    /// Applies another agent of the same model; `more` is what its spec has besides, in lines that are indented by two.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn agent(&self, name: &str, more: &str) -> TestResult {
        let yaml = format!(
            "apiVersion: longhand.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {name}}}\nspec:\n  model: {{id: scripted-1, baseURL: 'http://scripted-model.{}.svc', credential: {{vault: model, name: api-key}}}}\n{more}\n",
            self.namespace.name
        );
        self.namespace.apply(&yaml).await.map(drop)
    }

    /// Applies a session and waits until its log exists.
    ///
    /// # Errors
    /// When it has no identifier within 30 s.
    pub async fn session(&self, name: &str, options: &SessionOptions) -> TestResult<SessionId> {
        self.namespace.apply(&session_manifest(name, options)).await?;
        self.session_id(name).await
    }

    /// The identifier of a session that was applied.
    ///
    /// # Errors
    /// When it has none within 30 s.
    pub async fn session_id(&self, name: &str) -> TestResult<SessionId> {
        let found = wait_for(
            self.namespace.api::<AgentSession>(),
            name,
            "status.sessionID is set",
            Duration::from_secs(30),
            |session| session?.status.as_ref()?.session_id.clone(),
        )
        .await?;
        Ok(found.parse()?)
    }
}
