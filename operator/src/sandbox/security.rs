//! What a sandbox pod may do to its node, as far as its template has a choice.

use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use longhand_crds::sandbox_template::{PodSecurity, SandboxTemplateSpec, UserNamespace};

use crate::hardening;

const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// What a pod may write outside of a persistent workspace, logs included, if its root file system can be written to.
const WRITABLE_STORAGE: &str = "8Gi";

/// The security context of a pod.
pub(super) fn pod(spec: &SandboxTemplateSpec) -> PodSecurityContext {
    let mut context = hardening::pod(spec.run_as_user);
    // Without this a large volume is walked through at each start.
    context.fs_group_change_policy = Some("OnRootMismatch".to_owned());
    if spec.pod_security == PodSecurity::Baseline {
        context.run_as_non_root = None;
    }
    context
}

/// The security context of its container.
pub(super) fn container(spec: &SandboxTemplateSpec) -> SecurityContext {
    match spec.pod_security {
        PodSecurity::Restricted => hardening::container(),
        PodSecurity::Baseline => SecurityContext {
            allow_privilege_escalation: Some(true),
            read_only_root_filesystem: Some(false),
            ..SecurityContext::default()
        },
    }
}

/// Whether the user IDs of the pod are the node's.
pub(super) fn host_users(spec: &SandboxTemplateSpec) -> Option<bool> {
    (spec.user_namespace == UserNamespace::Pod).then_some(false)
}

/// A bound on the disk that is not bounded by the sizes of volumes, as name and amount, unless the template has one.
pub(super) fn storage_limit(spec: &SandboxTemplateSpec) -> Option<(String, Quantity)> {
    let given = spec.resources.clone().unwrap_or_default();
    if spec.pod_security == PodSecurity::Restricted || given.limits.contains_key(EPHEMERAL_STORAGE) {
        return None;
    }
    let requested = given.requests.get(EPHEMERAL_STORAGE).cloned();
    Some((EPHEMERAL_STORAGE.to_owned(), requested.unwrap_or_else(|| Quantity(WRITABLE_STORAGE.to_owned()))))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use longhand_crds::sandbox_template::{PodSecurity, Resources, SandboxTemplateSpec, UserNamespace};
    use rstest::rstest;

    use super::{container, host_users, pod, storage_limit};
    use crate::fixtures;

    fn spec(pod_security: PodSecurity) -> SandboxTemplateSpec {
        SandboxTemplateSpec { pod_security, run_as_user: 0, ..fixtures::template().spec }
    }

    #[test]
    fn baseline_gives_up_what_restricted_forbids_and_no_more() {
        let (restricted, baseline) = (pod(&spec(PodSecurity::Restricted)), pod(&spec(PodSecurity::Baseline)));
        assert_eq!((restricted.run_as_non_root, baseline.run_as_non_root), (Some(true), None));
        assert_eq!((baseline.run_as_user, &baseline.seccomp_profile), (Some(0), &restricted.seccomp_profile));
        let (restricted, baseline) =
            (container(&spec(PodSecurity::Restricted)), container(&spec(PodSecurity::Baseline)));
        assert_eq!(restricted.capabilities.unwrap().drop.unwrap(), ["ALL"]);
        assert_eq!((baseline.capabilities, baseline.privileged), (None, None), "the runtime's default set");
        assert_eq!(baseline.read_only_root_filesystem, Some(false));
    }

    #[rstest]
    #[case::nothing_can_be_written(PodSecurity::Restricted, &[], &[], None)]
    #[case::nothing_is_said(PodSecurity::Baseline, &[], &[], Some("8Gi"))]
    #[case::a_request(PodSecurity::Baseline, &[("ephemeral-storage", "20Gi")], &[], Some("20Gi"))]
    #[case::a_limit(PodSecurity::Baseline, &[], &[("ephemeral-storage", "1Gi")], None)]
    fn disk_is_bounded(
        #[case] security: PodSecurity,
        #[case] requests: &[(&str, &str)],
        #[case] limits: &[(&str, &str)],
        #[case] expected: Option<&str>,
    ) {
        let amounts = |given: &[(&str, &str)]| {
            given.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
        };
        let mut spec = spec(security);
        spec.resources = Some(Resources { requests: amounts(requests), limits: amounts(limits) });
        assert_eq!(storage_limit(&spec).map(|(_, amount)| amount.0).as_deref(), expected);
    }

    #[test]
    fn a_pod_has_user_ids_of_its_own_if_the_template_says_so() {
        let mut spec = spec(PodSecurity::Restricted);
        assert_eq!(host_users(&spec), None);
        spec.user_namespace = UserNamespace::Pod;
        assert_eq!(host_users(&spec), Some(false));
    }
}
