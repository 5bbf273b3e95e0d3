//! `sandboxd` is the first process of its container: what loses its parent becomes its child, and must be waited for.
//!
//! The processes that `sandboxd` starts itself are waited for by whoever started them. They are registered, and never
//! touched here, so that no exit status is stolen.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// The children that somebody waits for.
#[derive(Clone, Debug, Default)]
pub struct Children {
    inner: Arc<Inner>,
    supervised: bool,
}

#[derive(Debug, Default)]
struct Inner {
    own: Mutex<HashSet<i32>>,
    released: Notify,
}

/// Keeps a child registered; to be dropped after the child has been waited for.
#[derive(Debug)]
pub(crate) struct Registration {
    inner: Arc<Inner>,
    pid: i32,
}

impl Children {
    /// Commands run below a supervisor (see [`crate::supervise`]), which is this very program. Only for one that hands its
    /// arguments to [`crate::supervise::main`]; otherwise a command that leaves its process group outlives its call.
    #[must_use]
    pub fn supervised() -> Self {
        Self { supervised: true, ..Self::default() }
    }

    pub(crate) fn are_supervised(&self) -> bool {
        self.supervised
    }

    /// Starts a process that its caller will wait for.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(Child, Registration)> {
        // Under the lock, so that a child that ends at once is registered before anybody looks for orphans.
        let mut own = self.inner.own();
        let child = command.spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
        own.insert(pid);
        Ok((child, Registration { inner: Arc::clone(&self.inner), pid }))
    }
}

impl Registration {
    /// The process id, which is also that of its process group.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.inner.own().remove(&self.pid);
        self.inner.released.notify_one();
    }
}

impl Inner {
    fn own(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for every dead child that is nobody's. Stops at a registered one: its release brings us back.
    fn reap(&self) {
        let own = self.own();
        loop {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let pid = match waitid(Id::All, flags) {
                Ok(status) => match status.pid() {
                    Some(pid) if !own.contains(&pid.as_raw()) => pid,
                    _ => return,
                },
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            debug!(pid = pid.as_raw(), "reaping an orphan");
            if waitpid(Pid::from_raw(pid.as_raw()), Some(WaitPidFlag::WNOHANG)).is_err() {
                return;
            }
        }
    }
}

/// Adopts and reaps orphans until `stop`. Only for a process whose children are all started through `children`.
pub async fn run(children: Children, stop: CancellationToken) -> io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    set_child_subreaper(true)?;
    loop {
        children.inner.reap();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ended.recv() => {}
            () = children.inner.released.notified() => {}
        }
    }
}
