//! The sandbox pod: `sandboxd` in any image, with nothing worth stealing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, HTTPGetAction, Pod, PodDNSConfig, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::{Sandbox, SandboxTemplate, labels};

use crate::config::Images;
use crate::hardening::{self, env, env_of_field, mount};

/// Name of the container.
pub(super) const SANDBOX: &str = "sandbox";
/// Where `sandboxd` listens.
pub(super) const SANDBOXD_PORT: u16 = 8090;

const SANDBOXD: &str = "/usr/local/bin/sandboxd";
const USER: i64 = 1_000;
/// So much of a sandbox's name is in the names of its pods.
const NAME_PART: usize = 200;
const TMP: &str = "/tmp";
const TMP_SIZE: &str = "1Gi";

/// The name of the pod after so many restarts.
pub(super) fn name(sandbox: &str, restarts: i64) -> String {
    let part: String = sandbox.chars().take(NAME_PART).collect();
    format!("{}-{restarts}", part.trim_end_matches(|last: char| !last.is_ascii_alphanumeric()))
}

/// The pod of this name for `sandbox`, which trusts tokens that fit `verify_key`.
pub(super) fn build(
    images: &Images,
    sandbox: &Sandbox,
    template: &SandboxTemplate,
    verify_key: &str,
    name: &str,
) -> Pod {
    let uid = sandbox.uid().unwrap_or_default();
    let mut all = vec![
        (labels::MANAGED_BY, labels::LONGHAND),
        (labels::ROLE, labels::SANDBOX),
        (labels::SANDBOX_UID, uid.as_str()),
    ];
    all.extend(sandbox.spec.session_ref.iter().map(|session| (labels::SESSION_UID, session.uid.as_str())));
    let labels: BTreeMap<String, String> =
        all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let spec = &template.spec;
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: sandbox.namespace(),
            labels: Some(labels),
            owner_references: sandbox.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            // A pod is one incarnation: what ran in a container that ended is lost, and must not look alive.
            restart_policy: Some("Never".to_owned()),
            // There is no way out, so a query for a name fails at once and does not wait for a timeout.
            dns_policy: Some("None".to_owned()),
            dns_config: Some(PodDNSConfig {
                nameservers: Some(vec!["127.0.0.1".to_owned()]),
                ..PodDNSConfig::default()
            }),
            security_context: Some(hardening::pod(USER)),
            termination_grace_period_seconds: Some(30),
            runtime_class_name: spec.runtime_class_name.clone(),
            node_selector: (!spec.node_selector.is_empty()).then(|| spec.node_selector.clone()),
            tolerations: (!spec.tolerations.is_empty()).then(|| spec.tolerations.clone()),
            containers: vec![container(images, template, verify_key)],
            volumes: Some(vec![
                hardening::empty_dir("workspace", spec.workspace.size.clone()),
                hardening::empty_dir("tmp", Quantity(TMP_SIZE.to_owned())),
            ]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(images: &Images, template: &SandboxTemplate, verify_key: &str) -> Container {
    let spec = &template.spec;
    Container {
        name: SANDBOX.to_owned(),
        image: Some(spec.image.clone().unwrap_or_else(|| images.sandbox.clone())),
        image_pull_policy: Some(images.pull_policy.clone()),
        command: Some(vec![SANDBOXD.to_owned()]),
        env: Some(environment(template, verify_key)),
        ports: Some(vec![ContainerPort {
            name: Some("sandboxd".to_owned()),
            container_port: i32::from(SANDBOXD_PORT),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(probe("/readyz", 1, 3)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        resources: Some(hardening::resources(
            spec.resources.as_ref(),
            &[("cpu", "100m"), ("memory", "128Mi"), ("ephemeral-storage", "64Mi")],
            // Disk is limited by the size of each volume: the rest of the file system is read-only.
            &[("cpu", "2"), ("memory", "2Gi")],
        )),
        security_context: Some(hardening::container()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![mount("workspace", &spec.workspace.mount_path, false), mount("tmp", TMP, false)]),
        working_dir: Some(spec.workspace.mount_path.clone()),
        ..Container::default()
    }
}

/// What `sandboxd` needs comes last: of two variables of one name the last one counts.
fn environment(template: &SandboxTemplate, verify_key: &str) -> Vec<EnvVar> {
    let spec = &template.spec;
    let own = [
        env("SANDBOXD_VERIFY_KEY", verify_key),
        env("SANDBOXD_WORKSPACE", &spec.workspace.mount_path),
        env_of_field("POD_UID", "metadata.uid"),
    ];
    // Programs expect a home that can be written to; the image's own is read-only.
    let home = spec.env.iter().all(|variable| variable.name != "HOME").then(|| env("HOME", TMP));
    let given = spec.env.iter().filter(|given| own.iter().all(|own| own.name != given.name));
    let given = given.map(|given| env(&given.name, &given.value));
    home.into_iter().chain(given).chain(own.clone()).collect()
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(SANDBOXD_PORT)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use longhand_crds::sandbox_template::{EnvVar, Resources};
    use rstest::rstest;

    use super::{build, name};
    use crate::fixtures;
    use crate::testing::images;

    #[test]
    fn the_pod_is_as_designed() {
        insta::assert_yaml_snapshot!(build(&images(), &fixtures::sandbox(), &fixtures::template(), "key=", "s-0"));
    }

    #[test]
    fn a_template_decides_what_it_may() {
        let mut template = fixtures::template();
        let spec = &mut template.spec;
        spec.image = Some("toolbox:1".into());
        spec.runtime_class_name = Some("gvisor".into());
        spec.env = ["HOME", "POD_UID", "LANG"].map(|name| EnvVar { name: name.into(), value: "x".into() }).into();
        let memory = [("memory".to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("64Mi".into()))];
        spec.resources = Some(Resources { limits: memory.into(), ..Resources::default() });
        insta::assert_yaml_snapshot!(build(&images(), &fixtures::sandbox(), &template, "key=", "s-0"));
    }

    #[rstest]
    #[case("box", "box-3")]
    #[case("box.", "box-3")]
    fn names_tell_the_restarts(#[case] sandbox: &str, #[case] expected: &str) {
        assert_eq!(name(sandbox, 3), expected);
        assert_eq!(name(&"b".repeat(253), 3).len(), 202);
    }
}
