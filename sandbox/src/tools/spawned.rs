//! A command with its supervisor, and the register of those whose processes live.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::tree::Tree;
use crate::server::reaper::{Children, Registration};
use crate::supervise::{self, Kind, Report};

/// What processes get to end by themselves before they are killed.
const TERM_LIMIT: Duration = Duration::from_secs(2);
/// The same when `sandboxd` itself ends, which the kubelet does not wait for much longer.
const END_LIMIT: Duration = Duration::from_secs(2);
/// A supervisor without processes is gone in less.
const LEAVE_LIMIT: Duration = Duration::from_millis(50);
/// A killed command's supervisor has nothing more to wait for.
const REPORT_LIMIT: Duration = Duration::from_secs(1);

/// Why a command was killed that nobody asked to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Excess {
    /// It had too many processes.
    #[error("killed: the command had {found} processes, more than the {limit} that a sandbox may have")]
    Processes { found: usize, limit: usize },
    /// It held the most memory when the sandbox had hardly any left.
    #[error(
        "killed: the sandbox was running out of memory ({} of {} MiB used), and this command held the most, {} MiB",
        used >> 20, limit >> 20, held >> 20
    )]
    Memory { used: u64, limit: u64, held: u64 },
}

/// The commands whose processes live. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commands {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    alive: Mutex<Alive>,
    started: Notify,
}

#[derive(Debug, Default)]
struct Alive {
    commands: BTreeMap<i32, Arc<Watched>>,
    last_background: Option<Instant>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) tree: Tree,
    excess: OnceLock<Excess>,
    background: AtomicBool,
}

impl Watched {
    /// Says why the command is being killed; the first reason stays.
    pub(super) fn condemn(&self, excess: Excess) {
        self.excess.set(excess).ok();
    }
}

impl Commands {
    /// Commands that were answered for, or started in the background, and have living processes.
    pub(crate) fn background(&self) -> usize {
        self.alive().commands.values().filter(|watched| watched.background.load(Ordering::Relaxed)).count()
    }

    /// When the last of the commands in the background went.
    pub(crate) fn last_background(&self) -> Option<Instant> {
        self.alive().last_background
    }

    /// All that live.
    pub(super) fn all(&self) -> Vec<Arc<Watched>> {
        self.alive().commands.values().cloned().collect()
    }

