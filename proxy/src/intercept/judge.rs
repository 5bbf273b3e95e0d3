//! Judges a request to a host with a binding: which credentials it asks for, whether it may have them, and whether it brings
//! another one along. Pure: no clock, no network, no file, no value of a credential.

use base64::Engine;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::{
    aws, foreign,
    mint::minted_at,
    placeholder::{LENIENT, find, is_hidden_in, percent_decode},
    shapes::looks_like_credential,
};
use crate::{
    config::{Binding, BindingPlacement, Location},
    policy::{AmbiguousPath, Destination, Host, Mismatch, PlainPath, Rule, Scheme},
};

/// A credential of the session, with what stands for it in this session's sandboxes.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// What stands for it.
    pub placeholder: &'a str,
    /// Where it may go.
    pub binding: &'a Binding,
}

/// A request, and where its connection goes.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// How the host is spoken to.
    pub scheme: Scheme,
    /// The host that the connection is for.
    pub host: &'a Host,
    /// The port that the connection is for.
    pub port: u16,
    /// Whether the host has a private address.
    pub private: bool,
    /// Whether the sandbox may reach the host without a credential.
    pub open: bool,
    /// The method.
    pub method: &'a Method,
    /// The path, without the query.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// The headers, without those about the connection.
    pub headers: &'a HeaderMap,
    /// What it was signed for with AWS keys of the session, if it was; the signature is in the headers no longer.
    pub signing: Option<&'a aws::Claim>,
}

/// What a request may have. The numbers are places in the list of candidates, without doubles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The credentials whose placeholders are in its head.
    pub used: Vec<usize>,
    /// Those that may be placed into its body.
    pub body: Vec<usize>,
    /// The one that answers for the request: it is the only one in the head, and where servers look for one. What a server says of
    /// a request that has it elsewhere is no word about it.
    pub authenticates: Option<usize>,
}

/// Why a request is refused. No text here comes from a placeholder or a header's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A placeholder that no credential of the session has.
    #[error("the {place} has a placeholder that stands for no credential of this session")]
    Unresolved {
        /// Where it is.
        place: &'static str,
    },
    /// A placeholder in a form that is not replaced.
    #[error(
        "the {place} has a placeholder in Base64 or percent-encoded: it is replaced only where it is written as it is, and in HTTP Basic"
    )]
    Hidden {
        /// Where it is.
        place: &'static str,
    },
    /// A placeholder where the credential may not be placed.
    #[error(
        "credential \"{credential}\" may not be placed in the {place}: its vault does not list it in placement.variable.locations"
    )]
    Misplaced {
        /// The credential.
        credential: String,
        /// Where it was found.
        place: &'static str,
    },
    /// AWS keys do not sign it.
    #[error("credential \"{credential}\" does not sign this request: {problem}")]
    Signing {
        /// The credential.
        credential: String,
        /// Why not.
        problem: aws::Problem,
    },
    /// The credential's rule does not hold.
    #[error("credential \"{credential}\" may not be used for this request: {mismatch}")]
    NotAllowed {
        /// The credential.
        credential: String,
        /// Which part of the rule.
        mismatch: Mismatch,
    },
    /// The host's address is private.
    #[error(
        "credential \"{credential}\" may not go to a private address: its vault does not say privateAddresses: Allow"
    )]
    Private {
        /// The credential.
        credential: String,
    },
    /// A credential that is not from a vault.
    #[error(
        "the {place} carries a credential that is none of this session's ({name}): only those of its vaults may be sent to a host that one of them is for"
    )]
    Foreign {
        /// Where it is.
        place: &'static str,
        /// The name of the header, the cookie or the parameter.
        name: String,
    },
    /// An endpoint whose answer would be another credential.
    #[error(
        "credential \"{credential}\" may not be used here: {what}, and what it answers could not be kept from the sandbox"
    )]
    Mints {
        /// The credential.
        credential: String,
        /// What it does.
        what: &'static str,
    },
    /// No credential is used, and the host is open for requests with one only.
    #[error(
        "the request uses no credential, and without one this host is open only as far as a credential's rule goes: {mismatch}"
    )]
    Closed {
        /// Which part of a rule does not hold.
        mismatch: Mismatch,
    },
    /// A method that is never passed on.
    #[error("method {0} is never passed on")]
    Method(Method),
}

