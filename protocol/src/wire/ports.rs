//! Ports of sandboxes over HTTP: an extension of the public API.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::DateTime;

/// How a port is reached over HTTP: the answer of `POST .../ports/{port}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortLink {
    /// The origin of the port, which is that of no other.
    pub origin: String,
    /// A link for a browser, to be opened within a minute. Who has it may reach the port as the caller may.
    pub url: String,
    /// For programs: sent as `x-longhand-port-token` with each request.
    pub token: String,
    /// When the token is over.
    #[schemars(with = "DateTime")]
    pub expires_at: Timestamp,
}
