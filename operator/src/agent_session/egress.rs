//! What the sandboxes of a session may reach, and with which credentials, as the proxy beside its harness is told.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use longhand_crds::egress::{ANY, OF_RESOURCES, of_repository, placeholders, reach};
use longhand_crds::vault::{CredentialSpec, InjectionLocation, Placement, PrivateAddresses};
use longhand_crds::{AgentSession, SandboxTemplate, Vault};
use reqwest::Url;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::harness_pod::credential_volume;
use super::observe::Unresolved;
use super::proxy_config::{CREDENTIALS, kept_in};
use crate::agent::mcp::McpAccess;
use crate::context::Context;
use crate::hardening::mount;

/// Where the proxy finds the token by which only it is known.
pub(super) const TOKEN_FOLDER: &str = "/var/run/secrets/longhand-proxy";
/// As many as the proxy takes.
const MAX_BINDINGS: usize = 128;

/// What the sandboxes of a session may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Egress {
    /// Hosts, by the sandbox's name in the session.
    sandboxes: BTreeMap<String, BTreeSet<String>>,
    /// Credentials that sandboxes see a placeholder of, each with its vault: those of repositories have a name of their own for it.
    bindings: Vec<(String, CredentialSpec)>,
}

/// What the session says, if its sandboxes have a way out at all: a template says what may be reached, a vault of the session
/// has credentials for sandboxes, or a repository has a token. The session service binds sandboxes by the same rule.
///
/// # Errors
/// [`Unresolved::TooManyCredentials`]: with some left out, requests would fail for no reason that anybody sees.
pub(super) fn of(
    session: &AgentSession,
    servers: &[McpAccess],
    template: impl Fn(&str) -> Option<SandboxTemplate>,
    vault: impl Fn(&str) -> Option<Vault>,
) -> Result<Option<Egress>, Unresolved> {
    let mcp: Vec<String> = servers.iter().filter_map(|server| host(&server.upstream)).collect();
    let mut any = false;
    let mut sandboxes = BTreeMap::new();
    for sandbox in &session.spec.sandboxes {
        let network = template(&sandbox.template_ref.name).and_then(|template| template.spec.network);
        any |= network.is_some();
        sandboxes.insert(sandbox.name.clone(), reach(network.as_ref(), sandbox.network.as_ref(), &mcp));
    }
    let vaults = session.spec.vault_refs.iter().filter_map(|named| Some((named.name.clone(), vault(&named.name)?)));
    let mut bindings: Vec<(String, CredentialSpec)> = vaults
        .flat_map(|(name, vault)| {
            placeholders(&vault.spec).map(|credential| (name.clone(), credential.clone())).collect::<Vec<_>>()
        })
        .collect();
    let repositories = session.spec.resources.iter().filter_map(of_repository);
    bindings.extend(repositories.map(|credential| (OF_RESOURCES.to_owned(), credential)));
    if bindings.len() > MAX_BINDINGS {
        return Err(Unresolved::TooManyCredentials { found: bindings.len(), limit: MAX_BINDINGS });
    }
    Ok((any || !bindings.is_empty()).then_some(Egress { sandboxes, bindings }))
}

fn host(url: &str) -> Option<String> {
    Url::parse(url).ok()?.host_str().map(ToOwned::to_owned)
}

impl Egress {
    /// The section `egress` of `PROXY_CONFIG`: file names and rules, never a value.
    pub(super) fn config(&self, context: &Context, session: &str, verify_key: &str) -> Value {
        let network = |hosts: &BTreeSet<String>| match hosts.contains(ANY) {
            true => json!({ "unrestricted": true }),
            false => json!({ "hosts": hosts }),
        };
        let sandboxes: BTreeMap<&str, Value> =
            self.sandboxes.iter().map(|(name, hosts)| (name.as_str(), network(hosts))).collect();
        let bindings: Vec<Value> = self.bindings.iter().map(|(vault, credential)| binding(vault, credential)).collect();
        let mut audit = json!({ "url": context.session_url, "tokenFile": format!("{TOKEN_FOLDER}/token") });
        if let Some(authorities) = &context.session_ca {
            audit["ca"] = json!(authorities);
        }
        json!({
            "session": session,
            "verifyKey": verify_key,
            "sandboxes": sandboxes,
            "bindings": bindings,
            "audit": audit,
        })
    }

    /// The volumes with the credentials, for the proxy alone.
    pub(super) fn volumes(&self) -> impl Iterator<Item = Volume> {
        self.bindings.iter().map(|(vault, credential)| credential_volume(&volume(vault, credential), credential))
    }

    /// Where the proxy sees them.
    pub(super) fn mounts(&self) -> impl Iterator<Item = VolumeMount> {
        self.bindings
            .iter()
            .map(|(vault, credential)| mount(&volume(vault, credential), folder(vault, credential), true))
    }
}

