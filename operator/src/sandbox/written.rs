//! Statuses that this process has written and no watch has shown yet.
//!
//! What a write changes is looked at again at once, mostly before the write itself is seen: without this each would be written twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::ResourceExt as _;
use longhand_crds::{Sandbox, SandboxStatus};
use tokio::time::Instant;

/// By then the watch has shown it, or the sandbox is gone.
const KEPT: Duration = Duration::from_secs(30);

struct Entry {
    /// Which state of the sandbox was seen when it was written.
    seen: String,
    status: SandboxStatus,
    since: Instant,
}

/// What was written last, by the UIDs of sandboxes.
#[derive(Default)]
pub(super) struct Written(Mutex<HashMap<String, Entry>>);

impl Written {
    /// Notes what was written of the sandbox as it was seen.
    pub(super) fn note(&self, sandbox: &Sandbox, status: &SandboxStatus) {
        let (Some(uid), Some(seen)) = (sandbox.uid(), sandbox.resource_version()) else { return };
        self.entries().insert(uid, Entry { seen, status: status.clone(), since: Instant::now() });
    }

    /// Forgets what the watch has shown by now.
    pub(super) fn tidy(&self) {
        let mut entries = self.entries();
        entries.retain(|_, entry| entry.since.elapsed() < KEPT);
        let kept = entries.len().saturating_mul(2);
        entries.shrink_to(kept);
    }

    /// The sandbox with what was written of it, if it is seen as it was before that.
    pub(super) fn latest(&self, mut sandbox: Arc<Sandbox>) -> Arc<Sandbox> {
        let entries = self.entries();
        let ours = sandbox.uid().and_then(|uid| entries.get(&uid));
        let newer = ours.filter(|entry| Some(&entry.seen) == sandbox.metadata.resource_version.as_ref());
        if let Some(entry) = newer.filter(|entry| entry.since.elapsed() < KEPT) {
            Arc::make_mut(&mut sandbox).status = Some(entry.status.clone());
        }
        sandbox
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longhand_crds::{Sandbox, SandboxStatus};

    use super::{KEPT, Written};
    use crate::fixtures;

    fn seen(version: &str) -> Arc<Sandbox> {
        let mut sandbox = fixtures::sandbox();
        (sandbox.metadata.resource_version, sandbox.status) = (Some(version.into()), None);
        Arc::new(sandbox)
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_is_known_until_the_watch_shows_another_state() {
        let written = Written::default();
        let status = SandboxStatus { restarts: 7, ..SandboxStatus::default() };
        written.note(&seen("1"), &status);
        assert_eq!(written.latest(seen("1")).status, Some(status));
        assert_eq!(written.latest(seen("2")).status, None, "what the API server says now comes first");
        tokio::time::advance(KEPT).await;
        assert_eq!(written.latest(seen("1")).status, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_is_not_kept_for_ever() {
        let written = Written::default();
        written.note(&seen("1"), &SandboxStatus::default());
        tokio::time::advance(KEPT / 2).await;
        written.tidy();
        assert_eq!(written.entries().len(), 1);
        tokio::time::advance(KEPT / 2).await;
        written.tidy();
        assert_eq!(written.entries().capacity(), 0);
    }
}
