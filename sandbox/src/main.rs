//! `sandboxd`: see the crate `longhand-sandbox`.

use std::process::ExitCode;
use std::time::Duration;

use longhand_process::{log, signals};
use longhand_sandbox::install::{self, InstallError};
use longhand_sandbox::server::reaper::{self, Children};
use longhand_sandbox::server::{Config, ConfigError, Server, ServerError};
use longhand_sandbox::supervise;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

// 32 calls may run, each with at most one thread of file work; some more for what a hung disk keeps.
const MAX_BLOCKING_THREADS: usize = 48;
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("cannot start: {0}")]
    Io(#[from] std::io::Error),
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if first.as_ref().is_some_and(|argument| argument == supervise::ARGUMENT) {
        return supervise::main(arguments);
    }
    log::to_stderr();
    let outcome = match first {
        Some(argument) if argument == install::ARGUMENT => install::main(arguments).map_err(Error::from),
        _ => start(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "sandboxd cannot run");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), Error> {
    let config = Config::from_env(std::env::vars_os())?;
    // One thread for everything that waits keeps the memory at rest small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(5))
        .build()?;
    let result = runtime.block_on(run(config));
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    result
}

async fn run(config: Config) -> Result<(), Error> {
    let mut asked = signals::Stop::listen()?;
    let children = Children::supervised();
    let server = Server::bind(config, children.clone()).await?;
    let (stop, stopped, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    tasks.spawn({
        let (stop, stopped) = (stop.clone(), stopped.clone());
        async move {
            tokio::select! {
                () = asked.asked() => {}
                () = stopped.cancelled() => {}
            }
            stop.cancel();
        }
    });
    tasks.spawn({
        let stopped = stopped.clone();
        async move {
            if let Err(error) = reaper::run(children, stopped).await {
                error!(%error, "orphans are not reaped");
            }
        }
    });
    server.run(stop).await;
    stopped.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}
