//! What stands in a record for a body that is kept elsewhere.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::EventId;

/// The field of an event that holds a [`Reference`]. No event that is stored as it is has it.
pub const REFERENCE_FIELD: &str = "x_payload";

/// What a record holds of a body that is kept elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Hex SHA-256 of the body as it is kept, by which it is found.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// The call that the event answers, which the log looks for without reading the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_use_id: Option<EventId>,
}

impl Reference {
    /// The reference that the field holds, if it is one.
    #[must_use]
    pub fn read(field: &Value) -> Option<Self> {
        Self::deserialize(field).ok()
    }
}
