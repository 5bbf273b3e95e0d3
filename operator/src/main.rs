//! The operator's process.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use longhand_operator::config::Config;
use longhand_operator::{metrics, run, shutdown};
use tracing_subscriber::EnvFilter;

/// A few threads serve any number of sessions, and each costs memory.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let config = Config::parse();
    log();
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

fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().init();
    }
}