impl Denial {
    /// The credential that was asked for, if one was.
    #[must_use]
    pub fn credential(&self) -> Option<&str> {
        match self {
            Self::Misplaced { credential, .. }
            | Self::Signing { credential, .. }
            | Self::NotAllowed { credential, .. }
            | Self::Private { credential }
            | Self::Mints { credential, .. } => Some(credential),
            Self::Unresolved { .. }
            | Self::Hidden { .. }
            | Self::Foreign { .. }
            | Self::Closed { .. }
            | Self::Method(_) => None,
        }
    }
}

/// Judges a request.
///
/// # Errors
/// [`Denial`] names the rule that refuses it.
pub fn judge(asked: &Asked<'_>, candidates: &[Candidate<'_>]) -> Result<Allowed, Denial> {
    // TRACE answers with the headers that it was sent; CONNECT would be a tunnel.
    if [Method::TRACE, Method::CONNECT].contains(asked.method) {
        return Err(Denial::Method(asked.method.clone()));
    }
    let mut allowed = Allowed::default();
    let mints = minted_at(asked.host.as_str(), asked.method, asked.path);
    if let Some(claim) = asked.signing {
        aws::judge(asked, claim, &candidates[claim.number])?;
        allowed.used.push(claim.number);
    }
    let mut ask = |text: &[u8], location: Location, place: &'static str| -> Result<bool, Denial> {
        let found = find(text);
        for found in &found {
            let matches = |candidate: &Candidate<'_>| candidate.placeholder.as_bytes() == &text[found.range.clone()];
            let number = candidates.iter().position(matches).filter(|_| found.whole);
            let number = number.ok_or(Denial::Unresolved { place })?;
            asked.judge(&candidates[number], location, place, mints)?;
            if !allowed.used.contains(&number) {
                allowed.used.push(number);
            }
        }
        Ok(!found.is_empty())
    };

    ask(asked.path.as_bytes(), Location::Path, "path")?;
    ask(asked.query.unwrap_or_default().as_bytes(), Location::Query, "query")?;
    for (place, text) in [("path", asked.path), ("query", asked.query.unwrap_or_default())] {
        if is_hidden_in(text.as_bytes()) {
            return Err(Denial::Hidden { place });
        }
    }
    let mut placed_in = Vec::new();
    for (name, value) in asked.headers {
        if !find(name.as_str().as_bytes()).is_empty() {
            return Err(Denial::Unresolved { place: "name of a header" });
        }
        let basic = basic(name, value);
        let text = basic.as_ref().map_or(value.as_bytes(), |decoded| decoded.as_slice());
        if ask(text, Location::Header, "header")? {
            placed_in.push((name, foreign::without_placeholders(text)));
        }
        if is_hidden_in(text) {
            return Err(Denial::Hidden { place: "header" });
        }
    }
    asked.refuse_foreign(&placed_in)?;
    for (number, candidate) in candidates.iter().enumerate() {
        // What was signed stays as it is.
        let placeable = asked.signing.is_none() && has(candidate.binding, Location::Body);
        if placeable && mints.is_none() && asked.admits(candidate).is_ok() {
            allowed.body.push(number);
        }
    }
    if let [number] = allowed.used[..]
        && (asked.signing.is_some() || placed_in.iter().any(|(name, _)| foreign::is_credential_header(name)))
    {
        allowed.authenticates = Some(number);
    }
    if allowed.used.is_empty() && allowed.body.is_empty() && !asked.open {
        asked.without_credential(candidates)?;
    }
    Ok(allowed)
}

/// User name and password of HTTP Basic.
pub(super) fn basic(name: &HeaderName, value: &HeaderValue) -> Option<zeroize::Zeroizing<Vec<u8>>> {
    let encoded = (name == header::AUTHORIZATION).then(|| value.as_bytes().split_at_checked(6)).flatten();
    let (_, encoded) = encoded.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"basic "))?;
    LENIENT.decode(encoded.trim_ascii()).ok().map(zeroize::Zeroizing::new)
}

fn has(binding: &Binding, location: Location) -> bool {
    match &binding.placement {
        BindingPlacement::EnvironmentVariable { locations } => locations.contains(&location),
        BindingPlacement::Aws(_) => false,
    }
}

