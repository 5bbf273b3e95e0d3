//! The operator's process.

use std::process::ExitCode;

use clap::Parser as _;
use longhand_operator::config::Config;
use longhand_operator::{metrics, run, shutdown};
use longhand_process::log;

/// A few threads serve any number of sessions, and each costs memory.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let config = Config::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log::to_stderr();
            tracing::error!(%error, "the runtime cannot start");
            return ExitCode::FAILURE;
        }
    };
    let traces = log::and_traces("longhand-operator", runtime.handle());
    let result = runtime.block_on(serve(config));
    runtime.block_on(traces.end());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the operator cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| "another TLS provider is installed already")?;
    let metrics = metrics::install()?;
    run(config, metrics, shutdown::on_signal()?).await?;
    Ok(())
}
