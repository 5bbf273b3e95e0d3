//! An interactive shell on a terminal of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus};

use nix::sys::signal::Signal;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe::{Receiver, Sender};

use super::spawned::{Launcher, Spawned, prepared};
use crate::supervise::Kind;

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    #[error("this image has neither bash nor sh")]
    NoShell,
    #[error("this sandboxd runs without supervisors, which terminals need")]
    NoSupervisor,
    #[error("the command contains a NUL byte")]
    Nul,
    #[error("no terminal could be opened: {0}")]
    Open(io::Error),
    #[error("the shell could not be started: {0}")]
    Start(io::Error),
}

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

/// A shell on a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) shell: Shell,
    pub(crate) screen: Screen,
}

/// The shell, and all that it starts.
#[derive(Debug)]
pub(crate) struct Shell(Spawned);

/// Our end of the terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    output: Receiver,
    input: Sender,
}

impl Terminal {
    /// Starts `command`, whose environment is given in full, on a terminal of the kind `name`.
    pub(super) fn start(
        mut command: Command,
        size: Size,
        name: &str,
        launcher: &Launcher,
    ) -> Result<Self, TerminalError> {
        if !launcher.children.are_supervised() {
            return Err(TerminalError::NoSupervisor);
        }
        let (master, slave) = pair(size).map_err(TerminalError::Open)?;
        let screen = Screen::of(master).map_err(TerminalError::Open)?;
        command.env("TERM", name);
        let mut command = prepared(command, Kind::Terminal, &launcher.children);
        command.stdout(slave.try_clone().map_err(TerminalError::Open)?).stderr(slave);
        let spawned = Spawned::start(command, Kind::Terminal, launcher).map_err(TerminalError::Start)?;
        Ok(Self { shell: Shell(spawned), screen })
    }
}

impl Shell {
    /// Waits for the end of the shell. May be dropped and called again until it has answered.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.wait().await
    }

    /// Ends the shell and all that runs below it, as a terminal that hangs up does.
    pub(crate) async fn hang_up(mut self) {
        self.0.kill(Signal::SIGHUP).await;
        self.0.leave().await;
    }
}

impl Screen {
    /// Of a terminal that does not block. It is no pipe, but waited for in the same way.
    fn of(master: OwnedFd) -> io::Result<Self> {
        let input = Sender::from_owned_fd_unchecked(rustix::io::fcntl_dupfd_cloexec(&master, 3)?)?;
        Ok(Self { output: Receiver::from_owned_fd_unchecked(master)?, input })
    }

    /// What the terminal shows next; 0 when nobody has it open any more. May be dropped and called again.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.output.readable().await?;
            match self.output.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // That is how Linux says that the other end is closed.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(0),
                read => return read,
            }
        }
    }

    /// Types as much as fits; how much that was. May be dropped and called again.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.input.writable().await?;
            match self.input.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    /// Tells the programs that the terminal has another size.
    pub(crate) fn resize(&self, size: Size) -> io::Result<()> {
        Ok(tcsetwinsize(&self.output, winsize(size))?)
    }
}

fn winsize(size: Size) -> Winsize {
    Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 }
}

fn pair(size: Size) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = openat(CWD, ptsname(&master, Vec::new())?, flags, Mode::empty())?;
    tcsetwinsize(&master, winsize(size))?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok((master, slave))
}
