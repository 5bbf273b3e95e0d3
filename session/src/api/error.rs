//! What is answered when a request is not served: one shape for every API of the service.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use longhand_protocol::fields::InvalidField;
use longhand_protocol::harness::Conflict;
use longhand_protocol::internal::{LIMIT_REACHED, LimitOf, Limited};
use longhand_protocol::wire::work::LeaseState;
use longhand_protocol::{ErrorEnvelope, ErrorType};
use longhand_sandbox::client::{NotStarted, SandboxError};
use longhand_session_log::StoreError;
use longhand_session_log::work::{Refused, WorkError};
use serde_json::{Value, json};

use crate::execute::{DrainError, ExecuteError, HandoffError, ReachError};
use crate::metrics;
use crate::resources::ResourceError;

/// The status of an API that is overloaded, which is not one of HTTP's own.
const OVERLOADED: u16 = 529;
/// Says to SDKs whether to send a request again by themselves.
pub(crate) const SHOULD_RETRY: &str = "x-should-retry";

/// What a handler returns.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct ApiError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    kind: ErrorType,
    message: String,
    details: Option<Value>,
    retry_after: Option<Duration>,
    do_not_repeat: bool,
    /// It is known that nothing was done.
    nothing_done: bool,
}

impl ApiError {
    fn new(status: StatusCode, kind: ErrorType, message: impl Into<String>) -> Self {
        let do_not_repeat = status == StatusCode::CONFLICT;
        let message = message.into();
        let (details, retry_after, nothing_done) = (None, None, false);
        Self(Box::new(Inner { status, kind, message, details, retry_after, do_not_repeat, nothing_done }))
    }

    /// 400: the request is wrong, and would be wrong again.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorType::InvalidRequestError, message)
    }

    /// 400: a limit is reached, and would be again; the details say which.
    pub fn limit_reached(of: LimitOf, what: Limited, limit: u64, message: impl Into<String>) -> Self {
        metrics::limit_reached(of.as_str(), what.as_str());
        let mut error = Self::bad_request(message);
        error.0.details = Some(json!({ "error_code": LIMIT_REACHED, "of": of, "what": what, "limit": limit }));
        error
    }

    /// 401: who asks is not known.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorType::AuthenticationError, message)
    }

    /// 403: who asks may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorType::PermissionError, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorType::NotFoundError, message)
    }

    /// 405.
    pub fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorType::InvalidRequestError, message)
    }

    /// 409: it does not fit the present state; asking again at once would not help.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, ErrorType::InvalidRequestError, message)
    }

    /// 408: the body did not arrive in time.
    pub fn slow_body(limit: Duration) -> Self {
        let message = format!("the body did not arrive within {} s", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, ErrorType::InvalidRequestError, message)
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorType::RequestTooLarge, message)
    }

    /// 429: too much at once.
    pub fn too_many(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorType::RateLimitError, message).retry_after(retry_after)
    }

    /// 500: a defect, or data that cannot be read.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorType::ApiError, message)
    }

    /// 503: something that the service depends on is away.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorType::ApiError, message).retry_after(Duration::from_secs(1))
    }

    /// 529: nothing was done, since too much is being done already.
    pub fn overloaded(message: impl Into<String>, retry_after: Duration) -> Self {
        let status = StatusCode::from_u16(OVERLOADED).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        Self::new(status, ErrorType::OverloadedError, message).retry_after(retry_after).nothing_done()
    }

    /// 504: not done yet; ask again.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, ErrorType::TimeoutError, message)
    }

    /// 412 or 409 of the harness API, with the details that a harness acts on.
    pub fn log_conflict(conflict: Conflict, message: impl Into<String>) -> Self {
        let status = match conflict {
            Conflict::Fenced { .. } => StatusCode::PRECONDITION_FAILED,
            Conflict::HeadMoved { .. } | Conflict::WakeMoved | Conflict::NotQueued => StatusCode::CONFLICT,
        };
        let mut error = Self::new(status, ErrorType::InvalidRequestError, message);
        error.0.details = serde_json::to_value(conflict).ok();
        error
    }

    /// 412 for a worker that has lost its work.
    pub fn lease_lost(state: &LeaseState, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::PRECONDITION_FAILED, ErrorType::InvalidRequestError, message);
        error.0.details = Some(json!({ "error_code": "heartbeat_precondition_failed", "current_state": state }));
        error
    }

    fn retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    fn nothing_done(mut self) -> Self {
        self.0.nothing_done = true;
        self
    }

    /// For a change that is not repeated safely: when its outcome is not known, an SDK must not send it again by itself.
    #[must_use]
    pub fn of_change(mut self) -> Self {
        self.0.do_not_repeat |= self.0.status.is_server_error() && !self.0.nothing_done;
        self
    }

    /// For a change of several steps, of which the first ones were made and are not known to be undone.
    #[must_use]
    pub fn of_last_step(mut self) -> Self {
        self.0.do_not_repeat |= self.0.status.is_server_error();
        self
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status
    }
}

