//! The harness pod: the brain, and beside it the only container that sees a credential.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, HTTPGetAction, KeyToPath, Pod, PodSpec, Probe, ProjectedVolumeSource,
    SecretVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::vault::CredentialSpec;
use longhand_crds::{AgentSession, labels, session_id};

use super::observe::References;
use super::proxy_config::{self, MCP_PREFIX, MODEL_PREFIX};
use crate::context::Context;
use crate::hardening::{self, env, mount};

/// Name of the main container.
pub(super) const HARNESS: &str = "harness";
/// Name of the sidecar.
const PROXY: &str = "credential-proxy";
/// Where the proxy answers probes, and the operator.
pub(super) const PROXY_HEALTH_PORT: u16 = 8082;

const USER: i64 = 65_532;
const TOKEN_FOLDER: &str = "/var/run/longhand/token";
const TOKEN_FILE: &str = "/var/run/longhand/token/token";
/// The built-in harness writes no file; others have a home, and their root file system is read-only too.
const TMP: &str = "/tmp";
const TMP_SIZE: &str = "512Mi";
const TOKEN_AUDIENCE: &str = "longhand";
const TOKEN_SECONDS: i64 = 3_600;
/// The harness does not start before its credentials are there; a person may take a long time to make a Secret.
const PROXY_START_SECONDS: i32 = 7 * 24 * 3_600;
/// So much of a session's name is in the names of its pods.
const NAME_PART: usize = 40;

/// The name of a session's pod of this generation.
pub(super) fn name(session: &str, uid: &str, generation: i64) -> String {
    let part: String = session.chars().take(NAME_PART).collect();
    let part = part.trim_end_matches(|last: char| !last.is_ascii_alphanumeric());
    let uid: String = uid.chars().filter(char::is_ascii_hexdigit).take(6).collect();
    format!("{part}-harness-{uid}-{generation}")
}

/// The generation in a pod's name.
pub(super) fn generation(name: &str) -> Option<i64> {
    name.rsplit_once('-').and_then(|(_, generation)| generation.parse().ok())
}

