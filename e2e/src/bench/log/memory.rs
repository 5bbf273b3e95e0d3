//! What a thousand open streams cost: measured in a process of their own.

use std::process::Stdio;

use futures::StreamExt as _;
use futures::stream::SelectAll;
use longhand_protocol::SessionId;
use longhand_session_log::SessionStore as _;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::server::Server;
use super::{Brain, Figure, Goal, event};
use crate::cluster::TestResult;
use crate::proc_status;

/// Tells a process of the benchmark to hold tails on the etcd at this endpoint.
pub const TAILS_OF: &str = "BENCH_TAILS_OF";

const STREAMS: usize = 1_000;
/// Half are in the log before the tails are opened.
const RECORDS: usize = 20;
const SIZE: usize = 1_024;
const GOAL_MIB: f64 = 200.0;

pub(super) async fn run(server: &Server) -> TestResult<Figure> {
    let store = server.store().await?;
    let mut brains = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        brains.push(Brain::claim(&store).await?);
    }
    let brains = append(&store, brains).await?;
    let mut child = Command::new(std::env::current_exe()?)
        .env(TAILS_OF, server.endpoint())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().ok_or("there is no way to the other process")?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("nothing comes from the other process")?).lines();
    for brain in &brains {
        input.write_all(format!("{}\n", brain.id).as_bytes()).await?;
    }
    drop(input);
    lines.next_line().await?.ok_or("the tails were not opened")?;
    append(&store, brains).await?;
    let resident = lines.next_line().await?.ok_or("the tails have ended")?;
    let mib = resident.parse::<f64>()? / 1_024.0;
    tracing::info!(mib, "memory of a process with {STREAMS} tails");
    Ok(Figure::single("memory of 1,000 open tails", "MiB", mib, Goal::Below(GOAL_MIB)))
}

/// Half of the records, to each log.
async fn append(store: &EtcdStore, brains: Vec<Brain>) -> TestResult<Vec<Brain>> {
    let text = "x".repeat(SIZE);
    let mut tasks = JoinSet::new();
    for mut brain in brains {
        let (store, text) = (store.clone(), text.clone());
        tasks.spawn(async move {
            for _ in 0..RECORDS / 2 {
                brain.append(&store, vec![event(&text)]).await?;
            }
            Ok(brain)
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// The other process: opens a tail of each session that is named on its standard input, says so when all of them have
/// brought what there is, and what its resident set is in KiB when they have brought the rest.
///
/// # Errors
/// When a tail ends.
pub async fn hold_tails(endpoint: &str) -> TestResult {
    let store = EtcdStore::connect(&[endpoint.to_owned()], EtcdOptions::default()).await?;
    let mut ids = BufReader::new(tokio::io::stdin()).lines();
    let mut tails = SelectAll::new();
    while let Some(line) = ids.next_line().await? {
        tails.push(store.tail(&line.parse::<SessionId>()?, 0).await?);
    }
    let mut out = tokio::io::stdout();
    // The claim is a record too.
    for records in [1 + RECORDS / 2, RECORDS / 2] {
        for _ in 0..records * tails.len() {
            tails.next().await.ok_or("a tail has ended")??;
        }
        let status = std::fs::read_to_string("/proc/self/status")?;
        let kib = proc_status::kib(&status, "VmRSS").ok_or("there is no VmRSS")?;
        out.write_all(format!("{kib}\n").as_bytes()).await?;
        out.flush().await?;
    }
    Ok(())
}
