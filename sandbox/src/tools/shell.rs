//! What stays from one command to the next: the working directory and the environment. Each command has a shell of its own,
//! so that commands can run in parallel and none can break the next one; the last to end decides what stays.

use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;
use tempfile::TempDir;

const MAX_SAVED_BYTES: u64 = 1024 * 1024;

// On exit, the shell leaves its environment and then, as a sign that it is whole, its directory beside the script.
// `.` and `$(<` need no program of the image.
const BASH: &str = concat!(
    r#"__lh=$1; shift; trap '__lh_status=$?; { command -p env -0 >"$__lh.env" && pwd >"$__lh.cwd"; } 2>/dev/null || :; "#,
    r#"exit "$__lh_status"' EXIT; eval "$(<"$__lh.sh")""#
);
const SH: &str = concat!(
    r#"__lh=$1; shift; trap '__lh_status=$?; { command -p env -0 >"$__lh.env" && pwd >"$__lh.cwd"; } 2>/dev/null || :; "#,
    r#"exit "$__lh_status"' EXIT; . "$__lh.sh""#
);

// Set by the shell for itself: handing them on would be wrong or pointless.
const OF_ONE_SHELL: [&str; 2] = ["_", "SHLVL"];

/// A shell of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interpreter {
    pub(super) program: PathBuf,
    wrapper: &'static str,
}

impl Interpreter {
    /// The best shell in the directories of `path`, and in the usual ones.
    pub(super) fn find(path: Option<&OsStr>) -> Option<Self> {
        let both = [("bash", BASH), ("sh", SH)];
        both.into_iter().find_map(|(name, wrapper)| Some(Self { program: program(name, path)?, wrapper }))
    }

    /// A POSIX shell at this place.
    #[cfg(test)]
    pub(super) fn sh(program: PathBuf) -> Self {
        Self { program, wrapper: SH }
    }

    /// The arguments that make the shell run `base`.sh and leave `base`.cwd and `base`.env.
    pub(super) fn arguments<'a>(&'a self, base: &'a Path) -> [&'a OsStr; 4] {
        let name = self.program.file_name().unwrap_or_else(|| OsStr::new("sh"));
        [OsStr::new("-c"), OsStr::new(self.wrapper), name, base.as_os_str()]
    }
}

