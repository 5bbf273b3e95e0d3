//! Draining an idle sandbox, so that it can be removed while no call runs in it.

use jiff::Timestamp;
use longhand_crds::sandbox::SessionRef;
use longhand_crds::session_id;
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;
use longhand_protocol::internal::{DrainSandbox, Drained};
use longhand_sandbox::client::{SandboxError, Target};
use longhand_sandbox::wire::DrainRequest;
use longhand_session_log::StoreError;
use longhand_session_log::store::CallState;

use super::handoff::NEVER;
use super::sandboxes::{SandboxKey, SandboxView};
use super::{ExecuteError, Executor, plan};
use crate::metrics;
use crate::resources::ResourceError;

/// Why a sandbox was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// There is none of this name.
    #[error("there is no Sandbox {namespace}/{name}")]
    NoSandbox {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Another pod is the sandbox by now, or none.
    #[error("the pod of the Sandbox is {}, not {wanted}", found.as_deref().unwrap_or("gone"))]
    OtherPod {
        /// Whose drain was asked for.
        wanted: String,
        /// Which one there is.
        found: Option<String>,
    },
    /// The pod has no address.
    #[error("the sandbox is not ready and cannot be asked: {0}")]
    NotReady(String),
    /// The Kubernetes API failed.
    #[error(transparent)]
    Resources(#[from] ResourceError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] ExecuteError),
    /// The sandbox did not answer.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// For how long a sandbox has had its pod, if that is less than it should have been idle for: what `sandboxd` says goes back to its
/// start, also of a pod that has waited in a pool since.
fn too_young(ready_at: Option<Timestamp>, idle_seconds: u64, now: Timestamp) -> Option<u64> {
    let had_for = u64::try_from(now.duration_since(ready_at?).as_secs()).unwrap_or(0);
    Some(had_for).filter(|had_for| *had_for < idle_seconds)
}

impl Executor {
    /// Makes a sandbox take no more calls, if it has been idle for long enough and the log knows of no call in it, and suspends
    /// it if that is asked for.
    ///
    /// # Errors
    /// See [`DrainError`]; draining may be repeated.
    pub async fn drain(&self, namespace: &str, name: &str, request: &DrainSandbox) -> Result<Drained, DrainError> {
        let sandbox = self.resources.sandbox(namespace, name).await?;
        let sandbox =
            sandbox.ok_or_else(|| DrainError::NoSandbox { namespace: namespace.to_owned(), name: name.to_owned() })?;
        if sandbox.spec.handoff_to.is_some() {
            // Somebody wants its workspace.
            return Ok(Drained { drained: false, idle_seconds: 0 });
        }
        let view = SandboxView::of(&sandbox);
        if view.pod_uid.as_ref() != Some(&request.pod_uid) {
            return Err(DrainError::OtherPod { wanted: request.pod_uid.clone(), found: view.pod_uid });
        }
        let ready_at = sandbox.status.as_ref().and_then(|status| status.ready_at.as_ref()).map(|time| time.0);
        if let Some(idle_seconds) = too_young(ready_at, request.idle_seconds, Timestamp::now()) {
            metrics::drain(false);
            return Ok(Drained { drained: false, idle_seconds });
        }
        let owner = match sandbox.spec.session_ref.clone() {
            Some(session) => self.owner_of(namespace, &session).await?.map(|owner| (owner, session.sandbox)),
            None => None,
        };
        if let Some((session, _)) = &owner
            && self.has_open_call(session, name, &request.pod_uid).await?
        {
            metrics::drain(false);
            return Ok(Drained { drained: false, idle_seconds: 0 });
        }
        let address = view.address.clone();
        let address = address.ok_or_else(|| DrainError::NotReady(view.explanation().to_owned()))?;
        let target = Target { address, pod_uid: request.pod_uid.clone() };
        // A call that is dispatched from here on is refused by the sandbox and goes to the next one.
        let wanted = DrainRequest { idle_seconds: request.idle_seconds, background_counts: request.background_counts };
        let answer = self.client.drain_if(&target, &wanted).await?;
        if answer.drained {
            // Somebody may have asked for its workspace meanwhile. Whoever asks from here on finds it drained.
            let now = self.resources.sandbox(namespace, name).await?;
            if now.is_some_and(|now| now.spec.handoff_to.is_some()) {
                return Ok(Drained { drained: false, idle_seconds: 0 });
            }
        }
        metrics::drain(answer.drained);
        if answer.drained && request.suspend {
            self.resources.suspend_sandbox(&sandbox).await?;
        }
        if let Some((session, name_in_session)) = owner
            && answer.drained
        {
            let body = EventBody::SandboxReclaimed { sandbox: name_in_session, pod_uid: request.pod_uid.clone() };
            let event = plan::once(&[session.as_str(), &request.pod_uid], body);
            match self.announce(&session, event).await {
                Err(ExecuteError::Store(error)) if matches!(*error, StoreError::NotFound(_)) => {}
                announced => announced?,
            }
        }
        Ok(Drained { drained: answer.drained, idle_seconds: answer.activity.idle_seconds })
    }

    /// Does what is left of a reclaim whose sandbox takes no more calls and is still there: whoever drained it may be gone, or has another
    /// idea of its time by now. Whether it takes no calls still.
    pub(super) async fn finish_reclaim(&self, key: &SandboxKey, seen: &SandboxView) -> Result<bool, ResourceError> {
        let Some((pod_uid, address)) = seen.serving() else { return Ok(true) };
        let target = Target { address: address.to_owned(), pod_uid: pod_uid.to_owned() };
        let wanted = DrainRequest { idle_seconds: NEVER, background_counts: true };
        match self.client.drain_if(&target, &wanted).await {
            Ok(answer) if answer.drained => {}
            Ok(_) => return Ok(false),
            // It is lost, which the operator sees.
            Err(_) => return Ok(true),
        }
        let Some(sandbox) = self.resources.sandbox(&key.namespace, &key.name).await? else { return Ok(true) };
        if SandboxView::of(&sandbox).serving() != seen.serving() {
            return Ok(true);
        }
        tracing::info!(sandbox = key.name, pod_uid, "a sandbox was drained and not removed");
        let kept = sandbox.status.as_ref().is_some_and(|status| status.workspace_claim.is_some());
        let removed = match kept {
            true => self.resources.suspend_sandbox(&sandbox).await,
            false => self.resources.discard_sandbox(&sandbox).await,
        };
        match removed {
            // Somebody else does.
            Err(ResourceError::Conflict { .. }) => Ok(true),
            removed => removed.map(|()| true),
        }
    }

    /// The session of a sandbox, unless its resource is gone.
    pub(super) async fn owner_of(
        &self,
        namespace: &str,
        session: &SessionRef,
    ) -> Result<Option<SessionId>, ResourceError> {
        let resource = self.resources.session(namespace, &session.name).await?;
        let resource = resource.filter(|resource| resource.metadata.uid.as_ref() == Some(&session.uid));
        Ok(resource.map(|resource| session_id(&resource.metadata)))
    }

    pub(super) async fn has_open_call(
        &self,
        session: &SessionId,
        sandbox: &str,
        pod_uid: &str,
    ) -> Result<bool, ExecuteError> {
        let calls = match self.store.open_calls(session).await {
            Ok(calls) => calls,
            Err(StoreError::NotFound(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        Ok(calls.iter().any(|(_, state)| match state {
            CallState::Dispatched { incarnation } => incarnation.sandbox == sandbox && incarnation.pod_uid == pod_uid,
            CallState::Open | CallState::Finished { .. } => false,
        }))
    }
}
