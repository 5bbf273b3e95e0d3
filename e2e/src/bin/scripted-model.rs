//! `scripted-model`: the scripted model as a program, for tests and the demo.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use longhand_e2e::model::{Script, script::ScriptError, serve};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Serves the Anthropic Messages API as a script says. For tests: anyone who reaches it may read what it was sent.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// The script, in YAML.
    #[arg(long)]
    script: PathBuf,
    /// A file with the only key that is accepted.
    #[arg(long)]
    api_key_file: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Script { path: PathBuf, source: ScriptError },
    #[error("{0} holds no key")]
    NoKey(PathBuf),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot serve: {0}")]
    Serve(#[source] std::io::Error),
    #[error("cannot wait for signals: {0}")]
    Signal(#[source] std::io::Error),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let yaml = read(&args.script)?;
    let script = Script::parse(&yaml).map_err(|source| Failure::Script { path: args.script, source })?;
    let api_key = read(&args.api_key_file)?.trim().to_owned();
    if api_key.is_empty() {
        return Err(Failure::NoKey(args.api_key_file));
    }
    let listener =
        TcpListener::bind(args.listen).await.map_err(|source| Failure::Listen { address: args.listen, source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::Signal)?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let serving = serve(listener, script, api_key, shutdown);
    tokio::pin!(serving);
    tracing::info!(address = %args.listen, "serving");
    tokio::select! {
        served = &mut serving => return served.map_err(Failure::Serve),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    serving.await.map_err(Failure::Serve)
}

fn read(path: &PathBuf) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|source| Failure::Read { path: path.clone(), source })
}
