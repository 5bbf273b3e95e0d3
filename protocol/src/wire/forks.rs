//! Forks of sessions: an extension of the public API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::ClientEvent;
use crate::id::SessionId;

/// What a new session begins with, in the body of `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// The session whose history it shares.
    pub session: SessionId,
    /// The last event that they have in common; the last one there is without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

/// `POST /v1/sessions` for a fork, which inherits everything else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkSession {
    /// What it begins with.
    pub fork: Fork,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// At most 50 events that are its own: `user.message`, `user.define_outcome` and `system.message`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub initial_events: Vec<ClientEvent>,
}
