//! A term: what a replica does while it leads.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use longhand_crds::AgentSession;
use longhand_session_log::wake::WakeWatch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent_session::{self, sweep};
use crate::config::Config;
use crate::context::{Context, Guarded};
use crate::leader::Elector;
use crate::vault::sightings::Sightings;
use crate::wakes::Wakes;
use crate::{Fatal, agent, metrics, sandbox, sandbox_template, vault};

/// Reconciles that are under way have this time to end: each call in them has a deadline, but not all of them together.
const FAREWELL: Duration = Duration::from_secs(15);

/// Leads whenever the lease can be had, until `token` is cancelled.
///
/// # Errors
/// [`Fatal`], after which only a restart helps.
pub async fn serve_terms(
    config: &Config,
    context: &Arc<Context>,
    elector: &mut Elector,
    token: &CancellationToken,
) -> Result<(), Fatal> {
    while elector.acquire(token).await.is_some() {
        tracing::info!(identity = config.identity, "leads");
        metrics::leader(true);
        let result = lead(config, context, elector, token).await;
        metrics::leader(false);
        elector.release().await;
        tracing::info!(identity = config.identity, "leads no more");
        result?;
    }
    Ok(())
}

/// Runs every controller until the lease is lost or `token` is cancelled.
async fn lead(
    config: &Config,
    context: &Arc<Context>,
    elector: &mut Elector,
    token: &CancellationToken,
) -> Result<(), Fatal> {
    let term = token.child_token();
    let tasks = start(config, context, &term).await?;
    let result = tokio::select! {
        () = elector.hold(token) => Ok(()),
        () = tasks.one_ended_early() => Err(Fatal::Controllers("a controller has ended although nobody told it to")),
    };
    term.cancel();
    match tokio::time::timeout(FAREWELL, tasks.all_ended()).await {
        Ok(()) => result,
        // What is left ends with the process.
        Err(_) if token.is_cancelled() => {
            tracing::warn!("what is under way did not end in time");
            result
        }
        Err(_) => Err(Fatal::Controllers("controllers did not end in time; another replica must not wait for them")),
    }
}

async fn start(config: &Config, context: &Arc<Context>, term: &CancellationToken) -> Result<Tasks, Fatal> {
    let watch = WakeWatch::connect(&config.etcd.etcd_endpoints, &config.etcd.options()).await?;
    let wakes = Arc::new(Wakes::default());
    let woken = woken(watch, wakes.clone());
    let (sightings, news) = Sightings::new();
    let sightings = Arc::new(sightings);
    let (sessions, taken) = agent_session::prepare(context.clone(), wakes, sightings.clone(), woken)?;
    let tasks = Tasks::new(term);
    let known = (sessions.store.clone(), sessions.lists.clone());
    let sweep = sweep::run(context.clone(), known.clone(), config.sweep_interval(), term.clone());
    tasks.spawn(sweep);
    tasks.spawn(agent::run(context.clone(), known, taken, term.clone()));
    tasks.spawn(agent_session::run(sessions, term.clone()));
    tasks.spawn(sandbox::run(context.clone(), term.clone()));
    tasks.spawn(sandbox_template::run(context.clone(), term.clone()));
    tasks.spawn(vault::run(context.clone(), sightings, news, term.clone()));
    Ok(tasks)
}

/// The tasks of a term. A leader without one of them would keep others from doing its work.
struct Tasks {
    tracker: TaskTracker,
    term: CancellationToken,
    ended: CancellationToken,
}

impl Tasks {
    fn new(term: &CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), term: term.clone(), ended: CancellationToken::new() }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Dropped when the task ends, also by a panic.
        let ended = self.ended.clone().drop_guard();
        self.tracker.spawn(async move {
            let _ended = ended;
            task.await;
        });
    }

    /// Returns when a task has ended that nobody told to.
    async fn one_ended_early(&self) {
        self.ended.cancelled().await;
        if self.term.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    async fn all_ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// The sessions whose wake key changed, after `wakes` knows of it.
fn woken(watch: WakeWatch, wakes: Arc<Wakes>) -> impl Stream<Item = ObjectRef<Guarded<AgentSession>>> + Send + 'static {
    watch.stream().flat_map(move |event| futures::stream::iter(wakes.apply(event, Timestamp::now())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::Tasks;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_task_that_panics_ends_the_term() {
        let term = CancellationToken::new();
        let tasks = Tasks::new(&term);
        tasks.spawn(term.clone().cancelled_owned());
        tasks.spawn(async { panic!("on purpose") });
        tokio::time::timeout(DEADLINE, tasks.one_ended_early()).await.expect("nobody noticed");
        term.cancel();
        tokio::time::timeout(DEADLINE, tasks.all_ended()).await.expect("a task goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_was_told_to_end_is_no_surprise() {
        let term = CancellationToken::new();
        let tasks = Tasks::new(&term);
        tasks.spawn(term.clone().cancelled_owned());
        tokio::time::timeout(DEADLINE, tasks.one_ended_early()).await.unwrap_err();
        term.cancel();
        tasks.all_ended().await;
        tokio::time::timeout(DEADLINE, tasks.one_ended_early()).await.unwrap_err();
    }
}
