//! What is to be said of a fence: what the canaries show, whether they can show anything, and which policies of others open it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use longhand_sandbox::wire::{FenceReport, FenceState};

use super::{EGRESS_FENCED, POLICY_OPENS};
use crate::conditions::Observation;
use crate::sandbox::network_policy;

/// That policies of others let a pod with these labels out, if they do.
pub(super) fn opened(policies: &[Arc<NetworkPolicy>], pod: &BTreeMap<String, String>) -> Option<Observation> {
    let openers: Vec<String> =
        policies.iter().filter(|policy| opens(policy, pod)).map(|policy| policy.name_any()).collect();
    let names = openers.join(", ");
    let text = || {
        format!("NetworkPolicy {names} of this namespace selects the pod and lets it out: what policies allow adds up")
    };
    (!openers.is_empty()).then(|| Observation::no(EGRESS_FENCED, POLICY_OPENS, text()))
}

/// What a report is worth: `controls` are targets, and whether they answer who is not fenced in.
pub(super) fn judge(report: &FenceReport, controls: &[(&str, bool)]) -> Observation {
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
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use longhand_sandbox::wire::{FenceReport, FenceState};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{judge, opens};

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
}
