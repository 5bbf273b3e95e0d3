//! Making a session's sandbox, for a tool call or before there is one.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use longhand_crds::{Sandbox, annotations};
use longhand_protocol::event::EventBody;
use longhand_protocol::trace;
use longhand_session_log::store::SessionMeta;
use tokio::time::Instant;

use super::run::{LOOK_AGAIN, changed};
use super::sandboxes::{GivenUp, SandboxKey, SandboxView};
use super::{ExecuteError, Executor, plan};
use crate::resources::{self, ResourceError};

/// What a sandbox that takes no calls now is like for who needs it.
#[derive(Debug)]
pub(super) enum Roused {
    /// It becomes ready, or is replaced, by itself.
    OnItsWay,
    /// It has ended while it was waited for, or its files are lost although they were kept: why.
    Ended(String),
    /// It was not ready in time, and keeps its files: why.
    Rests(String),
}

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
        let mut before = seen.borrow().as_ref().and_then(SandboxView::given_up);
        loop {
            let shown = seen.borrow_and_update().clone();
            let view = match shown {
                Some(view) => view,
                // The watch may be late: then this finds what there is.
                None => match self.make(meta, sandbox).await? {
                    Ok(made) => {
                        let view = SandboxView::of(&made);
                        before = view.given_up().or(before);
                        view
                    }
                    Err(reason) => return Ok(Some(format!("there can be no sandbox ({reason})"))),
                },
            };
            if let Some((pod_uid, _)) = view.serving() {
                self.say_ready(meta, sandbox, pod_uid).await?;
                return Ok(None);
            }
            match self.rouse(&key, &view, before.as_ref()).await? {
                Roused::OnItsWay => {}
                Roused::Ended(why) => return Ok(Some(format!("it has ended ({why})"))),
                Roused::Rests(why) => return Ok(Some(why)),
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
        let mut wanted = session
            .filter(|session| session.metadata.uid.as_ref() == Some(&meta.uid))
            .and_then(|session| resources::plan::sandbox(&session, sandbox))
            .ok_or_else(|| ExecuteError::NoSession { namespace: namespace.clone(), name: name.clone() })?;
        if let Some(reason) = self.no_room(&Self::key_of(meta, sandbox)).await? {
            return Ok(Err(reason));
        }
        if let Some(parent) = trace::current() {
            wanted.annotations_mut().insert(annotations::TRACEPARENT.to_owned(), parent.to_string());
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

    /// Wakes a sandbox that is suspended, and begins anew with one that had been given up as `before` says: it is asked for again if
    /// its workspace is kept, else removed, and another is made.
    pub(super) async fn rouse(
        &self,
        key: &SandboxKey,
        sandbox: &SandboxView,
        before: Option<&GivenUp>,
    ) -> Result<Roused, ExecuteError> {
        let SandboxKey { namespace, name } = key;
        let came_later = before.is_some() && sandbox.given_up().as_ref() == before;
        match (&sandbox.finished, &sandbox.resting) {
            _ if sandbox.deleting => {}
            (Some(why), _) if came_later => {
                self.resources.remove_sandbox(namespace, name, &sandbox.uid).await?;
                if sandbox.workspace_lost {
                    return Ok(Roused::Ended(why.clone()));
                }
            }
            (Some(why), _) => return Ok(Roused::Ended(why.clone())),
            (None, Some(_)) if came_later => {
                self.resources.retry_sandbox(namespace, name, &sandbox.uid, sandbox.incarnation).await?;
            }
            (None, Some(why)) => return Ok(Roused::Rests(why.clone())),
            (None, None) if sandbox.suspended => {
                self.resources.wake_sandbox(namespace, name, &sandbox.uid).await?;
            }
            (None, None) => {}
        }
        Ok(Roused::OnItsWay)
    }

    /// The log says once of each pod that it takes calls.
    pub(super) async fn say_ready(&self, meta: &SessionMeta, sandbox: &str, pod_uid: &str) -> Result<(), ExecuteError> {
        let ready = EventBody::SandboxReady { sandbox: sandbox.to_owned(), pod_uid: pod_uid.to_owned() };
        self.announce(&meta.id, plan::once(&[meta.id.as_str(), pod_uid], ready)).await
    }
}
