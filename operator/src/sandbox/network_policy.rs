//! The fence: one policy a namespace, which selects every sandbox pod by its role before the first of them is made.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use longhand_crds::labels;
use longhand_protocol::egress;

use super::pod::SANDBOXD_PORT;

/// Name of the policy in each namespace.
pub(crate) const NAME: &str = "longhand-sandbox";

/// The policy for `namespace`: in from the session service, and from the operator, which asks what the canaries show, both in
/// `system`; out to the proxies beside harnesses of the same namespace, each of which serves its own session's sandboxes.
pub(crate) fn build(namespace: &str, system: &str) -> NetworkPolicy {
    let ours = |component: &str| NetworkPolicyPeer {
        namespace_selector: Some(selector(&[("kubernetes.io/metadata.name", system)])),
        pod_selector: Some(selector(&[
            ("app.kubernetes.io/name", "longhand"),
            ("app.kubernetes.io/component", component),
        ])),
        ip_block: None,
    };
    let proxies = NetworkPolicyPeer {
        namespace_selector: None,
        pod_selector: Some(selector(&[(labels::MANAGED_BY, labels::LONGHAND), (labels::ROLE, labels::HARNESS)])),
        ip_block: None,
    };
    let tcp = |port: u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    };
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(map(&[(labels::MANAGED_BY, labels::LONGHAND)])),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(&[(labels::MANAGED_BY, labels::LONGHAND), (labels::ROLE, labels::SANDBOX)])),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(vec![ours("session"), ours("operator")]),
                ports: Some(vec![tcp(SANDBOXD_PORT)]),
            }]),
            egress: Some(vec![NetworkPolicyEgressRule {
                to: Some(vec![proxies]),
                ports: Some(vec![tcp(egress::PORT)]),
            }]),
        }),
    }
}

/// Whether `found` says what `wanted` does.
pub(crate) fn holds(found: Option<&NetworkPolicy>, wanted: &NetworkPolicy) -> bool {
    found.is_some_and(|found| found.spec == wanted.spec && found.metadata.deletion_timestamp.is_none())
}

fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector { match_labels: Some(map(pairs)), match_expressions: None }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::{build, holds};

    #[test]
    fn the_policy_is_as_designed() {
        insta::assert_yaml_snapshot!(build("team", "longhand-system"));
    }

    #[test]
    fn a_policy_that_was_changed_does_not_hold() {
        let wanted = build("team", "longhand-system");
        let mut found = wanted.clone();
        found.metadata.resource_version = Some("7".into());
        assert!(holds(Some(&found), &wanted));
        assert!(!holds(None, &wanted));
        found.spec.as_mut().unwrap().egress.as_mut().unwrap().push(Default::default());
        assert!(!holds(Some(&found), &wanted));
    }
}
