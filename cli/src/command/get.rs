//! `longhand get sessions`: from the API server, as the user of the kubeconfig.

use std::process::ExitCode;

use jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use longhand_crds::AgentSession;

use crate::args::Kind;
use crate::cluster::{self, Cluster};
use crate::error::Result;
use crate::{output, render};

/// Lists are read in pages of this size.
const PAGE: u32 = 500;

pub(super) async fn run(cluster: &Cluster, kind: Kind, all_namespaces: bool) -> Result<ExitCode> {
    let Kind::Sessions = kind;
    let api: Api<AgentSession> = if all_namespaces {
        Api::all(cluster.client.clone())
    } else {
        Api::namespaced(cluster.client.clone(), &cluster.namespace)
    };
    let mut params = ListParams::default().limit(PAGE);
    let mut sessions = Vec::new();
    loop {
        let page = cluster::request("list AgentSessions", api.list(&params)).await?;
        sessions.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    if sessions.is_empty() {
        let place =
            if all_namespaces { "in any namespace".to_owned() } else { format!("in namespace {}", cluster.namespace) };
        eprintln!("no sessions {place}");
    } else {
        output::line(&render::sessions(&sessions, all_namespaces, Timestamp::now()))?;
    }
    Ok(ExitCode::SUCCESS)
}
