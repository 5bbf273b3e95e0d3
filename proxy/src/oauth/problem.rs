//! Why there is no access token.

use longhand_protocol::refresh::RefreshFailure;

use super::endpoint::AskError;
use crate::secret::FileCondition;

/// Why an access token cannot be had or renewed. No text here comes from a provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The access token's file gives no value.
    #[error("{condition} ({path})")]
    File {
        /// The file.
        path: String,
        /// Why not.
        condition: FileCondition,
    },
    /// A file that it is renewed with gives no value.
    #[error("it has expired, and what it is renewed with cannot be read: {condition} ({path})")]
    RefreshFile {
        /// The file.
        path: String,
        /// Why not.
        condition: FileCondition,
    },
    /// Another refresh token took the place of the one that this pod has.
    #[error(
        "its access token has expired, and another session has renewed it: this pod has the old one and is replaced when it is idle"
    )]
    Superseded,
    /// The provider has refused.
    #[error("the provider refused to renew it ({}): give consent anew and write a new refresh token", .0.as_str())]
    Refused(RefreshFailure),
    /// Another proxy is renewing it.
    #[error("another session is renewing it: try again")]
    Busy,
    /// Something failed a moment ago, and is tried again later.
    #[error("it could not be renewed a moment ago, and that is tried again in {0} s")]
    Waiting(u64),
    /// The tokens that were given last are not in the vault yet.
    #[error("the session service has not taken the last tokens yet, and another could not be kept")]
    NotHandedOver,
    /// The session service does not let it, or is away.
    #[error("the session service does not let it be renewed: {0}")]
    Service(String),
    /// The provider gave nothing.
    #[error("it could not be renewed: {0}")]
    Provider(#[from] AskError),
    /// The answer is still on its way.
    #[error("it is being renewed: try again")]
    Late,
}
