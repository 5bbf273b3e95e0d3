//! See the library of this crate.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use longhand_cli::{Args, args, command, error};

fn main() -> ExitCode {
    let program = std::env::args().next().unwrap_or_default();
    let matches = Args::command().bin_name(args::shown_name(&program)).get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    longhand_process::log::for_people();
    match start(args) {
        Ok(code) => code,
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> error::Result<ExitCode> {
    // A second installation would mean that one is in place already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(error::Error::Runtime)?;
    let code = runtime.block_on(async {
        tokio::select! {
            outcome = command::run(args) => outcome,
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
        }
    });
    runtime.shutdown_background();
    code
}
