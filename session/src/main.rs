//! The session service.

use std::process::ExitCode;

use clap::Parser as _;
use longhand_process::{log, signals};
use longhand_session::config::Config;
use longhand_session::service;
use tokio_util::sync::CancellationToken;

/// The work is waiting; more threads would only be more memory.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let config = Config::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            log::to_stderr();
            tracing::error!(%error, "the runtime cannot start");
            return ExitCode::FAILURE;
        }
    };
    let traces = log::and_traces("longhand-session", runtime.handle());
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::error!("another TLS provider is installed");
        return ExitCode::FAILURE;
    }
    let outcome = runtime.block_on(run(config));
    runtime.block_on(traces.end());
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "the session service ended");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<(), String> {
    let stop = CancellationToken::new();
    let mut asked = signals::Stop::listen().map_err(|error| error.to_string())?;
    let service = service::run(config, stop.clone());
    let mut service = std::pin::pin!(service);
    tokio::select! {
        outcome = &mut service => return outcome.map_err(|error| error.to_string()),
        () = asked.asked() => {}
    }
    stop.cancel();
    service.await.map_err(|error| error.to_string())
}
