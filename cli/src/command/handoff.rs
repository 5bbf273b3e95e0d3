//! `longhand handoff`: a sandbox of one session becomes one of another.

use std::process::ExitCode;

use longhand_protocol::wire::handoffs::HandOff;

use crate::args::Target;
use crate::cluster::Cluster;
use crate::error::Result;
use crate::output;
use crate::sandbox::place::Place;
use crate::service::Service;

pub(super) async fn run(cluster: &Cluster, target: &Target, from: &Place, to: &Place) -> Result<ExitCode> {
    let (session, sandbox) = from.of_session(cluster).await?;
    let (to_session, to_sandbox) = to.of_session(cluster).await?;
    let mut service = Service::connect(cluster, target).await?;
    let client = service.client().await?;
    let request = HandOff { to_session, to_sandbox: Some(to_sandbox) };
    let done = client.hand_off(&session, &sandbox, &request).await.map_err(|error| service.explain(error))?;
    output::line(&format!("{}/{} -> {}/{}", done.from.session, done.from.sandbox, done.to.session, done.to.sandbox))?;
    Ok(ExitCode::SUCCESS)
}
