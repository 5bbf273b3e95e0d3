//! `longhand send`: one message, and what comes of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use longhand_protocol::ClientEvent;
use longhand_protocol::wire::NumberedEvent;
use serde_json::json;

use crate::args::{Target, View};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::follow::{self, Idle, Progress};
use crate::service::Service;
use crate::session;

pub(super) async fn run(
    cluster: &Cluster,
    target: &Target,
    name: &str,
    text: String,
    follow: Option<Duration>,
    view: View,
) -> Result<ExitCode> {
    let text = if text == "-" { stdin()? } else { text };
    let id = session::find(cluster, name).await?;
    let mut service = Service::connect(cluster, target).await?;
    let position = if follow.is_some() { follow::newest(&mut service, &id).await? } else { 0 };
    let message = ClientEvent::UserMessage { content: vec![json!({"type": "text", "text": text})] };
    let client = service.client().await?;
    // Not repeated on a failure that leaves the outcome unknown: the agent would be told twice.
    let sent = client.send_events(&id, vec![message]).await.map_err(|error| service.explain(error))?;
    let code = match follow {
        Some(limit) => {
            let own = sent.data.last().map(|event| event.id.clone());
            let mut until = Idle { session: id.clone(), progress: Progress::new(own), delivered: async || Ok(true) };
            super::within(limit, &id, follow::follow(&mut service, &id, position, view, &mut until)).await?
        }
        None => {
            for event in sent.data {
                follow::show(&NumberedEvent { event, seq: None }, view)?;
            }
            ExitCode::SUCCESS
        }
    };
    Ok(code)
}

fn stdin() -> Result<String> {
    std::io::read_to_string(std::io::stdin()).map_err(|source| Error::Read { path: PathBuf::from("-"), source })
}