    /// Ends all that live: politely, and after a moment for good.
    pub(super) async fn end(&self) {
        let all = self.all();
        for watched in &all {
            watched.tree.signal(Signal::SIGTERM);
        }
        let gone = async {
            while all.iter().any(|watched| !watched.tree.is_gone()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(END_LIMIT, gone).await.is_err() {
            for watched in &all {
                watched.tree.kill().await;
            }
        }
    }

    /// Returns when there is a command.
    pub(super) async fn any(&self) {
        loop {
            let started = self.inner.started.notified();
            if !self.alive().commands.is_empty() {
                return;
            }
            started.await;
        }
    }

    fn watch(&self, tree: Tree) -> Watch {
        let watched = Arc::new(Watched { tree, excess: OnceLock::new(), background: AtomicBool::new(false) });
        self.alive().commands.insert(tree.root, Arc::clone(&watched));
        self.inner.started.notify_waiters();
        Watch { commands: self.clone(), watched }
    }

    fn alive(&self) -> MutexGuard<'_, Alive> {
        self.inner.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a command registered.
#[derive(Debug)]
struct Watch {
    commands: Commands,
    watched: Arc<Watched>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut alive = self.commands.alive();
        alive.commands.remove(&self.watched.tree.root);
        if self.watched.background.load(Ordering::Relaxed) {
            alive.last_background = Some(Instant::now());
        }
    }
}

/// What starts commands needs this.
#[derive(Clone, Debug, Default)]
pub(crate) struct Launcher {
    pub(crate) children: Children,
    pub(crate) commands: Commands,
}

/// A command that was started, without its output.
#[derive(Debug)]
pub(super) struct Spawned {
    child: Child,
    reports: Option<Receiver>,
    ended: bool,
    registration: Registration,
    watch: Watch,
}

impl Spawned {
    /// Starts `command`, whose outputs are set, whose environment is given in full, and which has no input but the terminal.
    pub(super) fn start(mut command: std::process::Command, kind: Kind, launcher: &Launcher) -> io::Result<Self> {
        let reports = if launcher.children.are_supervised() {
            let (reader, writer) = io::pipe()?;
            command.stdin(writer);
            Some(Receiver::from_owned_fd(OwnedFd::from(reader))?)
        } else {
            command.stdin(std::process::Stdio::null());
            None
        };
        if kind == Kind::Command {
            command.process_group(0);
        }
        Self::launch(command, reports, launcher)
    }

    /// The same with `input`, for a command below a supervisor.
    pub(super) fn start_with_input(
        mut command: std::process::Command,
        input: BorrowedFd<'_>,
        launcher: &Launcher,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        supervise::send_input(&ours, input)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        command.stdin(theirs);
        // It is no pipe, but waited for in the same way.
        let reports = Receiver::from_owned_fd_unchecked(ours)?;
        Self::launch(command, Some(reports), launcher)
    }

    fn launch(command: std::process::Command, reports: Option<Receiver>, launcher: &Launcher) -> io::Result<Self> {
        let supervised = reports.is_some();
        // Owned here, since it holds the write ends: they must close with the last process that has them.
        let (child, registration) = launcher.children.spawn(&mut Command::from(command))?;
        let watch = launcher.commands.watch(Tree { root: registration.pid(), supervised });
        Ok(Self { child, reports, ended: false, registration, watch })
    }

    /// Waits for the end of the command itself. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let Some(reports) = &mut self.reports else { return self.child.wait().await };
        let mut record = [0; Report::LENGTH];
        let length = reports.read(&mut record).await?;
        self.ended = true;
        match Report::decode(&record[..length]) {
            Some(Report::Ended(status)) => Ok(status),
            Some(Report::Failed(error)) => Err(error),
            None => Err(io::Error::other("its supervisor was killed")),
        }
    }

    /// Why it was killed, if it was too greedy.
    pub(super) fn excess(&self) -> Option<Excess> {
        self.watch.watched.excess.get().cloned()
    }

    pub(super) fn pid(&self) -> i32 {
        self.registration.pid()
    }

    pub(super) fn mark_background(&self) {
        self.watch.watched.background.store(true, Ordering::Relaxed);
    }

    /// Ends all processes of the command: with `first`, and those that are left after a while for good. Whether all are gone.
    pub(super) async fn kill(&mut self, first: Signal) -> bool {
        let tree = self.watch.watched.tree;
        tree.signal(first);
        let all_gone = async {
            while !tree.is_gone() {
                // A stopped process takes no signal before it goes on.
                tree.signal(Signal::SIGCONT);
                sleep(Duration::from_millis(20)).await;
                self.reap();
            }
        };
        let gone = timeout(TERM_LIMIT, all_gone).await.is_ok() || tree.kill().await;
        if !self.ended {
            timeout(REPORT_LIMIT, self.wait()).await.ok();
        }
        gone
    }

    /// Without a supervisor, nobody else takes notice of the end.
    fn reap(&mut self) {
        if self.reports.is_none() {
            self.child.try_wait().ok();
        }
    }

    /// Lets the command go on in the background with what it has left, until the last of its processes is gone.
    pub(super) async fn leave(mut self) {
        if timeout(LEAVE_LIMIT, self.child.wait()).await.is_ok() {
            return;
        }
        self.mark_background();
        tokio::spawn(async move {
            self.child.wait().await.ok();
            // All of it has to live until here, and a block takes only what is named in it.
            drop(self);
        });
    }
}

/// The command that runs `command` below a supervisor, if there is one.
pub(super) fn prepared(command: std::process::Command, kind: Kind, children: &Children) -> std::process::Command {
    if !children.are_supervised() {
        return command;
    }
    let mut outer = std::process::Command::new("/proc/self/exe");
    outer.arg0("sandboxd").args([supervise::ARGUMENT, kind.argument()]);
    outer.arg(command.get_program()).args(command.get_args()).env_clear();
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    outer
}
