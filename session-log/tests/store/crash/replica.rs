//! A replica in a process of its own, and its callers' side.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longhand_protocol::event::NewEvent;
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use longhand_session_log::{SessionStore as _, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::conformance::message;

/// Where a replica finds etcd.
const ENDPOINTS: &str = "LONGHAND_TEST_REPLICA_OF";
/// What a replica says begins with this; what the test program says does not.
const MARK: &str = "@";
/// A replica that says nothing for so long is no longer waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked of a replica.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Append {
    pub(super) session: SessionId,
    /// 0 for what the service itself appends.
    pub(super) epoch: u64,
    pub(super) head: u64,
    pub(super) event: EventId,
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done(u64),
    Moved(u64),
    /// Perhaps it is done and perhaps not.
    Unknown,
    Wrong(String),
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A process that appends.
struct Replica {
    child: Child,
    input: ChildStdin,
    waiting: Waiting,
}

/// Several of them, each of which is started again when it is killed.
pub(super) struct Replicas {
    all: Vec<Mutex<Replica>>,
    endpoints: String,
    asked: AtomicU64,
}

impl Replica {
    fn start(endpoints: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "crash::replica::serve_if_told_to", "--nocapture"]);
        command.env(ENDPOINTS, endpoints).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let waiting = Waiting::default();
        let shared = Arc::clone(&waiting);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { break };
                // A process that is killed may leave half a line.
                let Some(Ok((number, answer))) = line.split(MARK).nth(1).map(serde_json::from_str) else { continue };
                if let Some(sender) = shared.lock().unwrap().remove(&number) {
                    let _ = sender.send(answer);
                }
            }
            shared.lock().unwrap().clear();
        });
        Self { child, input, waiting }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Replicas {
    pub(super) fn start(count: usize, endpoints: &[String]) -> Self {
        let endpoints = endpoints.join(",");
        let all = (0..count).map(|_| Mutex::new(Replica::start(&endpoints))).collect();
        Self { all, endpoints, asked: AtomicU64::new(0) }
    }

    /// Ends one by SIGKILL, and starts it again.
    pub(super) fn kill(&self, number: usize) {
        let mut replica = self.all[number % self.all.len()].lock().unwrap();
        replica.child.kill().unwrap();
        *replica = Replica::start(&self.endpoints);
    }

    pub(super) async fn append(&self, at: usize, append: Append) -> Answer {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        let at = (at + usize::try_from(number).unwrap()) % self.all.len();
        let (sender, answer) = oneshot::channel();
        {
            let mut replica = self.all[at].lock().unwrap();
            replica.waiting.lock().unwrap().insert(number, sender);
            let line = serde_json::to_string(&(number, append)).unwrap();
            if writeln!(replica.input, "{line}").is_err() {
                return Answer::Unknown;
            }
        }
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            _ => Answer::Unknown,
        }
    }
}

async fn append(store: &EtcdStore, append: Append) -> Answer {
    let Append { session, epoch, head, event } = append;
    let events = vec![NewEvent { id: event, body: message("x").body }];
    let appended = match epoch {
        0 => store.append_unfenced(&session, events).await,
        epoch => store.append(&session, epoch, head, events).await,
    };
    match appended {
        Ok(appended) => Answer::Done(appended.records[0].seq),
        Err(StoreError::HeadMoved { head }) => Answer::Moved(head),
        Err(StoreError::Unavailable(_) | StoreError::Overloaded { .. }) => Answer::Unknown,
        Err(error) => Answer::Wrong(error.to_string()),
    }
}

/// Not a test: the other process. It ends with its input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_if_told_to() {
    let Ok(endpoints) = std::env::var(ENDPOINTS) else { return };
    let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
    let store = EtcdStore::connect(&endpoints, EtcdOptions::default()).await.unwrap();
    let (lines, mut asked) = tokio::sync::mpsc::channel(1_000);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    while let Some(line) = asked.recv().await {
        let (number, wanted): (u64, Append) = serde_json::from_str(&line).unwrap();
        let store = store.clone();
        tokio::spawn(async move {
            let answer = append(&store, wanted).await;
            let line = serde_json::to_string(&(number, answer)).unwrap();
            let _ = writeln!(std::io::stdout().lock(), "{MARK}{line}");
        });
    }
}
