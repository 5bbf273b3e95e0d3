//! How connections leave the cluster, as its owner says.

use std::net::IpAddr;

use http::Uri;
use serde::Deserialize;

use crate::{hosts::HostPattern, policy::Host};

/// A proxy on the way to the internet, spoken to by CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamProxy {
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// What is reached without it.
    pub no_proxy: Vec<NoProxy>,
}

impl UpstreamProxy {
    /// Whether a port of a host is reached through it.
    #[must_use]
    pub fn is_for(&self, host: &Host, port: u16) -> bool {
        !self.no_proxy.iter().any(|entry| entry.covers(host, port))
    }
}

/// An entry of `noProxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoProxy {
    /// Hosts: all of their ports, or one.
    Hosts(HostPattern, Option<u16>),
    /// Addresses that begin with the same bits as this one, so many of them. Only hosts that are written as addresses are
    /// compared: names are resolved later, or elsewhere.
    Network(IpAddr, u8),
}

impl NoProxy {
    /// Reads `host`, `.domain` or `*.domain`, each with `:port` behind it or without, or `address/bits`. An IPv6 address with a
    /// port is in brackets.
    ///
    /// # Errors
    /// [`InvalidNoProxy`] for anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidNoProxy> {
        let refuse = || InvalidNoProxy(text.chars().take(MAX_SHOWN).collect());
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits) = (address.parse::<IpAddr>().ok(), bits.parse::<u8>().ok());
            let (address, bits) = address.zip(bits).ok_or_else(refuse)?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            return if bits <= most { Ok(Self::Network(address, bits)) } else { Err(refuse()) };
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if text.parse::<IpAddr>().is_err() && !text.ends_with(']') => {
                let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(refuse)?;
                (host, Some(port))
            }
            _ => (text, None),
        };
        // Else the port of an IPv6 address could be the end of it.
        if port.is_some() && host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) {
            return Err(refuse());
        }
        // The usual form of a domain in such lists has no star.
        let pattern = match host.strip_prefix('.') {
            Some(domain) => HostPattern::parse(&format!("*.{domain}")),
            None => HostPattern::parse(host),
        };
        pattern.map(|pattern| Self::Hosts(pattern, port)).map_err(|_| refuse())
    }

    /// Whether it means this port of this host.
    #[must_use]
    pub fn covers(&self, host: &Host, port: u16) -> bool {
        match self {
            Self::Hosts(pattern, only) => pattern.covers(host) && only.is_none_or(|only| only == port),
            Self::Network(network, bits) => {
                host.address().is_some_and(|address| same_network(*network, address, *bits))
            }
        }
    }
}

/// Whether two addresses are of one kind and begin with the same bits.
fn same_network(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let differing = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= u32::from(bits)
}

/// So much of an entry that is none is shown.
const MAX_SHOWN: usize = 253;

/// A text that is no entry of `noProxy`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of host, .domain, *.domain (each also with :port) and address/bits")]
pub struct InvalidNoProxy(String);

/// Why an upstream proxy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamProxyProblem {
    /// Its URL has more than a host and a port.
    #[error(
        "upstreamProxy.url {0:?} must be http://host:port, without user, path or query: a proxy over TLS or with a password is not supported"
    )]
    Url(String),
    /// An entry of `noProxy` that is none.
    #[error("upstreamProxy.noProxy: {0}")]
    NoProxy(#[from] InvalidNoProxy),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawUpstreamProxy {
    url: String,
    #[serde(default)]
    no_proxy: Vec<String>,
}

impl TryFrom<RawUpstreamProxy> for UpstreamProxy {
    type Error = UpstreamProxyProblem;

    fn try_from(raw: RawUpstreamProxy) -> Result<Self, UpstreamProxyProblem> {
        let RawUpstreamProxy { url, no_proxy } = raw;
        let refuse = || UpstreamProxyProblem::Url(url.clone());
        let uri: Uri = url.parse().map_err(|_| refuse())?;
        let authority = uri.authority().ok_or_else(refuse)?;
        let plain = uri.scheme_str() == Some("http")
            && !authority.as_str().contains('@')
            && uri.path_and_query().is_none_or(|path| path == "/");
        if !plain {
            return Err(refuse());
        }
        let host = Host::parse(authority.host()).map_err(|_| refuse())?;
        let port = authority.port_u16().ok_or_else(refuse)?;
        let no_proxy = no_proxy.iter().map(|text| NoProxy::parse(text)).collect::<Result<_, _>>()?;
        Ok(Self { host, port, no_proxy })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::NoProxy;
    use crate::policy::Host;

    #[rstest]
    #[case("git.corp.example", "git.corp.example", 443, true)]
    #[case("git.corp.example", "a.git.corp.example", 443, false)]
    #[case(".corp.example", "git.corp.example", 443, true)]
    #[case("*.corp.example", "git.corp.example", 443, true)]
    #[case("git.corp.example:8080", "git.corp.example", 8080, true)]
    #[case("git.corp.example:8080", "git.corp.example", 443, false)]
    #[case(".corp.example:8080", "git.corp.example", 8080, true)]
    #[case("10.0.0.0/8", "10.200.3.4", 443, true)]
    #[case("10.0.0.0/8", "11.0.0.1", 443, false)]
    #[case("10.1.2.3/8", "10.200.3.4", 443, true)]
    #[case("10.0.0.0/8", "ten.example", 443, false)]
    #[case("0.0.0.0/0", "8.8.8.8", 443, true)]
    #[case("0.0.0.0/0", "2606:4700::1111", 443, false)]
    #[case("10.1.2.3/32", "10.1.2.3", 443, true)]
    #[case("10.1.2.3/32", "10.1.2.2", 443, false)]
    #[case("fd00::/8", "fd12::1", 443, true)]
    #[case("fd00::/8", "fe00::1", 443, false)]
    #[case("fd12::1", "fd12::1", 443, true)]
    #[case("[fd12::1]", "fd12::1", 443, true)]
    #[case("[fd12::1]:8080", "fd12::1", 8080, true)]
    #[case("[fd12::1]:8080", "fd12::1", 443, false)]
    #[case("10.1.2.3:8080", "10.1.2.3", 8080, true)]
    fn what_an_entry_covers(#[case] entry: &str, #[case] host: &str, #[case] port: u16, #[case] expected: bool) {
        let covers = NoProxy::parse(entry).unwrap().covers(&Host::parse(host).unwrap(), port);
        assert_eq!(covers, expected);
    }

    #[rstest]
    #[case("")]
    #[case("10.0.0.0/33")]
    #[case("10.0.0.0/-1")]
    #[case("fd00::/129")]
    #[case("corp.example/8")]
    #[case("10.0.0.0/8:8080")]
    #[case("host:0")]
    #[case("host:65536")]
    #[case("host:http")]
    #[case("host:")]
    #[case("[fd12::1")]
    #[case("http://host")]
    #[case("a b")]
    #[case("fd12::1:99999")]
    fn what_is_no_entry_is_shown(#[case] entry: &str) {
        let error = NoProxy::parse(entry).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{entry:?} is none of host")), "{error}");
    }
}
