//! `longhand port-forward`: ports of a sandbox on this machine.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use longhand_process::relay::relay;
use longhand_protocol::client::WireClient;
use longhand_protocol::client::sandboxes::SandboxOf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::args::Target;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::sandbox::place::{Place, Ports};

/// Connections at the same time, which a sandbox has a bound for too.
const CONNECTIONS: usize = 64;
/// The sandbox closes connections sooner on which nothing comes or goes.
const IDLE: Duration = Duration::from_secs(2 * 3_600);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The status of a port on which nothing listens yet.
const NOTHING_LISTENS: u16 = 502;

pub(super) async fn run(
    cluster: &Cluster,
    target: &Target,
    place: &Place,
    ports: &[Ports],
    standalone: bool,
) -> Result<ExitCode> {
    let (sandbox, mut service, client) = place.reach(cluster, target, standalone).await?;
    let (accepted, mut connections) = mpsc::channel(1);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    // Ends all of it, however this function ends.
    let _stop = stop.clone().drop_guard();
    for ports in ports {
        // A user who may not is told at once.
        match client.open_port(&sandbox, ports.remote).await {
            Ok(_) => {}
            Err(error) if error.status().is_some_and(|status| status.as_u16() == NOTHING_LISTENS) => {
                eprintln!("nothing listens on port {} of the sandbox yet", ports.remote);
            }
            Err(error) => return Err(service.explain(error)),
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ports.local)).await.map_err(Error::Listen)?;
        let address = listener.local_addr().map_err(Error::Listen)?;
        crate::output::line(&format!("{address} -> {}", ports.remote))?;
        tasks.spawn(stop.clone().run_until_cancelled_owned(accept(listener, ports.remote, accepted.clone())));
    }
    drop(accepted);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some((stream, port)) = connections.recv().await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let (client, sandbox) = (service.client().await?, sandbox.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            if let Err(error) = carry(&client, &sandbox, stream, port).await {
                eprintln!("port {port}: {error}");
            }
            drop(slot);
        }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints links to ports that the session service serves.
pub(super) async fn link(
    cluster: &Cluster,
    target: &Target,
    place: &Place,
    ports: &[Ports],
    standalone: bool,
) -> Result<ExitCode> {
    let (sandbox, service, client) = place.reach(cluster, target, standalone).await?;
    for ports in ports {
        let link = client.port_link(&sandbox, ports.remote).await.map_err(|error| service.explain(error))?;
        crate::output::line(&link.url)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn accept(listener: TcpListener, port: u16, accepted: mpsc::Sender<(TcpStream, u16)>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Pieces do not wait for one another; a connection that is gone says so when it is used.
                let _ = stream.set_nodelay(true);
                if accepted.send((stream, port)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn carry(client: &WireClient, sandbox: &SandboxOf, stream: TcpStream, port: u16) -> Result<()> {
    let way = client.open_port(sandbox, port).await?;
    if let Err(error) = relay(stream, way, IDLE).await {
        tracing::debug!(port, %error, "a forwarded connection has ended");
    }
    Ok(())
}
