//! `sandboxd` itself: the HTTP API over the calls of this process.

mod auth;
mod calls;
mod config;
mod error;
mod journal;
mod ledger;
mod mcp;
mod provision;
pub mod reaper;
mod routes;
mod terminal;
mod transfer;
mod tunnel;
mod workspace;

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use longhand_process::http::{BUFFER, Limits, Listener};
use longhand_process::listen::bind;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::{Config, ConfigError, Options};

use calls::Calls;
use ledger::{Ledger, Past};
use reaper::Children;

use crate::egress::{Egress, Variables};
use crate::fence::Fence;
use crate::tools::{Setup, Toolbox};

const LIMITS: Limits = Limits {
    connections: 256,
    head: Duration::from_secs(10),
    stall: Duration::from_secs(30),
    grace: Duration::from_secs(2),
    buffer: BUFFER,
};

/// Why `sandboxd` could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The tools have no place to work.
    #[error(transparent)]
    Tools(#[from] SetupError),
    /// There can be no way out.
    #[error(
        "the relay cannot listen on {address} (SANDBOXD_RELAY), or its bundle of authorities cannot be made: {source}"
    )]
    Relay {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The program that shall run beside the tools does not.
    #[error("{program} cannot run beside the tools (SANDBOXD_COMMAND): {reason}")]
    Command {
        /// The program.
        program: String,
        /// Why not.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (SANDBOXD_LISTEN): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

pub use crate::tools::SetupError;

/// A `sandboxd` that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    calls: Arc<Calls>,
    router: axum::Router,
    grace: Duration,
    egress: Option<Arc<Egress>>,
    canaries: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Server {
    /// Prepares the workspace and listens. Child processes are registered in `children` (see [`reaper`]).
    pub async fn bind(config: Config, children: Children) -> Result<Self, ServerError> {
        let Config { listen, verifier, workspace, grace, mut environment, options } = config;
        let Options { max_processes, terminal_idle, state, relay, canaries, require_fence, command } = options;
        let variables = Variables::default();
        let egress = match relay {
            None => None,
            Some(address) => {
                let egress = Egress::listen(address, &environment, variables.clone()).await;
                Some(Arc::new(egress.map_err(|source| ServerError::Relay { address, source })?))
            }
        };
        let told = egress.iter().flat_map(|egress| egress.environment()).collect::<Vec<_>>();
        environment.retain(|(name, _)| told.iter().all(|(other, _)| other != name));
        environment.extend(told);
        let (fence, canaries) = Fence::of(canaries, require_fence);
        let toolbox = Toolbox::new(Setup { workspace, environment, variables, children, max_processes })?;
        if let Some((program, arguments)) = command.split_first() {
            let started = toolbox.run_beside(program, arguments).await;
            started.map_err(|reason| ServerError::Command { program: program.clone(), reason })?;
        }
        let listen_error = |source| ServerError::Listen { address: listen, source };
        let listener = bind(listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let ledger = state.and_then(|dir| ledger(&dir, verifier.pod_uid()));
        let calls = Arc::new(Calls::new(toolbox, ledger, terminal_idle));
        let served = routes::Served { calls: Arc::clone(&calls), egress: egress.clone(), fence };
        let router = routes::router(served, Arc::new(verifier), address.port());
        Ok(Self { listener, address, calls, router, grace, egress, canaries: Box::pin(canaries) })
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; then takes no new call, lets the running ones finish or interrupts them, and answers who waits.
    pub async fn run(self, stop: CancellationToken) {
        info!(address = %self.address, "listening");
        let Self { listener, calls, router, grace, egress, canaries, .. } = self;
        let close = CancellationToken::new();
        let serve = Listener::plain(listener).serve(TowerToHyperService::new(router), LIMITS, close.clone());
        // Programs that are about to end may still need the way out.
        let relay = async {
            if let Some(egress) = &egress {
                egress.serve(close.clone()).await;
            }
        };
        let canaries = close.run_until_cancelled(canaries);
        let terminate = async {
            stop.cancelled().await;
            calls.terminate(grace).await;
            close.cancel();
        };
        tokio::join!(serve, relay, canaries, terminate);
        info!("stopped");
    }
}

/// What an earlier process has left. Without it, a call is run at most once by this process, but perhaps by another one too.
fn ledger(dir: &Path, pod_uid: &str) -> Option<(Ledger, Vec<Past>)> {
    match Ledger::open(dir, pod_uid, ledger::Limits::default()) {
        Ok((ledger, past)) => {
            let unfinished = past.iter().filter(|call| matches!(call, Past::Unknown { .. })).count();
            if !past.is_empty() {
                info!(calls = past.len(), unfinished, "this process goes on where an earlier one has ended");
            }
            Some((ledger, past))
        }
        Err(error) => {
            warn!(dir = %dir.display(), %error, "calls are not recorded, and a restart would not know them (SANDBOXD_STATE)");
            None
        }
    }
}