/// Vaults may have credentials of the same name, and names that are too long for a volume.
fn volume(vault: &str, credential: &CredentialSpec) -> String {
    let digest = Sha256::digest(format!("{vault}/{}", credential.name).as_bytes());
    let digest: String = digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
    format!("egress-{digest}")
}

fn folder(vault: &str, credential: &CredentialSpec) -> String {
    format!("{CREDENTIALS}/{}", volume(vault, credential))
}

fn binding(vault: &str, credential: &CredentialSpec) -> Value {
    let allow = &credential.allow;
    let folder = folder(vault, credential);
    json!({
        "vault": vault,
        "name": credential.name,
        "file": format!("{folder}/{}", credential.secret_ref.key),
        "placement": placement(&credential.placement, &folder),
        "allow": {
            "scheme": allow.scheme,
            "hosts": allow.hosts,
            "port": allow.port.unwrap_or_else(|| i32::from(allow.scheme.default_port())),
            "methods": allow.methods,
            "pathPrefixes": allow.path_prefixes,
            "allowPrivate": allow.private_addresses == PrivateAddresses::Allow,
        },
        "keptIn": kept_in(credential),
    })
}

fn placement(placement: &Placement, folder: &str) -> Value {
    if let Some(aws) = &placement.aws {
        let file = |key: &String| format!("{folder}/{key}");
        return json!({
            "type": "aws",
            "accessKeyIDFile": file(&aws.access_key_id_key),
            "sessionTokenFile": aws.session_token_key.as_ref().map(file),
            "services": aws.services,
            "regions": aws.regions,
        });
    }
    let locations = placement.variable.iter().flat_map(|variable| &variable.locations);
    let locations: Vec<&str> = locations
        .map(|location| match location {
            InjectionLocation::Header => "header",
            InjectionLocation::Query => "query",
            InjectionLocation::Path => "path",
            InjectionLocation::Body => "body",
        })
        .collect();
    json!({ "type": "environmentVariable", "locations": locations })
}

#[cfg(test)]
pub(super) mod tests {
    use longhand_crds::vault::{CredentialSpec, PrivateAddresses};
    use longhand_crds::{AgentSession, SandboxTemplate, Vault};
    use longhand_proxy::config::BindingPlacement;
    use serde_json::{Value, json};

    use super::{Egress, of};
    use crate::agent::mcp::McpAccess;
    use crate::fixtures;
    use crate::testing::context;

    fn template(network: Value) -> SandboxTemplate {
        let mut template = fixtures::template();
        template.spec.network = serde_json::from_value(network).unwrap();
        template
    }

    fn vault() -> Vault {
        let mut vault = fixtures::vault();
        vault.spec = serde_json::from_value(json!({ "credentials": [{
            "name": "github",
            "secretRef": { "name": "github", "key": "token" },
            "allow": { "hosts": ["api.github.test", "*.git.test"], "methods": ["GET"], "pathPrefixes": ["/repos"] },
            "placement": { "type": "environmentVariable", "variable": { "name": "GITHUB_TOKEN", "locations": ["header", "body"] } },
        }] }))
        .unwrap();
        vault
    }

    fn session(network: Value) -> AgentSession {
        let mut session = fixtures::session();
        session.spec.vault_refs = vec![longhand_crds::LocalRef { name: "work".to_owned() }];
        session.spec.sandboxes[0].network = serde_json::from_value(network).unwrap();
        session
    }

    /// A session with a credential for its sandbox.
    pub(in crate::agent_session) fn egress() -> Egress {
        let network = json!({ "allowedHosts": ["pypi.test", "*.docs.test"], "allowMCPServers": true });
        let server = McpAccess {
            name: "s".to_owned(),
            url: "https://mcp.test/x".to_owned(),
            upstream: "https://mcp.test/x".to_owned(),
            private_addresses: PrivateAddresses::Refuse,
            credential: None,
            vault: None,
        };
        of(&session(json!(null)), &[server], |_| Some(template(network.clone())), |_| Some(vault())).unwrap().unwrap()
    }

    fn read(config: Value) -> longhand_proxy::config::Egress {
        let mut whole = super::super::proxy_config::config(
            "http://model.test",
            ("models", &fixtures::vault().spec.credentials[0]),
            &[],
            &[],
        );
        whole["egress"] = config;
        longhand_proxy::config::Config::parse(&whole.to_string()).unwrap().egress.unwrap()
    }

    #[tokio::test]
    async fn the_proxy_reads_what_is_written() {
        let (context, _server) = context();
        let config = egress().config(&context, "sesn_1", "key=");
        insta::assert_yaml_snapshot!(config);
        let read = read(config);
        assert_eq!((read.sandboxes["main"].hosts.len(), read.bindings[0].label().as_str()), (3, "work/github"));
    }

