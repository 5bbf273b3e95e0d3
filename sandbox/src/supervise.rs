//! The parent of one command: `sandboxd supervise (command | terminal | pipes) PROGRAM [ARGUMENT...]`.
//!
//! Whatever a command starts stays below its supervisor, also what has left its group and session and lost its parent: an
//! orphan's new parent is the nearest subreaper above it. So all processes of a command can be found, counted and killed.
//! The supervisor lives as long as any of them.
//!
//! Its standard input is where it reports to; its standard output and error become those of the command. With `pipes` it is a
//! socket, over which the command's input is handed to it first.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::SigSet;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{WaitOptions, ioctl_tiocsctty, setsid, wait};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The first argument that makes `sandboxd` a supervisor.
pub const ARGUMENT: &str = "supervise";

/// The command's processes die before `sandboxd` does when memory runs out; this is the most that can be asked for.
const FIRST_TO_DIE: &str = "1000";
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// How a command is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No input, in a process group of its own.
    Command,
    /// Standard output is a terminal, which becomes its input and its controlling terminal.
    Terminal,
    /// Its input is handed over by [`send_input`], in a process group of its own.
    Pipes,
}

impl Kind {
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Terminal => "terminal",
            Self::Pipes => "pipes",
        }
    }

    fn parse(argument: Option<&OsStr>) -> Option<Self> {
        [Self::Command, Self::Terminal, Self::Pipes].into_iter().find(|kind| argument == Some(kind.argument().as_ref()))
    }
}

/// What a supervisor reports, in records of [`Report::LENGTH`] bytes.
#[derive(Debug)]
pub(crate) enum Report {
    /// The command has ended; what it left behind may live on.
    Ended(ExitStatus),
    /// The command could not be started.
    Failed(io::Error),
}

impl Report {
    pub(crate) const LENGTH: usize = 5;

    fn encode(&self) -> [u8; Self::LENGTH] {
        let (tag, number) = match self {
            Self::Ended(status) => (b'E', status.into_raw()),
            Self::Failed(error) => (b'F', error.raw_os_error().unwrap_or_default()),
        };
        let [a, b, c, d] = number.to_le_bytes();
        [tag, a, b, c, d]
    }

    /// Reads one record; `None` if it is none.
    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        let (tag, number) = record.split_first()?;
        let number = i32::from_le_bytes(number.try_into().ok()?);
        match tag {
            b'E' => Some(Self::Ended(ExitStatus::from_raw(number))),
            b'F' => Some(Self::Failed(io::Error::from_raw_os_error(number))),
            _ => None,
        }
    }
}

/// Runs as a supervisor with what follows [`ARGUMENT`], until the last process of the command is gone.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let (Some(kind), Some(program)) = (Kind::parse(arguments.next().as_deref()), arguments.next()) else {
        return ExitCode::FAILURE;
    };
    let mut command = Command::new(program);
    command.args(arguments);
    match supervise(kind, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn supervise(kind: Kind, mut command: Command) -> io::Result<()> {
    set_child_subreaper(true)?;
    let mut reports = File::from(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?);
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    match kind {
        Kind::Command => {
            command.stdin(Stdio::null()).process_group(0);
        }
        Kind::Terminal => {
            setsid()?;
            ioctl_tiocsctty(io::stdout())?;
            command.stdin(rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?);
        }
        Kind::Pipes => {
            command.stdin(receive_input(&reports)?).process_group(0);
        }
    }
    let child = first_to_die(|| command.spawn());
    // A terminal's signals are for the command. Not sooner: a command inherits what is blocked.
    SigSet::all().thread_block()?;
    // The outputs must close with the last process of the command.
    dup2_stdout(&nothing)?;
    dup2_stderr(&nothing)?;
    drop(command);
    let pid = match child {
        Ok(child) => child.id(),
        Err(error) => return reports.write_all(&Report::Failed(error).encode()),
    };
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if u32::try_from(ended.as_raw_nonzero().get()) == Ok(pid) => {
                // Nobody listens any more when the call was given up; what it left is still to be waited for.
                reports.write_all(&Report::Ended(ExitStatus::from_raw(status.as_raw())).encode()).ok();
            }
            Ok(_) | Err(Errno::INTR) => {}
            // There is no child left.
            Err(_) => return Ok(()),
        }
    }
}

/// Hands the input of a command to its supervisor, which is or will be at the other end of `socket`.
pub(crate) fn send_input(socket: impl AsFd, input: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let input = [input];
    if !rights.push(SendAncillaryMessage::ScmRights(&input)) {
        return Err(io::Error::other("there is no room for a descriptor"));
    }
    sendmsg(socket, &[io::IoSlice::new(b"I")], &mut rights, SendFlags::empty())?;
    Ok(())
}

fn receive_input(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut tag = [0];
    recvmsg(socket, &mut [io::IoSliceMut::new(&mut tag)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    let mut given = rights.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    given.next().ok_or_else(|| io::Error::other("no input was handed over"))
}

/// Starts something that the kernel takes before others when memory runs out. Where that cannot be said, it starts all the same.
fn first_to_die<T>(start: impl FnOnce() -> T) -> T {
    let own = std::fs::read(OOM_SCORE);
    std::fs::write(OOM_SCORE, FIRST_TO_DIE).ok();
    let started = start();
    if let Ok(own) = own {
        std::fs::write(OOM_SCORE, own).ok();
    }
    started
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::{Kind, Report};

    #[test]
    fn reports_survive_the_wire() {
        for raw in [0, 9, 3 << 8, -1] {
            let record = Report::Ended(ExitStatus::from_raw(raw)).encode();
            assert!(matches!(Report::decode(&record), Some(Report::Ended(status)) if status.into_raw() == raw));
        }
        let record = Report::Failed(std::io::Error::from_raw_os_error(13)).encode();
        assert!(matches!(Report::decode(&record), Some(Report::Failed(error)) if error.raw_os_error() == Some(13)));
        for junk in [&b""[..], b"E", b"X\0\0\0\0", b"E\0\0\0\0\0"] {
            assert!(Report::decode(junk).is_none(), "{junk:?}");
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        for kind in [Kind::Command, Kind::Terminal, Kind::Pipes] {
            assert_eq!(Kind::parse(Some(kind.argument().as_ref())), Some(kind));
        }
        assert_eq!(Kind::parse(Some("other".as_ref())), None);
        assert_eq!(Kind::parse(None), None);
    }
}
