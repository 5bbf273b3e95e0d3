//! Runs calls: the journal decides, a task of its own runs each, and any number of requests wait for its result.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, info_span, warn};

use super::error::ApiError;
use super::journal::{Begun, Fingerprint, Journal, Limits};
use crate::tools::Toolbox;
use crate::wire::{Activity, CallId, DrainResponse, ExecuteRequest, ToolOutput};

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
    toolbox: Arc<Toolbox>,
    tasks: TaskTracker,
}

impl Calls {
    pub(super) fn new(toolbox: Toolbox) -> Self {
        Self {
            journal: Mutex::new(Journal::new(Limits::default(), Instant::now())),
            toolbox: Arc::new(toolbox),
            tasks: TaskTracker::new(),
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
        self.journal().finish(&call_id, &output, Instant::now());
        info!(
            duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            bytes = output.content.len(),
            is_error = output.is_error,
            "call finished"
        );
        sender.send_replace(Some(output));
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
        self.journal().activity(Instant::now())
    }

    pub(super) fn drain(&self, idle: Duration) -> DrainResponse {
        let answer = self.journal().drain(idle, Instant::now());
        if answer.drained {
            info!("draining: no new call is taken");
        }
        answer
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.journal().is_terminating()
    }

    /// Takes no new call, waits up to `grace` for those that run, then interrupts them.
    pub(super) async fn terminate(&self, grace: Duration) {
        self.journal().terminate();
        self.tasks.close();
        let running = self.activity().running_calls;
        info!(running_calls = running, grace_seconds = grace.as_secs(), "terminating");
        if timeout(grace, self.tasks.wait()).await.is_ok() {
            return;
        }
        let running = self.journal().all_running();
        warn!(running_calls = running.len(), "interrupting calls that did not finish in time");
        for call in running {
            call.cancel.cancel();
        }
        if timeout(INTERRUPT_LIMIT, self.tasks.wait()).await.is_err() {
            warn!("some calls did not stop");
        }
    }

    fn journal(&self) -> MutexGuard<'_, Journal<Running>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// A tool's name is the model's text until it is known to be a tool.
fn clip(name: &str) -> String {
    name.chars().take(64).collect()
}
