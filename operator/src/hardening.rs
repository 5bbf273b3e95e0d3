//! What every container of Longhand has in common: it meets the Pod Security Standard `restricted`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, EmptyDirVolumeSource, EnvVar, EnvVarSource, ObjectFieldSelector, PodSecurityContext,
    ResourceRequirements, SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use longhand_crds::sandbox_template::Resources;

type Amounts = BTreeMap<String, Quantity>;

/// A node that does not answer is left after this time, not after the five minutes that the API server gives every pod.
const LOST_NODE_SECONDS: i64 = 30;

/// The security context of a pod that runs as this user.
pub(crate) fn pod(user: i64) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(user),
        run_as_group: Some(user),
        fs_group: Some(user),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// The security context of a container.
pub(crate) fn container() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// What is given, and that a node which does not answer is left soon, unless that is given otherwise.
pub(crate) fn tolerations(given: &[Toleration]) -> Vec<Toleration> {
    let says = |key: &str| given.iter().any(|given| given.key.as_deref().is_none_or(|given| given == key));
    let ours = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].into_iter().filter(|key| !says(key));
    let ours = ours.map(|key| Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        toleration_seconds: Some(LOST_NODE_SECONDS),
        value: None,
    });
    given.iter().cloned().chain(ours).collect()
}

/// Says that no autoscaler has to spare a node for the pod's sake.
pub(crate) fn evictable() -> BTreeMap<String, String> {
    BTreeMap::from([("cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(), "true".to_owned())])
}

/// Requests and limits: those that are given, and these for what is given neither way. A default beside a given value
/// could contradict it, and the API server would refuse the pod.
pub(crate) fn resources(
    given: Option<&Resources>,
    requests: &[(&str, &str)],
    limits: &[(&str, &str)],
) -> ResourceRequirements {
    let given = given.cloned().unwrap_or_default();
    let with_defaults = |own: &Amounts, other: &Amounts, defaults: &[(&str, &str)]| {
        let free = defaults.iter().filter(|(name, _)| !own.contains_key(*name) && !other.contains_key(*name));
        let mut all: Amounts =
            free.map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect();
        all.extend(own.clone());
        Some(all)
    };
    ResourceRequirements {
        requests: with_defaults(&given.requests, &given.limits, requests),
        limits: with_defaults(&given.limits, &given.requests, limits),
        ..ResourceRequirements::default()
    }
}

/// A variable with this value.
pub(crate) fn env(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None }
}

/// A variable with the value of a field of the pod.
pub(crate) fn env_of_field(name: &str, path: &str) -> EnvVar {
    let field = ObjectFieldSelector { field_path: path.to_owned(), api_version: None };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

/// A folder of the pod's own, which is evicted when it holds more than this.
pub(crate) fn empty_dir(name: &str, size: Quantity) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { size_limit: Some(size), medium: None }),
        ..Volume::default()
    }
}

/// A volume at a path.
pub(crate) fn mount(volume: &str, path: impl Into<String>, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use longhand_crds::sandbox_template::Resources;
    use rstest::rstest;

    use super::resources;

    #[rstest]
    #[case::neither(&[], &[], &["cpu=1", "memory=1"], &["cpu=2", "memory=2"])]
    #[case::a_limit_below_the_default_request(&[], &[("memory", "0")], &["cpu=1"], &["cpu=2", "memory=0"])]
    #[case::a_request_above_the_default_limit(&[("memory", "9")], &[], &["cpu=1", "memory=9"], &["cpu=2"])]
    #[case::something_else(&[("gpu", "1")], &[("gpu", "1")], &["cpu=1", "gpu=1", "memory=1"], &["cpu=2", "gpu=1", "memory=2"])]
    fn no_default_contradicts_what_is_given(
        #[case] requests: &[(&str, &str)],
        #[case] limits: &[(&str, &str)],
        #[case] expected_requests: &[&str],
        #[case] expected_limits: &[&str],
    ) {
        let amounts = |given: &[(&str, &str)]| {
            given.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
        };
        let given = Resources { requests: amounts(requests), limits: amounts(limits) };
        let all = resources(Some(&given), &[("cpu", "1"), ("memory", "1")], &[("cpu", "2"), ("memory", "2")]);
        let shown = |all: Option<super::Amounts>| -> Vec<String> {
            all.unwrap().into_iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect()
        };
        assert_eq!(
            (shown(all.requests), shown(all.limits)),
            (
                expected_requests.iter().map(ToString::to_string).collect(),
                expected_limits.iter().map(ToString::to_string).collect(),
            )
        );
    }
}
