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
    log::to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(serve(config)),
        Err(error) => Err(error.into()),
    };
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
