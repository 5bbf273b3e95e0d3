//! Copying a workspace that is in no volume into the pod of the sandbox that gets it.
//!
//! Any replica may do it, and begin anew what another one has left: a pod takes one copy at a time and keeps the first that is whole.
//! That it is whole is written down for that pod only. Until then the copy is nobody's, and its sandbox can be removed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use longhand_crds::Sandbox;
use longhand_protocol::SessionId;
use longhand_sandbox::client::{NotStarted, SandboxError, Target};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{Instrument as _, info_span};

use super::handoff::{HandoffError, TRIES};
use super::sandboxes::{SandboxKey, SandboxView};
use super::{ExecuteError, Executor};
use crate::cache::TtlCache;
use crate::resources::ResourceError;

/// Workspaces that this replica copies at a time. What is one too many is begun when it is asked for again.
const AT_ONCE: usize = 16;
/// Those that wait for the pod that gets them are no burden.
const WAITING: usize = 1_024;
/// No copy goes on for longer, however slow; its sandbox mostly has less time.
const LIMIT: Duration = Duration::from_secs(3_600);
/// How long the pod is waited for before the copy is asked for again.
const POD_WAIT: Duration = Duration::from_secs(30);
/// How long a pod may look through its workspace before it sends it.
const HEAD: Duration = Duration::from_secs(120);
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// A workspace that is to be copied.
#[derive(Clone, Debug)]
pub(super) struct WorkspaceCopy {
    /// The sandbox that hands it over, and its UID.
    pub(super) source: (SandboxKey, String),
    /// Its pod, which takes no more calls.
    pub(super) from: Target,
    /// The sandbox that gets it.
    pub(super) there: Sandbox,
    /// The session that gives, unless it is gone, and the sandbox's name in it.
    pub(super) giver: Option<(SessionId, String)>,
    /// The session that gets, and the sandbox's name in it.
    pub(super) receiver: (SessionId, String),
}

