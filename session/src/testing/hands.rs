//! Hands that are real: a `sandboxd` in this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longhand_sandbox::server::reaper::Children;
use longhand_sandbox::server::{Config, Options, Server};
use longhand_sandbox::token::{Signer, Verifier};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::SOON;

/// A `sandboxd` with a folder of its own.
pub(crate) struct Hands {
    pub(crate) address: String,
    folder: Arc<TempDir>,
    pub(crate) stop: CancellationToken,
    _end: DropGuard,
}

/// One that takes the calls of a pod.
pub(crate) async fn hands(signer: &Signer, pod: &str) -> Hands {
    start(signer, pod, Arc::new(tempfile::tempdir().unwrap())).await
}

async fn start(signer: &Signer, pod: &str, folder: Arc<TempDir>) -> Hands {
    let config = Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        verifier: Verifier::new(&signer.public_key(), pod).unwrap(),
        workspace: folder.path().to_path_buf(),
        grace: Duration::ZERO,
        environment: vec![("PATH".into(), std::env::var_os("PATH").unwrap())],
        options: Options { relay: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), ..Options::default() },
    };
    let server = Server::bind(config, Children::default()).await.unwrap();
    let stop = CancellationToken::new();
    let address = server.address().to_string();
    tokio::spawn(server.run(stop.clone()));
    Hands { address, folder, _end: stop.clone().drop_guard(), stop }
}

impl Hands {
    /// Another pod with the same folder.
    pub(crate) async fn successor(&self, signer: &Signer, pod: &str) -> Self {
        start(signer, pod, Arc::clone(&self.folder)).await
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command that counts its runs, and ends when the file `go` is there.
    pub(crate) fn until_go() -> Value {
        json!({"command": "echo run >> runs; touch begun; while [ ! -e go ]; do sleep 0.02; done; echo gone"})
    }

    pub(crate) fn go(&self) {
        std::fs::write(self.file("go"), "").unwrap();
    }

    pub(crate) async fn begun(&self) {
        eventually(async || self.file("begun").exists()).await;
    }

    pub(crate) fn runs(&self) -> usize {
        std::fs::read_to_string(self.file("runs")).unwrap_or_default().lines().count()
    }
}

/// Returns when it is so.
pub(crate) async fn eventually(condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, wait).await.expect("it came to pass in time");
}
