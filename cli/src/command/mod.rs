//! The commands, one file each.

mod cp;
mod events;
mod exec;
mod fork;
mod forward;
mod get;
mod handoff;
mod run;
mod send;
mod transfer;

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
    // What needs no cluster must not ask for one.
    if let Command::Verify { file } = &command {
        return transfer::verify(file).await;
    }
    let cluster = Cluster::connect(&target).await?;
    match command {
        Command::Get { kind, all_namespaces } => get::run(&cluster, kind, all_namespaces).await,
        Command::Events { session, follow, after, view } => {
            events::run(&cluster, &target, &session, follow, after, view).await
        }
        Command::Send { session, text, follow, timeout, view } => {
            send::run(&cluster, &target, &session, text, follow.then_some(timeout), view).await
        }
        Command::Fork { session, at } => fork::run(&cluster, &target, &session, at).await,
        Command::Export { session, output } => transfer::export(&cluster, &target, &session, output).await,
        Command::Verify { file } => transfer::verify(&file).await,
        Command::Import { file } => transfer::import(&cluster, &target, &file).await,
        Command::Cp { from, to, standalone } => cp::run(&cluster, &target, from, to, standalone).await,
        Command::Exec { sandbox: place, standalone, stdin, tty, command } => {
            exec::run(&cluster, &target, exec::Exec { place, standalone, stdin, tty, command }).await
        }
        Command::PortForward { sandbox, ports, link: true, standalone } => {
            forward::link(&cluster, &target, &sandbox, &ports, standalone).await
        }
        Command::PortForward { sandbox, ports, link: false, standalone } => {
            forward::run(&cluster, &target, &sandbox, &ports, standalone).await
        }
        Command::Handoff { sandbox, to } => handoff::run(&cluster, &target, &sandbox, &to).await,
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
