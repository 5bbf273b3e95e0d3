//! Whether a sandbox is fenced in: what its canaries show, whether they can show anything, and which policies of others open
//! the fence again. The first two are asked for after everything that somebody waits for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use longhand_sandbox::canary::Canary;
use longhand_sandbox::wire::{FenceReport, FenceState};

use super::network_policy;
use super::pod::SANDBOXD_PORT;
use crate::conditions::Observation;
use crate::config::{Fencing, HOST_IP};
use crate::pod_reports::{self, PodReports};

/// Whether the sandbox is fenced in.
pub(super) const EGRESS_FENCED: &str = "EgressFenced";

/// The reason if another policy lets it out.
pub(super) const POLICY_OPENS: &str = "PolicyOpensFence";

const DEADLINE: Duration = Duration::from_millis(500);
const MAX_REPORT: usize = 16 * 1024;
/// A fence that stands is looked at again after this long; what readiness shows is seen at once.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
/// While something is not known yet, or not well.
pub(super) const SOON: Duration = Duration::from_secs(5);
/// Whether a target answers us is tried again after this long.
const CONTROL_FOR: Duration = Duration::from_secs(60);
/// Nodes, and a few.
const MAX_CONTROLS: usize = 8_192;

/// Asks sandboxes, and tries what they must not reach.
#[async_trait]
pub(super) trait Fences: Send + Sync + 'static {
    /// What the `sandboxd` at this address says.
    async fn report(&self, pod_ip: &str) -> Option<FenceReport>;

    /// Whether the target answers somebody who is not fenced in.
    async fn answers(&self, canary: &Canary) -> bool;
}

/// Over the network of the cluster.
pub(super) struct Network {
    reports: PodReports,
    controls: Mutex<HashMap<String, (Instant, bool)>>,
}

impl Network {
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        Ok(Self { reports: PodReports::new(DEADLINE)?, controls: Mutex::default() })
    }

    async fn ask(&self, pod_ip: &str) -> Result<Option<FenceReport>, reqwest::Error> {
        let answer = self.reports.get(pod_ip, SANDBOXD_PORT, "/v1/fence").await?;
        // A sandboxd of another version knows no fence.
        pod_reports::read(answer.error_for_status()?, MAX_REPORT).await
    }
}

#[async_trait]
impl Fences for Network {
    async fn report(&self, pod_ip: &str) -> Option<FenceReport> {
        self.ask(pod_ip).await.unwrap_or_else(|error| {
            tracing::debug!(pod_ip, %error, "a sandbox does not say whether it is fenced in");
            None
        })
    }

    async fn answers(&self, canary: &Canary) -> bool {
        let key = format!("{canary:?}");
        let known = self.controls.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some((_, answers)) = known.filter(|(since, _)| since.elapsed() < CONTROL_FOR) {
            return answers;
        }
        let answers = canary.answers().await;
        let mut controls = self.controls.lock().unwrap_or_else(PoisonError::into_inner);
        if controls.len() >= MAX_CONTROLS {
            controls.retain(|_, (since, _)| since.elapsed() < CONTROL_FOR);
        }
        controls.insert(key, (Instant::now(), answers));
        answers
    }
}

/// What is to be said of the fence around this pod; nothing before its `sandboxd` has answered for the first time.
pub(super) async fn look(
    pod: &Pod,
    policies: &[Arc<NetworkPolicy>],
    fencing: &Fencing,
    fences: &dyn Fences,
    known: bool,
) -> Option<Observation> {
    let openers: Vec<String> =
        policies.iter().filter(|policy| opens(policy, pod.labels())).map(|policy| policy.name_any()).collect();
    if !openers.is_empty() {
        let names = openers.join(", ");
        let text = format!(
            "NetworkPolicy {names} of this namespace selects the pod and lets it out: what policies allow adds up"
        );
        return Some(Observation::no(EGRESS_FENCED, POLICY_OPENS, text));
    }
    let status = pod.status.as_ref()?;
    let report = fences.report(status.pod_ip.as_deref()?).await;
    let Some(report) = report else {
        return known
            .then(|| Observation::unknown(EGRESS_FENCED, "NoAnswer", "sandboxd does not say what its canaries show"));
    };
    let canaries = fencing.canaries.replace(HOST_IP, status.host_ip.as_deref().unwrap_or_default());
    let canaries = Canary::list(&canaries).unwrap_or_default();
    let answers = join_all(canaries.iter().map(|canary| fences.answers(canary))).await;
    let controls: Vec<(&str, bool)> = canaries.iter().map(Canary::name).zip(answers).collect();
    Some(judge(&report, &controls))
}

