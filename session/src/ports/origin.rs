//! Which host leads to which port: each has an origin of its own, so that browsers keep apart what runs in different sandboxes.

use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::execute::sandboxes::SandboxKey;

/// A label of a host name has at most 63 characters: five for the port, and two hyphens.
const NAME: usize = 40;
const DIGEST_BYTES: usize = 8;

/// Where ports are served: what the URL of each begins with, and the domain below which each has a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    secure: bool,
    /// With the port of the URL, if it has one.
    authority: String,
}

/// A text that is no such URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ports are served below a URL such as https://ports.example.com, without a path")]
pub struct NoDomain;

impl FromStr for Domain {
    type Err = NoDomain;

    fn from_str(text: &str) -> Result<Self, NoDomain> {
        let (scheme, rest) = text.split_once("://").ok_or(NoDomain)?;
        let authority = rest.trim_end_matches('/').to_ascii_lowercase();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':');
        let is_host = !authority.is_empty() && authority.len() <= 180 && authority.bytes().all(allowed);
        let secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(NoDomain),
        };
        if is_host && !authority.starts_with(['.', ':', '-']) { Ok(Self { secure, authority }) } else { Err(NoDomain) }
    }
}

impl Domain {
    /// Whether browsers speak TLS to it.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Whether a request to this `Host` is for a port, of whichever sandbox.
    #[must_use]
    pub fn is_ours(&self, host: &str) -> bool {
        let (host, domain) = (without_port(host), without_port(&self.authority));
        let before = host.len().checked_sub(domain.len());
        before.is_some_and(|before| {
            before >= 2
                && host.is_char_boundary(before)
                && host.get(before..).is_some_and(|end| end.eq_ignore_ascii_case(domain))
                && host.as_bytes().get(before - 1) == Some(&b'.')
        })
    }

    /// The host of a port, with the port of the URL: `{port}-{sandbox}-{digest}.{domain}`. The digest tells sandboxes of one name
    /// in different namespaces apart, and those whose names are cut.
    #[must_use]
    pub fn host(&self, sandbox: &SandboxKey, port: u16) -> String {
        let SandboxKey { namespace, name } = sandbox;
        let digest = Sha256::digest(format!("{namespace}/{name}").as_bytes());
        let digest: String = digest.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
        let readable: String = name.replace('.', "-").chars().take(NAME).collect();
        format!("{port}-{}-{digest}.{}", readable.trim_end_matches('-'), self.authority)
    }

    /// Whether this `Host` is that of the port.
    #[must_use]
    pub fn is_host_of(&self, host: &str, sandbox: &SandboxKey, port: u16) -> bool {
        without_port(host).eq_ignore_ascii_case(without_port(&self.host(sandbox, port)))
    }

    /// The origin of a port, as browsers write it.
    #[must_use]
    pub fn origin(&self, sandbox: &SandboxKey, port: u16) -> String {
        format!("{}://{}", self.scheme(), self.host(sandbox, port))
    }
}

/// Who connects may write the port or not, and a port-forward has another one.
fn without_port(host: &str) -> &str {
    host.split_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Domain, SandboxKey};

    fn key(namespace: &str, name: &str) -> SandboxKey {
        SandboxKey { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn domain() -> Domain {
        "https://Ports.Example.com/".parse().unwrap()
    }

    #[rstest]
    #[case("https://ports.example.com", true)]
    #[case("http://ports.localhost:8443", true)]
    #[case("ports.example.com", false)]
    #[case("https://", false)]
    #[case("https://a/b", false)]
    #[case("ftp://a", false)]
    #[case("https://a b", false)]
    #[case("https://.a", false)]
    #[case("https://user@a", false)]
    fn a_domain_is_a_url(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(text.parse::<Domain>().is_ok(), valid);
    }

    #[rstest]
    #[case("80-x.ports.example.com", true)]
    #[case("80-X.PORTS.example.com:8443", true)]
    #[case("ports.example.com", false)]
    #[case("xports.example.com", false)]
    #[case(".ports.example.com", false)]
    #[case("longhand-session.longhand-system.svc:8080", false)]
    #[case("", false)]
    #[case("ü.example.com", false)]
    fn hosts_are_told_apart(#[case] host: &str, #[case] ours: bool) {
        assert_eq!(domain().is_ours(host), ours);
    }

    #[test]
    fn each_port_of_each_sandbox_has_a_host_that_fits() {
        let domain = domain();
        let hosts = [
            domain.host(&key("a", "hello-default-1f2e3d"), 8080),
            domain.host(&key("b", "hello-default-1f2e3d"), 8080),
            domain.host(&key("a", "hello-default-1f2e3d"), 8081),
            domain.host(&key("a", &"x".repeat(253)), 65_535),
            domain.host(&key("a", &"x".repeat(252)), 65_535),
        ];
        for (index, host) in hosts.iter().enumerate() {
            let (label, rest) = host.split_once('.').unwrap();
            assert!(label.len() <= 63 && rest == "ports.example.com", "{host}");
            assert!(!hosts[..index].contains(host) && domain.is_ours(host), "{host}");
        }
        assert!(domain.is_host_of(&hosts[0].to_uppercase(), &key("a", "hello-default-1f2e3d"), 8080));
        assert!(!domain.is_host_of(&hosts[0], &key("b", "hello-default-1f2e3d"), 8080));
        assert!(domain.origin(&key("a", "s.t"), 1).starts_with("https://1-s-t-"));
    }
}