    #[tokio::test]
    async fn aws_keys_are_three_files_of_one_secret() {
        let (context, _server) = context();
        let mut vault = fixtures::vault();
        vault.spec = serde_json::from_value(json!({ "credentials": [{
            "name": "aws", "secretRef": { "name": "aws", "key": "secret" }, "allow": { "hosts": ["*.amazonaws.com"] },
            "placement": { "type": "aws", "aws": { "accessKeyIDKey": "id", "sessionTokenKey": "token", "regions": ["eu-west-1"] } },
        }] }))
        .unwrap();
        let egress = of(&session(json!(null)), &[], |_| None, |_| Some(vault.clone())).unwrap().unwrap();
        let items = egress.volumes().next().unwrap().secret.unwrap().items.unwrap();
        assert_eq!(items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["id", "secret", "token"]);
        let read = read(egress.config(&context, "sesn_1", "key="));
        let BindingPlacement::Aws(aws) = &read.bindings[0].placement else { panic!("{read:?}") };
        assert!(aws.access_key_id_file.ends_with("id") && aws.regions == ["eu-west-1"]);
    }

    #[tokio::test]
    async fn a_session_narrows_what_its_template_allows() {
        let (context, _server) = context();
        let all = |_: &str| Some(template(json!({ "egress": "Unrestricted" })));
        let open = of(&session(json!(null)), &[], all, |_| None).unwrap().unwrap();
        assert!(read(open.config(&context, "sesn_1", "key=")).sandboxes["main"].unrestricted);
        let narrowed = of(&session(json!({ "allowedHosts": ["a.test"] })), &[], all, |_| None).unwrap().unwrap();
        let read = read(narrowed.config(&context, "sesn_1", "key="));
        assert!(!read.sandboxes["main"].unrestricted && read.sandboxes["main"].hosts.len() == 1);
    }

    #[tokio::test]
    async fn the_token_of_a_repository_goes_there_and_nowhere_else() {
        let (context, _server) = context();
        let mut session = session(json!(null));
        session.spec.resources = serde_json::from_value(json!([
            { "name": "sesrsc-1", "mountPath": "/workspace/r", "githubRepository": { "url": "https://git.test/o/r.git",
              "tokenRef": { "name": "one-token-1", "key": "token" } } },
            { "name": "sesrsc-2", "mountPath": "/workspace/s", "githubRepository": { "url": "https://open.test/o/s" } },
        ]))
        .unwrap();
        let egress = of(&session, &[], |_| Some(fixtures::template()), |_| None)
            .unwrap()
            .expect("a way out for the one with a token");
        let volumes: Vec<_> = egress.volumes().collect();
        assert_eq!(volumes.len(), 1);
        assert!(serde_json::to_string(&volumes).unwrap().contains("one-token-1"));
        let config = egress.config(&context, "sesn_1", "key=");
        let allow = json!({ "scheme": "https", "hosts": ["git.test"], "port": 443, "methods": ["GET", "POST"],
            "pathPrefixes": ["/o/r.git"], "allowPrivate": false });
        assert_eq!(config["bindings"][0]["allow"], allow);
        assert_eq!(read(config).bindings[0].label(), ".resources/sesrsc-1");
    }

    #[test]
    fn more_credentials_than_the_proxy_takes_are_refused_and_none_is_left_out() {
        let vaults = |count: usize| {
            let mut vault = vault();
            let one = vault.spec.credentials.remove(0);
            let named = |number| CredentialSpec { name: format!("c{number}"), ..one.clone() };
            vault.spec.credentials = (0..count).map(named).collect();
            of(&session(json!(null)), &[], |_| None, |_| Some(vault.clone()))
        };
        assert_eq!(vaults(128).unwrap().unwrap().bindings.len(), 128);
        let problem = vaults(129).unwrap_err();
        assert_eq!(problem.reason(), "TooManyCredentials");
        assert!(problem.to_string().contains("129 credentials for sandboxes, more than 128"), "{problem}");
    }

    #[test]
    fn a_session_has_no_egress_unless_its_template_or_a_vault_says_so() {
        let none = |_: &str| Some(fixtures::template());
        let wider = session(json!({ "egress": "Unrestricted" }));
        assert_eq!(of(&wider, &[], none, |_| Some(fixtures::vault())).unwrap(), None, "it never widens");
        assert!(of(&session(json!(null)), &[], none, |_| Some(vault())).unwrap().is_some());
        assert!(of(&session(json!(null)), &[], |_| Some(template(json!({}))), |_| None).unwrap().is_some());
    }
}
