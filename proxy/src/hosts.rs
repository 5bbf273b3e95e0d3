//! Patterns of hosts: one host, every host below one, or any. Pure.

use std::fmt;

use crate::policy::{Host, InvalidHost};

/// Which hosts are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// This one.
    Exact(Host),
    /// `*.example.com`: every name below it, at any depth, and not itself.
    Below(Host),
    /// `*`: every name. An address has to be named.
    Any,
}

impl HostPattern {
    /// Reads `api.example.com`, `*.example.com`, `*` or an IP address.
    ///
    /// # Errors
    /// [`InvalidHost`] for anything else, so also for a wildcard in another place.
    pub fn parse(text: &str) -> Result<Self, InvalidHost> {
        match text.strip_prefix('*') {
            Some("") => Ok(Self::Any),
            Some(rest) => {
                let parent = rest.strip_prefix('.').ok_or_else(|| InvalidHost::of(text))?;
                Host::parse(parent).map(Self::Below).map_err(|_| InvalidHost::of(text))
            }
            None => Host::parse(text).map(Self::Exact),
        }
    }

    /// Whether it means this host.
    #[must_use]
    pub fn covers(&self, host: &Host) -> bool {
        match self {
            Self::Exact(named) => named == host,
            Self::Below(parent) => {
                let above = host.as_str().strip_suffix(parent.as_str()).and_then(|rest| rest.strip_suffix('.'));
                above.is_some_and(|labels| !labels.is_empty()) && host.is_name()
            }
            Self::Any => host.is_name(),
        }
    }

    /// Whether it names hosts, and is not only any host that a sandbox may reach anyway.
    #[must_use]
    pub fn is_specific(&self) -> bool {
        *self != Self::Any
    }
}

impl From<Host> for HostPattern {
    fn from(host: Host) -> Self {
        Self::Exact(host)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("api.example", "api.example", true)]
    #[case("API.example.", "api.EXAMPLE", true)]
    #[case("api.example", "api.example.evil", false)]
    #[case("api.example", "xapi.example", false)]
    #[case("*.example.com", "a.example.com", true)]
    #[case("*.example.com", "a.b.example.com", true)]
    #[case("*.example.com", "example.com", false)]
    #[case("*.example.com", "notexample.com", false)]
    #[case("*.example.com", "example.com.evil", false)]
    #[case("*", "anything.example", true)]
    #[case("*", "localhost", true)]
    #[case("*", "8.8.8.8", false)]
    #[case("*", "::1", false)]
    #[case("8.8.8.8", "8.8.8.8", true)]
    #[case("[2606:4700::1111]", "2606:4700:0::1111", true)]
    fn what_is_covered(#[case] pattern: &str, #[case] host: &str, #[case] expected: bool) {
        let covers = HostPattern::parse(pattern).unwrap().covers(&Host::parse(host).unwrap());
        assert_eq!(covers, expected);
    }

    #[rstest]
    #[case("*example.com")]
    #[case("a.*.example.com")]
    #[case("*.")]
    #[case("*.*")]
    #[case("**")]
    #[case("")]
    #[case("a b")]
    #[case("bücher.example")]
    fn what_is_no_pattern(#[case] text: &str) {
        assert!(HostPattern::parse(text).is_err());
    }

    proptest! {
        #[test]
        fn a_pattern_is_what_it_shows(text in r"(\*\.)?[a-z]{1,5}(\.[a-z]{1,5}){0,3}") {
            let pattern = HostPattern::parse(&text).unwrap();
            prop_assert_eq!(pattern.to_string(), text);
        }
    }
}
