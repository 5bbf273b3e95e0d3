//! Handing a sandbox to another session: its workspace, in a new pod, and none of its processes.
//!
//! `spec.handoffTo` of the Sandbox is the intent, which one write decides: from then on it takes no new call, and both the operator
//! and whoever asks again go on from wherever somebody else has stopped. The workspace has one owner at any moment: a volume changes
//! hands in one write, and of one that has to be copied the copy counts from the write on that says that it is whole.

use std::sync::Arc;

use http::StatusCode;
use longhand_crds::sandbox::{DesiredState, SessionRef, WorkspaceFrom};
use longhand_crds::{AgentSession, Sandbox, session_id};
use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::internal::Handoff;
use longhand_sandbox::client::{NotStarted, SandboxError, Target};
use longhand_sandbox::wire::{Activity, DrainRequest, DrainResponse};
use longhand_session_log::StoreError;
use longhand_session_log::store::SessionMeta;

use super::handoff_copy::WorkspaceCopy;
use super::sandboxes::{SandboxKey, SandboxView};
use super::{ExecuteError, Executor, plan};
use crate::resources::{ResourceError, plan as objects};

/// Nothing is idle for so long: a drain that is a question only.
pub(super) const NEVER: u64 = u64::MAX;
/// How often a write is tried again whose object has changed since it was read.
pub(super) const TRIES: usize = 5;

/// A session's sandbox of this name.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// The session.
    pub meta: &'a SessionMeta,
    /// The sandbox's name in it.
    pub sandbox: &'a str,
}

