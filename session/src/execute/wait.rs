//! A tool call waits for its sandbox.

use std::time::Duration;

use jiff::Timestamp;
use longhand_protocol::event::EventBody;
use tokio::time::Instant;

use super::provision::Roused;
use super::run::{Call, Course, LOOK_AGAIN, Waiting, changed};
use super::sandboxes::SandboxView;
use super::{ExecuteError, plan};

impl Call<'_> {
    /// Makes the sandbox, or finds the one that the watch has not shown yet; the text says why there can be none.
    pub(super) async fn provision(&self, course: &mut Course) -> Result<Option<String>, ExecuteError> {
        let made = match self.executor.make(&course.meta, &course.intent.sandbox).await? {
            Ok(made) => made,
            Err(reason) => {
                return Ok(Some(format!("The call was not run: there can be no sandbox for it ({reason}).")));
            }
        };
        let view = SandboxView::of(&made);
        self.begin_waiting(course, &view).await?;
        course.given_up_before = view.given_up().or(course.given_up_before.take());
        self.changed_or_interrupted(course, LOOK_AGAIN).await;
        Ok(None)
    }

    async fn begin_waiting(&self, course: &mut Course, sandbox: &SandboxView) -> Result<(), ExecuteError> {
        if course.waiting.is_some() {
            return Ok(());
        }
        course.waiting = Some(Waiting::begin());
        let body =
            EventBody::SandboxProvisioning { sandbox: course.intent.sandbox.clone(), tool_use_id: self.call.clone() };
        // Parallel calls wait for one sandbox: the first to say so says it for all.
        let incarnation = sandbox.incarnation.to_string();
        let event = plan::once(&[self.session.as_str(), &sandbox.uid, &incarnation], body);
        self.executor.announce(&self.session, event).await
    }

    /// Waits for a change; the text says why the call ends without a sandbox.
    pub(super) async fn wait_for_sandbox(
        &self,
        course: &mut Course,
        sandbox: Option<&SandboxView>,
    ) -> Result<Option<String>, ExecuteError> {
        // A drained sandbox is about to go: the next one is what is waited for.
        let left = |sandbox: &SandboxView| {
            course
                .avoid
                .as_ref()
                .filter(|(pod_uid, _)| Some(pod_uid) == sandbox.pod_uid.as_ref())
                .map(|(_, since)| *since)
        };
        let going = sandbox.is_none_or(|sandbox| sandbox.deleting || left(sandbox).is_some());
        let overdue = |since: Instant| since.elapsed() >= self.executor.limits.arrival;
        let stays = sandbox.filter(|sandbox| !sandbox.deleting && left(sandbox).is_some_and(overdue));
        if let Some(sandbox) = stays
            && !self.executor.finish_reclaim(&course.key, sandbox).await?
        {
            course.avoid = None;
            return Ok(None);
        }
        if let Some(sandbox) = sandbox.filter(|sandbox| !going && sandbox.serving().is_none()) {
            self.begin_waiting(course, sandbox).await?;
        }
        let roused = match sandbox {
            // It is woken when the operator has seen that its pod must go.
            Some(sandbox) if stays.is_none() => {
                self.executor.rouse(&course.key, sandbox, course.given_up_before.as_ref()).await?
            }
            _ => Roused::OnItsWay,
        };
        match roused {
            Roused::OnItsWay => {}
            Roused::Ended(why) => {
                return Ok(Some(format!(
                    "The call was not run: its sandbox has ended ({why}). The next call gets a new one, with an empty workspace."
                )));
            }
            Roused::Rests(why) => return Ok(Some(format!("The call was not run: its sandbox has no pod: {why}."))),
        }
        let (least, waited) = (self.executor.limits.provisioning, course.began.elapsed());
        let limit = sandbox.map_or(least, |sandbox| sandbox.patience(least, waited, Timestamp::now()));
        if course.began.elapsed() >= limit {
            let why = sandbox.map_or("it does not exist", SandboxView::explanation);
            return Ok(Some(format!(
                "The call was not run: its sandbox was not ready within {} s ({why}). The next call tries again.",
                limit.as_secs()
            )));
        }
        let left = limit.saturating_sub(course.began.elapsed());
        self.changed_or_interrupted(course, LOOK_AGAIN.min(left)).await;
        Ok(None)
    }

    /// Waits while the call is open: who has stopped the turn does not wait for a sandbox.
    async fn changed_or_interrupted(&self, course: &mut Course, at_most: Duration) {
        self.interrupted.run_until_cancelled(changed(&mut course.seen, at_most)).await;
    }
}
