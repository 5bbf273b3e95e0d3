//! The sandbox pod: `sandboxd` in any image, with nothing worth stealing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, HTTPGetAction, ImageVolumeSource, LocalObjectReference,
    PersistentVolumeClaimVolumeSource, Pod, PodDNSConfig, PodSpec, Probe, ResourceRequirements,
    TopologySpreadConstraint, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::sandbox_template::{Persistence, SandboxdSource, TopologySpread, WhenUnsatisfiable};
use longhand_crds::{Sandbox, SandboxTemplate, annotations, labels};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{security, volume};
use crate::config::{Fencing, Images};
use crate::hardening::{self, env, env_of_field, mount};
use crate::injection::Injection;

/// Name of the container.
pub(crate) const SANDBOX: &str = "sandbox";
/// Where `sandboxd` listens.
pub(super) const SANDBOXD_PORT: u16 = 8090;

/// In images that hold it.
const SANDBOXD: &str = "/usr/local/bin/sandboxd";
/// In all others a volume holds it, here.
const INJECTED: &str = "/run/longhand";
const INJECTED_VOLUME: &str = "sandboxd";
const INJECTED_SIZE: &str = "64Mi";
const VERIFY_KEY: &str = "SANDBOXD_VERIFY_KEY";
/// So much of a name is in the names of what is made for it.
const NAME_PART: usize = 200;
/// So much of a UID, which begins at random.
const UID_PART: usize = 5;
const TMP: &str = "/tmp";

/// What the names of everything begin with that is made for the object of this name and UID: an object of the same name that
/// is made anew never waits for what the old one has left.
pub(crate) fn stem(name: &str, uid: &str) -> String {
    let part: String = name.chars().take(NAME_PART).collect();
    let uid: String = uid.chars().filter(char::is_ascii_alphanumeric).take(UID_PART).collect();
    format!("{}-{uid}", part.trim_end_matches(|last: char| !last.is_ascii_alphanumeric()))
}

/// The name of a sandbox's pod of this incarnation.
pub(super) fn name(sandbox: &str, uid: &str, incarnation: i64) -> String {
    format!("{}-{incarnation}", stem(sandbox, uid))
}

/// What pods are made of, besides their template.
pub(crate) type Parts<'a> = (&'a Images, &'a Fencing);

/// The labels of the pod that is made for a sandbox.
fn labels_of(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let own = [
        (labels::MANAGED_BY, labels::LONGHAND.to_owned()),
        (labels::ROLE, labels::SANDBOX.to_owned()),
        (labels::SANDBOX_UID, sandbox.uid().unwrap_or_default()),
    ];
    let session = sandbox.spec.session_ref.iter().map(|session| (labels::SESSION_UID, session.uid.clone()));
    own.into_iter().chain(session).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The pod of this name for `sandbox`, which trusts tokens that fit `verify_key`.
pub(super) fn build(
    parts: Parts<'_>,
    sandbox: &Sandbox,
    template: &SandboxTemplate,
    verify_key: &str,
    name: &str,
    incarnation: i64,
) -> Pod {
    let persistent = template.spec.workspace.persistence == Persistence::Persistent;
    let handed = sandbox.spec.workspace_from.as_ref().is_some_and(|from| from.claim.is_some());
    let workspace = (persistent || handed).then(|| volume::claim_name(sandbox));
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: sandbox.namespace(),
            labels: Some(labels_of(sandbox)),
            annotations: Some([hardening::evictable(), incarnation_of(incarnation)].into_iter().flatten().collect()),
            owner_references: sandbox.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec(parts, template, verify_key, workspace)),
        status: None,
    }
}

/// The pod of this name that waits in the pool of `template`.
pub(crate) fn build_warm(parts: Parts<'_>, template: &SandboxTemplate, verify_key: &str, name: &str) -> Pod {
    let own = [
        (labels::MANAGED_BY, labels::LONGHAND.to_owned()),
        (labels::ROLE, labels::SANDBOX.to_owned()),
        (labels::POOL_UID, template.uid().unwrap_or_default()),
        (labels::POOL_HASH, pool_hash(parts, template)),
    ];
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: template.namespace(),
            labels: Some(own.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            annotations: Some(hardening::evictable()),
            owner_references: template.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec(parts, template, verify_key, None)),
        status: None,
    }
}

