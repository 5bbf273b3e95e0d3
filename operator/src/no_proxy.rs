//! What is reached without the upstream proxy, as the flags say: checked when the operator starts, since a credential proxy with
//! an entry that it does not take would not.

use std::net::IpAddr;

/// A text that is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is none of host, .domain, *.domain (each also with :port) and address/bits")]
pub(crate) struct InvalidEntry;

/// Takes an entry as the credential proxies read it: `host`, `.domain` or `*.domain`, each with `:port` or without, or
/// `address/bits`.
///
/// # Errors
/// [`InvalidEntry`] for anything else.
pub(crate) fn entry(text: &str) -> Result<String, InvalidEntry> {
    let text = text.trim();
    let fits = match text.split_once('/') {
        Some((address, bits)) => is_network(address, bits),
        None => {
            is_host(text) || text.rsplit_once(':').is_some_and(|(host, port)| is_port(port) && is_before_port(host))
        }
    };
    if fits { Ok(text.to_owned()) } else { Err(InvalidEntry) }
}

fn is_network(address: &str, bits: &str) -> bool {
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn is_host(text: &str) -> bool {
    text == "*"
        || is_address(text)
        || is_name(text.strip_prefix("*.").or_else(|| text.strip_prefix('.')).unwrap_or(text))
}

/// An IPv6 address before a port is in brackets: else the port could be the end of it.
fn is_before_port(host: &str) -> bool {
    is_host(host) && (host.starts_with('[') || !host.contains(':'))
}

fn is_address(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(bare) => bare.parse().is_ok_and(|address: IpAddr| address.is_ipv6()),
        None => text.parse::<IpAddr>().is_ok(),
    }
}

fn is_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(plain))
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use longhand_proxy::config::NoProxy;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::entry;

    #[rstest]
    #[case(" git.corp.example ", Some("git.corp.example"))]
    #[case(".corp.example:8080", Some(".corp.example:8080"))]
    #[case("*.corp.example", Some("*.corp.example"))]
    #[case("10.0.0.0/8", Some("10.0.0.0/8"))]
    #[case("[fd12::1]:8080", Some("[fd12::1]:8080"))]
    #[case("fd00::/8", Some("fd00::/8"))]
    #[case("10.0.0.0/33", None)]
    #[case("http://host", None)]
    #[case("", None)]
    fn an_entry_is_taken_or_refused(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(entry(text).ok().as_deref(), expected);
    }

    proptest! {
        #[test]
        fn what_the_operator_takes_the_proxy_takes(
            text in prop_oneof![
                "[a0.:/*\\[\\]_-]{0,10}",
                "(\\*?\\.)?[a-z0-9]{1,3}(\\.[a-z0-9]{1,3}){0,3}\\.?(:[0-9]{1,5})?",
                "[0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,3}|:[0-9]{1,5})?",
                "\\[?[0-9a-f]{0,4}(:[0-9a-f]{0,4}){1,4}\\]?(/[0-9]{1,3}|:[0-9]{1,5})?",
            ],
        ) {
            prop_assert_eq!(entry(&text).is_ok(), NoProxy::parse(&text).is_ok(), "{}", text);
        }
    }
}