impl IntoResponse for ApiError {
    /// The body is written by the layer that knows the request's identifier.
    fn into_response(self) -> Response {
        let Inner { status, kind, message, details, retry_after, do_not_repeat, .. } = *self.0;
        let mut response = status.into_response();
        if let Some(wait) = retry_after {
            let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000)));
            response.headers_mut().insert("retry-after-ms", HeaderValue::from(ms));
        }
        if do_not_repeat {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response.extensions_mut().insert(ErrorEnvelope::new(kind, message, details));
        response
    }
}

impl From<&StoreError> for ApiError {
    fn from(error: &StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NotFound(_) | StoreError::UnknownCall(_) => Self::not_found(message),
            StoreError::Exists(_)
            | StoreError::Owned { .. }
            | StoreError::Duplicate(_)
            | StoreError::HasForks { .. }
            | StoreError::Elsewhere { .. }
            | StoreError::Ended(_)
            | StoreError::AtWork(_)
            | StoreError::CallState { .. } => Self::conflict(message),
            StoreError::Fenced { current, .. } => Self::log_conflict(Conflict::Fenced { epoch: *current }, message),
            // Its lease has run out, or it gave the session up: either way it must not go on as the owner.
            StoreError::ClaimLost { epoch } => Self::log_conflict(Conflict::Fenced { epoch: *epoch }, message),
            StoreError::HeadMoved { head } => Self::log_conflict(Conflict::HeadMoved { head: *head }, message),
            StoreError::WakeMoved => Self::log_conflict(Conflict::WakeMoved, message),
            StoreError::NotQueued(_) => Self::log_conflict(Conflict::NotQueued, message),
            StoreError::TooLarge(_) => Self::too_large(message),
            StoreError::InboxFull { .. } => Self::too_many(message, Duration::from_secs(5)),
            StoreError::Unavailable(_) => Self::unavailable(message),
            StoreError::NoSpace => Self::unavailable(message).nothing_done(),
            StoreError::Overloaded { retry_after } => Self::overloaded(message, *retry_after),
            StoreError::LimitReached { what, limit, .. } => {
                Self::limit_reached(LimitOf::Session, (*what).into(), *limit, message)
            }
            StoreError::NoSuchEvent { .. } | StoreError::BadImport(_) => Self::bad_request(message),
            StoreError::Corrupt { .. } => Self::internal(message),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

impl From<InvalidField> for ApiError {
    fn from(error: InvalidField) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<ResourceError> for ApiError {
    fn from(error: ResourceError) -> Self {
        let message = error.to_string();
        match error {
            ResourceError::Refused { .. } => Self::bad_request(message),
            ResourceError::Conflict { .. } => Self::conflict(message),
            ResourceError::Unavailable { .. } => Self::unavailable(message),
        }
    }
}

impl From<ExecuteError> for ApiError {
    fn from(error: ExecuteError) -> Self {
        let message = error.to_string();
        match error {
            ExecuteError::Store(error) => Self::from(error.as_ref()),
            ExecuteError::Resources(_) | ExecuteError::Stopping => Self::unavailable(message),
            ExecuteError::NotACall(_) | ExecuteError::NoSession { .. } => Self::not_found(message),
            ExecuteError::NotConfirmed(_) => Self::conflict(message),
            ExecuteError::Work(_) => Self::too_many(message, Duration::from_secs(5)),
            ExecuteError::Busy => Self::too_many(message, Duration::from_secs(2)),
            ExecuteError::Failed(_) => Self::internal(message),
        }
    }
}

impl From<DrainError> for ApiError {
    fn from(error: DrainError) -> Self {
        let message = error.to_string();
        match error {
            DrainError::NoSandbox { .. } => Self::not_found(message),
            DrainError::OtherPod { .. } => Self::conflict(message),
            DrainError::Resources(error) => error.into(),
            DrainError::Log(error) => error.into(),
            DrainError::NotReady(_) | DrainError::Sandbox(_) => Self::unavailable(message),
        }
    }
}

impl From<HandoffError> for ApiError {
    fn from(error: HandoffError) -> Self {
        let message = error.to_string();
        match error {
            HandoffError::NoSandbox { .. } => Self::not_found(message),
            HandoffError::OtherNamespace | HandoffError::Itself => Self::bad_request(message),
            HandoffError::Ended { .. }
            | HandoffError::NoPod { .. }
            | HandoffError::InUse { .. }
            | HandoffError::SelfHosted { .. }
            | HandoffError::Taken { .. }
            | HandoffError::GoesElsewhere { .. }
            | HandoffError::NotHandedOver { .. }
            | HandoffError::TakenBack(_) => Self::conflict(message),
            HandoffError::Resources(error) => error.into(),
            HandoffError::Log(error) => error.into(),
            HandoffError::Sandbox(_) => Self::unavailable(message),
        }
    }
}

impl From<ReachError> for ApiError {
    fn from(error: ReachError) -> Self {
        let message = error.to_string();
        match error {
            ReachError::NoSandbox { .. } => Self::not_found(message),
            ReachError::Ended { .. } => Self::conflict(message),
            ReachError::NotReady { .. } => Self::timeout(message),
            ReachError::Resources(error) => error.into(),
        }
    }
}

impl From<SandboxError> for ApiError {
    fn from(error: SandboxError) -> Self {
        let message = error.to_string();
        match error {
            // What it says of a file, a port or a terminal is for the caller.
            SandboxError::NotStarted(NotStarted::Rejected { status, message }) => {
                let kind = match status {
                    StatusCode::NOT_FOUND => ErrorType::NotFoundError,
                    StatusCode::FORBIDDEN => ErrorType::PermissionError,
                    status if status.is_server_error() => ErrorType::ApiError,
                    _ => ErrorType::InvalidRequestError,
                };
                Self::new(status, kind, message)
            }
            SandboxError::NotStarted(NotStarted::Busy { retry_after }) => Self::too_many(message, retry_after),
            SandboxError::NotStarted(NotStarted::Draining | NotStarted::Terminating) => {
                Self::conflict(format!("{message}: ask again in a moment"))
            }
            SandboxError::Sign(_) => Self::internal(message),
            _ => Self::unavailable(message),
        }
    }
}

impl From<WorkError> for ApiError {
    fn from(error: WorkError) -> Self {
        let message = error.to_string();
        match error {
            WorkError::Store(error) => error.into(),
            WorkError::NotFound(_) => Self::not_found(message),
            WorkError::Full { .. } => Self::too_many(message, Duration::from_secs(5)),
            WorkError::Refused(Refused::Precondition(state)) => Self::lease_lost(&state, message),
            WorkError::Refused(Refused::State(_) | Refused::Lost) => Self::conflict(message),
            WorkError::Refused(Refused::Metadata) => Self::bad_request(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::response::IntoResponse as _;
    use longhand_session_log::StoreError;
    use rstest::rstest;

    use super::{ApiError, SHOULD_RETRY};

    const WAIT: Duration = Duration::from_secs(2);

    /// An SDK sends again by itself what is answered with 5xx, unless it is told not to.
    #[rstest]
    #[case::nobody_knows(StoreError::Unavailable("away".into()), Some("false"))]
    #[case::nothing_was_done(StoreError::Overloaded { retry_after: WAIT }, None)]
    #[case::nothing_was_stored(StoreError::NoSpace, None)]
    #[case::a_defect(StoreError::Corrupt { key: "k".into(), reason: "r".into() }, Some("false"))]
    fn a_change_is_repeated_if_nothing_was_done(#[case] error: StoreError, #[case] header: Option<&str>) {
        let said = |error: ApiError| {
            let headers = error.into_response().headers().clone();
            headers.get(SHOULD_RETRY).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(said(ApiError::from(&error).of_change()).as_deref(), header);
        assert_eq!(said(ApiError::from(&error).of_last_step()).as_deref(), Some("false"));
        assert_eq!(said(ApiError::from(&error)), None, "what is only read is always asked again");
    }
}