/// What the pods of a template are made of, as a label: another one is another pod.
pub(crate) fn pool_hash(parts: Parts<'_>, template: &SandboxTemplate) -> String {
    let spec = serde_json::to_vec(&spec(parts, template, "", None)).unwrap_or_default();
    Sha256::digest(&spec).iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

/// The key that the pod's `sandboxd` knows the session service by.
pub(crate) fn verify_key(pod: &Pod) -> Option<&str> {
    let container = pod.spec.as_ref()?.containers.iter().find(|container| container.name == SANDBOX)?;
    container.env.iter().flatten().find(|variable| variable.name == VERIFY_KEY)?.value.as_deref()
}

/// Says which of its sandbox's pods a pod is.
pub(super) fn incarnation_of(incarnation: i64) -> BTreeMap<String, String> {
    BTreeMap::from([(annotations::INCARNATION.to_owned(), incarnation.to_string())])
}

/// The spec of a pod of `template`; `workspace` is the claim of a persistent one.
fn spec(parts: Parts<'_>, template: &SandboxTemplate, verify_key: &str, workspace: Option<String>) -> PodSpec {
    let spec = &template.spec;
    let workspace = match workspace {
        Some(claim_name) => Volume {
            name: "workspace".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
            ..Volume::default()
        },
        None => hardening::empty_dir("workspace", spec.workspace.size.clone()),
    };
    let secrets = spec.image_pull_secrets.iter().map(|secret| LocalObjectReference { name: secret.name.clone() });
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // A pod is one incarnation: what ran in a container that ended is lost, and must not look alive.
        restart_policy: Some("Never".to_owned()),
        // There is no way out, so a query for a name fails at once and does not wait for a timeout.
        dns_policy: Some("None".to_owned()),
        dns_config: Some(PodDNSConfig { nameservers: Some(vec!["127.0.0.1".to_owned()]), ..PodDNSConfig::default() }),
        security_context: Some(security::pod(spec)),
        host_users: security::host_users(spec),
        termination_grace_period_seconds: Some(30),
        runtime_class_name: spec.runtime_class_name.clone(),
        priority_class_name: spec.priority_class_name.clone(),
        image_pull_secrets: (!spec.image_pull_secrets.is_empty()).then(|| secrets.collect()),
        node_selector: (!spec.node_selector.is_empty()).then(|| spec.node_selector.clone()),
        tolerations: Some(hardening::tolerations(&spec.tolerations)),
        topology_spread_constraints: (!spec.topology_spread.is_empty())
            .then(|| spec.topology_spread.iter().map(spread).collect()),
        init_containers: installer(parts.0, template).map(|installer| vec![installer]),
        containers: vec![container(parts, template, verify_key)],
        volumes: Some(
            [workspace, hardening::empty_dir("tmp", spec.scratch.size.clone())]
                .into_iter()
                .chain(injected(parts.0, template))
                .collect(),
        ),
        ..PodSpec::default()
    }
}

fn spread(given: &TopologySpread) -> TopologySpreadConstraint {
    let when_unsatisfiable = match given.when_unsatisfiable {
        WhenUnsatisfiable::ScheduleAnyway => "ScheduleAnyway",
        WhenUnsatisfiable::DoNotSchedule => "DoNotSchedule",
    };
    TopologySpreadConstraint {
        topology_key: given.topology_key.clone(),
        max_skew: given.max_skew,
        when_unsatisfiable: when_unsatisfiable.to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(labels::ROLE.to_owned(), labels::SANDBOX.to_owned())])),
            match_expressions: None,
        }),
        ..TopologySpreadConstraint::default()
    }
}

/// How `sandboxd` gets into the image of a template, if it has to. Until the server is known it is copied, which works on every one.
fn injection(images: &Images, template: &SandboxTemplate) -> Option<Injection> {
    let has_none = template.spec.image.is_some() && template.spec.sandboxd == SandboxdSource::Injected;
    has_none.then_some(images.injection.unwrap_or(Injection::InitContainer))
}

/// The volume with `sandboxd` for an image that has none.
fn injected(images: &Images, template: &SandboxTemplate) -> Option<Volume> {
    Some(match injection(images, template)? {
        Injection::ImageVolume => Volume {
            name: INJECTED_VOLUME.to_owned(),
            image: Some(ImageVolumeSource {
                reference: Some(images.sandboxd.clone()),
                pull_policy: Some(images.pull_policy.clone()),
            }),
            ..Volume::default()
        },
        Injection::InitContainer => hardening::empty_dir(INJECTED_VOLUME, Quantity(INJECTED_SIZE.to_owned())),
    })
}