impl Asked<'_> {
    /// Whether a credential may be used for this request, and in this part of it.
    fn judge(
        &self,
        candidate: &Candidate<'_>,
        location: Location,
        place: &'static str,
        mints: Option<&'static str>,
    ) -> Result<(), Denial> {
        let credential = candidate.binding.label();
        if let BindingPlacement::Aws(_) = candidate.binding.placement {
            let in_query = location == Location::Query;
            let problem = if in_query { aws::Problem::Presigned } else { aws::Problem::NotSigned };
            return Err(Denial::Signing { credential, problem });
        }
        if !has(candidate.binding, location) {
            return Err(Denial::Misplaced { credential, place });
        }
        self.admits(candidate)?;
        match mints {
            Some(what) => Err(Denial::Mints { credential: candidate.binding.label(), what }),
            None => Ok(()),
        }
    }

    /// Whether a credential's rule holds.
    pub(super) fn admits(&self, candidate: &Candidate<'_>) -> Result<(), Denial> {
        let credential = || candidate.binding.label();
        self.matches(candidate.binding)
            .map_err(|mismatch| Denial::NotAllowed { credential: credential(), mismatch })?;
        if self.private && !candidate.binding.rule.allow_private {
            return Err(Denial::Private { credential: credential() });
        }
        Ok(())
    }

    fn matches(&self, binding: &Binding) -> Result<(), Mismatch> {
        matches(&binding.rule, self.scheme, self.host, self.port, self.method, self.path)
    }

    fn refuse_foreign(&self, placed_in: &[(&HeaderName, Vec<u8>)]) -> Result<(), Denial> {
        for (name, rest) in placed_in {
            if looks_like_credential(rest) {
                return Err(Denial::Foreign { place: "header", name: name.to_string() });
            }
        }
        // Two values of one header: which of them counts is the server's choice.
        let placed = |name: &HeaderName| {
            let values = placed_in.iter().filter(|(placed, _)| *placed == name).count();
            values == 1 && self.headers.get_all(name).iter().count() == 1
        };
        for (name, value) in self.headers {
            if foreign::carries_credential(name, value.as_bytes()) && !placed(name) {
                return Err(Denial::Foreign { place: "header", name: name.to_string() });
            }
        }
        let cookies = self.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
        if let Some(name) = cookies.filter_map(foreign::credential_cookie).next() {
            return Err(Denial::Foreign { place: "cookie", name });
        }
        // A session of a request that is authenticated is not what opens the door: legacy MCP sends it so
        // (modelcontextprotocol.io/specification/2024-11-05/basic/transports).
        let authorized = placed(&header::AUTHORIZATION);
        match self.query.and_then(|query| foreign::credential_parameter(query, authorized)) {
            Some(name) => Err(Denial::Foreign { place: "query", name }),
            None => Ok(()),
        }
    }

    /// A request without a credential to a host that is reachable only because of a binding.
    fn without_credential(&self, candidates: &[Candidate<'_>]) -> Result<(), Denial> {
        let mut nearest = None;
        for candidate in candidates.iter().filter(|candidate| candidate.binding.rule.covers(self.host)) {
            match self.matches(candidate.binding) {
                Ok(()) if !self.private || candidate.binding.rule.allow_private => return Ok(()),
                Ok(()) => return Err(Denial::Private { credential: candidate.binding.label() }),
                Err(mismatch) => nearest = Some(mismatch),
            }
        }
        let asked = self.host.to_string();
        let mismatch = nearest.unwrap_or(Mismatch::Host { allowed: "those of the bindings".to_owned(), asked });
        Err(Denial::Closed { mismatch })
    }
}

/// Whether a rule covers a request.
///
/// # Errors
/// [`Mismatch`] names the first part that does not hold.
pub(super) fn matches(
    rule: &Rule,
    scheme: Scheme,
    host: &Host,
    port: u16,
    method: &Method,
    path: &str,
) -> Result<(), Mismatch> {
    let path = match PlainPath::parse(path) {
        Ok(path) => path,
        // Encoded delimiters are common (`@scope%2fname`); they matter only where a prefix is judged.
        Err(AmbiguousPath::EncodedDelimiter | AmbiguousPath::Semicolon | AmbiguousPath::EmptySegment)
            if rule.path_prefixes.is_empty() && is_tame(path) =>
        {
            PlainPath::parse("/")?
        }
        Err(ambiguous) => return Err(ambiguous.into()),
    };
    rule.judge(&Destination { scheme, host, port, method, path: &path })
}

/// Whether a path has no dot segments, backslashes or control characters, encoded or not.
fn is_tame(path: &str) -> bool {
    let decoded = percent_decode(path.as_bytes());
    let again = percent_decode(&decoded);
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
        && [&decoded, &again].into_iter().all(|text| {
            !text.iter().any(|byte| *byte == b'\\' || byte.is_ascii_control())
                && !text.split(|byte| matches!(byte, b'/' | b';')).any(|segment| segment == b"." || segment == b"..")
        })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
