//! What the harness API says of a sandbox that is made before a tool needs it.

use serde::{Deserialize, Serialize};

/// `POST provision`: make a sandbox of the session, without running anything in it; answered when it takes calls.
///
/// May be repeated at will. A sandbox that is not used goes when it has been idle for long enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRequest {
    /// The claim's epoch.
    pub epoch: u64,
    /// Which of the session's sandboxes; the first if absent.
    #[serde(default)]
    pub sandbox: Option<String>,
}

/// The answer to `provision`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionResponse {
    /// Which of the session's sandboxes.
    pub sandbox: String,
    /// Whether it takes calls.
    pub ready: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
