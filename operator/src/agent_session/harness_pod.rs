//! The harness pod: the brain, and beside it the only container that sees a credential.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, HTTPGetAction, KeyToPath, Pod, PodDNSConfig, PodDNSConfigOption, PodSpec, Probe,
    ProjectedVolumeSource, SecretProjection, SecretVolumeSource, ServiceAccountTokenProjection, Volume,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::vault::{CredentialSpec, SecretRef};
use longhand_crds::{AgentSession, annotations, labels, session_id};
use longhand_protocol::egress::PORT as EGRESS_PORT;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::egress::{self, Egress};
use super::observe::References;
use super::proxy_config::{self, MCP_PREFIX, MODEL_PREFIX};
use crate::agent::fallbacks::FallbackAccess;
use crate::agent::mcp::McpAccess;
use crate::context::Context;
use crate::hardening::{self, env, env_of_field, mount};

/// Name of the main container.
pub(crate) const HARNESS: &str = "harness";
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
/// The volume of the token that only the proxy has, and its audience.
const PROXY_TOKEN: &str = "proxy-token";
const PROXY_AUDIENCE: &str = "longhand-proxy";
const TOKEN_SECONDS: i64 = 3_600;
/// The harness does not start before its credentials are there; a person may take a long time to make a Secret.
const PROXY_START_SECONDS: i32 = 7 * 24 * 3_600;
/// So much of a session's name is in the names of its pods.
const NAME_PART: usize = 40;

/// The name of a session's pod of this generation.
pub(super) fn name(session: &str, uid: &str, generation: i64) -> String {
    named(session, "harness", uid, generation)
}

fn named(owner: &str, what: &str, uid: &str, generation: i64) -> String {
    let part: String = owner.chars().take(NAME_PART).collect();
    let part = part.trim_end_matches(|last: char| !last.is_ascii_alphanumeric());
    let uid: String = uid.chars().filter(char::is_ascii_hexdigit).take(6).collect();
    format!("{part}-{what}-{uid}-{generation}")
}

/// The generation in a pod's name.
pub(crate) fn generation(name: &str) -> Option<i64> {
    name.rsplit_once('-').and_then(|(_, generation)| generation.parse().ok())
}

/// The name of the pod with this number that an agent keeps ready.
pub(crate) fn warm_name(agent: &str, uid: &str, number: i64) -> String {
    named(agent, "warm", uid, number)
}

/// The pod of this name for `session`; sandboxes that have a way out are known by tokens that fit `verify_key`.
pub(super) fn build(
    context: &Context,
    session: &AgentSession,
    references: &References,
    verify_key: Option<&str>,
    name: &str,
) -> Pod {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: session.namespace(),
        labels: Some(labels(labels::SESSION_UID, session.uid())),
        annotations: Some(hardening::evictable()),
        owner_references: session.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    let id = session_id(&session.metadata);
    let url = context.session_url.trim_end_matches('/');
    let tools = env("MCP_URL", format!("{url}/harness/v1/sessions/{id}/mcp"));
    let egress = references.egress.as_ref().zip(verify_key);
    let egress = egress.map(|(egress, key)| (egress, egress.config(context, id.as_str(), key)));
    let own = vec![env("SESSION_ID", id.clone()), tools];
    Pod { metadata, spec: Some(spec(context, references, own, egress, Some(id.as_str()))), status: None }
}

/// The pod of this name for no session yet. It is like one that is made for a session of the agent.
pub(crate) fn build_warm(context: &Context, references: &References, name: &str) -> Pod {
    let agent = &references.agent;
    let sessions = agent.spec.harness.as_ref().map_or(1, |harness| harness.sessions_per_pod);
    let spec = spec(context, references, vec![env("SESSIONS_PER_POD", sessions.to_string())], None, None);
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: agent.namespace(),
        labels: Some(labels(labels::AGENT_UID, agent.uid())),
        annotations: Some(
            hardening::evictable()
                .into_iter()
                .chain([(annotations::POD_DIGEST.to_owned(), digest_of(&spec))])
                .collect(),
        ),
        owner_references: agent.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: Some(spec), status: None }
}

