//! `longhand events`: a session's log, as it is or as it grows.

use std::process::ExitCode;
use std::time::Duration;

use crate::args::{Target, View};
use crate::cluster::Cluster;
use crate::error::Result;
use crate::follow::{self, Forever, Outcome};
use crate::service::Service;
use crate::session;

/// How long a session that was just applied may take to get its log.
const START: Duration = Duration::from_secs(120);

pub(super) async fn run(
    cluster: &Cluster,
    target: &Target,
    name: &str,
    follow: bool,
    after: u64,
    view: View,
) -> Result<ExitCode> {
    let session = match session::find(cluster, name).await {
        Err(crate::Error::NotStarted { .. }) if follow => {
            session::wait_for_start(cluster, name, START, |why| eprintln!("waiting: {why}")).await?
        }
        found => found?,
    };
    let mut service = Service::connect(cluster, target).await?;
    let code = if follow {
        match follow::follow(&mut service, &session, after, view, &mut Forever).await? {
            Outcome::Idle => ExitCode::SUCCESS,
            Outcome::Failed => ExitCode::FAILURE,
        }
    } else {
        follow::history(&mut service, &session, after, view).await?;
        ExitCode::SUCCESS
    };
    Ok(code)
}
