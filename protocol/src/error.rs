//! The error shape of the public API, which the harness API shares.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorEnvelope {
    /// Always `error`.
    #[serde(rename = "type")]
    pub kind: ErrorTag,
    /// What happened.
    pub error: ErrorBody,
    /// The same as the `request-id` header.
    #[serde(default)]
    pub request_id: Option<String>,
}

impl ErrorEnvelope {
    /// An error without a request identifier, which the service's middleware adds.
    #[must_use]
    pub fn new(kind: ErrorType, message: impl Into<String>, details: Option<Value>) -> Self {
        Self { kind: ErrorTag::Error, error: ErrorBody { kind, message: message.into(), details }, request_id: None }
    }
}

/// The constant `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorTag {
    /// `error`
    Error,
}

/// What happened, to what, and what to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// The class of the error.
    #[serde(rename = "type")]
    pub kind: ErrorType,
    /// One sentence for a person.
    pub message: String,
    /// Fields for a program, such as [`crate::harness::Conflict`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

/// The classes of errors that the public API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// 400, 409, 412 and 422: the request cannot be done as it stands.
    InvalidRequestError,
    /// 401: no token, or one that the API server does not vouch for.
    AuthenticationError,
    /// 403: the identity may not do this.
    PermissionError,
    /// 404: no such object, or none that the caller may know of.
    NotFoundError,
    /// 413: the body is larger than the service takes.
    RequestTooLarge,
    /// 429: slow down; `retry-after` says for how long.
    RateLimitError,
    /// 500 and 503: our fault; nothing was acknowledged.
    ApiError,
    /// 529: try again later.
    OverloadedError,
    /// 504: a deadline passed.
    TimeoutError,
}
