//! Which way a request goes, by its host, port and scheme alone. Pure.

use super::context::Bound;
use crate::{
    config::Network,
    policy::{Host, Scheme},
};

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A credential is bound there, so every request is judged.
    Bound {
        /// Whether a binding that names the host lets it have a private address.
        allow_private: bool,
    },
    /// Nothing is bound there: passed on untouched.
    Open,
}

/// Why there is no way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    /// The sandbox may not reach the host.
    #[error(
        "this sandbox may not reach {host}: its template's allowedHosts do not name it, and no credential is bound to it"
    )]
    NotAllowed {
        /// The host.
        host: String,
    },
    /// An address that nothing names.
    #[error("this sandbox may not reach {host}: an IP address must be named, a wildcard does not cover it")]
    UnnamedAddress {
        /// The address.
        host: String,
    },
    /// The host has a credential, for another port or scheme.
    #[error("a credential is bound to {host} for {} port {port} only, not for {} port {asked_port}", .scheme.as_str(), .asked_scheme.as_str())]
    BoundElsewhere {
        /// The host.
        host: String,
        /// The binding's scheme.
        scheme: Scheme,
        /// The binding's port.
        port: u16,
        /// The scheme that was asked for.
        asked_scheme: Scheme,
        /// The port that was asked for.
        asked_port: u16,
    },
}

/// Decides. A binding to `*` is for the hosts that the sandbox may reach anyway; a binding that names its hosts opens them.
///
/// # Errors
/// [`NoWay`] names the rule.
pub fn decide(network: &Network, bindings: &[Bound], scheme: Scheme, host: &Host, port: u16) -> Result<Way, NoWay> {
    let reachable = network.unrestricted && host.is_name() || network.hosts.iter().any(|pattern| pattern.covers(host));
    let (mut bound, mut allow_private, mut elsewhere) = (false, false, None);
    for Bound { binding, .. } in bindings {
        let rule = &binding.rule;
        let named = rule.hosts.iter().any(|pattern| pattern.is_specific() && pattern.covers(host));
        let applies = named || reachable && rule.covers(host);
        if !applies {
            continue;
        }
        if rule.scheme == scheme && rule.port == port {
            bound = true;
            allow_private |= named && rule.allow_private;
        } else if named {
            // Else a program could send what it likes to the same server, unjudged.
            elsewhere = Some((rule.scheme, rule.port));
        }
    }
    let text = host.to_string();
    match elsewhere {
        _ if bound => Ok(Way::Bound { allow_private }),
        Some((bound_scheme, bound_port)) => Err(NoWay::BoundElsewhere {
            host: text,
            scheme: bound_scheme,
            port: bound_port,
            asked_scheme: scheme,
            asked_port: port,
        }),
        None if reachable => Ok(Way::Open),
        None if host.is_name() => Err(NoWay::NotAllowed { host: text }),
        None => Err(NoWay::UnnamedAddress { host: text }),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::egress::testing::{bindings, network};

    #[rstest]
    // What the network allows.
    #[case("https", "pypi.org", 443, "open")]
    #[case("http", "pypi.org", 80, "open")]
    #[case("https", "files.pythonhosted.org", 443, "open")]
    #[case("https", "pythonhosted.org", 443, "not allowed")]
    #[case("https", "evil.example", 443, "not allowed")]
    #[case("https", "pypi.org.evil.example", 443, "not allowed")]
    #[case("https", "9.9.9.9", 443, "open")]
    #[case("https", "8.8.8.8", 443, "unnamed")]
    #[case("https", "::ffff:8.8.8.8", 443, "unnamed")]
    #[case("https", "localhost", 443, "not allowed")]
    // What is bound, whether or not the network allows it.
    #[case("https", "api.github.example", 443, "bound")]
    #[case("http", "api.github.example", 80, "elsewhere")]
    #[case("https", "api.github.example", 8443, "elsewhere")]
    #[case("https", "a.internal.example", 443, "bound private")]
    #[case("https", "internal.example", 443, "not allowed")]
    #[case("http", "plain.example", 8080, "bound private")]
    #[case("https", "plain.example", 8080, "elsewhere")]
    // A binding to `*` covers what may be reached, opens nothing, and lets nothing have a private address.
    #[case("https", "any.pypi.org", 9443, "not allowed")]
    #[case("https", "pypi.org", 9443, "bound")]
    #[case("https", "9.9.9.9", 9443, "open")]
    fn ways(#[case] scheme: &str, #[case] host: &str, #[case] port: u16, #[case] expected: &str) {
        let network = network(&json!({"hosts": ["pypi.org", "*.pythonhosted.org", "9.9.9.9"]}));
        let bindings = bindings(&json!([
            {"name": "github", "scheme": "https", "hosts": ["api.github.example"], "port": 443},
            {"name": "internal", "scheme": "https", "hosts": ["*.internal.example"], "port": 443, "allowPrivate": true},
            {"name": "plain", "scheme": "http", "hosts": ["plain.example"], "port": 8080, "allowPrivate": true},
            {"name": "any", "scheme": "https", "hosts": ["*"], "port": 9443, "allowPrivate": true},
        ]));
        let scheme = if scheme == "http" { Scheme::Http } else { Scheme::Https };
        let way = decide(&network, &bindings, scheme, &Host::parse(host).unwrap(), port);
        let text = match way {
            Ok(Way::Open) => "open",
            Ok(Way::Bound { allow_private: false }) => "bound",
            Ok(Way::Bound { allow_private: true }) => "bound private",
            Err(NoWay::NotAllowed { .. }) => "not allowed",
            Err(NoWay::UnnamedAddress { .. }) => "unnamed",
            Err(NoWay::BoundElsewhere { .. }) => "elsewhere",
        };
        assert_eq!(text, expected);
    }

    #[rstest]
    #[case("anything.example", true)]
    #[case("8.8.8.8", false)]
    #[case("::1", false)]
    fn an_unrestricted_sandbox_reaches_every_name(#[case] host: &str, #[case] expected: bool) {
        let network = network(&json!({"unrestricted": true}));
        let way = decide(&network, &[], Scheme::Https, &Host::parse(host).unwrap(), 443);
        assert_eq!(way.is_ok(), expected);
    }
}
