//! What a credential proxy says of its credentials. The operator has no verb on Secrets: the kubelet mounts them, the
//! proxy looks at the files, and the operator asks the proxy.

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use super::harness_pod::PROXY_HEALTH_PORT;
use crate::pod_reports::{self, PodReports};

const DEADLINE: Duration = Duration::from_secs(2);
/// A report is a few lines.
const MAX_REPORT: usize = 64 * 1024;

/// What is known of a pod's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Nobody was asked, or nobody answered.
    Unknown,
    /// What the proxy says of those that it cannot use; none if it can use all.
    Reported(Vec<Unusable>),
}

/// A credential that a proxy cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    /// The credential's name in its vault.
    pub(super) credential: String,
    /// Whether there is no Secret, or no such key in it.
    pub(super) missing: bool,
    /// What is wrong with the value, for a person.
    pub(super) detail: String,
}

/// Asks proxies.
#[async_trait]
pub(super) trait Proxies: Send + Sync + 'static {
    /// What the proxy of the pod with this address says.
    async fn credentials(&self, pod_ip: &str) -> Credentials;
}

/// Asks over HTTP.
pub(super) struct HttpProxies(PodReports);

#[derive(Deserialize)]
struct Report {
    credentials: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    credential: String,
    usable: bool,
    #[serde(default)]
    missing: bool,
    #[serde(default)]
    detail: Option<String>,
}

impl HttpProxies {
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        PodReports::new(DEADLINE).map(Self)
    }

    async fn ask(&self, pod_ip: &str) -> Result<Option<Report>, reqwest::Error> {
        pod_reports::read(self.0.get(pod_ip, PROXY_HEALTH_PORT, "/readyz").await?, MAX_REPORT).await
    }
}

#[async_trait]
impl Proxies for HttpProxies {
    async fn credentials(&self, pod_ip: &str) -> Credentials {
        match self.ask(pod_ip).await {
            Ok(Some(report)) => reported(report),
            Ok(None) => Credentials::Unknown,
            Err(error) => {
                tracing::debug!(pod_ip, %error, "a credential proxy does not answer");
                Credentials::Unknown
            }
        }
    }
}

fn reported(report: Report) -> Credentials {
    let unusable = report.credentials.into_iter().filter(|entry| !entry.usable);
    Credentials::Reported(
        unusable
            .map(|entry| Unusable {
                credential: entry.credential,
                missing: entry.missing,
                detail: entry.detail.unwrap_or_default(),
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Credentials, Unusable, reported};

    #[test]
    fn only_what_cannot_be_used_is_reported() {
        let report = serde_json::from_value(json!({
            "ready": true,
            "sessionToken": { "usable": true, "detail": null },
            "credentials": [
                { "route": "model", "credential": "a", "usable": true, "missing": false, "detail": null },
                { "route": "git", "credential": "b", "usable": false, "missing": true, "detail": "the file does not exist" },
            ],
        }));
        let expected = Unusable { credential: "b".into(), missing: true, detail: "the file does not exist".into() };
        assert_eq!(reported(report.unwrap()), Credentials::Reported(vec![expected]));
    }
}
