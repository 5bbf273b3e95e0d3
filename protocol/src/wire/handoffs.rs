//! Sandboxes that go from one session to another: an extension of the public API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::SessionId;

/// `POST /v1/sessions/{session}/sandboxes/{sandbox}/handoff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HandOff {
    /// The session of the same namespace that gets it.
    pub to_session: SessionId,
    /// Which of that session's sandboxes it becomes; the one of the same name without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    pub to_sandbox: Option<String>,
}

/// A sandbox of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SandboxAt {
    /// The session.
    pub session: SessionId,
    /// The sandbox's name in it.
    pub sandbox: String,
}

/// A handoff that is decided: it is seen through whatever fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SandboxHandoff {
    /// Where it was.
    pub from: SandboxAt,
    /// Where its workspace is now, or will be when what still runs has ended.
    pub to: SandboxAt,
}
