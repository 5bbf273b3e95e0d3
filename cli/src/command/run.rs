//! `longhand run`: applies a file and follows its session until it is idle.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::args::{Target, View};
use crate::cluster::Cluster;
use crate::error::Result;
use crate::follow::{self, Idle, Progress};
use crate::service::Service;
use crate::{manifest, session};

pub(super) async fn run(
    mut cluster: Cluster,
    target: &Target,
    file: &Path,
    limit: Duration,
    view: View,
) -> Result<ExitCode> {
    let objects = manifest::read(file)?;
    let (namespace, name) = manifest::the_session(file, &objects)?;
    for object in &objects {
        let what = manifest::apply(&cluster, object).await?;
        eprintln!("applied {what}");
    }
    if let Some(namespace) = namespace {
        cluster.namespace = namespace;
    }
    let id = session::wait_for_start(&cluster, &name, limit, |why| eprintln!("waiting: {why}")).await?;
    let mut service = Service::connect(&cluster, target).await?;
    let delivered = async || Ok(session::is_delivered(&session::get(&cluster, &name).await?));
    let mut until = Idle { session: id.clone(), progress: Progress::new(None), delivered };
    let code = super::within(limit, &id, follow::follow(&mut service, &id, 0, view, &mut until)).await?;
    Ok(code)
}
