//! What the proxy answers itself to a program in a sandbox. No text here ever comes from a secret, a body or a header's
//! value.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::ext::ReasonPhrase;

use super::{context::Answer, decide::NoWay, dial::DialError, hello::HelloError, token::TokenError};
use crate::policy::InvalidHost;

/// The header that names the rule which refused a request.
pub const DENIED: HeaderName = HeaderName::from_static("x-longhand-denied");
/// A status line that is longer than this is cut: some programs show nothing else.
const MAX_REASON: usize = 200;

/// Why a request or a tunnel goes no further.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No egress token.
    #[error("no egress token: only the relay of a bound sandbox may use this proxy")]
    NoToken,
    /// An egress token that is not good here.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A sandbox that the session has no rule for.
    #[error("the session has no sandbox {sandbox:?} with egress")]
    UnknownSandbox {
        /// Its name.
        sandbox: String,
    },
    /// The head of the request is not right.
    #[error("the request is refused: {0}")]
    Malformed(&'static str),
    /// A host that is none.
    #[error(transparent)]
    Host(#[from] InvalidHost),
    /// No rule lets it go there.
    #[error(transparent)]
    NoWay(#[from] NoWay),
    /// Its target cannot or may not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// A placeholder in a request that no credential is bound to.
    #[error(
        "the request to {host} holds a placeholder, but no credential is bound to this host: it would reach nobody who knows it"
    )]
    Placeholder {
        /// The host.
        host: String,
    },
    /// Too many tunnels.
    #[error("the session has {0} connections through this proxy already: close some")]
    Busy(usize),
    /// The upstream did not answer.
    #[error("{host} did not answer: {cause}")]
    NoAnswer {
        /// The host.
        host: String,
        /// Why not.
        cause: String,
    },
    /// The upstream did not answer in time.
    #[error("{host} did not answer within {} s", .waited.as_secs())]
    TimedOut {
        /// The host.
        host: String,
        /// How long the proxy waited.
        waited: Duration,
    },
    /// The upstream's answer cannot be passed on.
    #[error("{host} answered with {what}")]
    BadAnswer {
        /// The host.
        host: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The beginning of a tunnel is not right.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The beginning of a tunnel did not come.
    #[error("no TLS ClientHello came within {} s", .0.as_secs())]
    NoHello(Duration),
    /// A tunnel asks for another server than the one that it was opened for.
    #[error("CONNECT names {connect}, but the TLS ClientHello asks for {sni}")]
    OtherName {
        /// The host of the CONNECT.
        connect: String,
        /// What was asked for.
        sni: String,
    },
    /// A tunnel that does not say which server it wants.
    #[error("the TLS ClientHello for {connect} names no server (SNI)")]
    NoName {
        /// The host of the CONNECT.
        connect: String,
    },
}

impl Refusal {
    /// The rule, for headers, logs and metrics.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Token(_) => "token_refused",
            Self::UnknownSandbox { .. } => "unknown_sandbox",
            Self::Malformed(_) | Self::Host(_) => "malformed",
            Self::NoWay(NoWay::NotAllowed { .. }) => "host_not_allowed",
            Self::NoWay(NoWay::UnnamedAddress { .. }) => "address_not_named",
            Self::NoWay(NoWay::BoundElsewhere { .. }) => "bound_elsewhere",
            Self::Dial(DialError::Address(_)) => "address_refused",
            Self::Dial(DialError::Refused { .. }) => "upstream_proxy_refused",
            Self::Dial(_) => "unreachable",
            Self::Placeholder { .. } => "placeholder_unbound",
            Self::Busy(_) => "too_many_connections",
            Self::NoAnswer { .. } | Self::TimedOut { .. } | Self::BadAnswer { .. } => "upstream_failed",
            Self::Hello(HelloError::NotTls) => "not_tls",
            Self::Hello(HelloError::Encrypted) => "encrypted_hello",
            Self::Hello(_) | Self::NoHello(_) => "malformed_hello",
            Self::OtherName { .. } => "sni_mismatch",
            Self::NoName { .. } => "no_sni",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::Token(_) | Self::UnknownSandbox { .. } => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            Self::Malformed(_) | Self::Host(_) => StatusCode::BAD_REQUEST,
            Self::Dial(DialError::Address(_))
            | Self::NoWay(_)
            | Self::Placeholder { .. }
            | Self::Hello(_)
            | Self::NoHello(_)
            | Self::OtherName { .. }
            | Self::NoName { .. } => StatusCode::FORBIDDEN,
            Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Dial(_) | Self::NoAnswer { .. } | Self::BadAnswer { .. } => StatusCode::BAD_GATEWAY,
            Self::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Whether a rule refused it, so that it belongs on record; else something failed.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        self.status().is_client_error()
    }

    /// The answer.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let mut answer = answer(self.status(), self.rule(), &self.to_string());
        if self.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            answer.headers_mut().insert(header::PROXY_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

/// An answer in plain text that names the rule, also in its reason phrase, which is all that many programs show of the
/// answer to a CONNECT. A denial has [`DENIED`] too.
#[must_use]
pub fn answer(status: StatusCode, rule: &'static str, message: &str) -> Answer {
    let mut response = text(status, format!("egress proxy: {message} ({rule})\n"));
    let reason: Vec<u8> = message.bytes().filter(|byte| (b' '..=b'~').contains(byte)).take(MAX_REASON).collect();
    if let Ok(reason) = ReasonPhrase::try_from(reason) {
        response.extensions_mut().insert(reason);
    }
    if status.is_client_error() {
        response.headers_mut().insert(DENIED, HeaderValue::from_static(rule));
    }
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Answer {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::{DENIED, Refusal, answer};
    use crate::egress::token::TokenError;

    #[test]
    fn a_denial_names_its_rule_everywhere() {
        let refused = Refusal::Token(TokenError::Session).answer();
        assert_eq!(refused.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        assert_eq!(refused.headers()[DENIED], "token_refused");
        assert_eq!(refused.headers()["proxy-authenticate"], "Bearer");
        let reason = refused.extensions().get::<hyper::ext::ReasonPhrase>().unwrap();
        assert_eq!(reason.as_bytes(), b"the egress token is of another session");
    }

    #[test]
    fn a_reason_is_one_short_line() {
        let refused = answer(StatusCode::FORBIDDEN, "rule", &format!("a\r\nb\u{e4}{}", "c".repeat(1_000)));
        let reason = refused.extensions().get::<hyper::ext::ReasonPhrase>().unwrap().as_bytes();
        assert!(reason.starts_with(b"abccc") && reason.len() == 200);
    }

    #[test]
    fn a_failure_is_no_denial() {
        let failed = Refusal::Busy(3);
        assert!(!failed.is_denial() && !failed.answer().headers().contains_key(DENIED));
    }
}
