//! Where a value is kept outside of the pod.

use serde::Deserialize;

/// The key of a Secret that a credential is in, as the operator says it: reports name it, and nothing else is done with it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeptIn {
    /// The Secret.
    pub secret: String,
    /// Its key.
    pub key: String,
}
