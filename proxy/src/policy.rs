//! Where a credential may go. Pure: no clock, no network, no file.

use std::{fmt, net::IpAddr};

use http::Method;

use crate::hosts::HostPattern;

const MAX_HOST_LENGTH: usize = 253;

/// How an upstream is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// Its name in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that a URL without one means.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A host name or address in the one form in which hosts are compared: lower case, no dot at the end, no brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host(String);

/// A text that is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host: it needs letters, digits, dots and hyphens, or an IP address")]
pub struct InvalidHost(String);

impl InvalidHost {
    pub(crate) fn of(text: &str) -> Self {
        Self(text.chars().take(MAX_HOST_LENGTH).collect())
    }
}

impl Host {
    /// Reads a host. Names in other scripts have to come in their ASCII form (`xn--`).
    ///
    /// # Errors
    /// [`InvalidHost`] for wildcards, other scripts, ports, user names, and empty labels.
    pub fn parse(text: &str) -> Result<Self, InvalidHost> {
        let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = unbracketed.unwrap_or(text).parse::<std::net::Ipv6Addr>() {
            return Ok(Self(address.to_string()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > MAX_HOST_LENGTH || !name.split('.').all(label) {
            return Err(InvalidHost::of(text));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }

    /// The address, if it is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// Whether resolvers take it for an address although it is not in the usual form of one (`127.1`, `0x7f000001`): the last
    /// label of a name is never a number.
    #[must_use]
    pub fn is_disguised_address(&self) -> bool {
        let last = self.0.rsplit('.').next().unwrap_or_default();
        let number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        number && self.is_name()
    }

    /// Whether it is a name and no address.
    #[must_use]
    pub fn is_name(&self) -> bool {
        self.address().is_none()
    }

    /// The host as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host as an authority writes it: IPv6 addresses in brackets.
    #[must_use]
    pub fn in_authority(&self) -> String {
        if self.0.contains(':') { format!("[{}]", self.0) } else { self.0.clone() }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path that every server reads the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainPath(String);

/// Why servers may disagree about what a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmbiguousPath {
    /// It does not begin with a slash.
    #[error("the path must begin with \"/\"")]
    NotAbsolute,
    /// `.` or `..` as a segment.
    #[error("the path has a dot segment")]
    DotSegment,
    /// Two slashes in a row.
    #[error("the path has an empty segment (\"//\")")]
    EmptySegment,
    /// A backslash.
    #[error("the path has a backslash")]
    Backslash,
    /// A semicolon, which some servers cut a segment at.
    #[error("the path has a semicolon")]
    Semicolon,
    /// An encoded character that some servers decode before they look for segments.
    #[error("the path has an encoded \"/\", \"\\\", \".\", \";\", \"%\" or control character")]
    EncodedDelimiter,
    /// `%` without two hexadecimal digits, or encoded bytes that are not UTF-8.
    #[error("the path has a \"%\" without two hexadecimal digits, or encodes what is not UTF-8")]
    BadEncoding,
    /// A control character, white space or a character outside ASCII.
    #[error("the path has a character that must be encoded")]
    RawByte,
}

impl PlainPath {
    /// Takes a path without its query, or says why it will not be judged. Nothing is decoded or rewritten: what is judged is
    /// what is sent.
    ///
    /// # Errors
    /// [`AmbiguousPath`], for anything that could be read in two ways.
    pub fn parse(path: &str) -> Result<Self, AmbiguousPath> {
        let Some(relative) = path.strip_prefix('/') else {
            return Err(AmbiguousPath::NotAbsolute);
        };
        let mut meaning = Vec::with_capacity(path.len());
        let mut bytes = path.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\\' => return Err(AmbiguousPath::Backslash),
                b';' => return Err(AmbiguousPath::Semicolon),
                b'%' => {
                    let digits =
                        [bytes.next(), bytes.next()].map(|digit| digit.and_then(|d| char::from(d).to_digit(16)));
                    let [Some(high), Some(low)] = digits else {
                        return Err(AmbiguousPath::BadEncoding);
                    };
                    let decoded = u8::try_from(high * 16 + low).unwrap_or_default();
                    if matches!(decoded, b'/' | b'\\' | b'.' | b';' | b'%') || decoded.is_ascii_control() {
                        return Err(AmbiguousPath::EncodedDelimiter);
                    }
                    meaning.push(decoded);
                }
                b'?' | b'#' => return Err(AmbiguousPath::RawByte),
                byte if !byte.is_ascii_graphic() => return Err(AmbiguousPath::RawByte),
                byte => meaning.push(byte),
            }
        }
        // Over-long forms of "." and "/" are not UTF-8, but lenient decoders take them.
        if std::str::from_utf8(&meaning).is_err() {
            return Err(AmbiguousPath::BadEncoding);
        }
        let mut segments = relative.split('/').peekable();
        while let Some(segment) = segments.next() {
            match segment {
                "." | ".." => return Err(AmbiguousPath::DotSegment),
                "" if segments.peek().is_some() => return Err(AmbiguousPath::EmptySegment),
                _ => {}
            }
        }
        Ok(Self(path.to_owned()))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path is a prefix or lies below it. Segments are never cut: `/v1/messages` does not cover `/v1/messages-x`.
    #[must_use]
    pub fn is_under(&self, prefix: &PlainPath) -> bool {
        match self.0.strip_prefix(&prefix.0) {
            None => false,
            Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix.0.ends_with('/'),
        }
    }
}

/// Where a request with a credential is about to go.
#[derive(Debug, Clone)]
pub struct Destination<'a> {
    /// How.
    pub scheme: Scheme,
    /// To which host.
    pub host: &'a Host,
    /// To which port.
    pub port: u16,
    /// With which method.
    pub method: &'a Method,
    /// For which path.
    pub path: &'a PlainPath,
}

/// Where a credential may go. All parts must hold.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The only scheme.
    pub scheme: Scheme,
    /// The hosts.
    pub hosts: Vec<HostPattern>,
    /// The only port.
    pub port: u16,
    /// The methods; none means any but CONNECT and TRACE.
    pub methods: Vec<Method>,
    /// The prefixes of paths; none means any.
    pub path_prefixes: Vec<PlainPath>,
    /// Whether the host may have an address of a private network.
    pub allow_private: bool,
}

/// The part of a rule that does not hold, with what it allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The scheme.
    #[error("it allows scheme {allowed} only, not {asked}")]
    Scheme {
        /// What the rule allows.
        allowed: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// The host.
    #[error("it allows hosts {allowed} only, not {asked}")]
    Host {
        /// What the rule allows.
        allowed: String,
        /// What was asked for.
        asked: String,
    },
    /// The port.
    #[error("it allows port {allowed} only, not {asked}")]
    Port {
        /// What the rule allows.
        allowed: u16,
        /// What was asked for.
        asked: u16,
    },
    /// The method.
    #[error("it allows methods {allowed} only")]
    Method {
        /// What the rule allows.
        allowed: String,
    },
    /// The path.
    #[error("it allows paths under {allowed} only")]
    Path {
        /// What the rule allows.
        allowed: String,
    },
    /// A path that no rule can judge.
    #[error(transparent)]
    Ambiguous(#[from] AmbiguousPath),
}

impl Rule {
    /// Whether the host is one of its hosts.
    #[must_use]
    pub fn covers(&self, host: &Host) -> bool {
        self.hosts.iter().any(|pattern| pattern.covers(host))
    }

    /// Judges a destination.
    ///
    /// # Errors
    /// [`Mismatch`] names the first part that does not hold.
    pub fn judge(&self, to: &Destination<'_>) -> Result<(), Mismatch> {
        if self.scheme != to.scheme {
            return Err(Mismatch::Scheme { allowed: self.scheme.as_str(), asked: to.scheme.as_str() });
        }
        if !self.covers(to.host) {
            let hosts = self.hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
            return Err(Mismatch::Host { allowed: hosts.join(", "), asked: to.host.to_string() });
        }
        if self.port != to.port {
            return Err(Mismatch::Port { allowed: self.port, asked: to.port });
        }
        // TRACE answers with the headers that it was sent; CONNECT would be a tunnel.
        let dangerous = [Method::TRACE, Method::CONNECT].contains(to.method);
        if dangerous || !(self.methods.is_empty() || self.methods.contains(to.method)) {
            let any = "any but CONNECT and TRACE".to_owned();
            let allowed = if self.methods.is_empty() { any } else { list(&self.methods, Method::as_str) };
            return Err(Mismatch::Method { allowed });
        }
        if !(self.path_prefixes.is_empty() || self.path_prefixes.iter().any(|prefix| to.path.is_under(prefix))) {
            return Err(Mismatch::Path { allowed: list(&self.path_prefixes, PlainPath::as_str) });
        }
        Ok(())
    }
}

fn list<T>(items: &[T], text: impl Fn(&T) -> &str) -> String {
    items.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
