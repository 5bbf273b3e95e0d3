//! Events as they are sent and listed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{ClientEvent, Event};

/// `POST /v1/sessions/{id}/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendEvents {
    /// Taken all or none, in this order.
    pub events: Vec<ClientEvent>,
}

/// The answer to [`SendEvents`]: the events as they are queued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventsSent {
    /// `processed_at` is null.
    pub data: Vec<Event>,
}

/// An event with its sequence number (`?include_seq=true`, an extension).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NumberedEvent {
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    /// Its sequence number; absent unless asked for, and while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}
