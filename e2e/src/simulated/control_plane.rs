//! The control plane, and nodes that kwok plays.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::GetOptions;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde_json::json;
use tokio::process::Command;

use super::audit::{self, Write};
use super::free_port;
use super::kubeconfig::Files;
use super::program::{Program, Usage};
use super::sandboxds::Sandboxds;
use crate::cluster::{SYSTEM_NAMESPACE, TestResult, eventually};

const STAGES: &str = include_str!("../../fixtures/kwok.yaml");
const UP: Duration = Duration::from_secs(120);
/// More than ten thousand sandboxes leave in etcd.
const QUOTA: &str = "4294967296";
/// Without limits of their own the programs are as fast as the machine.
const QPS: [&str; 2] = ["--kube-api-qps=2000", "--kube-api-burst=4000"];
const NODES_AT_ONCE: usize = 8;

/// Who writes, as the audit log knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever makes sandboxes: the benchmark.
    Claimant,
    /// The operator.
    Operator,
    /// The controller manager, the garbage collector above all.
    Controllers,
    /// The scheduler.
    Scheduler,
    /// kwok, in place of kubelets.
    Kubelets,
}

impl User {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Claimant, Self::Operator, Self::Controllers, Self::Scheduler, Self::Kubelets];

    /// The name in the audit log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claimant => "claimant",
            Self::Operator => "operator",
            Self::Controllers => "controllers",
            Self::Scheduler => "scheduler",
            Self::Kubelets => "kubelets",
        }
    }
}

/// A control plane with nodes.
pub struct ControlPlane {
    /// A client of the API server, as [`User::Claimant`].
    pub client: Client,
    programs: Vec<Program>,
    sandboxds: Sandboxds,
    pub(super) files: Files,
    pub(super) url: String,
    pub(super) etcd: String,
}

impl ControlPlane {
    /// Starts everything in `folder`, with so many nodes, our kinds, and the key that sandboxes know the session service by.
    ///
    /// # Errors
    /// When a program is missing or does not start within two minutes.
    pub async fn start(folder: &Path, nodes: usize) -> TestResult<Self> {
        remove(folder)?;
        std::fs::create_dir_all(folder)?;
        let folder = std::fs::canonicalize(folder)?;
        let files = Files::write(&folder)?;
        let (etcd, mut programs) = (format!("http://127.0.0.1:{}", free_port()?), Vec::new());
        programs.push(start_etcd(&etcd, &folder)?);
        let port = free_port()?;
        programs.push(start_api_server(&etcd, port, &files)?);
        let url = format!("https://127.0.0.1:{port}");
        let client = connect(&files, &url, &mut programs).await?;
        programs.extend(start_controllers(&files, &url)?);
        let sandboxds = Sandboxds::start().await?;
        let mut plane = Self { client, programs, sandboxds, files, url, etcd };
        plane.populate(nodes).await?;
        plane.check()?;
        Ok(plane)
    }

    async fn populate(&self, nodes: usize) -> TestResult {
        let kinds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for kind in longhand_crds::definitions() {
            kinds.patch(&kind.name_any(), &PatchParams::apply("simulated").force(), &Patch::Apply(&kind)).await?;
            let name = kind.name_any();
            eventually("our kinds are served", UP, || async {
                let conditions =
                    kinds.get(&name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
                let up = conditions.iter().any(|seen| seen.type_ == "Established" && seen.status == "True");
                Ok(up.then_some(()))
            })
            .await?;
        }
        self.namespace(SYSTEM_NAMESPACE).await?;
        let key: ConfigMap = serde_json::from_value(json!({
            "metadata": { "name": "longhand-session-keys" }, "data": { "sandboxd-verify-key": "simulated" },
        }))?;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        maps.create(&PostParams::default(), &key).await?;
        let all: Api<Node> = Api::all(self.client.clone());
        stream::iter(0..nodes)
            .map(|number| {
                let (all, name) = (all.clone(), format!("node-{number}"));
                async move {
                    let node = serde_json::from_value(
                        json!({ "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } } }),
                    )?;
                    all.create(&PostParams::default(), &node).await?;
                    TestResult::Ok(())
                }
            })
            .buffer_unordered(NODES_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        eventually("all nodes are ready", UP, || async {
            let found = all.list(&kube::api::ListParams::default()).await?.items;
            let ready = found.iter().filter(|node| {
                let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
                conditions.into_iter().any(|seen| seen.type_ == "Ready" && seen.status == "True")
            });
            Ok((ready.count() == nodes).then_some(()))
        })
        .await
    }

    /// Makes a namespace in which Pod Security `restricted` is enforced.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn namespace(&self, name: &str) -> TestResult {
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
        }))?;
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(())
    }

