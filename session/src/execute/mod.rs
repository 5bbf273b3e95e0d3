//! Tool calls: one owned task for each, which goes on when the harness that asked is gone.

mod egress;
mod handoff;
mod handoff_call;
mod handoff_copy;
mod hosted;
mod plan;
mod provision;
mod reach;
mod recall;
mod reclaim;
mod room;
mod run;
pub mod sandboxes;
mod stored;
mod story;
mod unknown;
mod wait;
mod workspace;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longhand_protocol::event::{NewEvent, Record};
use longhand_protocol::{EventId, SessionId};
use longhand_sandbox::client::SandboxClient;
use longhand_session_log::files::Files;
use longhand_session_log::work::WorkError;
use longhand_session_log::{SessionStore, StoreError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, field, info_span};

pub use self::egress::Egress;
pub use self::handoff::{HandoffError, Party};
use self::handoff_copy::Copies;
pub use self::hosted::Hosted;
pub use self::reach::ReachError;
pub use self::reclaim::DrainError;
use self::run::Call;
use self::sandboxes::SandboxIndex;
use crate::cache::TtlCache;
use crate::metrics;
use crate::resources::homes::Homes;
use crate::resources::{ResourceError, Resources};

const RUNNING_AT_ONCE: usize = 2_048;
const RACE_PAUSE: Duration = Duration::from_millis(50);
const ANNOUNCED: usize = 4_096;
const ANNOUNCED_FOR: Duration = Duration::from_secs(3_600);

/// Why a tool call has no result now. Asking again is always safe.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The log refused or failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The Kubernetes API failed.
    #[error(transparent)]
    Resources(#[from] ResourceError),
    /// No such tool call is in the log.
    #[error("there is no tool call {0} in the log")]
    NotACall(EventId),
    /// The client has not said yet whether the call may run.
    #[error("the tool call {0} waits for a user.tool_confirmation")]
    NotConfirmed(EventId),
    /// The session's resource is gone.
    #[error("the AgentSession {namespace}/{name} of this session is gone")]
    NoSession {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The queue of the self-hosted environment failed or is full.
    #[error(transparent)]
    Work(Arc<WorkError>),
    /// As many calls run as may.
    #[error("{RUNNING_AT_ONCE} tool calls are running")]
    Busy,
    /// This replica is going down; the call goes on elsewhere.
    #[error("this replica of the session service is stopping")]
    Stopping,
    /// The task that ran the call has failed.
    #[error("the tool call could not be seen through: {0}")]
    Failed(String),
}

impl From<StoreError> for ExecuteError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<WorkError> for ExecuteError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Store(error) => error.into(),
            other => Self::Work(Arc::new(other)),
        }
    }
}

/// How long things may take, and how many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until a sandbox is ready.
    pub provisioning: Duration,
    /// Until a tool has an output.
    pub tool: Duration,
    /// Until a request that another replica has sent to a sandbox has arrived there.
    pub arrival: Duration,
    /// Sandboxes of a namespace that have not ended; 0 is no limit.
    pub namespace_sandboxes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            provisioning: Duration::from_secs(120),
            tool: Duration::from_secs(15 * 60),
            arrival: Duration::from_secs(5),
            namespace_sandboxes: 0,
        }
    }
}

type Outcome = Result<Record, ExecuteError>;
type Key = (SessionId, EventId);

/// A call that runs in this replica.
struct Running {
    /// The highest epoch that has asked for it.
    epoch: AtomicU64,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// Runs tool calls.
pub struct Executor {
    store: Arc<dyn SessionStore>,
    resources: Arc<dyn Resources>,
    sandboxes: Arc<SandboxIndex>,
    /// Environments whose tools are run by workers of others.
    pub hosted: Hosted,
    client: SandboxClient,
    /// The way out of sandboxes, where there can be one.
    egress: Option<Egress>,
    /// Files that clients upload, where they are kept.
    files: Option<Files>,
    /// Namespaces, as files know them.
    homes: Homes,
    limits: Limits,
    running: Mutex<HashMap<Key, Arc<Running>>>,
    /// Events that are in the log once, and are there.
    announced: TtlCache<EventId, ()>,
    /// What workspaces hold, by the session's UID and the sandbox's name.
    filled: TtlCache<(String, String), workspace::Filled>,
    /// Workspaces that are being copied.
    copies: Copies,
    tasks: TaskTracker,
    abort: CancellationToken,
}

impl Executor {
    /// Runs tool calls; the sandboxes are known by `sandboxes`.
    #[must_use]
    pub fn new(
        store: Arc<dyn SessionStore>,
        resources: Arc<dyn Resources>,
        sandboxes: Arc<SandboxIndex>,
        hosted: Hosted,
        client: SandboxClient,
        limits: Limits,
    ) -> Self {
        Self {
            store,
            homes: Homes::new(Arc::clone(&resources)),
            resources,
            sandboxes,
            hosted,
            client,
            egress: None,
            files: None,
            limits,
            running: Mutex::default(),
            announced: TtlCache::new(ANNOUNCED),
            filled: TtlCache::new(ANNOUNCED),
            copies: Copies::default(),
            tasks: TaskTracker::new(),
            abort: CancellationToken::new(),
        }
    }

