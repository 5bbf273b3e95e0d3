//! Whether a namespace has room for another sandbox.

use super::ExecuteError;
use super::run::Call;
use super::sandboxes::SandboxKey;
use crate::metrics;

impl Call<'_> {
    /// Why no sandbox can be made for the call, in words for the model. One that there is already is not a further one.
    pub(super) async fn no_room(&self, key: &SandboxKey) -> Result<Option<String>, ExecuteError> {
        let most = self.executor.limits.namespace_sandboxes;
        // Those that replicas make at the same moment are not known yet, so that there may be a few more.
        if most == 0 || self.executor.sandboxes.unfinished_in(&key.namespace) < most {
            return Ok(None);
        }
        if self.executor.resources.sandbox(&key.namespace, &key.name).await?.is_some() {
            return Ok(None);
        }
        metrics::limit_reached("namespace", "sandboxes");
        Ok(Some(format!(
            "The call was not run: there can be no sandbox for it, since namespace {} has {most} sandboxes, as many as it may have. Idle ones go by themselves; the next call tries again.",
            key.namespace
        )))
    }
}
