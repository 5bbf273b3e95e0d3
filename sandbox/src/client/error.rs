//! What a request to a sandbox can end with.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use crate::token::SignError;
use crate::wire::{CallId, ErrorBody, ErrorCode};

const MAX_MESSAGE_CHARS: usize = 500;

/// Why a call was surely not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    /// No connection could be made.
    #[error("no connection to the sandbox at {address}: {reason}")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What the connection attempt ended with.
        reason: String,
    },
    /// The sandbox is being reclaimed; use another one.
    #[error("the sandbox is being reclaimed")]
    Draining,
    /// `sandboxd` is ending; use another sandbox.
    #[error("the sandbox is ending")]
    Terminating,
    /// Too many calls run; try again later.
    #[error("too many calls run in the sandbox; try again in {} s", retry_after.as_secs())]
    Busy {
        /// How long to wait.
        retry_after: Duration,
    },
    /// The request itself was refused, and will be every time.
    #[error("the sandbox refused the request with {status}: {message}")]
    Rejected {
        /// The HTTP status.
        status: StatusCode,
        /// What the sandbox said.
        message: String,
    },
}

/// What a request to a sandbox can end with, sorted by what it means for the call.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Surely not run.
    #[error("the call was not started: {0}")]
    NotStarted(#[from] NotStarted),
    /// The request was sent, then the connection broke and the call could not be found again: it may have run.
    #[error("the sandbox was lost after the request was sent, so the outcome is unknown: {reason}")]
    Lost {
        /// How the connection ended.
        reason: String,
    },
    /// The sandbox does not take our token; the call was not started.
    #[error("the sandbox refused the token: {message}")]
    Unauthorized {
        /// Which check failed.
        message: String,
    },
    /// The call id belongs to a call with another name or input.
    #[error("call {call_id} is known to the sandbox with another name or input")]
    Mismatch {
        /// The call.
        call_id: CallId,
    },
    /// The call has finished long ago; its result is no longer kept, and it is not run again.
    #[error("call {call_id} has finished, but its result is no longer kept")]
    Evicted {
        /// The call.
        call_id: CallId,
    },
    /// The call was running when `sandboxd` was restarted. It may have done anything, and is not run again.
    #[error("sandboxd was restarted while call {call_id} was running, so its outcome is unknown")]
    OutcomeUnknown {
        /// The call.
        call_id: CallId,
    },
    /// The sandbox process does not know the call that was to be joined.
    #[error("the sandbox does not know call {call_id}")]
    UnknownCall {
        /// The call.
        call_id: CallId,
    },
    /// No answer in time. The call may still run; it can be joined again or cancelled.
    #[error("no answer from the sandbox within {} s", waited.as_secs())]
    Deadline {
        /// How long was waited.
        waited: Duration,
    },
    /// The answer is not what `sandboxd` says; the call may have run.
    #[error("the answer of the sandbox is not understood ({status}): {reason}")]
    Protocol {
        /// The HTTP status.
        status: StatusCode,
        /// What is wrong with it.
        reason: String,
    },
    /// Our own token could not be signed; nothing was sent.
    #[error(transparent)]
    Sign(#[from] SignError),
}

pub(super) fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1).min(60))
}

// A sandbox runs what a model wrote: what it says is bounded before it goes anywhere.
pub(super) fn error_body(body: &[u8]) -> (ErrorCode, String) {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => (body.error.code, body.error.message.chars().take(MAX_MESSAGE_CHARS).collect()),
        Err(_) => (ErrorCode::Unknown, String::from_utf8_lossy(body).chars().take(MAX_MESSAGE_CHARS).collect()),
    }
}

/// How one request failed, before it is known what that means for the call.
pub(super) enum Failure {
    Sign(SignError),
    Request(String),
    Unreachable { address: String, reason: String },
    Broken(String),
    Refused { status: StatusCode, retry_after: Duration, body: (ErrorCode, String) },
    Protocol { status: StatusCode, reason: String },
}

impl Failure {
    pub(super) fn of_call(self, call_id: &CallId) -> SandboxError {
        self.into_error(Some(call_id))
    }

    pub(super) fn into_error(self, call_id: Option<&CallId>) -> SandboxError {
        let (status, retry_after, code, message) = match self {
            Self::Sign(error) => return error.into(),
            Self::Request(message) => {
                return NotStarted::Rejected { status: StatusCode::BAD_REQUEST, message }.into();
            }
            Self::Unreachable { address, reason } => return NotStarted::Unreachable { address, reason }.into(),
            Self::Broken(reason) => return SandboxError::Lost { reason },
            Self::Protocol { status, reason } => return SandboxError::Protocol { status, reason },
            Self::Refused { status, retry_after, body: (code, message) } => (status, retry_after, code, message),
        };
        match (code, call_id.cloned()) {
            (ErrorCode::Draining, _) => NotStarted::Draining.into(),
            (ErrorCode::Terminating, _) => NotStarted::Terminating.into(),
            (ErrorCode::TooManyCalls, _) => NotStarted::Busy { retry_after }.into(),
            (ErrorCode::Unauthorized, _) => SandboxError::Unauthorized { message },
            (ErrorCode::CallMismatch, Some(call_id)) => SandboxError::Mismatch { call_id },
            (ErrorCode::ResultEvicted, Some(call_id)) => SandboxError::Evicted { call_id },
            (ErrorCode::OutcomeUnknown, Some(call_id)) => SandboxError::OutcomeUnknown { call_id },
            (ErrorCode::UnknownCall, Some(call_id)) => SandboxError::UnknownCall { call_id },
            (ErrorCode::Unknown, _) => SandboxError::Protocol { status, reason: message },
            _ => NotStarted::Rejected { status, message }.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use rstest::rstest;

    use super::{Failure, error_body};
    use crate::wire::{CallId, ErrorCode};

    #[rstest]
    #[case(409, ErrorCode::Draining, "NotStarted(Draining)")]
    #[case(503, ErrorCode::Terminating, "NotStarted(Terminating)")]
    #[case(429, ErrorCode::TooManyCalls, "NotStarted(Busy { retry_after: 3s })")]
    #[case(401, ErrorCode::Unauthorized, "Unauthorized { message: \"m\" }")]
    #[case(409, ErrorCode::CallMismatch, "Mismatch { call_id: CallId(\"c\") }")]
    #[case(410, ErrorCode::ResultEvicted, "Evicted { call_id: CallId(\"c\") }")]
    #[case(410, ErrorCode::OutcomeUnknown, "OutcomeUnknown { call_id: CallId(\"c\") }")]
    #[case(404, ErrorCode::UnknownCall, "UnknownCall { call_id: CallId(\"c\") }")]
    #[case(413, ErrorCode::TooLarge, "NotStarted(Rejected { status: 413, message: \"m\" })")]
    #[case(500, ErrorCode::Unknown, "Protocol { status: 500, reason: \"m\" }")]
    fn each_refusal_says_what_it_means_for_the_call(#[case] status: u16, #[case] code: ErrorCode, #[case] error: &str) {
        let failure = Failure::Refused {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: Duration::from_secs(3),
            body: (code, "m".to_owned()),
        };
        assert_eq!(format!("{:?}", failure.of_call(&CallId::new("c").unwrap())), error);
    }

    #[test]
    fn what_a_sandbox_says_is_bounded() {
        let (code, message) = error_body("x".repeat(100_000).as_bytes());
        assert_eq!((code, message.len()), (ErrorCode::Unknown, 500));
    }
}
