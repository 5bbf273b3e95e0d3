//! One tool call, from the intent in the log to the result in the log.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longhand_protocol::event::without_result::STOPPED_BEFORE;
use longhand_protocol::event::{EventBody, NewEvent, Record};
use longhand_protocol::harness::HANDOFF;
use longhand_protocol::{EventId, SessionId};
use longhand_sandbox::client::{SandboxError, Target};
use longhand_sandbox::wire::{CallId, ExecuteRequest, ToolOutput};
use longhand_session_log::StoreError;
use longhand_session_log::store::{CallState, Claimant, FinishFrom, Incarnation, SessionMeta};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio::try_join;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, info_span};

use super::plan::{self, Intent, Leave, Step, Verdict};
use super::sandboxes::{GivenUp, SandboxKey, SandboxView};
use super::story::Since;
use super::workspace::Ready;
use super::{ExecuteError, Executor};
use crate::metrics;

/// A watch may be late, or its last word may have come before we looked; then looking again helps.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(2);
const JOIN_AGAIN: Duration = Duration::from_millis(250);
const JOIN_AGAIN_AT_LAST: Duration = Duration::from_secs(5);
const CANCELLED_TOOL_ENDS: Duration = Duration::from_secs(10);
const CANCEL_AGAIN: Duration = Duration::from_secs(1);
/// A result is worth more patience than a request.
const KEEP_RESULT: Duration = Duration::from_secs(120);
const KEEP_ATTEMPT: Duration = Duration::from_secs(30);

pub(super) type Labelled = (&'static str, Record);

pub(super) struct Call<'a> {
    pub(super) executor: &'a Arc<Executor>,
    pub(super) session: SessionId,
    pub(super) call: EventId,
    epoch: &'a AtomicU64,
    /// The client has stopped the turn.
    pub(super) interrupted: CancellationToken,
}

/// What is known of a call while it runs here.
pub(super) struct Course {
    pub(super) meta: SessionMeta,
    /// Who owned the session when the call began.
    pub(super) harness: Option<Claimant>,
    pub(super) intent: Intent,
    pub(super) key: SandboxKey,
    pub(super) seen: watch::Receiver<Option<SandboxView>>,
    pub(super) began: Instant,
    /// Since when it waits for a sandbox.
    pub(super) waiting: Option<Waiting>,
    /// A pod that takes no more calls, and since when that is known.
    pub(super) avoid: Option<(String, Instant)>,
    /// A sandbox that had been given up before this call needed one.
    pub(super) given_up_before: Option<GivenUp>,
    /// Since when the sandbox says that it does not know the call.
    pub(super) strange: Option<Instant>,
    /// How long to wait before the next attempt to join.
    pause: Duration,
    /// An incarnation that this task has given the call to and that cannot have begun it before we ask.
    pub(super) fresh: Option<Incarnation>,
    /// What the log has just said of the call.
    known: Option<CallState>,
    /// What the log said of it when this task began, and what this task has added.
    pub(super) since: Since,
}

/// A wait for a sandbox, and its span.
pub(super) struct Waiting {
    since: Instant,
    _span: Span,
}

