//! Why a reconcile failed, and when it is tried again.

use std::time::Duration;

use longhand_protocol::client;
use longhand_protocol::internal::LIMIT_REACHED;

use crate::calls::CallError;
use crate::log_service;

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or did not answer.
    #[error(transparent)]
    Kubernetes(#[from] CallError),
    /// The session service refused, or did not answer.
    #[error("the session service: {0}")]
    Log(#[from] Box<client::Error>),
    /// The watches that a reconcile reads from have not begun.
    #[error("the watches have not delivered their first lists within {0:?}")]
    NotSynced(Duration),
    /// The session service has not published the key that sandboxes know it by.
    #[error("ConfigMap {namespace}/{name} has no key {key}: the session service publishes it when it starts")]
    NoVerifyKey {
        /// The ConfigMap's namespace.
        namespace: String,
        /// The ConfigMap's name.
        name: &'static str,
        /// The key in it.
        key: &'static str,
    },
    /// Something else has the name of the next version of an agent, such as a version of an agent of that name that is gone.
    #[error(
        "the next version of Agent {namespace}/{name} has the name of a ControllerRevision that belongs to something else"
    )]
    VersionTaken {
        /// The agent's namespace.
        namespace: String,
        /// The agent's name.
        name: String,
    },
    /// An object cannot be written as JSON.
    #[error("an object cannot be written: {0}")]
    Unwritable(serde_json::Error),
    /// Something else has the name of the claim of a workspace that is to be made.
    #[error(
        "PersistentVolumeClaim {namespace}/{name} exists and belongs to something else; it is left alone, delete or rename it"
    )]
    VolumeNameTaken {
        /// The claim's namespace.
        namespace: String,
        /// The claim's name.
        name: String,
    },
    /// Something else has the name of a pod that is to be made.
    #[error("pod {namespace}/{name} exists and belongs to something else; it is left alone, delete or rename it")]
    NameTaken {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
}

impl Error {
    /// One word for a condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kubernetes(error) => error.reason(),
            Self::Log(error) if error.status().is_some_and(|status| status.as_u16() == 404) => "LogNotFound",
            Self::Log(error) if is_limit(error) => "LimitReached",
            Self::Log(_) => "SessionServiceUnavailable",
            Self::NotSynced(_) => "NotSynced",
            Self::NoVerifyKey { .. } => "VerifyKeyMissing",
            Self::VersionTaken { .. } => "VersionTaken",
            Self::Unwritable(_) => "Unwritable",
            Self::NameTaken { .. } => "PodNameTaken",
            Self::VolumeNameTaken { .. } => "VolumeNameTaken",
        }
    }

    /// How long to wait before the next try.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Kubernetes(error) if error.is_lasting() => Duration::from_secs(30),
            Self::Kubernetes(_) => Duration::from_secs(5),
            Self::Log(error) => log_service::retry_after(error),
            Self::NotSynced(_) | Self::NoVerifyKey { .. } | Self::VersionTaken { .. } => Duration::from_secs(2),
            Self::NameTaken { .. } | Self::VolumeNameTaken { .. } | Self::Unwritable(_) => Duration::from_secs(30),
        }
    }
}

/// Whether the session service refuses since a session or its namespace is full.
fn is_limit(error: &client::Error) -> bool {
    let client::Error::Api(error) = error else { return false };
    error.body.details.as_ref().is_some_and(|details| details["error_code"] == LIMIT_REACHED)
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        Self::Log(Box::new(error))
    }
}
