//! An interactive shell on a terminal of its own, or a command with pipes.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
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

/// A shell on a terminal, or with pipes.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) shell: Shell,
    pub(crate) screen: Screen,
}

/// The shell, and all that it starts.
#[derive(Debug)]
pub(crate) struct Shell(Spawned);

/// Our end of the terminal, or of the pipes.
#[derive(Debug)]
pub(crate) struct Screen {
    output: Receiver,
    /// Of pipes: a terminal shows errors among the rest.
    errors: Option<Receiver>,
    /// None when nothing more is to come.
    input: Option<Sender>,
}

/// What a command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlet {
    Output,
    Errors,
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

    /// Starts `command`, whose environment is given in full, with pipes.
    pub(super) fn start_with_pipes(command: Command, launcher: &Launcher) -> Result<Self, TerminalError> {
        if !launcher.children.are_supervised() {
            return Err(TerminalError::NoSupervisor);
        }
        let mut command = prepared(command, Kind::Pipes, &launcher.children);
        let mut pipes = || -> io::Result<(io::PipeReader, Screen)> {
            let ((input, ours), (output, its_output), (errors, its_errors)) = (io::pipe()?, io::pipe()?, io::pipe()?);
            command.stdout(its_output).stderr(its_errors);
            let screen = Screen {
                output: Receiver::from_owned_fd(output.into())?,
                errors: Some(Receiver::from_owned_fd(errors.into())?),
                input: Some(Sender::from_owned_fd(ours.into())?),
            };
            Ok((input, screen))
        };
        let (input, screen) = pipes().map_err(TerminalError::Open)?;
        let spawned = Spawned::start_with_input(command, input.as_fd(), launcher).map_err(TerminalError::Start)?;
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
        Ok(Self { output: Receiver::from_owned_fd_unchecked(master)?, errors: None, input: Some(input) })
    }

    /// What comes out next; 0 when nobody has it open any more. May be dropped and called again.
    pub(crate) async fn read(&self, from: Outlet, buffer: &mut [u8]) -> io::Result<usize> {
        let from = match (from, &self.errors) {
            (Outlet::Output, _) => &self.output,
            (Outlet::Errors, Some(errors)) => errors,
            (Outlet::Errors, None) => return Ok(0),
        };
        loop {
            from.readable().await?;
            match from.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // That is how Linux says that the other end is closed.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(0),
                read => return read,
            }
        }
    }

    /// Types as much as fits; how much that was. May be dropped and called again.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        // What comes after the end is for nobody.
        let Some(input) = &self.input else { return Ok(bytes.len()) };
        loop {
            input.writable().await?;
            match input.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    /// Whether it is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.errors.is_none()
    }

    /// Nothing more is to come.
    pub(crate) fn end_input(&mut self) {
        self.input = None;
    }

    /// Tells the programs that the terminal has another size. Pipes have none.
    pub(crate) fn resize(&self, size: Size) -> io::Result<()> {
        if !self.is_terminal() {
            return Ok(());
        }
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
