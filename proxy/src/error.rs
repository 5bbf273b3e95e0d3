//! What the proxy answers itself, in the error shape of the Messages API. No text here ever comes from a secret, from a
//! body, or from a header's value.

use std::time::Duration;

use http::{Response, StatusCode, header};
use http_body_util::Full;

use crate::{
    address::AddressRefused, audit::Unrecorded, intercept::scrub::Unscrubbable, oauth::Problem, policy::Mismatch,
    secret::FileCondition,
};

/// Why a request was not answered by its upstream.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request itself is not right.
    #[error("the request is refused: {0}")]
    Malformed(Malformed),
    /// The client sent no session token.
    #[error("no session token: send it as x-api-key or as authorization: Bearer")]
    NoToken,
    /// The client sent another credential.
    #[error("a credential in the request is not the session token of this pod")]
    WrongToken,
    /// The session token's own file is not usable.
    #[error("the session token at {path} cannot be checked: {condition}")]
    TokenUnavailable {
        /// Its file.
        path: String,
        /// Why not.
        condition: FileCondition,
    },
    /// No route has the path.
    #[error("no route for this path: known prefixes are {known}")]
    UnknownRoute {
        /// The prefixes.
        known: String,
    },
    /// The credential's rule does not allow the request.
    #[error("credential \"{credential}\" may not be used for this request to {host}: {mismatch}")]
    NotAllowed {
        /// The credential's name.
        credential: String,
        /// The upstream's host.
        host: String,
        /// Which part of the rule.
        mismatch: Mismatch,
    },
    /// The route does not lead there.
    #[error("the route leads to one URL of {host} only: {what}")]
    OffRoute {
        /// The upstream's host.
        host: String,
        /// What is not allowed.
        what: &'static str,
    },
    /// The session token would have been sent to the upstream.
    #[error("the session token appears in the URL or in a header that would be sent to {host}")]
    TokenWouldLeak {
        /// The upstream's host.
        host: String,
    },
    /// There is no value to send.
    #[error("credential \"{credential}\" is not available: {condition} ({path})")]
    CredentialUnavailable {
        /// The credential's name.
        credential: String,
        /// Its file.
        path: String,
        /// Why not.
        condition: FileCondition,
    },
    /// There is no access token to send.
    #[error("credential \"{credential}\" is not available: {problem}")]
    TokenNotRenewed {
        /// The credential's name.
        credential: String,
        /// Why not.
        problem: Problem,
    },
    /// A value that could come back unseen.
    #[error("credential \"{credential}\" is not used: {problem}")]
    Unscrubbable {
        /// The credential's name.
        credential: String,
        /// Why it would not be seen.
        problem: Unscrubbable,
    },
    /// A use that is not on record.
    #[error(transparent)]
    Unrecorded(#[from] Unrecorded),
    /// The upstream's address may not be reached.
    #[error("{0}")]
    Address(AddressRefused),
    /// The upstream was not reached.
    #[error("cannot connect to {host}: {cause}")]
    Connect {
        /// The upstream's host.
        host: String,
        /// Why not.
        cause: String,
    },
    /// The upstream did not answer.
    #[error("{host} did not answer: {cause}")]
    NoAnswer {
        /// The upstream's host.
        host: String,
        /// Why not.
        cause: String,
    },
    /// The upstream did not answer in time.
    #[error("{host} did not answer within {} s", .waited.as_secs())]
    TimedOut {
        /// The upstream's host.
        host: String,
        /// How long the proxy waited.
        waited: Duration,
    },
    /// The upstream redirects.
    #[error(
        "{host} answered with redirect {status}, which is never followed with a credential: correct the upstream's URL"
    )]
    Redirect {
        /// The upstream's host.
        host: String,
        /// The status.
        status: u16,
    },
    /// The upstream's answer is not one that can be passed on.
    #[error("{host} answered with {what}")]
    BadAnswer {
        /// The upstream's host.
        host: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Two statements about the length of the body.
    #[error("content-length and transfer-encoding contradict each other")]
    Framing,
    /// Not a path.
    #[error("the target must be a path")]
    Target,
    /// A method that no log takes.
    #[error("its method is too long")]
    Method,
    /// More than one host.
    #[error("it has more than one host header")]
    Hosts,
    /// A body that does not come.
    #[error("its body did not come as a whole")]
    Body,
    /// A URL that cannot be built.
    #[error("its path and query make no URL for the upstream")]
    Url,
}

impl Refusal {
    /// The status and the error type that it is answered with.
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            Self::NoToken | Self::WrongToken => (StatusCode::UNAUTHORIZED, "authentication_error"),
            Self::UnknownRoute { .. } => (StatusCode::NOT_FOUND, "not_found_error"),
            Self::NotAllowed { .. }
            | Self::OffRoute { .. }
            | Self::TokenWouldLeak { .. }
            | Self::Unscrubbable { .. }
            | Self::Address(_) => (StatusCode::FORBIDDEN, "permission_error"),
            Self::TokenUnavailable { .. }
            | Self::CredentialUnavailable { .. }
            | Self::TokenNotRenewed { .. }
            | Self::Unrecorded(_) => (StatusCode::SERVICE_UNAVAILABLE, "api_error"),
            Self::Connect { .. } | Self::NoAnswer { .. } | Self::Redirect { .. } | Self::BadAnswer { .. } => {
                (StatusCode::BAD_GATEWAY, "api_error")
            }
            Self::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, "timeout_error"),
        }
    }

    /// One word for logs and metrics.
    #[must_use]
    pub fn decision(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NoToken | Self::WrongToken => "unauthenticated",
            Self::UnknownRoute { .. } => "unknown_route",
            Self::NotAllowed { .. } | Self::OffRoute { .. } | Self::TokenWouldLeak { .. } => "denied",
            Self::Address(_) => "address_refused",
            Self::TokenUnavailable { .. }
            | Self::CredentialUnavailable { .. }
            | Self::TokenNotRenewed { .. }
            | Self::Unscrubbable { .. } => "no_credential",
            Self::Unrecorded(_) => "unrecorded",
            Self::Connect { .. } | Self::NoAnswer { .. } | Self::TimedOut { .. } | Self::BadAnswer { .. } => {
                "upstream_failed"
            }
            Self::Redirect { .. } => "redirect_refused",
        }
    }

    /// Whether it is a decision of the proxy, which is put on record, and no failure.
    #[must_use]
    pub fn is_decision(&self) -> bool {
        match self {
            Self::Malformed(Malformed::Body)
            | Self::Unrecorded(_)
            | Self::Connect { .. }
            | Self::NoAnswer { .. }
            | Self::TimedOut { .. }
            | Self::BadAnswer { .. } => false,
            Self::Malformed(_)
            | Self::NoToken
            | Self::WrongToken
            | Self::TokenUnavailable { .. }
            | Self::UnknownRoute { .. }
            | Self::NotAllowed { .. }
            | Self::OffRoute { .. }
            | Self::TokenWouldLeak { .. }
            | Self::CredentialUnavailable { .. }
            | Self::TokenNotRenewed { .. }
            | Self::Unscrubbable { .. }
            | Self::Address(_)
            | Self::Redirect { .. } => true,
        }
    }

    /// The answer.
    #[must_use]
    pub fn response(&self) -> Response<Full<bytes::Bytes>> {
        let (status, kind) = self.status();
        let message = format!("credential proxy: {self}");
        let body = serde_json::json!({"type": "error", "error": {"type": kind, "message": message}});
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = status;
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}
