//! The real proxy as a process, with the configuration that the operator would write.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use longhand_protocol::egress::{AUDIENCE, LIFETIME_SECONDS, Seed};
use longhand_sandbox::token::Signer;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::server::Server;
use crate::cluster::TestResult;
use crate::proc_status;

/// Names the program.
const BINARY_VARIABLE: &str = "PROXY_BIN";
/// A host that the sandbox may reach, without a credential.
pub(super) const OPEN: &str = "open.bench.test";
/// A host with a credential.
pub(super) const BOUND: &str = "bound.bench.test";
/// What the harness proves itself with.
pub(super) const SESSION_TOKEN: &str = "token-of-the-bench";
const SESSION: &str = "sesn_bench";
const HARNESS: &str = "harness-pod";
const SEED: [u8; 32] = [7; 32];
const START_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// What the proxy reads from files; removed when dropped.
pub(super) struct Files(PathBuf);

impl Files {
    pub(super) fn new() -> TestResult<Self> {
        let dir = std::env::current_dir()?.join(format!("target/bench/proxy-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let files = Self(dir);
        for (name, text) in [("value", "value-of-the-credential"), ("token", SESSION_TOKEN), ("report", "token")] {
            std::fs::write(files.path(name), text)?;
        }
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "files of the proxy are left");
        }
    }
}

/// A proxy that serves; it is killed when dropped.
pub(super) struct Running {
    process: Child,
    /// Where the harness calls it.
    pub(super) base: SocketAddr,
    /// Where sandboxes call it.
    pub(super) egress: SocketAddr,
    /// What a sandbox shows it.
    pub(super) token: String,
    /// What stands for the credential.
    pub(super) placeholder: String,
}

impl Running {
    /// Starts one and waits until it takes connections.
    pub(super) async fn start(server: &Server, files: &Files) -> TestResult<Self> {
        std::fs::write(files.path("ca.pem"), &server.pem)?;
        let signer = Signer::generate()?.0;
        let (base, egress, health) = (free_address()?, free_address()?, free_address()?);
        let binary = std::env::var_os(BINARY_VARIABLE).ok_or("set PROXY_BIN to the proxy, as hack/bench does")?;
        let mut command = Command::new(&binary);
        command.env("PROXY_CONFIG", config(server, files, &signer.public_key()));
        command.env("SESSION_TOKEN_FILE", files.path("token")).env("SSL_CERT_FILE", files.path("ca.pem"));
        command.env("PROXY_LISTEN", base.to_string()).env("PROXY_HEALTH_LISTEN", health.to_string());
        command.env("POD_UID", HARNESS).env("POD_IP", egress.ip().to_string());
        command.env("PROXY_EGRESS_PORT", egress.port().to_string()).env("RUST_LOG", "error");
        let process = command.stdout(Stdio::null()).kill_on_drop(true).spawn();
        let process = process.map_err(|error| format!("{}: {error}", binary.to_string_lossy()))?;
        let now = jiff::Timestamp::now().as_second();
        let token = signer.encode(&json!({
            "aud": AUDIENCE, "sub": SESSION, "sandbox": "default", "pod": "pod", "harness": HARNESS,
            "seed": Seed::from(SEED), "iat": now, "exp": now + i64::try_from(LIFETIME_SECONDS)?,
        }))?;
        let placeholder = Seed::from(SEED).placeholder("team", "bench");
        let mut running = Self { process, base, egress, token, placeholder };
        let begun = Instant::now();
        // The base URL is listened to last, or first: both have to be there.
        while TcpStream::connect(egress).await.is_err() || TcpStream::connect(base).await.is_err() {
            if let Some(status) = running.process.try_wait()? {
                return Err(format!("the proxy ended at its start with {status}").into());
            }
            if begun.elapsed() > START_DEADLINE {
                return Err(format!("the proxy does not listen within {START_DEADLINE:?}").into());
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(running)
    }

    /// Its authority, in PEM.
    pub(super) async fn authority(&self) -> TestResult<String> {
        let mut stream = TcpStream::connect(self.egress).await?;
        let request = format!(
            "GET /ca.pem HTTP/1.1\r\nhost: {}\r\nproxy-authorization: Bearer {}\r\nconnection: close\r\n\r\n",
            self.egress, self.token
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        tokio::time::timeout(START_DEADLINE, stream.read_to_string(&mut answer)).await??;
        let pem = answer.find("-----BEGIN").and_then(|at| answer.get(at..));
        Ok(pem.ok_or_else(|| format!("no certificate: {answer}"))?.to_owned())
    }

    /// The most memory that it has had so far.
    pub(super) fn peak_mib(&self) -> TestResult<f64> {
        let id = self.process.id().ok_or("the proxy has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        Ok(proc_status::kib(&status, "VmHWM").ok_or("no VmHWM")? / 1024.0)
    }
}

/// The names lead to the server by CONNECT: the proxy would not dial loopback for what has no credential.
fn config(server: &Server, files: &Files, key: &str) -> String {
    let (address, value) = (server.address, files.path("value"));
    json!({
        "routes": [{
            "name": "model", "prefix": "/model", "upstream": format!("https://{address}"),
            "credential": {
                "name": "bench", "file": value, "placement": {"type": "bearer"},
                "allow": {"scheme": "https", "hosts": [address.ip()], "port": address.port(), "allowPrivate": true},
            },
        }],
        "egress": {
            "session": SESSION, "verifyKey": key, "sandboxes": {"default": {"hosts": [OPEN]}}, "ca": server.pem,
            "bindings": [{
                "vault": "team", "name": "bench", "file": value,
                "placement": {"type": "environmentVariable", "locations": ["header"]},
                "allow": {"scheme": "https", "hosts": [BOUND], "port": 443},
            }],
            "audit": {"url": format!("http://{}", server.service), "tokenFile": files.path("report")},
            "upstreamProxy": {"url": format!("http://{address}")},
        },
    })
    .to_string()
}

fn free_address() -> TestResult<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