impl Waiting {
    /// From now on.
    pub(super) fn begin() -> Self {
        Self { since: Instant::now(), _span: info_span!("wait for sandbox") }
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(executor: &'a Arc<Executor>, session: SessionId, call: EventId, epoch: &'a AtomicU64) -> Self {
        Self { executor, session, call, epoch, interrupted: CancellationToken::new() }
    }

    pub(super) async fn run(self) -> Result<Labelled, ExecuteError> {
        let store = &self.executor.store;
        let (state, known, near) =
            try_join!(store.state(&self.session), store.call(&self.session, &self.call), self.near_the_end())?;
        let from = match &known {
            CallState::Finished { seq } => return self.finished(*seq).await,
            CallState::Open => FinishFrom::Open,
            CallState::Dispatched { incarnation } => FinishFrom::Dispatched(incarnation.clone()),
        };
        let story = match near {
            Some(story) => story,
            None => self.story(state.head).await?,
        };
        let intent =
            plan::intent(&story.intent, &state.meta).ok_or_else(|| ExecuteError::NotACall(self.call.clone()))?;
        let intent = match intent {
            Ok(intent) => intent,
            Err(text) => return self.refuse("refused", text).await,
        };
        Span::current().record("tool", &intent.tool).record("sandbox", &intent.sandbox);
        let by_service = intent.sandbox.is_empty();
        let queue = if by_service { None } else { self.executor.hosted.queue(&state.meta, &intent.sandbox).await? };
        match plan::leave(&intent, &story.since) {
            Leave::Given => {}
            Leave::NotYet => return Err(ExecuteError::NotConfirmed(self.call.clone())),
            Leave::Refused(..) if let Some(cause) = &story.since.unknown => {
                let cause = plan::not_again(cause, story.since.answer.as_ref());
                return self.finish("unknown", from, plan::unknown(&self.call, &cause, false)).await;
            }
            Leave::Refused(label, text) => {
                let result = match queue {
                    Some(_) => plan::hosted_result(&self.call, &text),
                    None => plan::result(&self.call, text, true),
                };
                return self.finish(label, FinishFrom::Open, vec![result]).await;
            }
        }
        if by_service && intent.tool == HANDOFF {
            return self.hand_off(&state.meta, &intent.input).await;
        }
        if by_service {
            return self.recall(&intent.input, story.seq).await;
        }
        if story.since.interrupted {
            self.interrupted.cancel();
        }
        let seen_through = async {
            match queue {
                Some(queue) => self.hosted(&queue).await,
                None => {
                    let harness = state.owner.map(|owner| owner.claimant);
                    self.in_sandbox((state.meta, harness), intent, story.since, known).await
                }
            }
        };
        tokio::select! {
            biased;
            never = self.watch_interrupts(story.end) => match never {},
            ended = seen_through => ended,
        }
    }

    async fn in_sandbox(
        &self,
        (meta, harness): (SessionMeta, Option<Claimant>),
        intent: Intent,
        since: Since,
        known: CallState,
    ) -> Result<Labelled, ExecuteError> {
        let key = Executor::key_of(&meta, &intent.sandbox);
        let seen = self.executor.sandboxes.subscribe(&key);
        let given_up_before = seen.borrow().as_ref().and_then(SandboxView::given_up);
        let course = Course {
            meta,
            harness,
            intent,
            key,
            seen,
            began: Instant::now(),
            waiting: None,
            avoid: None,
            given_up_before,
            strange: None,
            pause: JOIN_AGAIN,
            fresh: None,
            known: Some(known),
            since,
        };
        self.steer(course).await
    }

    async fn steer(&self, mut course: Course) -> Result<Labelled, ExecuteError> {
        loop {
            let call = match course.known.take() {
                Some(known) => known,
                None => self.executor.store.call(&self.session, &self.call).await?,
            };
            if matches!(call, CallState::Open) && self.interrupted.is_cancelled() {
                return self.give_up(&course, "interrupted", STOPPED_BEFORE.to_owned()).await;
            }
            // A loss is for ever, so it is never concluded from a watch that may be late.
            let sandbox = match &call {
                CallState::Dispatched { .. } => self.look(&course).await?,
                CallState::Open | CallState::Finished { .. } => course.seen.borrow_and_update().clone(),
            };
            match plan::next(&call, sandbox.as_ref(), course.avoid.as_ref().map(|(pod_uid, _)| pod_uid.as_str())) {
                Step::Return { seq } => return self.finished(seq).await,
                Step::Create => {
                    if let Some(text) = self.provision(&mut course).await? {
                        return self.give_up(&course, "no_sandbox", text).await;
                    }
                }
                Step::Await if matches!(call, CallState::Open) => {
                    if let Some(text) = self.wait_for_sandbox(&mut course, sandbox.as_ref()).await? {
                        return self.give_up(&course, "no_sandbox", text).await;
                    }
                }
                Step::Await => {
                    if course.began.elapsed() > self.executor.limits.tool {
                        return self.never_known(call, &self.too_long(), false).await;
                    }
                    changed(&mut course.seen, LOOK_AGAIN).await;
                }
                Step::Dispatch { pod_uid, address } => {
                    let target = Target { address: address.clone(), pod_uid: pod_uid.clone() };
                    match self.ready(&mut course, &target).await? {
                        Ready::Run => {}
                        Ready::LookAgain => continue,
                        Ready::Refuse(text) => return self.give_up(&course, "no_workspace", text).await,
                    }
                    // Nothing is looked up between the two: a sandbox that is gone does not answer.
                    if let Some(incarnation) = self.dispatch(&mut course, pod_uid, &address).await?
                        && let Some(end) = self.converse(&mut course, incarnation, address).await?
                    {
                        return Ok(end);
                    }
                }
                Step::Attach { incarnation, address } => {
                    if let Some(end) = self.converse(&mut course, incarnation, address).await? {
                        return Ok(end);
                    }
                }
                Step::Lost { incarnation, cause } => {
                    let lost = EventBody::SandboxLost { sandbox: course.intent.sandbox.clone(), cause: cause.clone() };
                    let lost = plan::once(&[self.session.as_str(), &incarnation.pod_uid], lost);
                    self.executor.announce(&self.session, lost).await?;
                    if let Some(end) = self.not_known(&mut course, incarnation, &cause, true).await? {
                        return Ok(end);
                    }
                }
            }
        }
    }

    async fn look(&self, course: &Course) -> Result<Option<SandboxView>, ExecuteError> {
        let sandbox = self.executor.resources.sandbox(&course.key.namespace, &course.key.name).await?;
        Ok(sandbox.as_ref().map(SandboxView::of))
    }

    /// Gives the call to the sandbox; to which incarnation, if this task did.
    async fn dispatch(
        &self,
        course: &mut Course,
        pod_uid: String,
        address: &str,
    ) -> Result<Option<Incarnation>, ExecuteError> {
        if let Some(waited) = course.waiting.take() {
            metrics::provisioned(waited.since.elapsed());
        }
        self.executor.say_ready(&course.meta, &course.intent.sandbox, &pod_uid).await?;
        let attempt = format!("{:016x}", rand::random::<u64>());
        let to = Incarnation { sandbox: course.key.name.clone(), pod_uid, attempt };
        match self.give(&to).await {
            Ok(()) => {
                tracing::debug!(pod_uid = to.pod_uid, address, "dispatched");
                course.fresh = Some(to.clone());
                Ok(Some(to))
            }
            // A later brain asked for the same call in the meantime.
            Err(StoreError::Fenced { given, .. }) if given < self.epoch.load(Ordering::Relaxed) => Ok(None),
            // Another replica was faster: look again at what it did.
            Err(StoreError::CallState { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Records the dispatch. While the log is away only we know this attempt, so that it is worth patience.
    pub(super) async fn give(&self, to: &Incarnation) -> Result<(), StoreError> {
        let until = Instant::now() + KEEP_ATTEMPT;
        loop {
            let epoch = self.epoch.load(Ordering::Relaxed);
            match self.executor.store.dispatch(&self.session, epoch, &self.call, to).await {
                Err(StoreError::Unavailable(reason)) if Instant::now() < until => {
                    tracing::warn!(reason, "a dispatch could not be recorded and is recorded again");
                    sleep(JOIN_AGAIN).await;
                }
                recorded => return recorded,
            }
        }
    }

    /// Asks the sandbox until it has answered or is gone. `None` means: look again at log and sandbox.
    async fn converse(
        &self,
        course: &mut Course,
        incarnation: Incarnation,
        address: String,
    ) -> Result<Option<Labelled>, ExecuteError> {
        let target = Target { address, pod_uid: incarnation.pod_uid.clone() };
        let fresh = course.fresh.take().is_some_and(|fresh| fresh == incarnation);
        if fresh && self.interrupted.is_cancelled() {
            self.executor.store.undispatch(&self.session, &self.call, &incarnation).await?;
            return Ok(None);
        }
        if let Some(egress) = self.executor.egress.as_ref().filter(|_| fresh) {
            let (meta, harness) = (&course.meta, course.harness.as_ref());
            egress.prepare(&self.executor.client, meta, harness, &course.intent.sandbox, &target).await;
        }
        let call_id = CallId::new(self.call.as_str()).map_err(|error| ExecuteError::Failed(error.to_string()))?;
        let request = ExecuteRequest {
            call_id,
            name: course.intent.tool.clone(),
            input: course.intent.input.clone(),
            attach_only: !fresh,
        };
        let state = CallState::Dispatched { incarnation: incarnation.clone() };
        let left = self.executor.limits.tool.saturating_sub(course.began.elapsed());
        let span = info_span!("run in sandbox", otel.kind = "client", pod_uid = target.pod_uid);
        let mut running = pin!(self.executor.client.execute(&target, &request, left).instrument(span));
        let answer = tokio::select! {
            biased;
            answer = running.as_mut() => answer,
            () = gone(&mut course.seen, &incarnation.pod_uid) => {
                tracing::info!(pod_uid = incarnation.pod_uid, "the sandbox went away under a call");
                return Ok(None);
            }
            () = self.interrupted.cancelled() => match self.stop(&target, &request.call_id, running).await {
                Some(answer) => answer,
                None => return self.never_known(state, plan::UNSTOPPABLE, false).await.map(Some),
            },
        };
        match plan::judge(answer, fresh) {
            Verdict::Done(output) => self.done(incarnation, output).await.map(Some),
            Verdict::NotBegun { leave, wait } => {
                self.executor.store.undispatch(&self.session, &self.call, &incarnation).await?;
                course.avoid = leave.then(|| (incarnation.pod_uid, Instant::now()));
                if !wait.is_zero() {
                    sleep(wait).await;
                    // The pod may never be reachable, and waiting for it has the bound of waiting for a sandbox.
                    if course.began.elapsed() >= self.executor.limits.provisioning {
                        let text = "The call was not run: its sandbox could not be reached. The next call tries again.";
                        return self.give_up(course, "no_sandbox", text.to_owned()).await.map(Some);
                    }
                }
                Ok(None)
            }
            Verdict::Rejected(message) => {
                let text = format!("The sandbox refused the call: {message}");
                let result = plan::result(&self.call, text, true);
                self.finish("rejected", FinishFrom::Dispatched(incarnation), vec![result]).await.map(Some)
            }
            Verdict::Strange(cause) => {
                let since = *course.strange.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.executor.limits.arrival {
                    return self.not_known(course, incarnation, &cause, false).await;
                }
                changed(&mut course.seen, JOIN_AGAIN.min(self.executor.limits.arrival)).await;
                Ok(None)
            }
            Verdict::Unknown(cause) => self.not_known(course, incarnation, &cause, false).await,
            Verdict::Again(reason) => {
                tracing::info!(reason, "joining a tool call again");
                changed(&mut course.seen, course.pause).await;
                course.pause = (course.pause * 2).min(JOIN_AGAIN_AT_LAST);
                Ok(None)
            }
            Verdict::TooLong => self.interrupt(&target, &request, incarnation).await.map(Some),
        }
    }

    /// The client has stopped the turn: cancels the call until it answers. `None` if it does not in time.
    async fn stop(
        &self,
        target: &Target,
        call_id: &CallId,
        mut running: Pin<&mut impl Future<Output = Result<ToolOutput, SandboxError>>>,
    ) -> Option<Result<ToolOutput, SandboxError>> {
        let until = Instant::now() + CANCELLED_TOOL_ENDS;
        while Instant::now() < until {
            if let Err(error) = self.executor.client.cancel(target, call_id).await {
                tracing::warn!(%error, "an interrupted tool call could not be cancelled");
            }
            // The request to run it may have been behind the one to cancel it.
            if let Ok(answer) = timeout(CANCEL_AGAIN, running.as_mut()).await {
                return Some(answer);
            }
        }
        None
    }

    /// The call has had its time: stops it, and takes what it says then.
    async fn interrupt(
        &self,
        target: &Target,
        request: &ExecuteRequest,
        incarnation: Incarnation,
    ) -> Result<Labelled, ExecuteError> {
        if let Err(error) = self.executor.client.cancel(target, &request.call_id).await {
            tracing::warn!(%error, "a tool call that took too long could not be cancelled");
        }
        match self.executor.client.attach(target, request, CANCELLED_TOOL_ENDS).await {
            Ok(output) => self.done(incarnation, output).await,
            Err(_) => self.never_known(CallState::Dispatched { incarnation }, &self.too_long(), false).await,
        }
    }

    pub(super) fn too_long(&self) -> String {
        format!("it did not end within {} s", self.executor.limits.tool.as_secs())
    }

    async fn done(&self, incarnation: Incarnation, output: ToolOutput) -> Result<Labelled, ExecuteError> {
        let label = if output.is_error { "tool_error" } else { "ok" };
        let result = plan::result(&self.call, output.content, output.is_error);
        let from = FinishFrom::Dispatched(incarnation);
        match self.finish(label, from.clone(), vec![result]).await {
            Err(ExecuteError::Store(error)) if matches!(*error, StoreError::TooLarge(_)) => {
                let text = "The call has run, but its output is too large to keep.";
                self.finish("too_large", from, vec![plan::result(&self.call, text, true)]).await
            }
            ended => ended,
        }
    }

    /// Ends a call that has not been given to any sandbox.
    pub(super) async fn refuse(&self, label: &'static str, text: String) -> Result<Labelled, ExecuteError> {
        self.finish(label, FinishFrom::Open, vec![plan::result(&self.call, text, true)]).await
    }

    pub(super) async fn finish(
        &self,
        label: &'static str,
        from: FinishFrom,
        events: Vec<NewEvent>,
    ) -> Result<Labelled, ExecuteError> {
        let until = Instant::now() + KEEP_RESULT;
        let store = &self.executor.store;
        let mut wait = Duration::from_millis(100);
        loop {
            match store.finish_call(&self.session, &self.call, &from, events.clone()).await {
                Ok(appended) => {
                    let ours = |record: &Record| is_result_of(&record.event.body, &self.call);
                    let record = appended.records.into_iter().find(ours);
                    let record = record.ok_or_else(|| ExecuteError::Failed("the log lost a result".to_owned()))?;
                    return Ok((label, record));
                }
                // Another replica was faster; what it wrote is the result.
                Err(StoreError::CallState { state: CallState::Finished { seq }, .. }) => {
                    return self.finished(seq).await;
                }
                // The same events are found if they were appended after all.
                Err(StoreError::Unavailable(reason)) if Instant::now() + wait < until => {
                    tracing::warn!(reason, "a result could not be written and is written again");
                    sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) async fn finished(&self, seq: u64) -> Result<Labelled, ExecuteError> {
        let slice = self.executor.store.read(&self.session, seq.saturating_sub(1), 1).await?;
        let record = slice.records.into_iter().next();
        record.map(|record| ("known", record)).ok_or_else(|| ExecuteError::Failed("the log lost a result".to_owned()))
    }
}

fn is_result_of(body: &EventBody, call: &EventId) -> bool {
    match body {
        EventBody::AgentToolResult { tool_use_id, .. } | EventBody::UserToolResult { tool_use_id, .. } => {
            tool_use_id == call
        }
        _ => false,
    }
}

/// Returns when the sandbox has changed, or after `at_most`.
pub(super) async fn changed(seen: &mut watch::Receiver<Option<SandboxView>>, at_most: Duration) {
    // The index keeps a slot for as long as somebody waits, so that its end is no case.
    let _ = timeout_at(Instant::now() + at_most, seen.changed()).await;
}

/// Returns when the watch has shown this pod and then shows it no more.
pub(super) async fn gone(seen: &mut watch::Receiver<Option<SandboxView>>, pod_uid: &str) {
    let has = |view: &Option<SandboxView>| view.as_ref().is_some_and(|view| view.pod_uid.as_deref() == Some(pod_uid));
    if seen.wait_for(has).await.is_err() || seen.wait_for(|view| !has(view)).await.is_err() {
        std::future::pending::<()>().await;
    }
}
