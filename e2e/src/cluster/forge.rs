//! Servers that real programs fetch code and packages from, by TLS, in the test's namespace: `e2e/clients/forge.py`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use rand::Rng as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::namespace::TestNamespace;
use super::{TestResult, clients_image, exec};

const MANIFEST: &str = include_str!("../../fixtures/forge.yaml");
/// A folder with the certificate and the key of an authority that the cluster's proxies trust.
const AUTHORITY_VARIABLE: &str = "E2E_CA";
/// The subject that `hack/cluster` gives it.
const AUTHORITY: &str = "Longhand tests";
const START: Duration = Duration::from_secs(60);

/// The servers, which are ready.
pub struct Forge {
    /// Their name within the cluster.
    pub host: String,
    /// The one credential that they take.
    pub value: String,
    /// The image that they and the programs are in.
    pub image: String,
    pods: Api<Pod>,
    pod: String,
}

impl Forge {
    /// Starts them, known by the names `forge.{namespace}.svc` and `{alias}.{namespace}.svc`, or `alias` as it is if it has a dot; `None` if
    /// the cluster trusts no authority of the tests.
    ///
    /// # Errors
    /// When they are not ready within a minute.
    pub async fn install(namespace: &TestNamespace, alias: &str) -> TestResult<Option<Self>> {
        let Some(authority) = std::env::var_os(AUTHORITY_VARIABLE).map(PathBuf::from) else { return Ok(None) };
        let Ok(authority) = std::fs::read_to_string(authority.join("ca.key")) else { return Ok(None) };
        let within = |name: &str| format!("{name}.{}.svc", namespace.name);
        let (host, other) = (within("forge"), if alias.contains('.') { alias.to_owned() } else { within(alias) });
        let (certificate, key) = certificate(&authority, vec![host.clone(), other])?;
        let image = clients_image();
        let value = format!("forge-{:032x}", rand::rng().random::<u128>());
        let indented = |pem: &str| pem.trim().replace('\n', "\n    ");
        let yaml = MANIFEST
            .replace("${VALUE}", &value)
            .replace("${REFRESH_TOKEN}", &format!("rt-{:032x}", rand::rng().random::<u128>()))
            .replace("${CERTIFICATE}", &indented(&certificate))
            .replace("${KEY}", &indented(&key))
            .replace("${IMAGE}", &image)
            .replace("${HOST}", &host);
        namespace.apply(&yaml).await?;
        let pods = namespace.api::<Pod>();
        let pod = namespace.ready_pod("forge", START).await?;
        Ok(Some(Self { host, value, image, pods, pod }))
    }

    /// What a key of their Secret is by now, as the kubelet has brought it.
    ///
    /// # Errors
    /// When it cannot be read within a minute.
    pub async fn read(&self, key: &str) -> TestResult<String> {
        let path = format!("/var/run/secrets/forge/{key}");
        let (output, _) = exec(&self.pods, &self.pod, None, &["cat", &path], START).await?;
        Ok(String::from_utf8(output)?)
    }

    /// How often they served what, by its name.
    ///
    /// # Errors
    /// When they do not say so within a minute.
    pub async fn seen(&self) -> TestResult<BTreeMap<String, u64>> {
        let command = ["curl", "-sSk", "https://127.0.0.1:8443/seen"];
        let (output, _) = exec(&self.pods, &self.pod, None, &command, START).await?;
        Ok(serde_json::from_slice(&output)?)
    }
}

/// A certificate of the authority with this key, and its own key.
fn certificate(authority: &str, names: Vec<String>) -> TestResult<(String, String)> {
    let mut issuer = CertificateParams::default();
    issuer.distinguished_name = rcgen::DistinguishedName::new();
    issuer.distinguished_name.push(DnType::CommonName, AUTHORITY);
    issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(issuer, KeyPair::from_pem(authority)?);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
