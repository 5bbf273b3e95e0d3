//! `longhand fork`: a new session with the history of another one. This is how a session is rewound.

use std::process::ExitCode;

use longhand_protocol::wire::{Fork, ForkSession};

use crate::args::Target;
use crate::cluster::Cluster;
use crate::error::Result;
use crate::service::Service;
use crate::{output, session};

pub(super) async fn run(cluster: &Cluster, target: &Target, name: &str, at: Option<u64>) -> Result<ExitCode> {
    let session = session::find(cluster, name).await?;
    let mut service = Service::connect(cluster, target).await?;
    let client = service.client().await?;
    let request = ForkSession { fork: Fork { session, seq: at }, title: None, initial_events: Vec::new() };
    let forked = client.fork_session(&request).await.map_err(|error| service.explain(error))?;
    output::line(forked.id.as_str())?;
    Ok(ExitCode::SUCCESS)
}
