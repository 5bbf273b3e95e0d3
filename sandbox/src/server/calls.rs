//! Runs calls: the journal decides, a task of its own runs each, and any number of requests wait for its result.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, info_span, warn};

use super::error::ApiError;
use super::journal::{Background, Begun, Fingerprint, Journal, Limits, Use};
use super::ledger::{Ledger, Past};
use crate::tools::Toolbox;
use crate::wire::{Activity, CallId, DrainRequest, DrainResponse, ExecuteRequest, ToolOutput};

const INTERRUPT_LIMIT: Duration = Duration::from_secs(5);

type Slot = Option<Arc<ToolOutput>>;

#[derive(Clone)]
struct Running {
    cancel: CancellationToken,
    result: watch::Receiver<Slot>,
}

/// All calls of this process.
pub(super) struct Calls {
    journal: Mutex<Journal<Running>>,
    ledger: Option<Arc<Mutex<Ledger>>>,
    toolbox: Arc<Toolbox>,
    tasks: TaskTracker,
    terminal_idle: Duration,
    ending: CancellationToken,
}

impl Calls {
    /// With what an earlier process has left in its ledger.
    pub(super) fn new(toolbox: Toolbox, ledger: Option<(Ledger, Vec<Past>)>, terminal_idle: Duration) -> Self {
        let mut journal = Journal::new(Limits::default(), Instant::now());
        let ledger = ledger.map(|(ledger, past)| {
            journal.restore(past);
            Arc::new(Mutex::new(ledger))
        });
        Self {
            journal: Mutex::new(journal),
            ledger,
            toolbox: Arc::new(toolbox),
            tasks: TaskTracker::new(),
            terminal_idle,
            ending: CancellationToken::new(),
        }
    }

    /// The result of the call, which is started if it is new. Dropping this future does not stop the call.
    pub(super) async fn execute(self: &Arc<Self>, request: ExecuteRequest) -> Result<Arc<ToolOutput>, ApiError> {
        let mut result = match self.begin(request)? {
            Begun::Finished(output) => return Ok(output),
            Begun::Started(running) | Begun::Running(running) => running.result,
        };
        // The sender lives in a task that always sends, so that an error means that the runtime is going down.
        match result.wait_for(Option::is_some).await.map(|slot| slot.clone()) {
            Ok(Some(output)) => Ok(output),
            Ok(None) | Err(_) => Ok(Arc::new(ToolOutput::error("interrupted: the sandbox is ending"))),
        }
    }

    fn begin(self: &Arc<Self>, request: ExecuteRequest) -> Result<Begun<Running>, ApiError> {
        let fingerprint = Fingerprint::of(&request.name, &request.input);
        let (sender, result) = watch::channel(None);
        let start = || Running { cancel: CancellationToken::new(), result };
        // The lock is held until the task is spawned, so that `terminate` waits for every call that was begun.
        let mut journal = self.journal();
        let begun = journal.begin(&request.call_id, fingerprint, request.attach_only, start);
        let begun = begun.map_err(|reason| ApiError::Refused { call_id: request.call_id.clone(), reason })?;
        if let Begun::Started(running) = &begun {
            if let Some(ledger) = &self.ledger
                && let Err(error) = locked(ledger).begin(&request.call_id, fingerprint)
            {
                warn!(call_id = %request.call_id, %error, "a restart would not know this call");
            }
            let span = info_span!("call", call_id = %request.call_id, tool = %clip(&request.name));
            let task = Arc::clone(self).run(request, running.cancel.clone(), sender);
            self.tasks.spawn(task.instrument(span));
        }
        Ok(begun)
    }

    async fn run(self: Arc<Self>, request: ExecuteRequest, cancel: CancellationToken, sender: watch::Sender<Slot>) {
        let started = Instant::now();
        let ExecuteRequest { call_id, name, input, .. } = request;
        let toolbox = Arc::clone(&self.toolbox);
        let tool = tokio::spawn(async move { toolbox.run(&name, input, &cancel).await });
        let output = match tool.await {
            Ok(output) => output,
            Err(error) => {
                warn!(%error, "the tool failed in an unexpected way");
                ToolOutput::error("the tool failed inside sandboxd; what it has done is unknown")
            }
        };
        let output = Arc::new(output);
        self.record(&call_id, &output).await;
        self.journal().finish(&call_id, &output, Instant::now());
        info!(
            duration_ms = started.elapsed().as_secs_f64() * 1_000.0,
            bytes = output.content.len(),
            is_error = output.is_error,
            "call finished"
        );
        sender.send_replace(Some(output));
    }

