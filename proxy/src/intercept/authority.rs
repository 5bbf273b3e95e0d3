//! The certificate authority of one proxy: made in memory when it starts and gone with it. It is constrained to the hosts with a
//! binding, so that its key could not be used for any other even if it were stolen.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
    SanType,
};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};

use crate::{hosts::HostPattern, policy::Host};

/// How long the authority is good for: longer than a harness pod lives.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a host's certificate is good for.
const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long it is used before it is made anew, so that clients always see some hours left.
const LEAF_USE: Duration = Duration::from_secs(12 * 3600);
/// How far the clock of a sandbox may be behind.
const SKEW: Duration = Duration::from_secs(3600);
/// How many certificates are kept; a binding of `*.example.com` has any number of hosts.
const MAX_LEAFS: usize = 256;

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate itself.
    #[error("cannot make a certificate for {host}: {source}")]
    Certificate {
        /// For whom.
        host: String,
        /// Why not.
        source: rcgen::Error,
    },
    /// The TLS library does not take it.
    #[error("cannot use the certificate for {host}: {source}")]
    Tls {
        /// For whom.
        host: String,
        /// Why not.
        source: rustls::Error,
    },
}

/// The authority, and the certificates that it has made.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    leaf_pair: KeyPair,
    leaf_key: Arc<dyn SigningKey>,
    leafs: Mutex<HashMap<Host, Leaf>>,
}