/// The pod of this name for `session`.
pub(super) fn build(context: &Context, session: &AgentSession, references: &References, name: &str) -> Pod {
    let uid = session.uid().unwrap_or_default();
    let labels = BTreeMap::from(
        [(labels::MANAGED_BY, labels::LONGHAND), (labels::ROLE, labels::HARNESS), (labels::SESSION_UID, uid.as_str())]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: session.namespace(),
            labels: Some(labels),
            owner_references: session.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            service_account_name: Some("default".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("OnFailure".to_owned()),
            security_context: Some(hardening::pod(USER)),
            termination_grace_period_seconds: Some(10),
            init_containers: Some(vec![proxy(context, references)]),
            containers: vec![harness(context, session, references)],
            volumes: Some(volumes(references)),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn harness(context: &Context, session: &AgentSession, references: &References) -> Container {
    let spec = references.agent.spec.harness.as_ref();
    let image = spec.and_then(|spec| spec.image.clone()).unwrap_or_else(|| context.images.harness.clone());
    Container {
        name: HARNESS.to_owned(),
        image: Some(image),
        image_pull_policy: Some(context.images.pull_policy.clone()),
        env: Some(environment(context, session)),
        resources: Some(hardening::resources(
            spec.and_then(|spec| spec.resources.as_ref()),
            &[("cpu", "20m"), ("memory", "32Mi"), ("ephemeral-storage", "16Mi")],
            &[("cpu", "1"), ("memory", "256Mi"), ("ephemeral-storage", "64Mi")],
        )),
        security_context: Some(hardening::container()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![mount("token", TOKEN_FOLDER, true), mount("tmp", TMP, false)]),
        ..Container::default()
    }
}

fn environment(context: &Context, session: &AgentSession) -> Vec<EnvVar> {
    let mut variables = vec![
        env("SESSION_ID", session_id(&session.metadata)),
        env("LOG_URL", &context.session_url),
        env("SESSION_TOKEN_FILE", TOKEN_FILE),
        env("MODEL_BASE_URL", format!("http://127.0.0.1:8081{MODEL_PREFIX}")),
        env("MCP_BASE_URL", format!("http://127.0.0.1:8081{MCP_PREFIX}")),
    ];
    // No secret; and what lies in the operator's namespace cannot be mounted in another.
    variables.extend(context.session_ca.as_ref().map(|authorities| env("LOG_CA", authorities)));
    variables
}

fn proxy(context: &Context, references: &References) -> Container {
    let credential = &references.credential;
    let config = proxy_config::config(&references.base_url, credential, &references.mcp);
    let model = mount("credential", proxy_config::folder(&credential.name), true);
    let with_credential = references.mcp.iter().filter(|server| server.credential.is_some());
    let servers =
        with_credential.map(|server| mount(&proxy_config::mcp_volume(server), proxy_config::mcp_folder(server), true));
    Container {
        name: PROXY.to_owned(),
        image: Some(context.images.proxy.clone()),
        image_pull_policy: Some(context.images.pull_policy.clone()),
        restart_policy: Some("Always".to_owned()),
        env: Some(vec![env("PROXY_CONFIG", config.to_string()), env("SESSION_TOKEN_FILE", TOKEN_FILE)]),
        ports: Some(vec![ContainerPort {
            name: Some("health".to_owned()),
            container_port: i32::from(PROXY_HEALTH_PORT),
            ..ContainerPort::default()
        }]),
        startup_probe: Some(probe("/startupz", 1, PROXY_START_SECONDS)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        resources: Some(hardening::resources(
            None,
            &[("cpu", "10m"), ("memory", "24Mi"), ("ephemeral-storage", "16Mi")],
            &[("cpu", "1"), ("memory", "128Mi"), ("ephemeral-storage", "64Mi")],
        )),
        security_context: Some(hardening::container()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some([mount("token", TOKEN_FOLDER, true), model].into_iter().chain(servers).collect()),
        ..Container::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(PROXY_HEALTH_PORT)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn token_volume() -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".to_owned(),
    };
    let source = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    Volume {
        name: "token".to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(vec![source]), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    }
}

fn volumes(references: &References) -> Vec<Volume> {
    let mut volumes = vec![
        token_volume(),
        credential_volume("credential", &references.credential),
        hardening::empty_dir("tmp", Quantity(TMP_SIZE.to_owned())),
    ];
    volumes.extend(
        references.mcp.iter().filter_map(|server| {
            Some(credential_volume(&proxy_config::mcp_volume(server), server.credential.as_ref()?))
        }),
    );
    volumes
}

/// Optional, so that the proxy runs and says what is missing; and only the key that the vault names.
fn credential_volume(name: &str, credential: &CredentialSpec) -> Volume {
    let secret = &credential.secret_ref;
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.name.clone()),
            optional: Some(true),
            items: Some(vec![KeyToPath { key: secret.key.clone(), path: secret.key.clone(), mode: None }]),
            default_mode: Some(0o440),
        }),
        ..Volume::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Container;
    use longhand_crds::vault::PrivateAddresses;
    use rstest::rstest;

    use super::{HARNESS, build, generation, name};
    use crate::agent::mcp::McpAccess;
    use crate::agent_session::observe::References;
    use crate::fixtures;
    use crate::testing::context;

    fn references() -> References {
        References::fixture()
    }

    #[tokio::test]
    async fn the_pod_is_as_designed() {
        let (context, _server) = context();
        let pod = build(&context, &fixtures::session(), &references(), "quickstart-harness-3e8f1a-1");
        insta::assert_yaml_snapshot!(pod);
    }

    /// With two MCP servers, of which one has a credential.
    fn with_servers() -> References {
        let server = |name: &str, credential| McpAccess {
            name: name.to_owned(),
            url: format!("http://model.test:8080/{name}"),
            upstream: format!("http://model.test:8080/{name}"),
            private_addresses: PrivateAddresses::Refuse,
            credential,
        };
        let credential = Some(References::fixture().credential);
        References { mcp: vec![server("open", None), server("bound", credential)], ..References::fixture() }
    }

    #[tokio::test]
    async fn only_the_proxy_mounts_secrets() {
        let (context, _server) = context();
        let spec = build(&context, &fixtures::session(), &with_servers(), "x").spec.unwrap();
        let secrets: Vec<_> = spec
            .volumes
            .unwrap()
            .into_iter()
            .filter(|volume| volume.secret.is_some())
            .map(|volume| volume.name)
            .collect();
        assert_eq!(secrets.len(), 2);
        let mounts = |container: &Container| -> Vec<String> {
            container.volume_mounts.iter().flatten().map(|mount| mount.name.clone()).collect()
        };
        let harness = spec.containers.iter().find(|container| container.name == HARNESS).unwrap();
        assert!(mounts(harness).iter().all(|mount| !secrets.contains(mount)));
        assert_eq!(spec.containers.len(), 1);
        let proxy = &spec.init_containers.unwrap()[0];
        assert!(secrets.iter().all(|secret| mounts(proxy).contains(secret)));
        let mut paths: Vec<_> = proxy.volume_mounts.iter().flatten().map(|mount| mount.mount_path.clone()).collect();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 3, "each in a folder of its own: {paths:?}");
    }

    #[rstest]
    #[case("quickstart", "quickstart-harness-3e8f1a-2")]
    #[case("a.b", "a.b-harness-3e8f1a-2")]
    #[case("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.bbbb", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-harness-3e8f1a-2")]
    fn names_are_short_and_tell_the_generation(#[case] session: &str, #[case] expected: &str) {
        let name = name(session, "3e8f1a2b-0000", 2);
        assert_eq!(name, expected);
        assert_eq!(generation(&name), Some(2));
    }
}