    /// The same, with a way out for sandboxes whose sessions have one.
    #[must_use]
    pub fn with_egress(self, egress: Egress) -> Self {
        Self { egress: Some(egress), ..self }
    }

    /// The same, with files that sessions may have in their workspaces.
    #[must_use]
    pub fn with_files(self, files: Files) -> Self {
        Self { files: Some(files), ..self }
    }

    /// The result of a call, which is started unless it runs already. Dropping this future does not stop the call.
    ///
    /// # Errors
    /// See [`ExecuteError`]; the call may be asked for again.
    pub async fn execute(self: &Arc<Self>, session: &SessionId, epoch: u64, call: &EventId) -> Outcome {
        loop {
            let mut outcome = self.join(session, epoch, call)?;
            let outcome = match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None,
            };
            match outcome.unwrap_or_else(|| Err(ExecuteError::Failed("its task ended early".to_owned()))) {
                Err(ExecuteError::Store(error)) if raced(&error, epoch) => sleep(RACE_PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    /// Ends a call that waits for the client to say whether it is run again, for who cannot wait: what is known is its result.
    ///
    /// # Errors
    /// [`ExecuteError::NotConfirmed`] where it waits for something else, and those of the log.
    pub async fn report(self: &Arc<Self>, session: &SessionId, epoch: u64, call: &EventId) -> Outcome {
        let epoch = AtomicU64::new(epoch);
        Call::new(self, session.clone(), call.clone(), &epoch).report().await.map(|(_, record)| record)
    }

    fn join(
        self: &Arc<Self>,
        session: &SessionId,
        epoch: u64,
        call: &EventId,
    ) -> Result<watch::Receiver<Option<Outcome>>, ExecuteError> {
        let key = (session.clone(), call.clone());
        let mut running = self.running();
        if let Some(running) = running.get(&key) {
            running.epoch.fetch_max(epoch, Ordering::Relaxed);
            return Ok(running.outcome.clone());
        }
        if self.tasks.is_closed() {
            return Err(ExecuteError::Stopping);
        }
        if running.len() >= RUNNING_AT_ONCE {
            return Err(ExecuteError::Busy);
        }
        let (sender, outcome) = watch::channel(None);
        let entry = Arc::new(Running { epoch: AtomicU64::new(epoch), outcome: outcome.clone() });
        running.insert(key.clone(), Arc::clone(&entry));
        let registered = Registered { executor: Arc::clone(self), key };
        let span = info_span!("call", session = %session, call = %call, tool = field::Empty, sandbox = field::Empty,
            outcome = field::Empty);
        self.tasks.spawn(see_through(registered, entry, sender).instrument(span));
        Ok(outcome)
    }

    /// Takes no new call, and gives those that run until `grace` to end. What is left goes on in the sandboxes, and is
    /// joined again by whoever is asked for it next.
    pub async fn stop(&self, grace: Duration) {
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            self.abort.cancel();
            self.tasks.wait().await;
        }
    }

    /// Appends an event that is in the log once.
    async fn announce(&self, session: &SessionId, event: NewEvent) -> Result<(), ExecuteError> {
        let id = event.id.clone();
        if self.announced.get(&id).is_some() {
            return Ok(());
        }
        match self.store.append_unfenced(session, vec![event]).await {
            // Somebody else said it, perhaps in other words.
            Ok(_) | Err(StoreError::Duplicate(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.announced.put(id, (), ANNOUNCED_FOR);
        Ok(())
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a task lost a race that the next one finds decided: it was begun for an older epoch and ended before it heard
/// of this one, or another replica has moved the call on.
fn raced(error: &StoreError, epoch: u64) -> bool {
    match error {
        StoreError::Fenced { given, current } => *given < epoch && *current <= epoch,
        StoreError::CallState { .. } => true,
        _ => false,
    }
}

/// Takes the call out of the table, also when its task panics.
struct Registered {
    executor: Arc<Executor>,
    key: Key,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.executor.running().remove(&self.key);
    }
}

async fn see_through(registered: Registered, entry: Arc<Running>, sender: watch::Sender<Option<Outcome>>) {
    let _counted = metrics::RunningCall::begin();
    let started = Instant::now();
    let executor = Arc::clone(&registered.executor);
    let (session, call) = registered.key.clone();
    let abort = executor.abort.clone();
    let call = Call::new(&executor, session, call, &entry.epoch);
    let (label, outcome) = match abort.run_until_cancelled(Box::pin(call.run())).await {
        Some(Ok((label, record))) => (label, Ok(record)),
        Some(Err(error)) => ("error", Err(error)),
        None => ("stopping", Err(ExecuteError::Stopping)),
    };
    metrics::executed(label, started.elapsed());
    Span::current().record("outcome", label);
    match &outcome {
        Ok(_) => tracing::info!(outcome = label, ms = started.elapsed().as_millis(), "tool call ended"),
        Err(error) => tracing::warn!(%error, "tool call has no result yet"),
    }
    // Out of the table first: who is told of a failure may ask again at once, and must not meet this task.
    drop(registered);
    sender.send_replace(Some(outcome));
}

#[cfg(test)]
mod handoff_copy_tests;
#[cfg(test)]
mod handoff_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod provision_tests;
#[cfg(test)]
mod reclaim_tests;
#[cfg(test)]
mod tests;
