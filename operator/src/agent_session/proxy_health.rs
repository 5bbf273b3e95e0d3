//! What a credential proxy says of its credentials. The operator has no verb on Secrets: the kubelet mounts them, the
//! proxy looks at the files, and the operator asks the proxy.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Deserialize;

use super::harness_pod::PROXY_HEALTH_PORT;
use crate::pod_reports::{self, PodReports};
use crate::vault::sightings::{Place, Seen, State};

const DEADLINE: Duration = Duration::from_secs(2);
/// A report is a few lines for each credential, of which there are no more than some 200.
const MAX_REPORT: usize = 256 * 1024;

/// What is known of a pod's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Nobody was asked, or nobody answered.
    Unknown,
    /// What the proxy says of those that it cannot use, none if it can use all; and of each that is of a vault.
    Reported(Vec<Unusable>, Vec<Seen>),
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
#[serde(rename_all = "camelCase")]
struct Entry {
    credential: String,
    usable: bool,
    #[serde(default)]
    missing: bool,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    kept_in: Option<KeptIn>,
    #[serde(default)]
    refused: bool,
    #[serde(default)]
    answered_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct KeptIn {
    vault: String,
    credential: String,
    secret: String,
    key: String,
}

impl Entry {
    fn seen(&self) -> Option<Seen> {
        let KeptIn { vault, credential, secret, key } = self.kept_in.as_ref()?;
        let place = Place { credential: credential.clone(), secret: secret.clone(), key: key.clone() };
        let state = match (self.usable, self.missing, self.refused) {
            (false, true, _) => State::Missing,
            (false, false, _) => State::Unusable(self.detail.clone().unwrap_or_default()),
            (true, _, true) => State::Refused,
            (true, _, false) => State::Usable,
        };
        Some(Seen { vault: vault.clone(), place, state, answered_at: self.answered_at })
    }
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
    let seen = report.credentials.iter().filter_map(Entry::seen).collect();
    let unusable = report.credentials.into_iter().filter(|entry| !entry.usable).map(|entry| Unusable {
        credential: entry.credential,
        missing: entry.missing,
        detail: entry.detail.unwrap_or_default(),
    });
    Credentials::Reported(unusable.collect(), seen)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Credentials, Unusable, reported};
    use crate::vault::sightings::{Place, Seen, State};

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
        assert_eq!(reported(report.unwrap()), Credentials::Reported(vec![expected], vec![]));
    }

    #[rstest]
    #[case::usable(json!({ "usable": true, "refused": false }), State::Usable)]
    #[case::missing(json!({ "usable": false, "missing": true, "detail": "x", "refused": true }), State::Missing)]
    #[case::unusable(json!({ "usable": false, "detail": "it is empty" }), State::Unusable("it is empty".into()))]
    #[case::refused(json!({ "usable": true, "refused": true }), State::Refused)]
    fn what_is_of_a_vault_is_told_of(#[case] mut entry: Value, #[case] state: State) {
        entry["credential"] = json!("work/github");
        entry["keptIn"] = json!({ "vault": "work", "credential": "github", "secret": "s", "key": "k" });
        entry["answeredAt"] = json!("1970-01-01T00:00:07Z");
        let report = serde_json::from_value(json!({ "credentials": [entry] })).unwrap();
        let Credentials::Reported(_, seen) = reported(report) else { panic!("nothing is known") };
        let place = Place { credential: "github".into(), secret: "s".into(), key: "k".into() };
        let answered_at = jiff::Timestamp::from_second(7).ok();
        assert_eq!(seen, [Seen { vault: "work".into(), place, state, answered_at }]);
    }
}
