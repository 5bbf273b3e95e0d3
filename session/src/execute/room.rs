//! Whether a namespace has room for another sandbox.

use super::sandboxes::SandboxKey;
use super::{ExecuteError, Executor};
use crate::metrics;

impl Executor {
    /// Why no sandbox can be made, in words for the model. One that there is already is not a further one.
    pub(super) async fn no_room(&self, key: &SandboxKey) -> Result<Option<String>, ExecuteError> {
        let most = self.limits.namespace_sandboxes;
        // Those that replicas make at the same moment are not known yet, so that there may be a few more.
        if most == 0 || self.sandboxes.unfinished_in(&key.namespace) < most {
            return Ok(None);
        }
        if self.resources.sandbox(&key.namespace, &key.name).await?.is_some() {
            return Ok(None);
        }
        metrics::limit_reached("namespace", "sandboxes");
        Ok(Some(format!(
            "namespace {} has {most} sandboxes, as many as it may have; idle ones go by themselves, so that it can be tried again",
            key.namespace
        )))
    }
}