/// What a report is worth: `controls` are targets, and whether they answer who is not fenced in.
fn judge(report: &FenceReport, controls: &[(&str, bool)]) -> Observation {
    let answers = |wanted: &str| controls.iter().any(|(name, answers)| *name == wanted && *answers);
    let (proven, unproven): (Vec<&str>, Vec<&str>) =
        report.tried.iter().map(String::as_str).partition(|name| answers(name));
    let (proven, unproven) = (proven.join(", "), unproven.join(", "));
    match report.state {
        FenceState::Open => Observation::no(
            EGRESS_FENCED,
            "CanaryReached",
            format!("the sandbox reaches {}: no network policy is enforced here", report.reached.join(", ")),
        ),
        FenceState::Unknown => {
            Observation::unknown(EGRESS_FENCED, "NotTried", "the canaries have not been tried, or there are none")
        }
        FenceState::Fenced if proven.is_empty() => Observation::unknown(
            EGRESS_FENCED,
            "NoControl",
            format!(
                "{unproven} answer nobody, not the operator either: that the sandbox does not reach them proves nothing"
            ),
        ),
        FenceState::Fenced if unproven.is_empty() => {
            Observation::yes(EGRESS_FENCED, "CanariesBlocked", format!("the sandbox does not reach {proven}"))
        }
        FenceState::Fenced => Observation::yes(
            EGRESS_FENCED,
            "CanariesBlocked",
            format!("the sandbox does not reach {proven}; {unproven} answer nobody and prove nothing"),
        ),
    }
}

/// Whether a policy that is not ours lets pods with these labels out to anywhere.
fn opens(policy: &NetworkPolicy, pod: &BTreeMap<String, String>) -> bool {
    let Some(spec) = policy.spec.as_ref().filter(|_| policy.name_any() != network_policy::NAME) else { return false };
    let lets_out = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    // Without types it is about egress if it has rules for it.
    let about_egress = spec.policy_types.as_ref().is_none_or(|types| types.iter().any(|kind| kind == "Egress"));
    lets_out && about_egress && spec.pod_selector.as_ref().is_none_or(|selector| selects(selector, pod))
}