    /// How many keys etcd holds, but for events, which go after an hour.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn keys(&self) -> TestResult<i64> {
        let mut client = etcd_client::Client::connect([&self.etcd], None).await?;
        let mut count = async |prefix: &str| {
            let options = GetOptions::new().with_prefix().with_count_only();
            TestResult::Ok(client.get(prefix, Some(options)).await?.count())
        };
        Ok(count("/").await? - count("/registry/events/").await?)
    }

    /// Every write that the audit log holds, in its order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn writes(&self) -> TestResult<Vec<Write>> {
        Ok(audit::parse(&std::fs::read_to_string(self.files.path("audit.log"))?))
    }

    /// What each program has used.
    ///
    /// # Errors
    /// When one has ended.
    pub fn usage(&self) -> TestResult<Vec<(&'static str, Usage)>> {
        self.programs.iter().map(|program| Ok((program.name, program.usage()?))).collect()
    }

    /// How often sandboxes were asked for their fence.
    #[must_use]
    pub fn fence_asks(&self) -> u64 {
        self.sandboxds.asked()
    }

    /// An error when one of the programs has ended.
    ///
    /// # Errors
    /// With the end of what it said.
    pub fn check(&mut self) -> TestResult {
        self.programs.iter_mut().try_for_each(Program::check)
    }

    /// Ends every program, and removes what they wrote.
    pub async fn stop(mut self) {
        while let Some(program) = self.programs.pop() {
            program.stop().await;
        }
        if let Err(error) = remove(&self.files.folder) {
            tracing::warn!(%error, folder = %self.files.folder.display(), "is left");
        }
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    std::fs::remove_dir_all(folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

fn start_etcd(endpoint: &str, folder: &Path) -> TestResult<Program> {
    let peer = format!("http://127.0.0.1:{}", free_port()?);
    let mut command = Command::new("etcd");
    command.args(["--name", "simulated", "--log-level", "error", "--data-dir"]).arg(folder.join("etcd"));
    command.args(["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("simulated={peer}"), "--quota-backend-bytes", QUOTA]);
    Program::start("etcd", &mut command, folder)
}

fn start_api_server(etcd: &str, port: u16, files: &Files) -> TestResult<Program> {
    let mut command = Command::new("kube-apiserver");
    let option = |name: &str, value: &str| format!("--{name}={value}");
    let file = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    command.args([
        option("etcd-servers", etcd),
        option("bind-address", "127.0.0.1"),
        option("advertise-address", "127.0.0.1"),
        option("endpoint-reconciler-type", "none"),
        option("secure-port", &port.to_string()),
        file("cert-dir", files.path("certificates")),
        option("service-cluster-ip-range", "10.96.0.0/16"),
        option("service-account-issuer", "https://simulated"),
        file("service-account-key-file", files.path("accounts.pub")),
        file("service-account-signing-key-file", files.path("accounts.key")),
        option("anonymous-auth", "false"),
        option("authorization-mode", "AlwaysAllow"),
        file("token-auth-file", files.path("tokens.csv")),
        // No controller makes accounts or says that nodes are ready.
        option("disable-admission-plugins", "ServiceAccount,TaintNodesByCondition"),
        file("audit-policy-file", files.path("audit.yaml")),
        file("audit-log-path", files.path("audit.log")),
    ]);
    Program::start("kube-apiserver", &mut command, &files.folder)
}

fn start_controllers(files: &Files, url: &str) -> TestResult<Vec<Program>> {
    let kubeconfig = |user| {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(format!(
            "--kubeconfig={}",
            files.kubeconfig(user, url)?.display()
        ))
    };
    let mut manager = Command::new("kube-controller-manager");
    manager.arg(kubeconfig(User::Controllers)?).args(QPS).args(["--leader-elect=false", "--secure-port=0"]);
    manager.arg("--controllers=garbage-collector-controller,namespace-controller");
    let mut scheduler = Command::new("kube-scheduler");
    scheduler.arg(kubeconfig(User::Scheduler)?).args(QPS).args(["--leader-elect=false", "--secure-port=0"]);
    let mut kwok = Command::new("kwok");
    kwok.arg(kubeconfig(User::Kubelets)?).args([
        "--manage-all-nodes=true",
        "--cidr=127.64.0.0/10",
        "--node-ip=127.0.0.1",
    ]);
    // Nodes are ready and stay so: nothing here looks at their leases.
    kwok.args(["--node-lease-duration-seconds=0", "--server-address="]);
    let stages = files.path("kwok.yaml");
    std::fs::write(&stages, STAGES)?;
    kwok.arg(format!("--config={}", stages.display()));
    Ok(vec![
        Program::start("kube-controller-manager", &mut manager, &files.folder)?,
        Program::start("kube-scheduler", &mut scheduler, &files.folder)?,
        Program::start("kwok", &mut kwok, &files.folder)?,
    ])
}

async fn connect(files: &Files, url: &str, programs: &mut [Program]) -> TestResult<Client> {
    let authority = files.authority();
    eventually("the API server has certificates", UP, || {
        let ended = programs.iter_mut().try_for_each(Program::check);
        let made = authority.exists();
        async move { ended.map(|()| made.then_some(())) }
    })
    .await?;
    let config = Kubeconfig::read_from(files.kubeconfig(User::Claimant, url)?)?;
    let client = Client::try_from(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)?;
    eventually("the API server is ready", UP, || {
        let (client, ended) = (client.clone(), programs.iter_mut().try_for_each(Program::check));
        async move {
            ended?;
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(client.request_text(request).await.is_ok().then_some(()))
        }
    })
    .await?;
    Ok(client)
}
