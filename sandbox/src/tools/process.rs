//! One command: its output in one stream, its end, and its forced end.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::capture::{Capture, Sink};
use super::spawned::{Excess, Launcher, Spawned, prepared};
use crate::supervise::Kind;

// What was written before the shell ended is in the pipe by then: silence means that there is no more.
const SILENCE: Duration = Duration::from_millis(50);
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
const CHUNK: usize = 32 * 1024;

/// How a command came to its end.
#[derive(Debug)]
pub(super) enum Ended {
    Exited(io::Result<ExitStatus>),
    Killed(Excess),
    TimedOut { all: bool },
    Interrupted,
}

/// A running command.
#[derive(Debug)]
pub(super) struct Process {
    spawned: Spawned,
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
    /// Starts `command`, whose environment is given in full, with nothing to read and both outputs in one pipe.
    pub(super) fn start(command: std::process::Command, launcher: &Launcher) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let pipe = Receiver::from_owned_fd(OwnedFd::from(reader))?;
        let mut command = prepared(command, Kind::Command, &launcher.children);
        command.stdout(writer.try_clone()?).stderr(writer);
        let spawned = Spawned::start(command, Kind::Command, launcher)?;
        Ok(Self { spawned, output: Output { pipe, chunk: vec![0; CHUNK], open: true } })
    }

    /// Waits for the end of the command, and brings it about at `deadline` or when cancelled. The pipe comes back if some
    /// process still holds it.
    pub(super) async fn finish(
        mut self,
        deadline: Instant,
        cancel: &CancellationToken,
        capture: &mut Capture<'_>,
    ) -> (Ended, Option<Output>) {
        let mut ended = loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break Ended::Interrupted,
                () = sleep_until(deadline) => break Ended::TimedOut { all: true },
                status = self.spawned.wait() => break Ended::Exited(status),
                read = self.output.read(), if self.output.open => capture.push(read).await,
            }
        };
        if let Some(excess) = self.spawned.excess() {
            ended = Ended::Killed(excess);
        }
        match &mut ended {
            Ended::Exited(_) | Ended::Killed(_) => {}
            Ended::Interrupted => _ = self.spawned.kill(Signal::SIGTERM).await,
            Ended::TimedOut { all } => *all = self.spawned.kill(Signal::SIGTERM).await,
        }
        let until = Instant::now() + DRAIN_LIMIT;
        while self.output.open && Instant::now() < until {
            match timeout(SILENCE, self.output.read()).await {
                Ok(read) => capture.push(read).await,
                Err(_) => break,
            }
        }
        self.spawned.leave().await;
        let held = self.output.open.then_some(self.output);
        (ended, held)
    }

    /// Follows the command in the background to its end, or to its forced end when cancelled. Its output goes to `sink`.
    pub(super) async fn follow(mut self, cancel: &CancellationToken, sink: &mut Sink) -> Ended {
        self.spawned.mark_background();
        let mut ended = loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break Ended::Interrupted,
                status = self.spawned.wait() => break Ended::Exited(status),
                read = self.output.read(), if self.output.open => sink.push(read).await,
            }
        };
        if let Some(excess) = self.spawned.excess() {
            ended = Ended::Killed(excess);
        }
        // What it left behind holds the output; it is read until the last of them is gone.
        let rest = async {
            while self.output.open {
                sink.push(self.output.read().await).await;
            }
        };
        cancel.run_until_cancelled(rest).await;
        if cancel.is_cancelled() {
            self.spawned.kill(Signal::SIGTERM).await;
        }
        self.spawned.leave().await;
        ended
    }

    /// Ends the command, which nobody wants any more.
    pub(super) async fn abandon(mut self) {
        self.spawned.kill(Signal::SIGTERM).await;
        self.spawned.leave().await;
    }

    /// The process that stands for the command: its supervisor, or its shell.
    pub(super) fn pid(&self) -> i32 {
        self.spawned.pid()
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
    pub(super) async fn drain(mut self, mut sink: Sink) {
        while self.open {
            sink.push(self.read().await).await;
        }
    }
}
