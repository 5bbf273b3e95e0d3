//! Why a request of a sandbox was not answered by its upstream, and what it is answered with instead.

use http::StatusCode;

use super::{
    judge::Denial,
    scrub::{MAX_VALUE, MIN_VALUE},
    sealed::SealError,
    upstream::SendError,
    whole::NotWhole,
};
use crate::{
    audit::Unrecorded,
    egress::{Answer, refusal},
    secret::FileCondition,
};

/// Why a request was not answered by its upstream. No text here comes from a secret, a body or a header's value.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A head that could be read in two ways.
    #[error("the request is refused: {0}")]
    Malformed(&'static str),
    /// A host other than that of the connection.
    #[error("the request names another host than its connection is for, which is {connected}")]
    OtherHost {
        /// The host and the port that the connection is for.
        connected: String,
    },
    /// The judge says no.
    #[error("{0}")]
    Denied(#[from] Denial),
    /// A handle of Git LFS that is not for this.
    #[error("the Git LFS handle is unknown, has expired, or was given for another URL or method")]
    Handle,
    /// There is no value to place.
    #[error("credential \"{credential}\" is not available: {condition}")]
    Unavailable {
        /// The credential.
        credential: String,
        /// Why not.
        condition: FileCondition,
    },
    /// A value that could come back unseen.
    #[error(
        "credential \"{credential}\" is not used in sandboxes: only values of {MIN_VALUE} to {MAX_VALUE} characters can be taken out of answers"
    )]
    Unscrubbable {
        /// The credential.
        credential: String,
    },
    /// The body is too large to be rewritten.
    #[error("the body is larger than {limit} bytes, or of no stated length and too large to place a credential in it")]
    BodyTooLarge {
        /// How large it may be.
        limit: usize,
    },
    /// There is no room to hold it.
    #[error(
        "too much of this session's other requests has to be held at the moment, as it has for this one: try again"
    )]
    Busy,
    /// The head would be too large.
    #[error("the head of the request would be too large with its credentials")]
    HeadTooLarge,
    /// The body was not read to its end.
    #[error("the body of the request ended early")]
    Body,
    /// A use that is not on record.
    #[error("{0}")]
    Unrecorded(#[from] Unrecorded),
    /// The upstream does not answer.
    #[error("{0}")]
    Upstream(#[from] SendError),
    /// The upstream's answer cannot be passed on.
    #[error("the upstream answered with {0}")]
    BadAnswer(&'static str),
    /// The upstream's answer holds a credential that cannot be kept from the sandbox.
    #[error("{0}")]
    Seal(#[from] SealError),
}

impl Refused {
    /// What becomes of a request whose body is not there as a whole.
    #[must_use]
    pub fn of_body(problem: &NotWhole, limit: usize) -> Self {
        match problem {
            NotWhole::Busy => Self::Busy,
            NotWhole::TooLarge => Self::BodyTooLarge { limit },
            NotWhole::Broken(_) => Self::Body,
        }
    }

    /// The status and the rule that it is answered with; the rule is a label too.
    #[must_use]
    pub fn rule(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed"),
            Self::OtherHost { .. } => (StatusCode::FORBIDDEN, "host_mismatch"),
            Self::Denied(denial) => (StatusCode::FORBIDDEN, denial_rule(denial)),
            Self::Handle => (StatusCode::FORBIDDEN, "lfs_handle"),
            Self::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "credential_unavailable"),
            Self::Unscrubbable { .. } => (StatusCode::FORBIDDEN, "credential_length"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"),
            Self::Body => (StatusCode::BAD_REQUEST, "body"),
            Self::Unrecorded(_) => (StatusCode::SERVICE_UNAVAILABLE, "unrecorded"),
            Self::Upstream(SendError::TimedOut { .. }) => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
            Self::Upstream(SendError::Failed { .. }) => (StatusCode::BAD_GATEWAY, "upstream_failed"),
            Self::BadAnswer(_) => (StatusCode::BAD_GATEWAY, "bad_answer"),
            Self::Seal(_) => (StatusCode::BAD_GATEWAY, "unsealed_credential"),
        }
    }

    /// Whether it is a decision of the proxy, which is put on record, and no failure.
    #[must_use]
    pub fn is_decision(&self) -> bool {
        !matches!(self, Self::Busy | Self::Body | Self::Unrecorded(_) | Self::Upstream(_) | Self::BadAnswer(_))
    }

    /// The credential that was asked for, if one was.
    #[must_use]
    pub fn credential(&self) -> Option<&str> {
        match self {
            Self::Denied(denial) => denial.credential(),
            Self::Unavailable { credential, .. } | Self::Unscrubbable { credential } => Some(credential),
            _ => None,
        }
    }

    /// The answer.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let (status, rule) = self.rule();
        refusal::answer(status, rule, &self.to_string())
    }
}

fn denial_rule(denial: &Denial) -> &'static str {
    match denial {
        Denial::Unresolved { .. } => "unresolved_placeholder",
        Denial::Hidden { .. } => "hidden_placeholder",
        Denial::Misplaced { .. } => "placement",
        Denial::Signing { .. } => "aws_signature",
        Denial::NotAllowed { .. } => "credential_rule",
        Denial::Private { .. } => "private_address",
        Denial::Foreign { .. } => "foreign_credential",
        Denial::Mints { .. } => "mints_credentials",
        Denial::Closed { .. } => "no_credential",
        Denial::Method(_) => "method",
    }
}