/// Why a workspace was not copied.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// Trying again would change nothing.
    #[error("{0}")]
    Never(String),
    #[error(transparent)]
    Sandbox(SandboxError),
    #[error("the pod that was sent it, {0}, is not the sandbox's any more")]
    OtherPod(String),
    #[error("it was taken back")]
    TakenBack,
    #[error("the pod that has it did not begin to send it within {} s", HEAD.as_secs())]
    Silent,
    #[error(transparent)]
    Resources(#[from] ResourceError),
    #[error(transparent)]
    Log(#[from] ExecuteError),
    #[error(transparent)]
    Handoff(#[from] Box<HandoffError>),
}

/// Why a copy failed last.
#[derive(Clone, Debug)]
struct Failed {
    why: String,
    for_good: bool,
}

/// What is being copied, by the UID of the sandbox that gets it, and what failed.
#[derive(Debug)]
pub(super) struct Copies {
    begun: Mutex<HashSet<String>>,
    failed: TtlCache<String, Failed>,
    slots: Semaphore,
}

impl Default for Copies {
    fn default() -> Self {
        Self { begun: Mutex::default(), failed: TtlCache::new(WAITING), slots: Semaphore::new(AT_ONCE) }
    }
}

impl Copies {
    /// Why the last attempt failed, if this replica knows of one.
    pub(super) fn failed(&self, uid: &str) -> Option<String> {
        self.failed.get(&uid.to_owned()).map(|failed| failed.why)
    }

    /// Why there is no use in trying again.
    pub(super) fn refused(&self, uid: &str) -> Option<String> {
        self.failed.get(&uid.to_owned()).filter(|failed| failed.for_good).map(|failed| failed.why)
    }

    fn begin(&self, uid: &str) -> bool {
        let mut begun = self.begun();
        begun.len() < WAITING && begun.insert(uid.to_owned())
    }

    fn begun(&self) -> MutexGuard<'_, HashSet<String>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the copy out of the table, also when its task panics.
struct Registered {
    executor: Arc<Executor>,
    uid: String,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.executor.copies.begun().remove(&self.uid);
    }
}

impl Executor {
    /// Sees to it that the workspace is being copied. What becomes of it is seen by whoever asks again.
    pub(super) fn begin_copy(self: &Arc<Self>, copy: WorkspaceCopy) {
        let uid = copy.there.metadata.uid.clone().unwrap_or_default();
        if self.tasks.is_closed() || !self.copies.begin(&uid) {
            return;
        }
        let span = info_span!("workspace", sandbox = copy.source.0.name);
        let registered = Registered { executor: Arc::clone(self), uid };
        let copying = async move {
            let (executor, abort) = (&registered.executor, registered.executor.abort.clone());
            // Cut off, it is begun again by another replica.
            let outcome = abort.run_until_cancelled(timeout(LIMIT, executor.copy(&copy))).await;
            match outcome {
                Some(Ok(Ok(()))) | None => _ = executor.copies.failed.remove(&registered.uid),
                Some(Ok(Err(error))) => executor.failed(&registered.uid, &error),
                Some(Err(_)) => tracing::warn!(seconds = LIMIT.as_secs(), "a workspace was not copied in time"),
            }
        };
        self.tasks.spawn(copying.instrument(span));
    }

    fn failed(&self, uid: &str, error: &CopyError) {
        tracing::warn!(%error, "a workspace was not copied");
        let failed = Failed { why: error.to_string(), for_good: matches!(error, CopyError::Never(_)) };
        self.copies.failed.put(uid.to_owned(), failed, REMEMBERED_FOR);
    }

    async fn copy(&self, copy: &WorkspaceCopy) -> Result<(), CopyError> {
        let Some(to) = self.pod_of(&copy.there).await else { return Ok(()) };
        let Ok(_slot) = self.copies.slots.try_acquire() else { return Ok(()) };
        // Another replica may be at it, and reading all of it for nothing is no small thing.
        if self.client.activity(&to).await.map_err(judged)?.transfers > 0 {
            return Ok(());
        }
        let workspace = timeout(HEAD, self.client.read_workspace(&copy.from)).await;
        let workspace = workspace.map_err(|_| CopyError::Silent)?.map_err(judged)?;
        self.check_size(copy, workspace.bytes).await?;
        let (bytes, content) = (workspace.bytes, workspace.content.into_body());
        match self.client.fill_workspace(&to, content).await {
            Ok(unpacked) => {
                tracing::info!(bytes, files = unpacked.files, pod_uid = to.pod_uid, "a workspace is copied");
            }
            Err(SandboxError::NotStarted(NotStarted::Busy { .. })) => return Ok(()),
            Err(error) => return Err(judged(error)),
        }
        if self.commit(copy, &to).await?
            && let Some(giver) = copy.giver.clone()
        {
            self.say_both(giver, copy.receiver.clone(), &copy.source.1).await.map_err(Box::new)?;
        }
        Ok(())
    }

    /// The pod of the sandbox, which is there and takes no calls yet.
    async fn pod_of(&self, there: &Sandbox) -> Option<Target> {
        let uid = there.metadata.uid.as_ref()?;
        let key = SandboxKey { namespace: there.metadata.namespace.clone()?, name: there.metadata.name.clone()? };
        let target = |view: &Option<SandboxView>| {
            let view = view.as_ref().filter(|view| &view.uid == uid && view.finished.is_none() && !view.deleting)?;
            Some(Target { address: view.address.clone()?, pod_uid: view.pod_uid.clone()? })
        };
        let mut seen = self.sandboxes.subscribe(&key);
        let found = timeout(POD_WAIT, seen.wait_for(|view| target(view).is_some())).await;
        found.ok()?.ok().and_then(|view| target(&view))
    }

    /// A pod that holds more than it may would be evicted later, with all of it.
    async fn check_size(&self, copy: &WorkspaceCopy, bytes: u64) -> Result<(), CopyError> {
        let name = &copy.there.spec.template_ref.name;
        let template = self.hosted.templates.template(&copy.source.0.namespace, name).await?;
        match template.and_then(|template| template.workspace_bytes) {
            Some(limit) if bytes > limit => Err(CopyError::Never(format!(
                "its workspace needs {bytes} bytes, and one of SandboxTemplate {name} may hold {limit}"
            ))),
            _ => Ok(()),
        }
    }

    /// Writes down that the pod has all of it, while it is the sandbox's and the workspace is still being handed over; whether it is so
    /// now. From then on the sandbox is like any other.
    pub(super) async fn commit(&self, copy: &WorkspaceCopy, to: &Target) -> Result<bool, CopyError> {
        let (source, uid) = &copy.source;
        let name = copy.there.metadata.name.as_deref().unwrap_or_default();
        for _ in 0..TRIES {
            let given = self.resources.sandbox(&source.namespace, &source.name).await?;
            let given = given.filter(|given| given.metadata.uid.as_ref() == Some(uid));
            if given.is_none_or(|given| given.spec.handoff_to.is_none()) {
                return Err(CopyError::TakenBack);
            }
            let there = self.resources.sandbox(&source.namespace, name).await?;
            let there = there.filter(|there| there.metadata.uid == copy.there.metadata.uid);
            let there = there.ok_or(CopyError::TakenBack)?;
            let view = SandboxView::of(&there);
            if there.spec.workspace_from.as_ref().is_some_and(|from| from.copied_to.is_some()) {
                return Ok(true);
            }
            if view.finished.is_some() || view.deleting || view.pod_uid.as_ref() != Some(&to.pod_uid) {
                return Err(CopyError::OtherPod(to.pod_uid.clone()));
            }
            match self.resources.copied_sandbox(&there, &to.pod_uid).await {
                Err(ResourceError::Conflict { .. }) => {}
                written => return Ok(written.map(|()| true)?),
            }
        }
        Ok(false)
    }
}

/// Sorts what a sandbox said.
fn judged(error: SandboxError) -> CopyError {
    let SandboxError::NotStarted(NotStarted::Rejected { status, message }) = &error else {
        return CopyError::Sandbox(error);
    };
    match *status {
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::INSUFFICIENT_STORAGE => {
            CopyError::Never(format!("its workspace cannot be copied: {message}"))
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => CopyError::Never(
            "its pod, or the other one, is of an older version that does not copy workspaces".to_owned(),
        ),
        _ => CopyError::Sandbox(error),
    }
}
