//! One command as a process group of its own: its output in one stream, its end, and its forced end.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::capture::Capture;
use crate::server::reaper::{Children, Registration};

const TERM_LIMIT: Duration = Duration::from_secs(2);
// What was written before the shell ended is in the pipe by then: silence means that there is no more.
const SILENCE: Duration = Duration::from_millis(50);
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
const CHUNK: usize = 32 * 1024;

/// How a command came to its end.
#[derive(Debug)]
pub(super) enum Ended {
    Exited(io::Result<ExitStatus>),
    TimedOut,
    Interrupted,
}

/// A running command.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    registration: Registration,
    output: Output,
}

/// The read end of a command's standard output and error.
#[derive(Debug)]
pub(super) struct Output {
    pipe: Receiver,
    chunk: Vec<u8>,
    open: bool,
}

impl Process {
    /// Starts `command` with nothing to read and both outputs in one pipe.
    pub(super) fn start(mut command: std::process::Command, children: &Children) -> io::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let (reader, writer) = io::pipe()?;
        let pipe = Receiver::from_owned_fd(OwnedFd::from(reader))?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
        // Owned here, since it holds the write end: the pipe must close with the last process that has it.
        let (child, registration) = children.spawn(&mut Command::from(command))?;
        Ok(Self { child, registration, output: Output { pipe, chunk: vec![0; CHUNK], open: true } })
    }

    /// Waits for the end of the command, and brings it about at `deadline` or when cancelled. The pipe comes back if some
    /// process still holds it.
    pub(super) async fn finish(
        mut self,
        deadline: Instant,
        cancel: &CancellationToken,
        capture: &mut Capture<'_>,
    ) -> (Ended, Option<Output>) {
        let ended = loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break Ended::Interrupted,
                () = sleep_until(deadline) => break Ended::TimedOut,
                status = self.child.wait() => break Ended::Exited(status),
                read = self.output.read(), if self.output.open => capture.push(read).await,
            }
        };
        if !matches!(ended, Ended::Exited(_)) {
            self.kill().await;
        }
        drop(self.registration);
        let until = Instant::now() + DRAIN_LIMIT;
        while self.output.open && Instant::now() < until {
            match timeout(SILENCE, self.output.read()).await {
                Ok(read) => capture.push(read).await,
                Err(_) => break,
            }
        }
        let held = self.output.open.then_some(self.output);
        (ended, held)
    }

    /// Ends the whole group: politely first, then whoever is left.
    async fn kill(&mut self) {
        let group = Pid::from_raw(self.registration.pid());
        // ESRCH, the only error that a group of our own can give, means that it is gone.
        killpg(group, Signal::SIGTERM).ok();
        let all_gone = async {
            self.child.wait().await.ok();
            while killpg(group, None).is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(TERM_LIMIT, all_gone).await.is_err() {
            killpg(group, Signal::SIGKILL).ok();
            self.child.wait().await.ok();
        }
    }
}

impl Output {
    /// The next bytes; none at the end.
    async fn read(&mut self) -> &[u8] {
        let length = self.pipe.read(&mut self.chunk).await.unwrap_or_default();
        self.open = length > 0;
        &self.chunk[..length]
    }

    /// Reads until the last holder is gone, so that no background process is stopped by a full or broken pipe.
    pub(super) async fn drain(mut self, mut sink: super::capture::LogSink) {
        let mut keep = true;
        while self.open {
            let read = self.read().await;
            if keep && let Err(error) = sink.push(read).await {
                tracing::warn!(path = %sink.path().display(), %error, "the output of a background process is not kept");
                keep = false;
            }
        }
    }
}
