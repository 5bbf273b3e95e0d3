//! The real binary, with a client.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{LONG, POD, bash, target};
use longhand_sandbox::client::{SandboxClient, Target};
use longhand_sandbox::token::Signer;
use longhand_sandbox::wire::ToolOutput;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) struct Sandboxd {
    pub(crate) child: Child,
    pub(crate) client: SandboxClient,
    pub(crate) signer: Signer,
    pub(crate) target: Target,
    pub(crate) workspace: tempfile::TempDir,
}

impl Sandboxd {
    pub(crate) fn start(grace: &str) -> Self {
        Self::with(&[("SANDBOXD_GRACE_SECONDS", grace)])
    }

    /// With these settings beside those that are needed.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        Self::at(tempfile::tempdir().unwrap(), Signer::generate().unwrap().0, settings)
    }

    /// Kills it, as the kernel would, and starts another one in its place.
    pub(crate) fn killed_and_restarted(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let signer = self.signer.clone();
        let workspace = std::mem::replace(&mut self.workspace, tempfile::tempdir().unwrap());
        Self::at(workspace, signer, &[])
    }

    /// With what it keeps in this directory.
    pub(crate) fn at(workspace: tempfile::TempDir, signer: Signer, settings: &[(&str, &str)]) -> Self {
        let mut child = command()
            .env("SANDBOXD_LISTEN", "127.0.0.1:0")
            .env("SANDBOXD_VERIFY_KEY", signer.public_key())
            .env("SANDBOXD_WORKSPACE", workspace.path().join("made/by/sandboxd"))
            .env("SANDBOXD_STATE", workspace.path().join("state"))
            .env("SANDBOXD_GRACE_SECONDS", "0")
            // Others run at the same time.
            .env("SANDBOXD_RELAY", "127.0.0.1:0")
            .env("POD_UID", POD)
            .envs(settings.iter().copied())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let line = log.find(|line| line.contains("listening")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = line["address"].as_str().unwrap();
        let target = target(&address);
        std::thread::spawn(move || log.for_each(|line| eprintln!("{line}")));
        Self { child, client: SandboxClient::new(signer.clone()), signer, target, workspace }
    }

    pub(crate) async fn run(&self, id: &str, command: &str) -> ToolOutput {
        self.client.execute(&self.target, &bash(id, command), LONG).await.unwrap()
    }

    /// A request by hand; the whole answer.
    pub(crate) async fn raw(&self, line: &str, token: &str) -> String {
        self.raw_with(line, token, b"").await
    }

    pub(crate) async fn raw_with(&self, line: &str, token: &str, body: &[u8]) -> String {
        let head = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.target.address).await.unwrap();
        stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.workspace.path().join("made/by/sandboxd").join(name)
    }

    pub(crate) fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }

    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "sandboxd does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Sandboxd {
    fn drop(&mut self) {
        // It ends what it has started, if it still can.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
        }
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxd"));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}
