//! A real etcd on loopback.

pub(crate) mod cut;
pub(crate) mod faulty;
pub(crate) mod s3;
pub(crate) mod secure;
pub(crate) mod tap;

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
    name: String,
    /// All members with the addresses at which they know each other; perhaps only itself.
    cluster: String,
    dir: PathBuf,
    client: String,
    peer: String,
    /// For those who show a certificate.
    secure: Option<String>,
    flags: Vec<String>,
    durable: bool,
}

impl Server {
    /// A fresh etcd. Only a `durable` one syncs to the disk and can be started again.
    pub(crate) async fn start(durable: bool) -> Self {
        Self::start_with(durable, false, &[]).await
    }

    /// One with flags of its own, and with an address for https if it is `secure`.
    pub(crate) async fn start_with(durable: bool, secure: bool, flags: &[String]) -> Self {
        let mut server = Self::named("one", durable, secure, flags);
        server.spawn().await;
        server
    }

    /// Three members of one etcd, each of which can be started again.
    pub(crate) async fn cluster() -> [Self; 3] {
        let mut members = ["one", "two", "three"].map(|name| Self::named(name, true, false, &[]));
        let cluster = members.each_ref().map(|member| format!("{}=http://{}", member.name, member.peer)).join(",");
        for member in &mut members {
            member.cluster.clone_from(&cluster);
            member.launch();
        }
        for member in &members {
            member.ready().await;
        }
        members
    }

    fn named(name: &str, durable: bool, secure: bool, flags: &[String]) -> Self {
        let dir = tempfile::Builder::new().prefix("longhand-etcd-").tempdir().unwrap().keep();
        let (client, peer, secure) = (free_address(), free_address(), secure.then(free_address));
        let (name, flags, cluster) = (name.to_owned(), flags.to_vec(), format!("{name}=http://{peer}"));
        Self { keeper: None, name, cluster, dir, client, peer, secure, flags, durable }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.client)
    }

    pub(crate) fn secure_endpoint(&self) -> String {
        format!("https://{}", self.secure.as_ref().unwrap())
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
        self.launch();
        self.ready().await;
    }

    fn launch(&mut self) {
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper", if self.durable { "keep" } else { "drop" }]).arg(&self.dir);
        command.arg(binary()).args(["--name", &self.name, "--log-level", "error", "--data-dir"]).arg(&self.dir);
        let secure = self.secure.as_ref().map(|secure| format!(",https://{secure}")).unwrap_or_default();
        command.args(["--listen-client-urls", &format!("{client}{secure}"), "--advertise-client-urls", &client]);
        command.args(&self.flags);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &self.cluster]);
        if !self.durable {
            command.arg("--unsafe-no-fsync");
        }
        self.keeper = Some(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    }

    async fn ready(&self) {
        let options = EtcdOptions { timeout: READY, prefix: "/ready/".to_owned(), ..EtcdOptions::default() };
        let store = EtcdStore::connect(&[self.endpoint()], options).await.unwrap();
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

pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn binary() -> PathBuf {
    tool("etcd")
}

/// `ETCD_BIN` or the like, else what is in the path, else what the cluster's tools have built.
pub(crate) fn tool(name: &str) -> PathBuf {
    let variable = format!("{}_BIN", name.to_ascii_uppercase());
    if let Some(binary) = std::env::var_os(&variable) {
        return PathBuf::from(binary);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()) {
        return found;
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_default();
    find(&cache.join("longhand"), name, 4).unwrap_or_else(|| {
        panic!(
            "these tests need {name}: set {variable}, put it into the PATH, or build it with `e2e/kind/tools {name}`"
        )
    })
}

fn find(dir: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let file = dir.join(name);
    if file.is_file() {
        return Some(file);
    }
    let entries = std::fs::read_dir(dir).ok().filter(|_| depth > 0)?;
    let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs.into_iter().find_map(|dir| find(&dir, name, depth - 1))
}
