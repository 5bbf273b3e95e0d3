//! What is done about a sandbox that does not come by itself.

use super::ExecuteError;
use super::run::Call;
use super::sandboxes::{SandboxKey, SandboxView};

impl Call<'_> {
    /// Wakes a sandbox that is suspended, and removes one that had ended before the call began, with the UID `ended_before`: then
    /// another is made. The text says why a call ends whose sandbox has ended while it waited, or whose files are lost although they
    /// were kept.
    pub(super) async fn rouse(
        &self,
        key: &SandboxKey,
        sandbox: &SandboxView,
        ended_before: Option<&str>,
    ) -> Result<Option<String>, ExecuteError> {
        let resources = &self.executor.resources;
        match &sandbox.finished {
            _ if sandbox.deleting => {}
            Some(why) if ended_before == Some(sandbox.uid.as_str()) => {
                resources.remove_sandbox(&key.namespace, &key.name, &sandbox.uid).await?;
                if sandbox.workspace_lost {
                    return Ok(Some(ended(why)));
                }
            }
            Some(why) => return Ok(Some(ended(why))),
            None if sandbox.suspended => {
                resources.wake_sandbox(&key.namespace, &key.name, &sandbox.uid).await?;
            }
            None => {}
        }
        Ok(None)
    }
}

fn ended(why: &str) -> String {
    format!(
        "The call was not run: its sandbox has ended ({why}). The next call gets a new one, with an empty workspace."
    )
}
