//! Refusals as HTTP answers.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::journal::Refused;
use crate::egress::BindError;
use crate::token::TokenError;
use crate::tools::terminal::TerminalError;
use crate::tools::transfer::TransferError;
use crate::wire::{CallId, ErrorBody, ErrorCode, ErrorDetail, MAX_REQUEST_BYTES, TERMINAL_PROTOCOL, TUNNEL_PROTOCOL};

/// Why a request got no answer but an error.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("send a token in the header `Authorization: Bearer ...`")]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the body is not what this endpoint takes: {0}")]
    Body(#[from] serde_json::Error),
    #[error("the body could not be read to its end")]
    BrokenBody,
    #[error("the body did not arrive within {seconds} s")]
    SlowBody { seconds: u64 },
    #[error("the body is larger than {MAX_REQUEST_BYTES} bytes")]
    TooLarge,
    #[error("there is no {path}")]
    NotFound { path: String },
    #[error("this path does not have the method {method}")]
    Method { method: String },
    #[error("the query is not what this endpoint takes: {0}")]
    Query(#[from] QueryRejection),
    #[error("mode is not up to three octal digits")]
    Mode,
    #[error("a terminal takes a WebSocket in the subprotocol {TERMINAL_PROTOCOL}")]
    NoWebSocket,
    #[error("a port takes a connection that is upgraded to {TUNNEL_PROTOCOL}")]
    NoTunnel,
    #[error("port {port} is that of sandboxd itself")]
    OwnPort { port: u16 },
    #[error("nothing listens on port {port} of the sandbox's loopback: {reason}")]
    NothingListens { port: u16, reason: String },
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Egress(#[from] BindError),
    #[error("the sandbox takes calls: drain it before its workspace goes elsewhere")]
    NotDrained,
    #[error("the work failed inside sandboxd")]
    Failed,
    #[error("{}", not_now(*.0))]
    NotNow(Refused),
    #[error("{}", refusal(.call_id, *.reason))]
    Refused { call_id: CallId, reason: Refused },
}

fn not_now(reason: Refused) -> &'static str {
    match reason {
        Refused::Draining => "the sandbox is being reclaimed",
        Refused::Terminating => "the sandbox is ending",
        Refused::Used => "the sandbox has been used, and its workspace is not replaced",
        _ => "too many terminals, transfers or connections to ports are open",
    }
}

fn refusal(call_id: &CallId, reason: Refused) -> String {
    match reason {
        Refused::Mismatch => format!("call {call_id} is known with another name or input"),
        Refused::Evicted => {
            format!("call {call_id} has finished; its result is no longer kept, and it is not run again")
        }
        Refused::OutcomeUnknown => {
            format!(
                "call {call_id} was running when sandboxd was restarted: its outcome is unknown, and it is not run again"
            )
        }
        Refused::Unknown => format!("call {call_id} is not known to this process"),
        Refused::Busy => format!("too many calls run; call {call_id} was not started"),
        Refused::Draining => format!("the sandbox is being reclaimed; call {call_id} was not started"),
        Refused::Terminating => format!("the sandbox is ending; call {call_id} was not started"),
        Refused::Used => format!("the sandbox has been used; call {call_id} was not started"),
    }
}

impl ApiError {
    fn kind(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::NoToken | Self::Token(_) => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
            Self::Body(_) | Self::BrokenBody | Self::Query(_) | Self::Mode => {
                (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest)
            }
            Self::Transfer(TransferError::Missing(_)) => (StatusCode::NOT_FOUND, ErrorCode::NoSuchFile),
            Self::Transfer(TransferError::Full(_)) => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::StorageFull),
            Self::Transfer(TransferError::Broken(_)) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest),
            Self::Transfer(TransferError::Refused(_)) => (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::FileRefused),
            Self::NoWebSocket | Self::NoTunnel => (StatusCode::UPGRADE_REQUIRED, ErrorCode::UpgradeRequired),
            Self::OwnPort { .. } => (StatusCode::FORBIDDEN, ErrorCode::PortRefused),
            Self::NothingListens { .. } => (StatusCode::BAD_GATEWAY, ErrorCode::NothingListens),
            Self::Terminal(TerminalError::Nul) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest),
            Self::Terminal(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::NoTerminal),
            Self::Egress(BindError::Authority(_)) => (StatusCode::BAD_GATEWAY, ErrorCode::EgressUnavailable),
            Self::Egress(BindError::NoRelay | BindError::Bundle(_)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Failed)
            }
            Self::Egress(_) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest),
            Self::NotDrained => (StatusCode::CONFLICT, ErrorCode::WrongState),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Failed),
            Self::SlowBody { .. } => (StatusCode::REQUEST_TIMEOUT, ErrorCode::RequestTimeout),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::MethodNotAllowed),
            Self::NotNow(reason) | Self::Refused { reason, .. } => match reason {
                Refused::Mismatch => (StatusCode::CONFLICT, ErrorCode::CallMismatch),
                Refused::Evicted => (StatusCode::GONE, ErrorCode::ResultEvicted),
                Refused::OutcomeUnknown => (StatusCode::GONE, ErrorCode::OutcomeUnknown),
                Refused::Unknown => (StatusCode::NOT_FOUND, ErrorCode::UnknownCall),
                Refused::Busy => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyCalls),
                Refused::Draining => (StatusCode::CONFLICT, ErrorCode::Draining),
                Refused::Terminating => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Terminating),
                Refused::Used => (StatusCode::CONFLICT, ErrorCode::WrongState),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.kind();
        let mut response =
            (status, Json(ErrorBody { error: ErrorDetail { code, message: self.to_string() } })).into_response();
        let extra = match code {
            ErrorCode::Unauthorized => Some((header::WWW_AUTHENTICATE, "Bearer")),
            ErrorCode::UpgradeRequired if matches!(self, Self::NoTunnel) => Some((header::UPGRADE, TUNNEL_PROTOCOL)),
            ErrorCode::UpgradeRequired => Some((header::UPGRADE, "websocket")),
            ErrorCode::TooManyCalls => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
