//! The harness of one session.
//!
//! The exit code is for the kubelet, which starts the container again in place unless it is 0 (`restartPolicy:
//! OnFailure`), and for the operator, which makes another pod when work is open and no pod lives:
//! - 0: this pod is done. No work came within the grace, another pod was named for the session, the session is gone, or
//!   the pod is being stopped. Work that is left is in the log, for the next brain.
//! - 1: something failed that may be different in a moment.
//! - 2: the environment is wrong.
//! - 4: a later epoch has claimed the session.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use longhand_harness::{Config, Exit, Harness};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    log_to_stderr();
    // Another provider that is installed already would do as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = match Config::from_env(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "the harness cannot start");
            return ExitCode::from(2);
        }
    };
    let harness = match Harness::new(&config) {
        Ok(harness) => harness,
        Err(error) => {
            tracing::error!(%error, "the harness cannot start");
            return ExitCode::from(2);
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(&harness)),
        Err(error) => {
            tracing::error!(%error, "the runtime cannot start");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

async fn run(harness: &Harness) -> ExitCode {
    let shutdown = CancellationToken::new();
    let exit = {
        let mut serving = std::pin::pin!(harness.run(&shutdown));
        tokio::select! {
            exit = &mut serving => exit,
            result = stop_signal() => {
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
async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
