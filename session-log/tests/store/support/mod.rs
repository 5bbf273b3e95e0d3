//! A real etcd on loopback.

pub(crate) mod cut;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use longhand_session_log::etcd::{EtcdOptions, EtcdStore};

const READY: Duration = Duration::from_secs(15);

/// Ends etcd, and removes its data if told to, when the pipe to it closes: also if the test process is killed.
const KEEPER: &str = r#"
keep=$1; dir=$2; shift 2
"$@" >"$dir.log" 2>&1 &
etcd=$!
cat >/dev/null
kill -9 $etcd; wait $etcd 2>/dev/null
[ "$keep" = keep ] || rm -rf "$dir" "$dir.log"
"#;

/// A member of its own; it is killed when dropped.
pub(crate) struct Server {
    keeper: Option<Child>,
    dir: PathBuf,
    client: String,
    peer: String,
    durable: bool,
}

impl Server {
    /// A fresh etcd. Only a `durable` one syncs to the disk and can be started again.
    pub(crate) async fn start(durable: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("longhand-etcd-").tempdir().unwrap().keep();
        let mut server = Self { keeper: None, dir, client: free_address(), peer: free_address(), durable };
        server.spawn().await;
        server
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.client)
    }

    pub(crate) fn address(&self) -> String {
        self.client.clone()
    }

    /// Kills it without warning, as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            keeper.wait().unwrap();
        }
    }

    /// Starts it again on the same data.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.spawn().await;
    }

    /// Starts it again without any data, as if an old backup had been restored.
    pub(crate) async fn restart_empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.dir).unwrap();
        self.spawn().await;
    }

    async fn spawn(&mut self) {
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper", if self.durable { "keep" } else { "drop" }]).arg(&self.dir);
        command.arg(binary()).args(["--name", "one", "--log-level", "error", "--data-dir"]).arg(&self.dir);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("one={peer}")]);
        if !self.durable {
            command.arg("--unsafe-no-fsync");
        }
        self.keeper = Some(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let options = EtcdOptions { timeout: READY, prefix: "/ready/".to_owned(), ..EtcdOptions::default() };
        let store = EtcdStore::connect(&[client], options).await.unwrap();
        store.get_or_create("up", b"").await.unwrap_or_else(|error| {
            let log = std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default();
            panic!("etcd does not come up: {error}\n{log}");
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if self.durable {
            let _ = std::fs::remove_dir_all(&self.dir);
            let _ = std::fs::remove_file(format!("{}.log", self.dir.display()));
        }
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// `ETCD_BIN`, else `etcd` in the path, else the one that the cluster's tools have built.
fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("ETCD_BIN") {
        return PathBuf::from(binary);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file()) {
        return found;
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_default();
    find(&cache.join("longhand"), 4)
        .expect("these tests need etcd: set ETCD_BIN, put etcd into the PATH, or build it with `e2e/kind/tools etcd`")
}

fn find(dir: &Path, depth: usize) -> Option<PathBuf> {
    let file = dir.join("etcd");
    if file.is_file() {
        return Some(file);
    }
    let entries = std::fs::read_dir(dir).ok().filter(|_| depth > 0)?;
    let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs.into_iter().find_map(|dir| find(&dir, depth - 1))
}