/// The container that fills that volume, where it is not an image. It asks for no more than the sandbox itself.
fn installer(images: &Images, template: &SandboxTemplate) -> Option<Container> {
    (injection(images, template)? == Injection::InitContainer).then(|| Container {
        name: "install-sandboxd".to_owned(),
        image: Some(images.sandboxd.clone()),
        image_pull_policy: Some(images.pull_policy.clone()),
        command: Some(["/sandboxd", "install", INJECTED].map(ToOwned::to_owned).to_vec()),
        resources: Some(resources(template)),
        security_context: Some(security::container(&template.spec)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![mount(INJECTED_VOLUME, INJECTED, false)]),
        ..Container::default()
    })
}

fn container((images, fencing): Parts<'_>, template: &SandboxTemplate, verify_key: &str) -> Container {
    let spec = &template.spec;
    let is_injected = injection(images, template).is_some();
    let sandboxd = if is_injected { format!("{INJECTED}/sandboxd") } else { SANDBOXD.to_owned() };
    let mounts = [mount("workspace", &spec.workspace.mount_path, false), mount("tmp", TMP, false)];
    let injected = is_injected.then(|| mount(INJECTED_VOLUME, INJECTED, true));
    Container {
        name: SANDBOX.to_owned(),
        image: Some(spec.image.clone().unwrap_or_else(|| images.sandbox.clone())),
        image_pull_policy: Some(images.pull_policy.clone()),
        command: Some(vec![sandboxd]),
        env: Some(environment(template, verify_key, fencing)),
        ports: Some(vec![ContainerPort {
            name: Some("sandboxd".to_owned()),
            container_port: i32::from(SANDBOXD_PORT),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(probe("/readyz", 1, 3)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        resources: Some(resources(template)),
        security_context: Some(security::container(spec)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts.into_iter().chain(injected).collect()),
        working_dir: Some(spec.workspace.mount_path.clone()),
        ..Container::default()
    }
}

/// Requests and limits, so that a sandbox is bounded and an autoscaler knows what it needs: what is only requested is the limit too.
fn resources(template: &SandboxTemplate) -> ResourceRequirements {
    let mut all = hardening::resources(
        template.spec.resources.as_ref(),
        &[("cpu", "100m"), ("memory", "128Mi"), ("ephemeral-storage", "64Mi")],
        // Disk is limited by the size of each volume where the rest of the file system is read-only.
        &[("cpu", "2"), ("memory", "2Gi")],
    );
    let limits = all.limits.get_or_insert_default();
    for (name, amount) in all.requests.iter().flatten().filter(|(name, _)| *name != "ephemeral-storage") {
        limits.entry(name.clone()).or_insert_with(|| amount.clone());
    }
    limits.extend(security::storage_limit(&template.spec));
    all
}

/// What `sandboxd` needs comes last: of two variables of one name the last one counts.
fn environment(template: &SandboxTemplate, verify_key: &str, fencing: &Fencing) -> Vec<EnvVar> {
    let spec = &template.spec;
    let own = [
        env(VERIFY_KEY, verify_key),
        env("SANDBOXD_WORKSPACE", &spec.workspace.mount_path),
        env_of_field("POD_UID", "metadata.uid"),
        // Before the list that it is a part of.
        env_of_field("SANDBOXD_HOST_IP", "status.hostIP"),
        env("SANDBOXD_CANARIES", &fencing.canaries),
        env("SANDBOXD_REQUIRE_FENCE", fencing.require.to_string()),
    ];
    // The kubelet makes `$` of `$$`, and would put a variable in the place of `$(NAME)`.
    let command = json!(spec.command).to_string().replace('$', "$$");
    let command = (!spec.command.is_empty()).then(|| env("SANDBOXD_COMMAND", command));
    // Programs expect a home that can be written to; the image's own is read-only.
    let home = spec.env.iter().all(|variable| variable.name != "HOME").then(|| env("HOME", TMP));
    let own: Vec<EnvVar> = own.into_iter().chain(command).collect();
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
    use longhand_crds::sandbox_template::{EnvVar, Persistence, Resources, SandboxdSource};
    use rstest::rstest;

    use super::{SANDBOXD, build, build_warm, name, pool_hash, verify_key};
    use crate::config::Images;
    use crate::fixtures;
    use crate::injection::Injection;
    use crate::testing::{fencing, images};

    fn pod_of(template: &longhand_crds::SandboxTemplate) -> k8s_openapi::api::core::v1::Pod {
        build((&images(), &fencing()), &fixtures::sandbox(), template, "key=", "s-0", 0)
    }

    #[test]
    fn the_pod_is_as_designed() {
        insta::assert_yaml_snapshot!(pod_of(&fixtures::template()));
    }

    #[test]
    fn a_template_decides_what_it_may() {
        let mut template = fixtures::template();
        let spec = &mut template.spec;
        spec.image = Some("toolbox:1".into());
        spec.runtime_class_name = Some("gvisor".into());
        spec.priority_class_name = Some("low".into());
        spec.run_as_user = 2_000;
        spec.scratch.size.0 = "5Gi".into();
        spec.image_pull_secrets = vec![longhand_crds::LocalRef { name: "registry".into() }];
        spec.workspace.persistence = Persistence::Persistent;
        spec.topology_spread =
            serde_json::from_value(serde_json::json!([{ "topologyKey": "topology.kubernetes.io/zone" }])).unwrap();
        spec.tolerations = serde_json::from_value(
            serde_json::json!([{ "key": "node.kubernetes.io/unreachable", "operator": "Exists" }]),
        )
        .unwrap();
        spec.env = ["HOME", "POD_UID", "LANG"].map(|name| EnvVar { name: name.into(), value: "x".into() }).into();
        let amount = |amount: &str| k8s_openapi::apimachinery::pkg::api::resource::Quantity(amount.into());
        spec.resources = Some(Resources {
            limits: [("memory".to_owned(), amount("64Mi"))].into(),
            requests: [("cpu".to_owned(), amount("3"))].into(),
        });
        insta::assert_yaml_snapshot!(pod_of(&template));
    }

    #[test]
    fn sandboxd_is_copied_into_an_image_where_no_image_can_be_mounted() {
        let mut template = fixtures::template();
        template.spec.image = Some("toolbox:1".into());
        template.spec.command = vec!["serve".into(), "--name=a b $$ $(HOME)".into()];
        let parts = Images { injection: Some(Injection::InitContainer), ..images() };
        let pod = build((&parts, &fencing()), &fixtures::sandbox(), &template, "key=", "s-0", 0);
        insta::assert_yaml_snapshot!(pod.spec.unwrap());
        template.spec.sandboxd = SandboxdSource::InImage;
        let own = pod_of(&template).spec.unwrap();
        assert_eq!(own.containers[0].command.as_deref(), Some(&[SANDBOXD.to_owned()][..]));
        assert_eq!((own.init_containers, own.volumes.unwrap().len()), (None, 2));
    }

    #[test]
    fn a_pool_is_told_apart_by_what_its_pods_are_made_of() {
        let template = fixtures::template();
        let mut scaled = template.clone();
        (scaled.spec.warm, scaled.spec.idle_seconds) = (7, 1);
        assert_eq!(pool_hash((&images(), &fencing()), &scaled), pool_hash((&images(), &fencing()), &template));
        let mut changed = template.clone();
        changed.spec.image = Some("toolbox:2".into());
        assert_ne!(pool_hash((&images(), &fencing()), &changed), pool_hash((&images(), &fencing()), &template));
        let mut roomier = template.clone();
        roomier.spec.scratch.size.0 = "8Gi".into();
        assert_ne!(pool_hash((&images(), &fencing()), &roomier), pool_hash((&images(), &fencing()), &template));
        let pod = build_warm((&images(), &fencing()), &template, "key=", "shell-0");
        assert_eq!(verify_key(&pod), Some("key="));
        let mut own = pod_of(&template);
        own.spec.as_mut().unwrap().containers = pod.spec.as_ref().unwrap().containers.clone();
        assert_eq!(pod.spec, own.spec, "a pod of the pool is what a sandbox's own pod would be");
    }

    #[rstest]
    #[case("box", "box-3e8f1-3")]
    #[case("box.", "box-3e8f1-3")]
    fn names_tell_whose_pod_it_is(#[case] sandbox: &str, #[case] expected: &str) {
        assert_eq!(name(sandbox, "3e8f-1a2b", 3), expected);
        assert_eq!(name(&"b".repeat(253), "3e8f1a2b", 3).len(), 208);
    }
}
