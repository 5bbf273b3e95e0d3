//! The operator, as a process beside the control plane.

use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use super::control_plane::{ControlPlane, User};
use super::faults::Faults;
use super::free_port;
use super::program::{Program, Usage};
use super::sandboxds::CANARY;
use crate::cluster::{SYSTEM_NAMESPACE, TestResult, eventually};

/// Names the program.
const BINARY_VARIABLE: &str = "OPERATOR_BIN";
/// The lease of one that was killed runs out first.
const LEADS: Duration = Duration::from_secs(60);
/// Where no session service is: sandboxes without sessions need none.
const NOWHERE: &str = "http://127.0.0.1:9";

/// An operator that leads.
pub struct Operator {
    program: Program,
    metrics: String,
    client: reqwest::Client,
}

impl Operator {
    /// Starts it, and waits until it leads. It reaches the API server through `faults`, if there are any.
    ///
    /// # Errors
    /// When it does not lead within a minute.
    pub async fn start(plane: &ControlPlane, faults: Option<&Faults>) -> TestResult<Self> {
        let folder = &plane.files.folder;
        let url = faults.map_or_else(|| plane.url.clone(), Faults::url);
        let (kubeconfig, token) = (plane.files.kubeconfig(User::Operator, &url)?, folder.join("session-token"));
        std::fs::write(&token, plane.files.token(User::Operator))?;
        let binary: PathBuf = std::env::var_os(BINARY_VARIABLE).unwrap_or_else(|| "operator".into()).into();
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(binary);
        command.env("KUBECONFIG", kubeconfig).args(["--identity", "operator-0", "--namespace", SYSTEM_NAMESPACE]);
        command.args(["--session-url", NOWHERE, "--etcd-endpoints", &plane.etcd, "--listen", &listen]);
        command.args(["--harness-image", "harness", "--proxy-image", "proxy", "--sandbox-image", "sandbox"]);
        command.args(["--sandboxd-image", "sandboxd"]);
        command.arg("--token-file").arg(token);
        // What answers the operator, and no sandbox.
        let api_server = plane.url.trim_start_matches("https://");
        command.args(["--canaries", &format!("{CANARY}=tcp://{api_server}")]);
        let program = Program::start("operator", &mut command, folder)?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let mut operator = Self { program, metrics: format!("http://{listen}/metrics"), client };
        operator.leads().await?;
        Ok(operator)
    }

    async fn leads(&mut self) -> TestResult {
        let Self { program, metrics, client } = self;
        eventually("the operator leads", LEADS, || {
            let (ended, request) = (program.check(), client.get(metrics.as_str()));
            async move {
                ended?;
                let Ok(answer) = request.send().await else { return Ok(None) };
                Ok(answer.text().await?.lines().any(|line| line == "longhand_operator_leader 1").then_some(()))
            }
        })
        .await
    }

    /// The value of a counter without labels; 0 of one that counts nothing yet.
    ///
    /// # Errors
    /// When the operator does not answer.
    pub async fn counter(&self, name: &str) -> TestResult<f64> {
        let text = self.client.get(&self.metrics).send().await?.text().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }

    /// What it has used.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&mut self) -> TestResult<Usage> {
        self.program.check()?;
        self.program.usage()
    }

    /// Ends it.
    pub async fn stop(self) {
        self.program.stop().await;
    }
}
