//! Making a session's sandbox, for a tool call or before there is one.

use std::time::Duration;

use jiff::Timestamp;
use longhand_crds::Sandbox;
use longhand_protocol::event::EventBody;
use longhand_session_log::store::SessionMeta;
use tokio::time::Instant;

use super::run::{LOOK_AGAIN, changed};
use super::sandboxes::{SandboxKey, SandboxView};
use super::{ExecuteError, Executor, plan};
use crate::resources::{self, ResourceError};

impl Executor {
    /// Makes the session's sandbox of this name, or wakes it, and waits until it takes calls. Gives why it does not, if it
    /// will not by itself. Nothing is undone when this future is dropped.
    ///
    /// # Errors
    /// See [`ExecuteError`]; it may be asked for again.
    pub async fn provision(&self, meta: &SessionMeta, sandbox: &str) -> Result<Option<String>, ExecuteError> {
        if self.hosted.queue(meta, sandbox).await?.is_some() {
            return Ok(Some("its environment is self-hosted: workers of its own run the tools".to_owned()));
        }
        let key = Self::key_of(meta, sandbox);
        let mut seen = self.sandboxes.subscribe(&key);
        let began = Instant::now();
        let finished = |view: &SandboxView| view.finished.is_some().then(|| view.uid.clone());
        let mut ended_before = seen.borrow().as_ref().and_then(finished);
        loop {
            let shown = seen.borrow_and_update().clone();
            let view = match shown {
                Some(view) => view,
                // The watch may be late: then this finds what there is.
                None => match self.make(meta, sandbox).await? {
                    Ok(made) => {
                        let view = SandboxView::of(&made);
                        ended_before = finished(&view).or(ended_before);
                        view
                    }
                    Err(reason) => return Ok(Some(format!("there can be no sandbox ({reason})"))),
                },
            };
            if let Some((pod_uid, _)) = view.serving() {
                self.say_ready(meta, sandbox, pod_uid).await?;
                return Ok(None);
            }
            if let Some(why) = self.rouse(&key, &view, ended_before.as_deref()).await? {
                return Ok(Some(format!("it has ended ({why})")));
            }
            let limit = view.patience(self.limits.provisioning, began.elapsed(), Timestamp::now());
            let left = limit.saturating_sub(began.elapsed());
            if left == Duration::ZERO {
                return Ok(Some(format!("it was not ready within {} s ({})", limit.as_secs(), view.explanation())));
            }
            changed(&mut seen, LOOK_AGAIN.min(left)).await;
        }
    }

    /// How Kubernetes knows the session's sandbox of this name.
    pub(super) fn key_of(meta: &SessionMeta, sandbox: &str) -> SandboxKey {
        SandboxKey {
            namespace: meta.namespace.clone(),
            name: resources::plan::sandbox_name(&meta.name, &meta.uid, sandbox),
        }
    }

    /// Makes the resource, or finds it; or why there can be none.
    pub(super) async fn make(
        &self,
        meta: &SessionMeta,
        sandbox: &str,
    ) -> Result<Result<Sandbox, String>, ExecuteError> {
        let (namespace, name) = (&meta.namespace, &meta.name);
        let session = self.resources.session(namespace, name).await?;
        let wanted = session
            .filter(|session| session.metadata.uid.as_ref() == Some(&meta.uid))
            .and_then(|session| resources::plan::sandbox(&session, sandbox))
            .ok_or_else(|| ExecuteError::NoSession { namespace: namespace.clone(), name: name.clone() })?;
        if let Some(reason) = self.no_room(&Self::key_of(meta, sandbox)).await? {
            return Ok(Err(reason));
        }
        let made = match self.resources.ensure_sandbox(wanted).await {
            Err(ResourceError::Refused { reason, .. }) => return Ok(Err(reason)),
            made => made?,
        };
        if made.spec.session_ref.as_ref().map(|session| &session.uid) != Some(&meta.uid) {
            let name = Self::key_of(meta, sandbox).name;
            return Err(ExecuteError::Failed(format!("the Sandbox {name} belongs to another session")));
        }
        Ok(Ok(made))
    }

    /// Wakes a sandbox that is suspended, and removes one that had ended before it was asked for, with the UID `ended_before`:
    /// then another is made. Says why one has ended that was waited for, or whose files are lost although they were kept.
    pub(super) async fn rouse(
        &self,
        key: &SandboxKey,
        sandbox: &SandboxView,
        ended_before: Option<&str>,
    ) -> Result<Option<String>, ExecuteError> {
        match &sandbox.finished {
            _ if sandbox.deleting => {}
            Some(why) if ended_before == Some(sandbox.uid.as_str()) => {
                self.resources.remove_sandbox(&key.namespace, &key.name, &sandbox.uid).await?;
                if sandbox.workspace_lost {
                    return Ok(Some(why.clone()));
                }
            }
            Some(why) => return Ok(Some(why.clone())),
            None if sandbox.suspended => {
                self.resources.wake_sandbox(&key.namespace, &key.name, &sandbox.uid).await?;
            }
            None => {}
        }
        Ok(None)
    }

    /// The log says once of each pod that it takes calls.
    pub(super) async fn say_ready(&self, meta: &SessionMeta, sandbox: &str, pod_uid: &str) -> Result<(), ExecuteError> {
        let ready = EventBody::SandboxReady { sandbox: sandbox.to_owned(), pod_uid: pod_uid.to_owned() };
        self.announce(&meta.id, plan::once(&[meta.id.as_str(), pod_uid], ready)).await
    }
}