/// Why a sandbox is not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// There is none of this name now.
    #[error("there is no Sandbox {name} now that could be handed over")]
    NoSandbox {
        /// The object's name.
        name: String,
    },
    /// The sessions are not of one namespace.
    #[error("a sandbox goes to sessions of its own namespace only")]
    OtherNamespace,
    /// It would stay where it is.
    #[error("a session cannot hand a sandbox to itself")]
    Itself,
    /// It has ended, or is being removed.
    #[error("the Sandbox {name} has ended ({why}), and its workspace with it")]
    Ended {
        /// The object's name.
        name: String,
        /// Why.
        why: String,
    },
    /// Its workspace is in no volume, and in no pod either that it could be copied from.
    #[error("no pod of the Sandbox {name} has its workspace now ({why}): ask again when it is ready")]
    NoPod {
        /// The object's name.
        name: String,
        /// Why not.
        why: String,
    },
    /// Something runs in it.
    #[error("the Sandbox {name} is in use ({what}): ask again when it is not")]
    InUse {
        /// The object's name.
        name: String,
        /// What runs.
        what: String,
    },
    /// Workers of others run the tools of the session that would get it.
    #[error("the environment of the sandbox `{sandbox}` of session {session} is self-hosted and takes no workspace")]
    SelfHosted {
        /// The session.
        session: SessionId,
        /// The sandbox's name in it.
        sandbox: String,
    },
    /// The other session has a sandbox there.
    #[error(
        "session {session} has a sandbox `{sandbox}` already: name another one of its sandboxes, or delete Sandbox {name}"
    )]
    Taken {
        /// The session.
        session: SessionId,
        /// The sandbox's name in it.
        sandbox: String,
        /// The object's name.
        name: String,
    },
    /// Somebody else was faster.
    #[error("the Sandbox {name} is being handed to the AgentSession {session}")]
    GoesElsewhere {
        /// The object's name.
        name: String,
        /// The other session's name.
        session: String,
    },
    /// Nobody has asked for it.
    #[error("the Sandbox {name} with the UID {uid} is not being handed over")]
    NotHandedOver {
        /// The object's name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// It stays what it was.
    #[error("the sandbox was not handed over: {0}")]
    TakenBack(String),
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

type Result<T> = std::result::Result<T, HandoffError>;

impl Executor {
    /// Hands a sandbox to another session, or finds that it was. From the first success on it is seen through, if need be by the
    /// operator.
    ///
    /// # Errors
    /// See [`HandoffError`]; asking again is safe.
    pub async fn hand_off(self: &Arc<Self>, from: Party<'_>, to: Party<'_>) -> Result<()> {
        let Some(source) = self.may_go(from, to).await? else { return Ok(()) };
        let name = source.metadata.name.as_deref().unwrap_or_default();
        let uid = source.metadata.uid.as_deref().unwrap_or_default();
        if source.spec.handoff_to.is_none() {
            self.resources.hand_off_sandbox(&source, &reference(to)).await?;
        }
        match self.settle_handoff(&from.meta.namespace, name, uid).await {
            Ok(Handoff::TakenBack { reason }) => Err(HandoffError::TakenBack(reason)),
            Ok(Handoff::InUse | Handoff::Moving | Handoff::Settled { .. }) => Ok(()),
            Err(error) => {
                // It is decided, and the operator goes on.
                tracing::warn!(sandbox = name, %error, "a handoff goes on later");
                Ok(())
            }
        }
    }

    /// The sandbox, if it may be handed over; `None` if it was before.
    async fn may_go(&self, from: Party<'_>, to: Party<'_>) -> Result<Option<Sandbox>> {
        if from.meta.namespace != to.meta.namespace {
            return Err(HandoffError::OtherNamespace);
        }
        if from.meta.id == to.meta.id {
            return Err(HandoffError::Itself);
        }
        let (key, key_there) = (Self::key_of(from.meta, from.sandbox), Self::key_of(to.meta, to.sandbox));
        let there = self.resources.sandbox(&key_there.namespace, &key_there.name).await?;
        let comes_from = there.as_ref().and_then(|there| there.spec.workspace_from.as_ref());
        let Some(source) = self.resources.sandbox(&key.namespace, &key.name).await? else {
            let done = comes_from.is_some_and(|from| from.sandbox == key.name && !from.is_awaited());
            return if done { Ok(None) } else { Err(HandoffError::NoSandbox { name: key.name }) };
        };
        if let Some(goes_to) = &source.spec.handoff_to {
            if *goes_to == reference(to) {
                return Ok(Some(source));
            }
            return Err(HandoffError::GoesElsewhere { name: key.name, session: goes_to.name.clone() });
        }
        let view = SandboxView::of(&source);
        if let Some(why) = view.finished.clone().or_else(|| view.deleting.then(|| "it is being removed".to_owned())) {
            return Err(HandoffError::Ended { name: key.name, why });
        }
        let on_its_way = source.spec.workspace_from.as_ref().is_some_and(WorkspaceFrom::is_awaited);
        if on_its_way || (claim(&source).is_none() && view.serving().is_none()) {
            return Err(HandoffError::NoPod { name: key.name, why: view.explanation().to_owned() });
        }
        if self.hosted.queue(to.meta, to.sandbox).await?.is_some() {
            return Err(HandoffError::SelfHosted { session: to.meta.id.clone(), sandbox: to.sandbox.to_owned() });
        }
        let ours = comes_from.is_some_and(|comes_from| Some(&comes_from.uid) == source.metadata.uid.as_ref());
        let in_the_way = there.as_ref().filter(|_| !ours).map(SandboxView::of);
        if in_the_way.as_ref().is_some_and(|there| there.finished.is_none()) {
            let (session, sandbox) = (to.meta.id.clone(), to.sandbox.to_owned());
            return Err(HandoffError::Taken { session, sandbox, name: key_there.name });
        }
        if let Some(what) = self.in_use(&from.meta.id, &key.name, &view, claim(&source).is_some()).await? {
            return Err(HandoffError::InUse { name: key.name, what });
        }
        if let Some(ended) = in_the_way {
            // A tool call would replace it, too.
            self.resources.remove_sandbox(&key_there.namespace, &key_there.name, &ended.uid).await?;
        }
        Ok(Some(source))
    }

    /// What runs in a sandbox, if anything does.
    async fn in_use(&self, session: &SessionId, name: &str, view: &SandboxView, kept: bool) -> Result<Option<String>> {
        let Some(pod_uid) = &view.pod_uid else { return Ok(None) };
        if self.has_open_call(session, name, pod_uid).await? {
            return Ok(Some("a tool call".to_owned()));
        }
        let Some(answer) = self.ask_to_drain(view, NEVER).await? else { return Ok(None) };
        let Activity { running_calls, terminals, transfers, tunnels, draining, .. } = answer.activity;
        if draining && !kept {
            return Ok(Some("it is just being reclaimed".to_owned()));
        }
        let all = [("calls", running_calls), ("terminals", terminals), ("transfers", transfers), ("ports", tunnels)];
        Ok(all.into_iter().find(|(_, count)| *count > 0).map(|(what, count)| format!("{what}: {count}")))
    }

    /// Of a pod that has an address: another one runs nothing.
    async fn ask_to_drain(&self, view: &SandboxView, idle_seconds: u64) -> Result<Option<DrainResponse>> {
        let (Some(pod_uid), Some(address)) = (view.pod_uid.clone(), view.address.clone()) else { return Ok(None) };
        // What is left in the background never moves, and holds nobody up.
        let request = DrainRequest { idle_seconds, background_counts: false };
        Ok(Some(self.client.drain_if(&Target { address, pod_uid }, &request).await?))
    }

    /// Does the service's part of a handoff that is decided: the other session's sandbox exists, nothing runs in this one any more,
    /// what is in no volume has been copied, and both logs say so.
    ///
    /// # Errors
    /// See [`HandoffError`]; it may be repeated.
    pub async fn settle_handoff(self: &Arc<Self>, namespace: &str, name: &str, uid: &str) -> Result<Handoff> {
        let source = self.resources.sandbox(namespace, name).await?;
        let source = source.filter(|source| source.metadata.uid.as_deref() == Some(uid));
        let source = source.ok_or_else(|| HandoffError::NoSandbox { name: name.to_owned() })?;
        let unasked = || HandoffError::NotHandedOver { name: name.to_owned(), uid: uid.to_owned() };
        let goes_to = source.spec.handoff_to.clone().ok_or_else(unasked)?;
        let giver = match source.spec.session_ref.clone() {
            Some(session) => self.owner_of(namespace, &session).await?.map(|giver| (giver, session.sandbox)),
            None => None,
        };
        let there = objects::sandbox_name(&goes_to.name, &goes_to.uid, &goes_to.sandbox);
        let there = self.resources.sandbox(namespace, &there).await?;
        let there = there.filter(|there| there.spec.workspace_from.as_ref().is_some_and(|from| from.uid == uid));
        if let Some(there) = there.as_ref().filter(|there| !awaits(there, uid) && claim(&source).is_none()) {
            // It has it, whatever has become of anything else since.
            return self.settled(there, giver, &goes_to).await;
        }
        let receiver = self.resources.session(namespace, &goes_to.name).await?;
        let receiver = receiver.filter(|receiver| receiver.metadata.uid.as_ref() == Some(&goes_to.uid));
        // Before anything ends: until then it can be taken back without a trace.
        let wanted = receiver.and_then(|receiver| {
            let wanted = received(&receiver, &goes_to.sandbox, &source)?;
            Some((wanted, (session_id(&receiver.metadata), goes_to.sandbox.clone())))
        });
        let Some((wanted, receiver)) = wanted else {
            let reason = format!("the AgentSession {} is gone, or its sandbox {}", goes_to.name, goes_to.sandbox);
            return self.give_up(source, there.filter(|there| awaits(there, uid)), reason).await;
        };
        if source.spec.workspace_from.as_ref().is_some_and(WorkspaceFrom::is_awaited) {
            return self.take_back(source, "its own workspace is still on its way".to_owned()).await;
        }
        let made = match self.resources.ensure_sandbox(wanted).await {
            Err(ResourceError::Refused { reason, .. }) => return self.take_back(source, reason).await,
            made => made?,
        };
        let Some(comes_from) = made.spec.workspace_from.as_ref().filter(|comes_from| comes_from.uid == uid) else {
            let reason = format!("the AgentSession {} has got another sandbox {}", goes_to.name, goes_to.sandbox);
            return self.take_back(source, reason).await;
        };
        let view = SandboxView::of(&source);
        if comes_from.is_awaited()
            && let Some(reason) = self.hopeless(&view, &made)
        {
            return self.give_up(source, Some(made), reason).await;
        }
        // Once it is copied, it does not matter what becomes of the pod.
        if comes_from.copied_to.is_none() && !self.is_quiet(name, &view, giver.as_ref().map(|giver| &giver.0)).await? {
            return Ok(Handoff::InUse);
        }
        if comes_from.is_awaited() {
            // A pod that does not answer for the moment has no address. The other one does not wait for it for ever.
            if let (Some(pod_uid), Some(address)) = (view.pod_uid, view.address) {
                let source = (SandboxKey { namespace: namespace.to_owned(), name: name.to_owned() }, uid.to_owned());
                let from = Target { address, pod_uid };
                self.begin_copy(WorkspaceCopy { source, from, there: made, giver, receiver });
            }
            return Ok(Handoff::Moving);
        }
        self.settled(&made, giver, &goes_to).await
    }

    /// The other sandbox has it, or will when the pod of this one has ended. The logs of sessions that are there say so.
    async fn settled(
        &self,
        there: &Sandbox,
        giver: Option<(SessionId, String)>,
        goes_to: &SessionRef,
    ) -> Result<Handoff> {
        let namespace = there.metadata.namespace.as_deref().unwrap_or_default();
        let receiver = self.owner_of(namespace, goes_to).await?;
        let from = there.spec.workspace_from.as_ref().map(|from| from.uid.as_str()).unwrap_or_default();
        if let (Some(giver), Some(receiver)) = (giver, receiver) {
            self.say_both(giver, (receiver, goes_to.sandbox.clone()), from).await?;
        }
        let (name, uid) = (there.metadata.name.clone(), there.metadata.uid.clone());
        Ok(Handoff::Settled { name: name.unwrap_or_default(), uid: uid.unwrap_or_default() })
    }

    /// Takes back what will not be copied, with the sandbox that awaits it. A pod that does not answer for the moment could not be told
    /// to take calls again: it is waited for, until the operator counts it as lost.
    async fn give_up(&self, source: Sandbox, there: Option<Sandbox>, reason: String) -> Result<Handoff> {
        let view = SandboxView::of(&source);
        if claim(&source).is_none() && view.pod_uid.is_some() && view.address.is_none() {
            return Ok(Handoff::Moving);
        }
        if let Some(there) = there {
            self.resources.discard_sandbox(&there).await?;
        }
        self.take_back(source, reason).await
    }

    /// Whether nothing runs in it any more, which takes nothing new from now on.
    async fn is_quiet(&self, name: &str, view: &SandboxView, giver: Option<&SessionId>) -> Result<bool> {
        if self.ask_to_drain(view, 0).await?.is_some_and(|answer| !answer.drained) {
            return Ok(false);
        }
        Ok(match (giver, &view.pod_uid) {
            (Some(giver), Some(pod_uid)) => !self.has_open_call(giver, name, pod_uid).await?,
            _ => true,
        })
    }

    /// Why the workspace will never be copied, if so.
    fn hopeless(&self, source: &SandboxView, there: &Sandbox) -> Option<String> {
        if source.pod_uid.is_none() {
            return Some("its pod is gone, and its workspace with it".to_owned());
        }
        let view = SandboxView::of(there);
        let name = there.metadata.name.as_deref().unwrap_or_default();
        if there.spec.desired_state == DesiredState::Suspended {
            return Some(format!("the Sandbox {name}, which should get it, was suspended"));
        }
        let Some(why) = view.finished else { return self.copies.refused(&view.uid) };
        let last = self.copies.failed(&view.uid).map(|last| format!("; {last}")).unwrap_or_default();
        Some(format!("the Sandbox {name}, which should get it, has ended ({why}){last}"))
    }

    /// The sandbox stays what it was. One that was drained for it takes calls again or, as its workspace is kept, gets another pod when
    /// it is needed.
    async fn take_back(&self, mut source: Sandbox, reason: String) -> Result<Handoff> {
        let (view, kept) = (SandboxView::of(&source), claim(&source).is_some());
        let drained = self.ask_to_drain(&view, NEVER).await?.is_some_and(|answer| answer.drained);
        if drained
            && !kept
            && let (Some(pod_uid), Some(address)) = (view.pod_uid, view.address)
        {
            match self.client.resume(&Target { address, pod_uid }).await {
                // It is an older one: it is reclaimed when it has been idle.
                Err(SandboxError::NotStarted(NotStarted::Rejected { status, message }))
                    if [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED].contains(&status) =>
                {
                    tracing::warn!(%status, message, "a sandbox does not take calls again");
                }
                resumed => _ = resumed?,
            }
        }
        let goes_to = source.spec.handoff_to.clone();
        for _ in 0..TRIES {
            let error = match self.resources.take_back_sandbox(&source, drained && kept).await {
                Err(error @ ResourceError::Conflict { .. }) => error,
                written => return Ok(written.map(|()| Handoff::TakenBack { reason })?),
            };
            let metadata = &source.metadata;
            let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
            let again = self.resources.sandbox(namespace.unwrap_or_default(), name.unwrap_or_default()).await?;
            let same = |again: &Sandbox| again.metadata.uid == metadata.uid && again.spec.handoff_to == goes_to;
            source = again.filter(same).ok_or(error)?;
        }
        let what = source.metadata.name.unwrap_or_default();
        Err(ResourceError::Conflict { what, reason: format!("it has changed {TRIES} times") }.into())
    }

    /// Each log says it once.
    pub(super) async fn say_both(&self, from: (SessionId, String), to: (SessionId, String), uid: &str) -> Result<()> {
        let ((giver, sandbox), (receiver, to_sandbox)) = (from, to);
        let received = EventBody::SandboxReceived {
            sandbox: to_sandbox.clone(),
            from_session: giver.clone(),
            from_sandbox: sandbox.clone(),
        };
        let handed_off = EventBody::SandboxHandedOff { sandbox, to_session: receiver.clone(), to_sandbox };
        let about = [giver.as_str(), receiver.as_str(), uid];
        self.say(&giver, plan::once(&about, handed_off)).await?;
        self.say(&receiver, plan::once(&about, received)).await
    }

    /// A log that takes nothing any more holds nobody up.
    async fn say(&self, session: &SessionId, event: NewEvent) -> Result<()> {
        match self.announce(session, event).await {
            Err(ExecuteError::Store(error))
                if !matches!(*error, StoreError::Unavailable(_) | StoreError::Overloaded { .. }) =>
            {
                tracing::warn!(%session, %error, "a log does not say that a sandbox was handed over");
                Ok(())
            }
            said => Ok(said?),
        }
    }
}

fn reference(party: Party<'_>) -> SessionRef {
    let SessionMeta { name, uid, .. } = party.meta;
    SessionRef { name: name.clone(), uid: uid.clone(), sandbox: party.sandbox.to_owned() }
}

/// The volume of its workspace.
fn claim(sandbox: &Sandbox) -> Option<&String> {
    sandbox.status.as_ref()?.workspace_claim.as_ref()
}

/// Whether a sandbox awaits the workspace of the one with this UID.
fn awaits(sandbox: &Sandbox, uid: &str) -> bool {
    sandbox.spec.workspace_from.as_ref().is_some_and(|from| from.uid == uid && from.is_awaited())
}

/// The sandbox that gets the workspace, as its session wants it. It sleeps until it is needed, unless it has to be sent its workspace.
fn received(session: &AgentSession, name: &str, source: &Sandbox) -> Option<Sandbox> {
    let mut sandbox = objects::sandbox(session, name)?;
    let claim = claim(source).cloned();
    sandbox.spec.desired_state = if claim.is_some() { DesiredState::Suspended } else { DesiredState::Running };
    sandbox.spec.workspace_from = Some(WorkspaceFrom {
        sandbox: source.metadata.name.clone()?,
        uid: source.metadata.uid.clone()?,
        claim,
        copied_to: None,
    });
    Some(sandbox)
}
