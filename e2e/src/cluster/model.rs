//! The scripted model of a test, over a port-forward.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use longhand_cli::port_forward::PortForward;
use serde::Deserialize;
use serde_json::Value;

use super::TestResult;
use super::namespace::TestNamespace;

const PORT: u16 = 8080;
const START: Duration = Duration::from_secs(60);

/// A running scripted model.
pub struct ModelServer {
    forward: PortForward,
    http: reqwest::Client,
}

/// What the model was sent.
#[derive(Clone, Debug, Deserialize)]
pub struct Recorded {
    /// Oldest first.
    pub requests: Vec<RecordedRequest>,
}

/// One request to the model.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedRequest {
    /// When it came, in milliseconds since 1970.
    pub received_unix_ms: f64,
    /// When the first token went out.
    pub first_token_unix_ms: Option<f64>,
    /// The request.
    pub body: Value,
    /// Header names and values; credentials are shown as `matched` or `refused`.
    pub headers: std::collections::BTreeMap<String, String>,
    /// The status of the answer.
    pub status: u16,
    /// `open`, `completed` or `aborted`.
    pub outcome: String,
}

impl RecordedRequest {
    /// The messages of the conversation that the model was sent.
    #[must_use]
    pub fn messages(&self) -> &[Value] {
        self.body.get("messages").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

impl ModelServer {
    /// Waits for the model of `namespace` and connects to it.
    ///
    /// # Errors
    /// When it is not ready within a minute.
    pub async fn connect(namespace: &TestNamespace) -> TestResult<Self> {
        let pod = namespace.ready_pod("scripted-model", START).await?;
        Ok(Self { forward: PortForward::open(namespace.api::<Pod>(), pod, PORT).await?, http: reqwest::Client::new() })
    }

    /// Everything that it was sent so far.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn recorded(&self) -> TestResult<Recorded> {
        let url = format!("{}/recorded", self.forward.url());
        Ok(self.http.get(url).send().await?.error_for_status()?.json().await?)
    }

    /// Gives it another script.
    ///
    /// # Errors
    /// When the script is not valid.
    pub async fn set_script(&self, script: &str) -> TestResult {
        let url = format!("{}/script", self.forward.url());
        let answer = self.http.put(url).body(script.to_owned()).send().await?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.text().await?.into()) }
    }
}