struct Leaf {
    made: SystemTime,
    config: Arc<ServerConfig>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// Makes an authority for these hosts. With `*` among them it cannot be constrained to names.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`], when there is no randomness.
    pub fn new<'a>(hosts: impl IntoIterator<Item = &'a HostPattern>, now: SystemTime) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::Certificate { host: "the authority".to_owned(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = named("Longhand session egress");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = constraints(hosts);
        params.not_before = (now - SKEW).into();
        params.not_after = (now + LIFETIME).into();
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let issuer = CertifiedIssuer::self_signed(params, pair).map_err(failed)?;
        let leaf_pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_pair.serialize_der()));
        let leaf_key = ring::sign::any_ecdsa_type(&der)
            .map_err(|source| AuthorityError::Tls { host: "the authority".to_owned(), source })?;
        Ok(Self { issuer, leaf_pair, leaf_key, leafs: Mutex::default() })
    }

    /// Its certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The TLS settings with which a host is impersonated, with a certificate that is good for hours.
    ///
    /// # Errors
    /// [`AuthorityError`], when a certificate cannot be made.
    pub fn config(&self, host: &Host, now: SystemTime) -> Result<Arc<ServerConfig>, AuthorityError> {
        let mut leafs = self.leafs.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |leaf: &&Leaf| now.duration_since(leaf.made).is_ok_and(|age| age < LEAF_USE);
        if let Some(leaf) = leafs.get(host).filter(fresh) {
            return Ok(leaf.config.clone());
        }
        let config = Arc::new(self.make(host, now)?);
        if leafs.len() >= MAX_LEAFS {
            leafs.clear();
        }
        leafs.insert(host.clone(), Leaf { made: now, config: config.clone() });
        Ok(config)
    }

    fn make(&self, host: &Host, now: SystemTime) -> Result<ServerConfig, AuthorityError> {
        let failed = |source| AuthorityError::Certificate { host: host.to_string(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = named("Longhand session egress leaf");
        params.subject_alt_names = vec![match host.address() {
            Some(address) => SanType::IpAddress(address),
            None => SanType::DnsName(host.as_str().try_into().map_err(failed)?),
        }];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - SKEW).into();
        params.not_after = (now + LEAF_LIFETIME).into();
        let leaf = params.signed_by(&self.leaf_pair, &self.issuer).map_err(failed)?;
        let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone()];
        let certified = CertifiedKey::new(chain, self.leaf_key.clone());
        let failed = |source| AuthorityError::Tls { host: host.to_string(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Nothing is resumed: handshakes on this way are cheap, and memory is not.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn constraints<'a>(hosts: impl IntoIterator<Item = &'a HostPattern>) -> Option<NameConstraints> {
    let mut permitted = Vec::new();
    let (mut any_name, mut v4, mut v6) = (false, false, false);
    for pattern in hosts {
        match pattern {
            HostPattern::Any => any_name = true,
            HostPattern::Below(parent) => permitted.push(GeneralSubtree::DnsName(parent.to_string())),
            HostPattern::Exact(host) => match host.address() {
                None => permitted.push(GeneralSubtree::DnsName(host.to_string())),
                Some(address) => {
                    v4 |= address.is_ipv4();
                    v6 |= address.is_ipv6();
                    let bits = if address.is_ipv4() { 32 } else { 128 };
                    permitted.push(GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, bits)));
                }
            },
        }
    }
    if any_name {
        permitted.retain(|subtree| !matches!(subtree, GeneralSubtree::DnsName(_)));
    } else if !permitted.iter().any(|subtree| matches!(subtree, GeneralSubtree::DnsName(_))) {
        // A kind of name that is not mentioned is not constrained.
        permitted.push(GeneralSubtree::DnsName("no.host.invalid".to_owned()));
    }
    // The same goes for addresses; both versions are excluded only where none is named, since exclusion comes first.
    let mut excluded = Vec::new();
    if !v4 {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)));
    }
    if !v6 {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)));
    }
    (!permitted.is_empty() || !excluded.is_empty())
        .then_some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rstest::rstest;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{ServerName, UnixTime},
    };

    use super::*;

    fn authority(hosts: &[&str]) -> Authority {
        let hosts: Vec<HostPattern> = hosts.iter().map(|host| HostPattern::parse(host).unwrap()).collect();
        Authority::new(&hosts, SystemTime::now()).unwrap()
    }

    fn leaf(authority: &Authority, host: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_after = (SystemTime::now() + LEAF_LIFETIME).into();
        params.signed_by(&authority.leaf_pair, &authority.issuer).unwrap().der().clone()
    }

    fn trusted(authority: &Authority, host: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(authority.issuer.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        verifier.verify_server_cert(&leaf(authority, host), &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[rstest]
    #[case(&["github.com"], "github.com", true)]
    #[case(&["github.com"], "bank.example", false)]
    #[case(&["*.example.com"], "a.example.com", true)]
    #[case(&["*.example.com"], "example.org", false)]
    #[case(&["github.com"], "10.0.0.1", false)]
    #[case(&["10.0.0.1"], "10.0.0.1", true)]
    #[case(&["10.0.0.1"], "10.0.0.2", false)]
    #[case(&["10.0.0.1"], "github.com", false)]
    #[case(&["10.0.0.1"], "::1", false)]
    #[case(&["::1"], "::1", true)]
    #[case(&["*"], "anything.example", true)]
    #[case(&["*"], "10.0.0.1", false)]
    #[case(&[], "github.com", false)]
    fn it_is_good_for_bound_hosts_only(#[case] hosts: &[&str], #[case] host: &str, #[case] expected: bool) {
        assert_eq!(trusted(&authority(hosts), host), expected);
    }

    #[test]
    fn a_certificate_is_kept_for_hours_and_never_too_many() {
        let authority = authority(&["*.example.com"]);
        let host = Host::parse("a.example.com").unwrap();
        let now = SystemTime::now();
        let first = authority.config(&host, now).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.config(&host, now + LEAF_USE / 2).unwrap()));
        assert!(!Arc::ptr_eq(&first, &authority.config(&host, now + LEAF_USE).unwrap()));
        for number in 0..MAX_LEAFS + 10 {
            authority.config(&Host::parse(&format!("h{number}.example.com")).unwrap(), now).unwrap();
        }
        assert!(authority.leafs.lock().unwrap().len() <= MAX_LEAFS);
    }

    #[test]
    fn it_is_ready_in_20_ms() {
        // The best of some runs: what is measured is the work, and not what else the machine does.
        let best = (0..10)
            .map(|_| {
                let started = Instant::now();
                let authority = authority(&["github.com"]);
                authority.config(&Host::parse("github.com").unwrap(), SystemTime::now()).unwrap();
                started.elapsed()
            })
            .min()
            .unwrap();
        assert!(best < Duration::from_millis(20), "{best:?}");
    }
}