/// What a pod that [`build_warm`] gives is made of.
pub(crate) fn digest(pod: &Pod) -> String {
    pod.annotations().get(annotations::POD_DIGEST).cloned().unwrap_or_default()
}

fn digest_of(spec: &PodSpec) -> String {
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    value.sort_all_objects();
    Sha256::digest(value.to_string().as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn labels(key: &str, uid: Option<String>) -> BTreeMap<String, String> {
    let uid = uid.unwrap_or_default();
    [(labels::MANAGED_BY, labels::LONGHAND), (labels::ROLE, labels::HARNESS), (key, uid.as_str())]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// What sandboxes may reach, and how the proxy is told.
type Way<'a> = (&'a Egress, Value);

/// The same but for `own`, the variables by which a harness knows whom it serves, the way out of the sandboxes of one session,
/// and the session itself, if there is one: its log takes what the proxy does, and access tokens are refreshed for it.
fn spec(
    context: &Context,
    references: &References,
    own: Vec<EnvVar>,
    egress: Option<Way<'_>>,
    session: Option<&str>,
) -> PodSpec {
    let mut volumes = volumes(references);
    if session.is_some() {
        volumes.push(token_volume(PROXY_TOKEN, PROXY_AUDIENCE));
    }
    if let Some((egress, _)) = &egress {
        volumes.extend(egress.volumes());
    }
    if session.is_some() {
        volumes.extend(references.mcp.iter().filter_map(refresh_volume));
    }
    PodSpec {
        service_account_name: Some("default".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("OnFailure".to_owned()),
        security_context: Some(hardening::pod(USER)),
        termination_grace_period_seconds: Some(10),
        tolerations: Some(hardening::tolerations(&[])),
        dns_config: Some(full_names_first()),
        init_containers: Some(vec![proxy(context, references, egress, session)]),
        containers: vec![harness(context, own, references)],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

/// The full name of the session service has four dots: it is asked for as it is, before what the search list makes of it.
fn full_names_first() -> PodDNSConfig {
    let ndots = PodDNSConfigOption { name: Some("ndots".to_owned()), value: Some("4".to_owned()) };
    PodDNSConfig { options: Some(vec![ndots]), ..PodDNSConfig::default() }
}

fn harness(context: &Context, own: Vec<EnvVar>, references: &References) -> Container {
    let spec = references.agent.spec.harness.as_ref();
    let image = spec.and_then(|spec| spec.image.clone()).unwrap_or_else(|| context.images.harness.clone());
    Container {
        name: HARNESS.to_owned(),
        image: Some(image),
        image_pull_policy: Some(context.images.pull_policy.clone()),
        env: Some(environment(context, own)),
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

fn environment(context: &Context, own: Vec<EnvVar>) -> Vec<EnvVar> {
    let mut variables = own;
    variables.extend([
        env("LOG_URL", &context.session_url),
        env("SESSION_TOKEN_FILE", TOKEN_FILE),
        env("MODEL_BASE_URL", format!("http://127.0.0.1:8081{MODEL_PREFIX}")),
        env("MCP_BASE_URL", format!("http://127.0.0.1:8081{MCP_PREFIX}")),
    ]);
    variables.extend(context.tracing.variables());
    // No secret; and what lies in the operator's namespace cannot be mounted in another.
    variables.extend(context.session_ca.as_ref().map(|authorities| env("LOG_CA", authorities)));
    variables
}

fn proxy(context: &Context, references: &References, egress: Option<Way<'_>>, session: Option<&str>) -> Container {
    let credential = &references.credential;
    let References { base_url, vault, fallbacks, mcp, .. } = references;
    let mut config = proxy_config::config(base_url, (vault, credential), fallbacks, mcp);
    proxy_config::set_way_out(&mut config, &context.way_out);
    let mut volume_mounts =
        vec![mount("token", TOKEN_FOLDER, true), mount("credential", proxy_config::folder(&credential.name), true)];
    volume_mounts.extend(
        references
            .fallbacks
            .iter()
            .map(|fallback| mount(&fallback_volume(fallback), proxy_config::fallback_folder(fallback), true)),
    );
    let with_credential = references.mcp.iter().filter(|server| server.credential.is_some());
    volume_mounts.extend(
        with_credential.map(|server| mount(&proxy_config::mcp_volume(server), proxy_config::mcp_folder(server), true)),
    );
    if let Some(session) = session {
        volume_mounts.push(mount(PROXY_TOKEN, egress::TOKEN_FOLDER, true));
        proxy_config::set_session(&mut config, context, session);
        proxy_config::set_refresh(&mut config, mcp);
        let refreshed = references.mcp.iter().filter(|server| server.refresh().is_some());
        volume_mounts
            .extend(refreshed.map(|server| {
                mount(&proxy_config::refresh_volume(server), proxy_config::refresh_folder(server), true)
            }));
    }
    let mut variables = Vec::new();
    let mut ports = vec![port("health", PROXY_HEALTH_PORT)];
    if let Some((egress, section)) = egress {
        config["egress"] = section;
        // A sandbox is served on the pod's address only, and its token names the pod.
        variables.extend([env_of_field("POD_UID", "metadata.uid"), env_of_field("POD_IP", "status.podIP")]);
        ports.push(port("egress", EGRESS_PORT));
        volume_mounts.extend(egress.mounts());
    }
    variables.extend([env("PROXY_CONFIG", config.to_string()), env("SESSION_TOKEN_FILE", TOKEN_FILE)]);
    Container {
        name: PROXY.to_owned(),
        image: Some(context.images.proxy.clone()),
        image_pull_policy: Some(context.images.pull_policy.clone()),
        restart_policy: Some("Always".to_owned()),
        env: Some(variables),
        ports: Some(ports),
        startup_probe: Some(probe("/startupz", 1, PROXY_START_SECONDS)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        resources: Some(hardening::resources(
            None,
            &[("cpu", "10m"), ("memory", "24Mi"), ("ephemeral-storage", "16Mi")],
            &[("cpu", "1"), ("memory", "128Mi"), ("ephemeral-storage", "64Mi")],
        )),
        security_context: Some(hardening::container()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(volume_mounts),
        ..Container::default()
    }
}

fn port(name: &str, port: u16) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: i32::from(port), ..ContainerPort::default() }
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

fn token_volume(name: &str, audience: &str) -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(audience.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".to_owned(),
    };
    let source = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(vec![source]), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    }
}

fn volumes(references: &References) -> Vec<Volume> {
    let mut volumes = vec![
        token_volume("token", TOKEN_AUDIENCE),
        credential_volume("credential", &references.credential),
        hardening::empty_dir("tmp", Quantity(TMP_SIZE.to_owned())),
    ];
    let fallbacks = &references.fallbacks;
    volumes
        .extend(fallbacks.iter().map(|fallback| credential_volume(&fallback_volume(fallback), &fallback.credential)));
    volumes.extend(
        references.mcp.iter().filter_map(|server| {
            Some(credential_volume(&proxy_config::mcp_volume(server), server.credential.as_ref()?))
        }),
    );
    volumes
}

/// What a server's access token is refreshed with: keys of two Secrets.
fn refresh_volume(server: &McpAccess) -> Option<Volume> {
    let (_, _, refresh) = server.refresh()?;
    let source = |secret: &SecretRef, path: &str| VolumeProjection {
        secret: Some(SecretProjection {
            name: secret.name.clone(),
            items: Some(vec![KeyToPath { key: secret.key.clone(), path: path.to_owned(), mode: None }]),
            optional: Some(true),
        }),
        ..VolumeProjection::default()
    };
    let client_secret = refresh.client_secret_ref.as_ref().map(|secret| source(secret, proxy_config::CLIENT_SECRET));
    let sources = std::iter::once(source(&refresh.refresh_token_ref, proxy_config::REFRESH_TOKEN)).chain(client_secret);
    Some(Volume {
        name: proxy_config::refresh_volume(server),
        projected: Some(ProjectedVolumeSource { sources: Some(sources.collect()), default_mode: Some(0o440) }),
        ..Volume::default()
    })
}

/// The Secrets with the refresh tokens that a pod mounts, by volume.
pub(super) fn refresh_tokens(pod: &Pod) -> BTreeMap<String, String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let mut secrets = volume.projected.as_ref()?.sources.iter().flatten().filter_map(|one| one.secret.as_ref());
            Some((volume.name.clone(), secrets.next()?.name.clone()))
        })
        .collect()
}

fn fallback_volume(fallback: &FallbackAccess) -> String {
    format!("fallback-{}", fallback.route)
}

/// Optional, so that the proxy runs and says what is missing; and only the keys that the vault names.
pub(super) fn credential_volume(name: &str, credential: &CredentialSpec) -> Volume {
    let secret = &credential.secret_ref;
    let aws = credential.placement.aws.iter();
    let aws = aws.flat_map(|aws| std::iter::once(&aws.access_key_id_key).chain(&aws.session_token_key));
    let mut keys: Vec<&String> = std::iter::once(&secret.key).chain(aws).collect();
    keys.sort_unstable();
    keys.dedup();
    let item = |key: &String| KeyToPath { key: key.clone(), path: key.clone(), mode: None };
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.name.clone()),
            optional: Some(true),
            items: Some(keys.into_iter().map(item).collect()),
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

    use super::{HARNESS, build, build_warm, digest, generation, name};
    use crate::agent::fallbacks::FallbackAccess;
    use crate::agent::mcp::McpAccess;
    use crate::agent_session::observe::References;
    use crate::fixtures;
    use crate::testing::context;

    fn references() -> References {
        References::fixture()
    }

    fn with_fallback() -> References {
        let credential = References::fixture().credential;
        let base_url = "http://other.test".to_owned();
        let fallbacks =
            vec![FallbackAccess { route: "0a1b".to_owned(), base_url, credential, vault: "other".to_owned() }];
        References { fallbacks, ..References::fixture() }
    }

    #[tokio::test]
    async fn the_pod_is_as_designed() {
        let (context, _server) = context();
        let pod = build(&context, &fixtures::session(), &references(), None, "quickstart-harness-3e8f1a-1");
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
            vault: Some("models".to_owned()),
        };
        let credential = Some(References::fixture().credential);
        References { mcp: vec![server("open", None), server("bound", credential)], ..References::fixture() }
    }

    #[tokio::test]
    async fn a_pod_without_a_session_is_the_same_but_for_whom_it_serves() {
        let (context, _server) = context();
        let own = build(&context, &fixtures::session(), &references(), None, "x");
        let warm = build_warm(&context, &references(), "coder-warm-3e8f1a-1");
        insta::assert_yaml_snapshot!(warm.metadata);
        let without = |pod: &super::Pod, count: usize| {
            let mut spec = pod.spec.clone().unwrap();
            let own = spec.containers[0].env.as_mut().unwrap().drain(..count);
            (own.map(|variable| variable.name).collect::<Vec<_>>(), spec)
        };
        let (named, parked) = (without(&own, 2), without(&warm, 1));
        assert_eq!((named.0.join(" "), parked.0.join(" ")), ("SESSION_ID MCP_URL".into(), "SESSIONS_PER_POD".into()));
        // Without a session there is no log that the proxy may write to.
        let mut of_session = named.1;
        let proxy = &mut of_session.init_containers.as_mut().unwrap()[0];
        proxy.volume_mounts.as_mut().unwrap().retain(|mount| mount.name != "proxy-token");
        of_session.volumes.as_mut().unwrap().retain(|volume| volume.name != "proxy-token");
        let variable = proxy.env.as_mut().unwrap().iter_mut().find(|variable| variable.name == "PROXY_CONFIG").unwrap();
        let mut config: serde_json::Value = serde_json::from_str(variable.value.as_ref().unwrap()).unwrap();
        assert_eq!(
            config.as_object_mut().unwrap().remove("service").unwrap()["session"],
            "sesn_KVnyoJ5vAz2cGhTBoEFMD7zd"
        );
        variable.value = Some(config.to_string());
        assert_eq!(of_session, parked.1);
    }

    #[tokio::test]
    async fn a_digest_changes_with_what_a_pod_is_made_of() {
        let (context, _server) = context();
        let of = |change: fn(&mut References)| {
            let mut references = references();
            change(&mut references);
            digest(&build_warm(&context, &references, "x"))
        };
        let same = of(|_| {});
        assert_eq!(same, of(|references| references.agent.spec.system = Some("Be kind.".to_owned())));
        assert_eq!(same, of(|references| references.agent.spec.warm = 7));
        assert_ne!(same, of(|references| references.base_url = "http://other.test".to_owned()));
        assert_ne!(same, of(|references| references.credential.secret_ref.name = "other".to_owned()));
        assert_ne!(same, of(|references| references.credential.allow.hosts.push("other.test".to_owned())));
    }

    #[tokio::test]
    async fn only_the_proxy_mounts_secrets() {
        let (context, _server) = context();
        let egress = Some(crate::agent_session::egress::tests::egress());
        let references = References { mcp: with_servers().mcp, egress, ..with_fallback() };
        let spec = build(&context, &fixtures::session(), &references, Some("key="), "x").spec.unwrap();
        let secrets: Vec<_> = spec
            .volumes
            .unwrap()
            .into_iter()
            .filter(|volume| volume.secret.is_some())
            .map(|volume| volume.name)
            .collect();
        assert_eq!(secrets.len(), 4, "of the model, its fallback, a server and the sandbox: {secrets:?}");

        let mounts = |container: &Container| -> Vec<String> {
            container.volume_mounts.iter().flatten().map(|mount| mount.name.clone()).collect()
        };
        let harness = spec.containers.iter().find(|container| container.name == HARNESS).unwrap();
        assert!(mounts(harness).iter().all(|mount| !secrets.contains(mount) && mount != "proxy-token"));
        assert_eq!(spec.containers.len(), 1);
        let proxy = &spec.init_containers.unwrap()[0];
        assert!(secrets.iter().all(|secret| mounts(proxy).contains(secret)));
        let mut paths: Vec<_> = proxy.volume_mounts.iter().flatten().map(|mount| mount.mount_path.clone()).collect();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 6, "each in a folder of its own: {paths:?}");
        let variables: Vec<_> = proxy.env.iter().flatten().map(|variable| variable.name.as_str()).collect();
        assert_eq!(variables, ["POD_UID", "POD_IP", "PROXY_CONFIG", "SESSION_TOKEN_FILE"]);
    }

    #[tokio::test]
    async fn what_a_token_is_refreshed_with_is_the_proxy_s_and_of_a_session_s_own_pod() {
        let (context, _server) = context();
        let mut references = with_servers();
        let credential = references.mcp[1].credential.as_mut().unwrap();
        credential.placement = longhand_crds::vault::Placement::of(longhand_crds::vault::PlacementKind::Bearer);
        credential.oauth = serde_json::from_value(serde_json::json!({"refresh": {"clientID": "me",
            "tokenEndpoint": "https://auth.test/token", "tokenEndpointAuth": "client_secret_basic",
            "clientSecretRef": {"name": "client", "key": "c"}, "refreshTokenRef": {"name": "second", "key": "r"}}}))
        .unwrap();
        let pod = build(&context, &fixtures::session(), &references, None, "x");
        let tokens = super::refresh_tokens(&pod);
        let expected = references.refresh_tokens();
        assert_eq!((tokens.values().next().map(String::as_str), &tokens), (Some("second"), &expected));
        let spec = pod.spec.unwrap();
        let volume = spec.volumes.as_ref().unwrap().iter().find(|volume| tokens.contains_key(&volume.name)).unwrap();
        insta::assert_yaml_snapshot!(volume.projected);
        let mounted = |container: &Container, name: &str| {
            container.volume_mounts.iter().flatten().any(|mount| mount.name == name && mount.read_only == Some(true))
        };
        let proxy = &spec.init_containers.as_ref().unwrap()[0];
        for name in [volume.name.as_str(), "proxy-token"] {
            assert!(mounted(proxy, name) && !mounted(&spec.containers[0], name), "{name}");
        }
        let warm = build_warm(&context, &references, "x");
        assert!(super::refresh_tokens(&warm).is_empty() && !serde_json::to_string(&warm).unwrap().contains("oauth"));
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
