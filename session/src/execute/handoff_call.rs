//! The tool `handoff`: the model hands a sandbox of its session to another session.
//!
//! It names the session by its identifier, which nobody guesses, and reaches those of its own namespace only whose agents take
//! part, too: a workspace that a model has filled comes to nobody who was not meant to have it.

use longhand_protocol::SessionId;
use longhand_protocol::fields::{Fields, InvalidField};
use longhand_protocol::sandbox_tools::shortened;
use longhand_protocol::wire::SessionStatus;
use longhand_session_log::StoreError;
use longhand_session_log::store::{FinishFrom, SessionMeta};
use serde_json::Value;

use super::handoff::{HandoffError, Party};
use super::run::{Call, Labelled};
use super::{ExecuteError, plan};

/// What the model asks for.
struct Ask {
    session: String,
    sandbox: Option<String>,
    to_sandbox: Option<String>,
}

impl Ask {
    fn read(input: &Value) -> Result<Self, InvalidField> {
        let mut fields = Fields::of("", input.clone())?;
        let session = fields.optional_text("session")?.unwrap_or_default();
        let ask = Self {
            session,
            sandbox: fields.optional_text("sandbox")?.filter(|name| !name.is_empty()),
            to_sandbox: fields.optional_text("to_sandbox")?.filter(|name| !name.is_empty()),
        };
        fields.end()?;
        Ok(ask)
    }
}

impl Call<'_> {
    /// Carries the call out, which may be done again.
    pub(super) async fn hand_off(&self, meta: &SessionMeta, input: &Value) -> Result<Labelled, ExecuteError> {
        let outcome = match Ask::read(input) {
            Ok(ask) => self.try_hand_off(meta, &ask).await?,
            Err(error) => Err(format!("The input is not understood: {error}.")),
        };
        let (text, is_error) = match outcome {
            Ok(text) => (text, false),
            Err(text) => (text, true),
        };
        self.finish("handoff", FinishFrom::Open, vec![plan::result(&self.call, text, is_error)]).await
    }

    /// What the model reads.
    async fn try_hand_off(&self, meta: &SessionMeta, ask: &Ask) -> Result<Result<String, String>, ExecuteError> {
        // In the same words whatever the reason: it learns nothing of sessions that it has no part in.
        let nobody = || format!("There is no session {} here that takes sandboxes.", shortened(&ask.session));
        let Ok(id) = ask.session.parse::<SessionId>() else { return Ok(Err(nobody())) };
        let receiver = match self.executor.store.state(&id).await {
            Ok(receiver) => receiver,
            Err(StoreError::NotFound(_)) => return Ok(Err(nobody())),
            Err(error) => return Err(error.into()),
        };
        let there = &receiver.meta;
        if there.namespace != meta.namespace
            || there.agent.handoff.is_none()
            || receiver.status == SessionStatus::Terminated
        {
            return Ok(Err(nobody()));
        }
        let sandbox = ask.sandbox.as_ref().or(meta.sandboxes.first()).filter(|name| meta.sandboxes.contains(name));
        let Some(sandbox) = sandbox else { return Ok(Err("This session has no such sandbox.".to_owned())) };
        let name = ask.to_sandbox.as_ref().unwrap_or(sandbox);
        if !there.sandboxes.contains(name) {
            let (name, known) = (shortened(name), there.sandboxes.join(", "));
            return Ok(Err(format!("The session {id} has no sandbox `{name}`; it has: {known}.")));
        }
        match self.executor.hand_off(Party { meta, sandbox }, Party { meta: there, sandbox: name }).await {
            Ok(()) => Ok(Ok(format!(
                "The workspace of `{sandbox}` goes to session {id}, as its sandbox `{name}`. The next call in `{sandbox}` of this session begins with an empty workspace."
            ))),
            Err(HandoffError::Log(error)) => Err(error),
            Err(HandoffError::Resources(error)) => Err(error.into()),
            Err(error) => Ok(Err(format!("Nothing was handed over: {error}."))),
        }
    }
}
