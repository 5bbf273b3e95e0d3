//! Which addresses an upstream may have. A name is resolved once for each connection, and only addresses that pass here are
//! dialled, so that a name cannot be judged as one address and reached as another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of address it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Routed on the internet.
    Public,
    /// Of a private network or this host: only for a rule that says `allowPrivate`.
    Private(&'static str),
    /// Never an upstream, whatever a rule says.
    Never(&'static str),
}

/// An address that an upstream may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} is {address}, a {class} address; {advice}")]
pub struct AddressRefused {
    host: String,
    address: IpAddr,
    class: &'static str,
    advice: &'static str,
}

/// Judges the addresses of a host: all must pass, since a mixed answer is how a name is rebound.
///
/// # Errors
/// [`AddressRefused`] names the first that does not.
pub fn admit(
    host: &str,
    addresses: impl IntoIterator<Item = IpAddr>,
    allow_private: bool,
) -> Result<(), AddressRefused> {
    for address in addresses {
        let (class, advice) = match classify(address) {
            Class::Public => continue,
            Class::Private(_) if allow_private => continue,
            Class::Private(class) => (class, "the credential's rule must say allowPrivate to reach it"),
            Class::Never(class) => (class, "such addresses are never reached with a credential"),
        };
        return Err(AddressRefused { host: host.to_owned(), address, class, advice });
    }
    Ok(())
}

/// The class of an address.
#[must_use]
pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    }
}

fn classify_v4(address: Ipv4Addr) -> Class {
    match address.octets() {
        [0, ..] => Class::Never("\"this network\""),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Class::Private("private"),
        [127, ..] => Class::Private("loopback"),
        [169, 254, ..] => Class::Never("link-local or metadata"),
        [100, 100, 100, 200] | [168, 63, 129, 16] => Class::Never("metadata"),
        [100, 64..=127, ..] => Class::Private("carrier-grade NAT"),
        [198, 18..=19, ..] => Class::Private("benchmarking"),
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Never("reserved"),
        [224..=239, ..] => Class::Never("multicast"),
        [240..=255, ..] => Class::Never("reserved"),
        _ => Class::Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> Class {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Private("loopback"),
        [0, 0, 0, 0, 0, 0xffff, ..] => Class::Never("IPv4-mapped"),
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] => Class::Never("metadata"),
        [0xfc00..=0xfdff, ..] => Class::Private("unique local"),
        [0xfe80..=0xfebf, ..] => Class::Never("link-local"),
        [0xff00..=0xffff, ..] => Class::Never("multicast"),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            match classify_v4(Ipv4Addr::new(a, b, c, d)) {
                Class::Public => Class::Public,
                Class::Private(_) | Class::Never(_) => Class::Never("NAT64 of a private"),
            }
        }
        [0x2001, 0, ..] => Class::Never("Teredo"),
        [0x2001, 0xdb8, ..] => Class::Never("reserved"),
        [0x2002, ..] => Class::Never("6to4"),
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Never("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Kind {
        Public,
        Private,
        Never,
    }

    #[rstest]
    #[case("8.8.8.8", Kind::Public)]
    #[case("172.15.255.255", Kind::Public)]
    #[case("172.32.0.0", Kind::Public)]
    #[case("100.63.255.255", Kind::Public)]
    #[case("100.128.0.0", Kind::Public)]
    #[case("10.0.0.1", Kind::Private)]
    #[case("172.16.0.1", Kind::Private)]
    #[case("172.31.255.255", Kind::Private)]
    #[case("192.168.1.1", Kind::Private)]
    #[case("127.0.0.1", Kind::Private)]
    #[case("127.255.0.1", Kind::Private)]
    #[case("100.64.0.1", Kind::Private)]
    #[case("169.254.169.254", Kind::Never)]
    #[case("169.254.170.2", Kind::Never)]
    #[case("100.100.100.200", Kind::Never)]
    #[case("168.63.129.16", Kind::Never)]
    #[case("0.0.0.0", Kind::Never)]
    #[case("224.0.0.1", Kind::Never)]
    #[case("255.255.255.255", Kind::Never)]
    #[case("2606:4700::1111", Kind::Public)]
    #[case("::1", Kind::Private)]
    #[case("fd12::1", Kind::Private)]
    #[case("::", Kind::Never)]
    #[case("::ffff:8.8.8.8", Kind::Never)]
    #[case("::ffff:127.0.0.1", Kind::Never)]
    #[case("::7f00:1", Kind::Never)]
    #[case("fe80::1", Kind::Never)]
    #[case("fd00:ec2::254", Kind::Never)]
    #[case("64:ff9b::8.8.8.8", Kind::Public)]
    #[case("64:ff9b::169.254.169.254", Kind::Never)]
    #[case("64:ff9b::10.0.0.1", Kind::Never)]
    #[case("64:ff9b:1::8.8.8.8", Kind::Never)]
    #[case("2002:7f00:1::", Kind::Never)]
    #[case("2001::1", Kind::Never)]
    #[case("ff02::1", Kind::Never)]
    fn classes(#[case] address: &str, #[case] expected: Kind) {
        let kind = match classify(address.parse().unwrap()) {
            Class::Public => Kind::Public,
            Class::Private(_) => Kind::Private,
            Class::Never(_) => Kind::Never,
        };
        assert_eq!(kind, expected, "{address}");
    }

    #[test]
    fn one_bad_address_refuses_all() {
        let mixed = ["8.8.8.8", "10.0.0.1"].map(|address| address.parse().unwrap());
        let error = admit("api.example", mixed, false).unwrap_err().to_string();
        assert!(
            error.contains("api.example is 10.0.0.1, a private address") && error.contains("allowPrivate"),
            "{error}"
        );
        assert_eq!(admit("api.example", mixed, true), Ok(()));
        assert!(admit("api.example", ["169.254.169.254".parse().unwrap()], true).is_err());
    }

    proptest! {
        #[test]
        fn what_the_standard_library_calls_local_is_never_public(bits: u32) {
            let address = Ipv4Addr::from_bits(bits);
            let local = address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_documentation();
            prop_assert!(!local || classify(address.into()) != Class::Public);
        }
    }
}
