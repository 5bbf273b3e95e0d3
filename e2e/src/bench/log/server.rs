//! An etcd of the benchmark's own.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;

use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use tokio::process::{Child, Command};

use crate::cluster::TestResult;

/// Names the program.
const BINARY_VARIABLE: &str = "ETCD_BIN";
/// A million events take more than etcd's 2 GiB leave.
const QUOTA: &str = "8589934592";

/// A member; it is killed and its data removed when dropped.
pub(super) struct Server {
    _process: Child,
    dir: PathBuf,
    endpoint: String,
}

impl Server {
    pub(super) async fn start() -> TestResult<Self> {
        let (client, peer) = (free_endpoint()?, free_endpoint()?);
        let dir = std::env::current_dir()?.join(format!("target/bench/etcd-{}", std::process::id()));
        remove(&dir);
        std::fs::create_dir_all(&dir)?;
        let binary = std::env::var_os(BINARY_VARIABLE).unwrap_or_else(|| "etcd".into());
        let mut command = Command::new(&binary);
        command.args(["--name", "bench", "--log-level", "error", "--data-dir"]).arg(&dir);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("bench={peer}"), "--quota-backend-bytes", QUOTA]);
        let process = command.stdout(Stdio::null()).kill_on_drop(true).spawn();
        let process =
            process.map_err(|error| format!("{}: {error}; set {BINARY_VARIABLE}", binary.to_string_lossy()))?;
        let server = Self { _process: process, dir, endpoint: client };
        server.store().await?.get_or_create("up", b"").await?;
        Ok(server)
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A store of its own, with its own connection and watches.
    pub(super) async fn store(&self) -> TestResult<EtcdStore> {
        Ok(EtcdStore::connect(std::slice::from_ref(&self.endpoint), EtcdOptions::default()).await?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

fn remove(dir: &std::path::Path) {
    if let Err(error) = std::fs::remove_dir_all(dir).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }) {
        tracing::warn!(%error, dir = %dir.display(), "the data of etcd is left");
    }
}

fn free_endpoint() -> TestResult<String> {
    Ok(format!("http://{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?))
}