/// The program of this name, or at this absolute path, in the directories of `path` and in the usual ones.
pub(super) fn program(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let usual = ["/bin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    let directories = path.map(std::env::split_paths).into_iter().flatten().chain(usual);
    // An absolute name takes the place of the directory.
    let mut programs = directories.filter(|directory| directory.is_absolute()).map(|directory| directory.join(name));
    programs.find(|program| is_executable(program))
}

fn is_executable(program: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(program).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Where a command starts, and with which environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShellState {
    pub(super) cwd: PathBuf,
    pub(super) environment: Vec<(OsString, OsString)>,
}

/// The files of one command; they go with this value.
#[derive(Debug)]
pub(super) struct Handover {
    base: PathBuf,
    /// The directory that was made for it where the usual one is full.
    _spare: Option<TempDir>,
}

impl Handover {
    /// Writes the script at `base`, or in a directory of its own in one of `spares` if there is no room: a shell is what a full
    /// disk is cleared with.
    pub(super) fn write(base: PathBuf, spares: &[&Path], command: &str) -> std::io::Result<Self> {
        Self::somewhere(&write_script, base, spares, command)
    }

    fn somewhere(
        write: &dyn Fn(&Path, &str) -> std::io::Result<()>,
        base: PathBuf,
        spares: &[&Path],
        command: &str,
    ) -> std::io::Result<Self> {
        // Made first, so that a part of a script goes too.
        let usual = Self { base, _spare: None };
        let error = match write(&usual.base, command) {
            Ok(()) => return Ok(usual),
            Err(error) => error,
        };
        if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return Err(error);
        }
        let spare = |parent: &&Path| {
            let dir = tempfile::Builder::new().prefix(".sandboxd-").tempdir_in(parent).ok()?;
            let handover = Self { base: dir.path().join("1"), _spare: Some(dir) };
            write(&handover.base, command).ok().map(|()| handover)
        };
        spares.iter().find_map(spare).ok_or(error)
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.base.with_extension(extension)
    }

    /// What the shell has left, if it came to its end in an orderly way.
    pub(super) fn state(&self) -> Option<ShellState> {
        let cwd = parse_cwd(bounded(&self.file("cwd"))?)?;
        Some(ShellState { cwd, environment: parse_environment(&bounded(&self.file("env"))?)? })
    }
}

fn write_script(base: &Path, command: &str) -> std::io::Result<()> {
    // New: what an earlier command may have put there is not opened.
    let mut options = std::fs::File::options();
    options.write(true).create_new(true).mode(0o600).open(base.with_extension("sh"))?.write_all(command.as_bytes())
}

impl Drop for Handover {
    fn drop(&mut self) {
        for extension in ["sh", "cwd", "env"] {
            // Two of the three need not exist, and what stays goes with the directory.
            std::fs::remove_file(self.file(extension)).ok();
        }
    }
}

fn bounded(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    // A command may have put a pipe there: to open one would wait for a writer.
    let file = std::fs::File::options().read(true).custom_flags(O_NONBLOCK).open(path).ok()?;
    file.take(MAX_SAVED_BYTES + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= MAX_SAVED_BYTES).then_some(bytes)
}

fn parse_cwd(mut bytes: Vec<u8>) -> Option<PathBuf> {
    bytes.pop_if(|last| *last == b'\n');
    let cwd = PathBuf::from(OsString::from_vec(bytes));
    cwd.is_absolute().then_some(cwd)
}

/// Reads `NAME=value` pairs that end in NUL. A file that was not written to its end is no environment.
fn parse_environment(bytes: &[u8]) -> Option<Vec<(OsString, OsString)>> {
    let pairs = bytes.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    let pair = |bytes: &[u8]| {
        let equals = bytes.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
        Some((OsStr::from_bytes(&bytes[..equals]).to_owned(), OsStr::from_bytes(&bytes[equals + 1..]).to_owned()))
    };
    Some(pairs.filter_map(pair).filter(|(name, _)| OF_ONE_SHELL.iter().all(|other| name != other)).collect())
}

#[cfg(test)]
mod tests {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use rstest::rstest;

    use super::{Handover, Interpreter, bounded, parse_cwd, parse_environment};

    #[rstest]
    #[case(b"A=1\0B=x=y\nz\0", Some(vec![("A", "1"), ("B", "x=y\nz")]))]
    #[case(b"_=/bin/env\0SHLVL=2\0PATH=/bin\0", Some(vec![("PATH", "/bin")]))]
    #[case(b"EMPTY=\0=odd\0odd\0", Some(vec![("EMPTY", "")]))]
    #[case(b"A=1\0B=cut", None)]
    #[case(b"", None)]
    fn environments_are_read(#[case] bytes: &[u8], #[case] expected: Option<Vec<(&str, &str)>>) {
        let expected = expected.map(|pairs| {
            pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect::<Vec<(OsString, OsString)>>()
        });
        assert_eq!(parse_environment(bytes), expected);
    }

    #[rstest]
    #[case(b"/a b\n", Some("/a b"))]
    #[case(b"/a\n\n", Some("/a\n"))]
    #[case(b"relative\n", None)]
    #[case(b"", None)]
    fn directories_are_read(#[case] bytes: &[u8], #[case] expected: Option<&str>) {
        assert_eq!(parse_cwd(bytes.to_vec()), expected.map(PathBuf::from));
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1.sh", "1.cwd"] {
            nix::unistd::mkfifo(&dir.path().join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let base = dir.path().join("1");
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let left = bounded(&base.with_extension("cwd"));
            sender
                .send((left.is_none_or(|bytes| bytes.is_empty()), Handover::write(base, &[], "true").is_err()))
                .unwrap();
        });
        assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(20)), Ok((true, true)));
    }

    #[test]
    fn a_full_disk_does_not_take_the_shell_away() {
        // What is written to this file finds no room; the real directory stays writable.
        let (full, spare) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let nowhere = full.path().join("missing");
        let full = |_: &std::path::Path, _: &str| Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        let handover = Handover::somewhere(&full, nowhere.join("1"), &[&nowhere, spare.path()], "true");
        assert_eq!(handover.unwrap_err().kind(), std::io::ErrorKind::StorageFull, "no spare has room either");
        let only_spare = |base: &std::path::Path, command: &str| match base.starts_with(spare.path()) {
            true => super::write_script(base, command),
            false => full(base, command),
        };
        let handover = Handover::somewhere(&only_spare, nowhere.join("1"), &[&nowhere, spare.path()], "true").unwrap();
        assert_eq!(std::fs::read_to_string(handover.base().with_extension("sh")).unwrap(), "true");
        drop(handover);
        assert_eq!(std::fs::read_dir(spare.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn bash_is_taken_before_sh_and_only_if_it_can_run() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("bash");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o644)).unwrap();
        let found = Interpreter::find(Some(dir.path().as_os_str())).unwrap();
        assert_ne!(found.program, program);
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(Interpreter::find(Some(dir.path().as_os_str())).unwrap().program, program);
        assert!(Interpreter::find(Some(OsStr::new("relative"))).unwrap().program.is_absolute());
    }
}
