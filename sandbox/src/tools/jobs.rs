//! Commands in the background: started by `bash` with `run_in_background`, looked after with the tool `process`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::bash::describe;
use super::capture::{Sink, older};
use super::input::ProcessInput;
use super::process::Process;
use super::scratch::Scratch;
use super::shell::Handover;
use super::{ToolError, ToolResult, fail};
use crate::wire::ToolOutput;

/// Jobs that run at the same time, and ended ones that are remembered: with two files of 8 MiB each at most 512 MiB.
const MAX_RUNNING: usize = 16;
const MAX_ENDED: usize = 16;
const SHOWN_COMMAND: usize = 100;
const SHOWN_LOG: u64 = 16 * 1024;
const KILL_LIMIT: Duration = Duration::from_secs(10);

struct Job {
    command: String,
    pid: i32,
    log: PathBuf,
    started: Instant,
    cancel: CancellationToken,
    /// How it ended, once it has.
    end: Option<String>,
}

/// The jobs of this sandbox. They end with it.
#[derive(Default)]
pub(super) struct Jobs {
    all: Arc<Mutex<BTreeMap<u64, Job>>>,
    stop: CancellationToken,
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn locked(all: &Mutex<BTreeMap<u64, Job>>) -> MutexGuard<'_, BTreeMap<u64, Job>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jobs {
    /// Whether one more may be started.
    pub(super) fn check(&self) -> Result<(), ToolError> {
        let running = locked(&self.all).values().filter(|job| job.end.is_none()).count();
        if running < MAX_RUNNING {
            return Ok(());
        }
        fail(format!("{running} commands run in the background already; end one with the tool process"))
    }

    /// Lets `process` run on as a job, and says which. What it was handed over is there until it ends.
    pub(super) async fn adopt(
        &self,
        process: Process,
        handover: Option<Handover>,
        command: &str,
        scratch: &Scratch,
    ) -> ToolResult {
        let cancel = self.stop.child_token();
        let path = scratch.unique().with_extension("log");
        let mut sink = match Sink::rotating(path).await {
            Ok(sink) => sink,
            Err(error) => {
                cancel.cancel();
                process.abandon().await;
                return fail(format!("the log of the command could not be made: {error}"));
            }
        };
        let (pid, log) = (process.pid(), sink.path().to_owned());
        let mut shown: String = command.chars().take(SHOWN_COMMAND).collect();
        if shown.len() < command.len() {
            shown.push_str("...");
        }
        let id = {
            let mut all = locked(&self.all);
            let id = all.keys().next_back().map_or(1, |last| last + 1);
            let job = Job {
                command: shown,
                pid,
                log: log.clone(),
                started: Instant::now(),
                cancel: cancel.clone(),
                end: None,
            };
            all.insert(id, job);
            forget(&mut all);
            id
        };
        let all = Arc::clone(&self.all);
        tokio::spawn(async move {
            let ended = process.follow(&cancel, &mut sink).await;
            drop(handover);
            if let Some(job) = locked(&all).get_mut(&id) {
                job.end = Some(describe(&ended, Duration::ZERO).0.unwrap_or_else(|| "exit code 0".to_owned()));
            }
        });
        Ok(ToolOutput::ok(format!(
            "started in the background as job {id} (process {pid}); its output goes to {}; look at it or end it with the tool process",
            log.display()
        )))
    }

    /// The tool `process`.
    pub(super) async fn run(&self, input: &ProcessInput, cancel: &CancellationToken) -> ToolResult {
        let Some(id) = input.id else {
            if input.kill == Some(true) {
                return fail("kill needs the id of a job");
            }
            return Ok(ToolOutput::ok(self.list()));
        };
        if input.kill == Some(true) {
            self.kill(id, cancel).await?;
        }
        let (line, log) = match locked(&self.all).get(&id) {
            Some(job) => (line(id, job), job.log.clone()),
            None => return fail(format!("there is no job {id}; without an id, all jobs are listed")),
        };
        let (end, whole) = end_of(&log);
        Ok(ToolOutput { content: format!("{line}\n{end}"), is_error: false, truncated: !whole })
    }

    fn list(&self) -> String {
        let lines: Vec<_> = locked(&self.all).iter().map(|(id, job)| line(*id, job)).collect();
        if lines.is_empty() { "no command was started in the background".to_owned() } else { lines.join("\n") }
    }

    async fn kill(&self, id: u64, cancel: &CancellationToken) -> Result<(), ToolError> {
        match locked(&self.all).get(&id) {
            Some(job) if job.end.is_none() => job.cancel.cancel(),
            _ => return Ok(()),
        }
        let ended = async {
            while locked(&self.all).get(&id).is_some_and(|job| job.end.is_none()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(KILL_LIMIT, cancel.run_until_cancelled(ended)).await {
            Ok(Some(())) => Ok(()),
            Ok(None) => fail("interrupted"),
            Err(_) => fail(format!("job {id} was killed, but has not ended after {} s", KILL_LIMIT.as_secs())),
        }
    }
}

/// Forgets the oldest ended jobs, and their logs.
fn forget(all: &mut BTreeMap<u64, Job>) {
    let ended: Vec<u64> = all.iter().filter(|(_, job)| job.end.is_some()).map(|(id, _)| *id).collect();
    for id in &ended[..ended.len().saturating_sub(MAX_ENDED)] {
        if let Some(job) = all.remove(id) {
            // What is not there needs no removal.
            std::fs::remove_file(&job.log).ok();
            std::fs::remove_file(older(&job.log)).ok();
        }
    }
}

fn line(id: u64, job: &Job) -> String {
    let mut line = format!("job {id} (process {}), ", job.pid);
    // Writing to a String does not fail.
    _ = match &job.end {
        None => write!(line, "running for {} s", job.started.elapsed().as_secs()),
        Some(end) => write!(line, "ended: {end}"),
    };
    _ = write!(line, ", log {}: {}", job.log.display(), job.command.replace('\n', " "));
    line
}

/// The end of a log, and whether that is all of it.
fn end_of(path: &Path) -> (String, bool) {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(SHOWN_LOG)))?;
        let mut bytes = Vec::new();
        file.take(SHOWN_LOG).read_to_end(&mut bytes)?;
        Ok((String::from_utf8_lossy(&bytes).into_owned(), length <= SHOWN_LOG && !older(path).exists()))
    };
    read().unwrap_or_else(|error: std::io::Error| (format!("[the log cannot be read: {error}]"), false))
}
