//! Calls of which nobody knows how they ended: told to the model, run again, or left to the client, as their policy says.

use longhand_protocol::event::EventBody;
use longhand_protocol::harness::OutcomePolicy;
use longhand_session_log::store::{CallState, FinishFrom, Incarnation};
use tokio::time::Instant;

use super::ExecuteError;
use super::plan;
use super::run::{Call, Course, Labelled};

impl Call<'_> {
    /// What becomes of the call is as its policy says, since its sandbox will never say how it ended: `None` means that it was
    /// taken back and is run again.
    pub(super) async fn not_known(
        &self,
        course: &mut Course,
        from: Incarnation,
        cause: &str,
        lost: bool,
    ) -> Result<Option<Labelled>, ExecuteError> {
        let interrupted = self.interrupted.is_cancelled();
        let about = [self.session.as_str(), self.call.as_str(), &from.pod_uid, &from.attempt];
        let (tool_use_id, why) = (self.call.clone(), cause.to_owned());
        match plan::on_unknown(&course.meta, &course.intent.tool, course.since.retried, interrupted) {
            OutcomePolicy::Report => {
                return self.never_known(CallState::Dispatched { incarnation: from }, cause, lost).await.map(Some);
            }
            OutcomePolicy::Retry => {
                let retried = plan::once(&about, EventBody::ToolRetried { tool_use_id, cause: why });
                self.executor.announce(&self.session, retried).await?;
                self.executor.store.undispatch(&self.session, &self.call, &from).await?;
                course.since.retried = course.since.retried.saturating_add(1);
            }
            OutcomePolicy::Ask => {
                let asked = plan::once(&about, EventBody::ToolOutcomeAsked { tool_use_id, cause: why });
                // Or it was asked and allowed, and only not taken back yet.
                let allowed = course.since.asked.as_ref() == Some(&asked.id);
                self.executor.announce(&self.session, asked).await?;
                self.executor.store.undispatch(&self.session, &self.call, &from).await?;
                if !allowed {
                    return Err(ExecuteError::NotConfirmed(self.call.clone()));
                }
            }
        }
        course.since.unknown = Some(cause.to_owned());
        // The next sandbox has as much time to come as the first.
        course.began = Instant::now();
        (course.waiting, course.strange, course.fresh) = (None, None, None);
        Ok(None)
    }

    /// Ends a call of which nobody knows how it ended, about which nobody can be asked.
    pub(super) async fn report(self) -> Result<Labelled, ExecuteError> {
        let state = self.executor.store.state(&self.session).await?;
        let call = self.executor.store.call(&self.session, &self.call).await?;
        if let CallState::Finished { seq } = call {
            return self.finished(seq).await;
        }
        match self.story(state.head).await?.since.unknown {
            Some(cause) => self.never_known(call, &cause, false).await,
            None => Err(ExecuteError::NotConfirmed(self.call.clone())),
        }
    }

    /// Ends a call that no sandbox has: it was not run, or nobody knows, if one had it that was lost.
    pub(super) async fn give_up(
        &self,
        course: &Course,
        label: &'static str,
        text: String,
    ) -> Result<Labelled, ExecuteError> {
        match &course.since.unknown {
            None => self.refuse(label, text).await,
            Some(cause) => self.never_known(CallState::Open, cause, false).await,
        }
    }

    pub(super) async fn never_known(
        &self,
        state: CallState,
        cause: &str,
        lost: bool,
    ) -> Result<Labelled, ExecuteError> {
        let from = match state {
            CallState::Dispatched { incarnation } => FinishFrom::Dispatched(incarnation),
            CallState::Open | CallState::Finished { .. } => FinishFrom::Open,
        };
        self.finish(if lost { "lost" } else { "unknown" }, from, plan::unknown(&self.call, cause, lost)).await
    }
}
