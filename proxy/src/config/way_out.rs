//! How connections leave the cluster, as its owner says.

use http::Uri;
use serde::Deserialize;

use crate::{
    hosts::HostPattern,
    policy::{Host, InvalidHost},
};

/// A proxy on the way to the internet, spoken to by CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamProxy {
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// Hosts that are reached without it.
    pub no_proxy: Vec<HostPattern>,
}

impl UpstreamProxy {
    /// Whether a host is reached through it.
    #[must_use]
    pub fn is_for(&self, host: &Host) -> bool {
        !self.no_proxy.iter().any(|pattern| pattern.covers(host))
    }
}

/// Why an upstream proxy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamProxyProblem {
    /// Its URL has more than a host and a port.
    #[error(
        "upstreamProxy.url {0:?} must be http://host:port, without user, path or query: a proxy over TLS or with a password is not supported"
    )]
    Url(String),
    /// A host of `noProxy` that is none.
    #[error("upstreamProxy.noProxy: {0}")]
    NoProxy(InvalidHost),
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
        // The usual form of a domain in such lists has no star.
        let pattern = |text: String| match text.strip_prefix('.') {
            Some(domain) => HostPattern::parse(&format!("*.{domain}")),
            None => HostPattern::parse(&text),
        };
        let no_proxy = no_proxy.into_iter().map(pattern).collect::<Result<_, _>>();
        Ok(Self { host, port, no_proxy: no_proxy.map_err(UpstreamProxyProblem::NoProxy)? })
    }
}
