//! The harness of one session, or, without `SESSION_ID`, of whatever session of its agent needs one.
//!
//! The exit code is for the kubelet, which starts the container again in place unless it is 0 (`restartPolicy:
//! OnFailure`), and for the operator, which makes another pod when work is open and no pod lives:
//! - 0: this pod is done. No work came within the grace, another pod was named for the session, the session is gone, or
//!   the pod is being stopped. Work that is left is in the log, for the next brain.
//! - 1: something failed that may be different in a moment.
//! - 2: the environment is wrong.
//! - 4: a later epoch has claimed the session. A harness without a session of its own takes another instead.

use std::process::ExitCode;

use longhand_harness::config::{ConfigError, has_session};
use longhand_harness::{Config, Exit, Harness, Parked, ParkedConfig};
use longhand_process::{log, signals};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log::to_stderr();
            tracing::error!(%error, "the runtime cannot start");
            return ExitCode::FAILURE;
        }
    };
    let traces = log::and_traces("longhand-harness", runtime.handle());
    // Another provider that is installed already would do as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let brain = match Brain::from_env(|name| std::env::var(name).ok()) {
        Ok(brain) => brain,
        Err(error) => {
            tracing::error!(%error, "the harness cannot start");
            return ExitCode::from(2);
        }
    };
    let code = runtime.block_on(run(&brain));
    runtime.block_on(traces.end());
    code
}

/// Whom the process serves.
enum Brain {
    /// One session.
    Own(Harness),
    /// Sessions that it is offered.
    Parked(Parked),
}

impl Brain {
    fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        if has_session(&get) {
            return Harness::new(&Config::from_env(get)?).map(Self::Own);
        }
        Parked::new(&ParkedConfig::from_env(get)?).map(Self::Parked)
    }

    async fn run(&self, shutdown: &CancellationToken) -> Exit {
        match self {
            Self::Own(harness) => harness.run(shutdown).await,
            Self::Parked(parked) => parked.run(shutdown).await,
        }
    }
}

async fn run(harness: &Brain) -> ExitCode {
    let shutdown = CancellationToken::new();
    let exit = {
        let mut serving = std::pin::pin!(harness.run(&shutdown));
        tokio::select! {
            exit = &mut serving => exit,
            result = asked_to_stop() => {
                if let Err(error) = result {
                    tracing::warn!(%error, "signals cannot be received");
                }
                shutdown.cancel();
                serving.await
            }
        }
    };
    match exit {
        Exit::Done(reason) => {
            tracing::info!(%reason, "the harness is done");
            ExitCode::SUCCESS
        }
        Exit::Failed(reason) => {
            tracing::error!(%reason, "the harness failed");
            ExitCode::FAILURE
        }
        Exit::Fenced { epoch } => {
            tracing::warn!(epoch, "a later epoch has claimed the session");
            ExitCode::from(4)
        }
    }
}

/// Returns when the process is asked to stop.
async fn asked_to_stop() -> std::io::Result<()> {
    signals::Stop::listen()?.asked().await;
    Ok(())
}
