//! Connections that were upgraded and lead into a sandbox: each ends when its client or the sandbox does, when nothing comes or
//! goes any more, when whoever opened it may not any more, and when this replica stops.

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use longhand_process::relay::relay;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::auth::{Access, Identity};
use crate::streams::Slot;

/// How long the other end may take to begin.
const BEGIN: Duration = Duration::from_secs(30);
/// A sandbox closes its terminals and ports sooner, and says why.
const IDLE: Duration = Duration::from_secs(2 * 3_600);

/// Who opened a connection, and what for.
pub(crate) struct Opened {
    /// Who.
    pub(crate) identity: Arc<Identity>,
    /// What they have to be allowed for as long as it is open.
    pub(crate) part: &'static str,
    /// The namespace of the sandbox.
    pub(crate) namespace: String,
    /// The sandbox.
    pub(crate) sandbox: String,
    /// Its share of what may be open.
    pub(crate) slot: Slot,
}

/// The open ones.
#[derive(Debug, Default)]
pub struct Tunnels(TaskTracker);

impl Tunnels {
    /// Carries bytes between the client, once its connection is upgraded, and `sandbox`.
    pub(crate) fn carry(
        &self,
        app: &App,
        opened: Opened,
        client: OnUpgrade,
        sandbox: impl AsyncRead + AsyncWrite + Send + 'static,
    ) {
        let (app, stop) = (app.clone(), app.stop.clone());
        let carried = async move {
            let Opened { identity, part, namespace, sandbox: name, slot } = opened;
            let _slot = slot;
            let relayed = async {
                let client = timeout(BEGIN, client).await.map_err(std::io::Error::from)?;
                let client = client.map_err(std::io::Error::other)?;
                relay(TokioIo::new(client), sandbox, IDLE).await
            };
            let access = Access::InSandbox { part, verb: "create", name: &name };
            tokio::select! {
                ended = relayed => match ended {
                    Ok(()) => tracing::debug!(sandbox = name, "a connection into a sandbox has ended"),
                    Err(error) => tracing::debug!(sandbox = name, %error, "a connection into a sandbox has ended"),
                },
                () = forbidden(&app, &identity, access, &namespace) => {
                    tracing::info!(sandbox = name, "a connection into a sandbox is closed: it is not allowed any more");
                }
            }
        };
        self.0.spawn(async move { stop.run_until_cancelled(carried).await });
    }

    /// Drives a connection to a sandbox until it ends.
    pub(crate) fn drive<T>(&self, app: &App, slot: Slot, connection: impl Future<Output = T> + Send + 'static) {
        let stop = app.stop.clone();
        self.0.spawn(async move {
            let _slot = slot;
            stop.run_until_cancelled(connection).await.map(drop)
        });
    }

    /// Returns when all are closed, which they are soon after the app was told to stop.
    pub(crate) async fn closed(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// Returns when it is known not to be allowed any more.
async fn forbidden(app: &App, identity: &Identity, access: Access<'_>, namespace: &str) {
    loop {
        sleep(app.waits.recheck).await;
        if matches!(app.auth.permits(identity, access, namespace).await, Ok(false)) {
            return;
        }
    }
}
