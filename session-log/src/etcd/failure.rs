//! Why a call to etcd failed, and what that says about whether it was carried out.

use etcd_client::Error;
use tonic::Code;

use crate::store::StoreError;

/// What etcd says when its quota is used up; it has no code of its own.
const NO_SPACE: &str = "database space exceeded";
/// What etcd says when users or roles have changed since a request was let in. Nothing was carried out.
const OLD_AUTH_REVISION: &str = "revision of auth store is old";
/// What a member says that does not reach the others.
pub(super) const NO_LEADER: &str = "no leader";
/// What etcd says to one who has to log in again. Nothing was carried out.
pub(super) const LOST_LOGIN: [&str; 4] =
    ["invalid auth token", "authentication failed", "user name is empty", "permission denied"];

/// Why a call to etcd failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It was not carried out, and trying again would not help.
    #[error(transparent)]
    Refused(StoreError),
    /// It has to do with etcd, not with what was asked for.
    #[error(transparent)]
    Trouble(Trouble),
}

/// What is wrong with etcd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// Whether it was carried out is not known.
    #[error("{0}")]
    Unknown(String),
    /// Etcd has no space left. Who crosses the line is told so although it was carried out.
    #[error("etcd has no space left")]
    NoSpace,
    /// It was not carried out: too much waits already.
    #[error("etcd has more to do than it can")]
    Busy,
}

impl Failure {
    pub(crate) fn unknown(reason: impl Into<String>) -> Self {
        Self::Trouble(Trouble::Unknown(reason.into()))
    }

    /// What a caller learns who does not look whether it was carried out.
    pub(crate) fn into_store(self) -> StoreError {
        match self {
            Self::Refused(error) => error,
            Self::Trouble(trouble) => trouble.into_store(),
        }
    }
}

impl Trouble {
    pub(crate) fn into_store(self) -> StoreError {
        match self {
            Self::Unknown(reason) => StoreError::Unavailable(reason),
            Self::NoSpace => StoreError::NoSpace,
            Self::Busy => StoreError::Overloaded { retry_after: super::batch::RETRY_AFTER },
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => of_status(status.code(), status.message()),
            Error::TransportError(_) | Error::IoError(_) | Error::WatchError(_) | Error::LeaseKeepAliveError(_) => {
                Self::unknown(error.to_string())
            }
            _ => Self::Refused(StoreError::Unavailable(error.to_string())),
        }
    }
}

fn of_status(code: Code, message: &str) -> Failure {
    match code {
        Code::InvalidArgument if message.contains(OLD_AUTH_REVISION) => Failure::unknown(message),
        Code::InvalidArgument if LOST_LOGIN.iter().any(|text| message.contains(text)) => Failure::unknown(message),
        // Keys are never empty and never put twice, so it is the size.
        Code::InvalidArgument => Failure::Refused(StoreError::TooLarge(message.to_owned())),
        Code::ResourceExhausted if message.contains(NO_SPACE) => Failure::Trouble(Trouble::NoSpace),
        Code::ResourceExhausted => Failure::Trouble(Trouble::Busy),
        // The token is asked for anew.
        Code::Unauthenticated => Failure::unknown(message),
        Code::NotFound | Code::PermissionDenied | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented => {
            Failure::Refused(StoreError::Unavailable(format!("etcd refuses: {message}")))
        }
        _ => Failure::unknown(message),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tonic::Code;

    use super::{Failure, of_status};
    use crate::store::StoreError;

    fn shown(failure: &Failure) -> &'static str {
        match failure {
            Failure::Refused(StoreError::TooLarge(_)) => "too large",
            Failure::Refused(_) => "refused",
            Failure::Trouble(super::Trouble::Unknown(_)) => "unknown",
            Failure::Trouble(super::Trouble::NoSpace) => "no space",
            Failure::Trouble(super::Trouble::Busy) => "busy",
        }
    }

    #[rstest]
    #[case(Code::InvalidArgument, "etcdserver: request is too large", "too large")]
    #[case(Code::InvalidArgument, "etcdserver: revision of auth store is old", "unknown")]
    #[case(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "no space")]
    #[case(Code::ResourceExhausted, "etcdserver: too many requests", "busy")]
    #[case(Code::NotFound, "etcdserver: requested lease not found", "refused")]
    #[case(Code::PermissionDenied, "etcdserver: permission denied", "refused")]
    #[case(Code::Unauthenticated, "etcdserver: invalid auth token", "unknown")]
    #[case(Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", "unknown")]
    #[case(Code::InvalidArgument, "etcdserver: user name is empty", "unknown")]
    #[case(Code::Unavailable, "etcdserver: leader changed", "unknown")]
    #[case(Code::DeadlineExceeded, "etcdserver: request timed out", "unknown")]
    #[case(Code::Unknown, "?", "unknown")]
    fn a_status_says_whether_it_was_carried_out(#[case] code: Code, #[case] message: &str, #[case] meaning: &str) {
        assert_eq!(shown(&of_status(code, message)), meaning);
    }
}
