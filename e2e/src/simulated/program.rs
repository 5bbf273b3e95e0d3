//! One process of the simulated cluster.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::cluster::TestResult;
use crate::proc_status;

/// Ticks of the kernel's clock in a second, which is the same on every Linux.
const TICKS: f64 = 100.0;
const KIB_OF_MIB: f64 = 1_024.0;
/// So much of a log says why a program has ended.
const TAIL: usize = 2_000;
const FAREWELL: Duration = Duration::from_secs(20);

/// A process with its output in a file. It is killed when dropped.
pub(super) struct Program {
    pub(super) name: &'static str,
    child: Child,
    log: PathBuf,
}

/// What a process has used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Its resident set, in MiB.
    pub resident_mib: f64,
    /// Processor time since it was started, in seconds.
    pub cpu_seconds: f64,
}

impl Program {
    /// Starts `command`, with its output in `folder`.
    pub(super) fn start(name: &'static str, command: &mut Command, folder: &Path) -> TestResult<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        let child = command.spawn().map_err(|error| format!("{name}: {error}: is it on the PATH?"))?;
        Ok(Self { name, child, log })
    }

    /// An error, with the end of its output, when it has ended.
    pub(super) fn check(&mut self) -> TestResult {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let said = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(TAIL)..]).into_owned();
        Err(format!("{} has ended with {status}:\n{tail}", self.name).into())
    }

    pub(super) fn usage(&self) -> TestResult<Usage> {
        let id = self.child.id().ok_or_else(|| format!("{} has ended", self.name))?;
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{id}/{file}"));
        usage(&read("status")?, &read("stat")?)
            .ok_or_else(|| format!("/proc/{id} says nothing of {}", self.name).into())
    }

    /// Kills it, and waits until it is gone.
    pub(super) async fn stop(mut self) {
        if let Err(error) = self.child.start_kill() {
            tracing::debug!(name = self.name, %error, "has ended before");
        }
        if tokio::time::timeout(FAREWELL, self.child.wait()).await.is_err() {
            tracing::warn!(name = self.name, "does not end");
        }
    }
}

/// What `/proc/PID/status` and `/proc/PID/stat` say.
fn usage(status: &str, stat: &str) -> Option<Usage> {
    let kib = proc_status::kib(status, "VmRSS")?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Usage { resident_mib: kib / KIB_OF_MIB, cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS })
}

#[cfg(test)]
mod tests {
    use super::{Usage, usage};

    #[test]
    fn a_process_is_read_from_proc() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 100 1000 200";
        let found = usage("Name:\ta\nVmRSS:\t    2048 kB\n", stat);
        assert_eq!(found, Some(Usage { resident_mib: 2.0, cpu_seconds: 3.0 }));
        assert_eq!(usage("Name:\ta\n", stat), None);
    }
}
