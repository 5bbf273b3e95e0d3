//! The commands, one file each.

mod events;
mod get;
mod run;
mod send;

use std::process::ExitCode;
use std::time::Duration;

use longhand_protocol::SessionId;

use crate::args::{Args, Command};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::follow::Outcome;

/// Does what was asked for.
///
/// # Errors
/// Says which step failed, and what to do.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Args { target, command } = args;
    let cluster = Cluster::connect(&target).await?;
    match command {
        Command::Get { kind, all_namespaces } => get::run(&cluster, kind, all_namespaces).await,
        Command::Events { session, follow, after, view } => {
            events::run(&cluster, &target, &session, follow, after, view).await
        }
        Command::Send { session, text, follow, timeout, view } => {
            send::run(&cluster, &target, &session, text, follow.then_some(timeout), view).await
        }
        Command::Run { file, timeout, view } => run::run(cluster, &target, &file, timeout, view).await,
    }
}

/// The end of following, within its time.
async fn within(
    limit: Duration,
    session: &SessionId,
    following: impl Future<Output = Result<Outcome>>,
) -> Result<ExitCode> {
    match tokio::time::timeout(limit, following).await {
        Ok(Ok(Outcome::Idle)) => Ok(ExitCode::SUCCESS),
        Ok(Ok(Outcome::Failed)) => Ok(ExitCode::FAILURE),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::StillRunning { name: session.to_string(), after: limit }),
    }
}