/// Whether the selector takes a pod with these labels. What it cannot say is taken as yes: it is about a warning.
fn selects(selector: &LabelSelector, pod: &BTreeMap<String, String>) -> bool {
    let named = selector.match_labels.iter().flatten().all(|(key, value)| pod.get(key) == Some(value));
    let expressed = selector.match_expressions.iter().flatten().all(|requirement| {
        let value = pod.get(&requirement.key);
        let among = || value.is_some_and(|value| requirement.values.iter().flatten().any(|other| other == value));
        match requirement.operator.as_str() {
            "In" => among(),
            "NotIn" => !among(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => true,
        }
    });
    named && expressed
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use longhand_sandbox::canary::Canary;
    use longhand_sandbox::wire::{FenceReport, FenceState};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Fences, judge, look, opens};
    use crate::sandbox::network_policy;
    use crate::testing::fencing;

    /// Says what it is told to.
    #[derive(Default)]
    pub(in crate::sandbox) struct Told {
        pub(in crate::sandbox) report: Option<FenceReport>,
        pub(in crate::sandbox) answers: bool,
    }

    #[async_trait]
    impl Fences for Told {
        async fn report(&self, _: &str) -> Option<FenceReport> {
            self.report.clone()
        }

        async fn answers(&self, _: &Canary) -> bool {
            self.answers
        }
    }

    fn report(state: FenceState, reached: &[&str]) -> FenceReport {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        FenceReport { state, tried: names(&["api", "kubelet"]), reached: names(reached) }
    }

    #[rstest]
    #[case(FenceState::Fenced, &[("api", true), ("kubelet", true)], "True", "CanariesBlocked")]
    #[case(FenceState::Fenced, &[("api", true), ("kubelet", false)], "True", "CanariesBlocked")]
    #[case(FenceState::Fenced, &[("api", false), ("kubelet", false)], "Unknown", "NoControl")]
    #[case(FenceState::Fenced, &[], "Unknown", "NoControl")]
    #[case(FenceState::Open, &[], "False", "CanaryReached")]
    #[case(FenceState::Unknown, &[("api", true)], "Unknown", "NotTried")]
    fn a_canary_proves_something_only_with_a_control(
        #[case] state: FenceState,
        #[case] controls: &[(&str, bool)],
        #[case] truth: &str,
        #[case] reason: &str,
    ) {
        let seen = judge(&report(state, &["api"]), controls);
        assert_eq!((seen.truth.as_str(), seen.reason.as_str()), (truth, reason), "{}", seen.message);
    }

    fn policy(spec: &Value) -> NetworkPolicy {
        serde_json::from_value(json!({ "metadata": { "name": "theirs", "namespace": "team" }, "spec": spec })).unwrap()
    }

    #[rstest]
    #[case::allow_all(json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{}] }), true)]
    #[case::without_types(json!({ "podSelector": {}, "egress": [{}] }), true)]
    #[case::deny_all(json!({ "podSelector": {}, "policyTypes": ["Egress"] }), false)]
    #[case::ingress(json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}] }), false)]
    #[case::sandboxes(json!({ "podSelector": { "matchLabels": { "longhand.dev/role": "sandbox" } }, "egress": [{}] }), true)]
    #[case::others(json!({ "podSelector": { "matchLabels": { "app": "web" } }, "egress": [{}] }), false)]
    #[case::expression(json!({ "podSelector": { "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] }, "egress": [{}] }), true)]
    #[case::not_in(json!({ "podSelector": { "matchExpressions": [{ "key": "longhand.dev/role", "operator": "NotIn", "values": ["sandbox"] }] }, "egress": [{}] }), false)]
    fn a_policy_of_others_that_lets_sandboxes_out_is_seen(#[case] spec: Value, #[case] expected: bool) {
        let labels = BTreeMap::from([("longhand.dev/role".to_owned(), "sandbox".to_owned())]);
        assert_eq!(opens(&policy(&spec), &labels), expected);
    }

    #[tokio::test]
    async fn the_policy_comes_before_what_the_canaries_show() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "labels": { "longhand.dev/role": "sandbox" } },
            "status": { "podIP": "10.0.0.9", "hostIP": "10.0.0.1" },
        }))
        .unwrap();
        let told = Told { report: Some(report(FenceState::Fenced, &[])), answers: true };
        let ours = Arc::new(network_policy::build("team", "longhand-system"));
        let seen = look(&pod, std::slice::from_ref(&ours), &fencing(), &told, false).await.unwrap();
        assert_eq!(seen.truth.as_str(), "True", "{}", seen.message);
        let theirs = Arc::new(policy(&json!({ "podSelector": {}, "egress": [{}] })));
        let seen = look(&pod, &[ours, theirs], &fencing(), &told, false).await.unwrap();
        assert_eq!((seen.truth.as_str(), seen.reason.as_str()), ("False", "PolicyOpensFence"));
        let silent = Told::default();
        assert_eq!(look(&pod, &[], &fencing(), &silent, false).await, None);
        assert_eq!(look(&pod, &[], &fencing(), &silent, true).await.unwrap().reason, "NoAnswer");
    }
}
