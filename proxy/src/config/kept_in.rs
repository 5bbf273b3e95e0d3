//! Where a value is kept outside of the pod.

use serde::{Deserialize, Serialize};

/// Where a credential is kept, as the operator says it: reports name it, and nothing else is done with it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeptIn {
    /// The vault.
    pub vault: String,
    /// The credential's name in the vault.
    pub credential: String,
    /// The Secret.
    pub secret: String,
    /// Its key.
    pub key: String,
}