    /// Keeps the result for a successor of this process.
    async fn record(&self, call_id: &CallId, output: &Arc<ToolOutput>) {
        let Some(ledger) = self.ledger.clone() else { return };
        let (id, kept) = (call_id.clone(), Arc::clone(output));
        match tokio::task::spawn_blocking(move || locked(&ledger).finish(&id, &kept)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "a restart would not know the result of this call"),
            Err(error) => warn!(%error, "the result of this call was not recorded"),
        }
    }

    /// Begins a terminal or a transfer, which goes on until the answer is dropped.
    pub(super) fn open(self: &Arc<Self>, what: Use) -> Result<Open, ApiError> {
        self.journal().open(what).map_err(ApiError::NotNow)?;
        Ok(Open { calls: Arc::clone(self), what })
    }

    /// Runs a task that the end of this process waits for as it does for calls.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// How long a terminal may be left alone.
    pub(super) fn terminal_idle(&self) -> Duration {
        self.terminal_idle
    }

    /// Is cancelled when this process has to end.
    pub(super) fn ending(&self) -> CancellationToken {
        self.ending.clone()
    }

    /// What runs the tools.
    pub(super) fn toolbox(&self) -> &Arc<Toolbox> {
        &self.toolbox
    }

    /// Interrupts a running call; whether there was one.
    pub(super) fn cancel(&self, call_id: &CallId) -> bool {
        let running = self.journal().running(call_id);
        if let Some(running) = &running {
            running.cancel.cancel();
        }
        running.is_some()
    }

    pub(super) fn activity(&self) -> Activity {
        self.journal().activity(self.background(), Instant::now())
    }

    fn background(&self) -> Background {
        let commands = self.toolbox.commands();
        Background { commands: commands.background(), last_end: commands.last_background() }
    }

    pub(super) fn drain(&self, request: &DrainRequest) -> DrainResponse {
        let (background, now) = (self.background(), Instant::now());
        let counted = request.background_counts.then_some(background);
        let mut journal = self.journal();
        let drained = journal.drain(Duration::from_secs(request.idle_seconds), counted, now);
        let activity = journal.activity(background, now);
        drop(journal);
        if drained {
            info!("draining: no new call is taken");
        }
        DrainResponse { drained, activity }
    }

    /// Takes calls again.
    pub(super) fn resume(&self) -> Activity {
        self.journal().resume(Instant::now());
        info!("calls are taken again");
        self.activity()
    }

    /// Ends what calls have left running, so that nothing changes the workspace any more: of a sandbox that takes no call only.
    pub(super) async fn settle(&self) -> Result<(), ApiError> {
        if !self.journal().is_draining() {
            return Err(ApiError::NotDrained);
        }
        self.toolbox.end().await;
        Ok(())
    }

    /// Begins to fill the workspace with another sandbox's; nothing to do if that was done before.
    pub(super) fn fill(self: &Arc<Self>) -> Result<Option<Filling>, ApiError> {
        let begun = self.journal().fill().map_err(ApiError::NotNow)?;
        Ok(begun.then(|| Filling { calls: Arc::clone(self), whole: false }))
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.journal().is_terminating()
    }

    /// Takes no new call, waits up to `grace` for those that run, then interrupts them. What they left running ends last.
    pub(super) async fn terminate(&self, grace: Duration) {
        self.journal().terminate();
        self.ending.cancel();
        self.tasks.close();
        let running = self.activity().running_calls;
        info!(running_calls = running, grace_seconds = grace.as_secs(), "terminating");
        if timeout(grace, self.tasks.wait()).await.is_err() {
            let running = self.journal().all_running();
            warn!(running_calls = running.len(), "interrupting calls that did not finish in time");
            for call in running {
                call.cancel.cancel();
            }
            if timeout(INTERRUPT_LIMIT, self.tasks.wait()).await.is_err() {
                warn!("some calls did not stop");
            }
        }
        self.toolbox.end().await;
    }

    fn journal(&self) -> MutexGuard<'_, Journal<Running>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A terminal or a transfer that goes on.
pub(super) struct Open {
    calls: Arc<Calls>,
    what: Use,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.calls.journal().close(self.what, Instant::now());
    }
}

/// A workspace that is being filled. Unless it is said to be whole, it is not.
pub(super) struct Filling {
    calls: Arc<Calls>,
    whole: bool,
}

impl Filling {
    /// All of it is here.
    pub(super) fn whole(mut self) {
        self.whole = true;
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.calls.journal().filled(self.whole, Instant::now());
    }
}

fn locked(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

// A tool's name is the model's text until it is known to be a tool.
fn clip(name: &str) -> String {
    name.chars().take(64).collect()
}
