//! Where a path leads.
//!
//! The sandbox itself is the boundary: a path outside of the workspace, such as `/etc/os-release`, is taken as it is. But a
//! path that is written as one in the workspace stays in it: links are followed step by step, each step holding the directory
//! that the next one starts from, and one that leads out is refused, with the place that it leads to. So a link in a
//! repository cannot make a tool change or show what was not named, and nothing that changes the tree meanwhile can either.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::ToolError;
use super::files::io_error;

const MAX_LINKS: usize = 40;
const HOLD: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW_DIRECTORY: Mode = Mode::from_raw_mode(0o777);

/// What to do when a directory on the way does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Fail,
    Make,
}

/// A name in a directory that is held open. The name is not that of a link, unless somebody has put one there meanwhile.
#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    name: OsString,
    /// As it was asked for.
    pub(super) shown: PathBuf,
}

/// Why a walk did not arrive.
enum Stop {
    Io(io::Error),
    Leaves(PathBuf),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl Place {
    /// Follows a path that is absolute.
    pub(super) fn find(workspace: &Path, path: &Path, missing: Missing) -> Result<Self, ToolError> {
        let found = match lexical(path).strip_prefix(workspace) {
            Ok(_) => Self::inside(workspace, path, missing),
            Err(_) => Self::outside(path, missing).map_err(Stop::Io),
        };
        found.map_err(|stop| match stop {
            Stop::Leaves(target) => ToolError(format!(
                "{} leads out of the workspace by a link, to {}; give that path itself if it is meant",
                path.display(),
                target.display()
            )),
            Stop::Io(error) if error.kind() == ErrorKind::NotADirectory => {
                ToolError(format!("{}: a part of the path is not a directory", path.display()))
            }
            Stop::Io(error) => io_error("use", path, &error),
        })
    }

    fn inside(workspace: &Path, path: &Path, missing: Missing) -> Result<Self, Stop> {
        // `..` is kept: what it means depends on the links before it. The workspace's own name has none.
        let rest = path.strip_prefix(workspace).map_or_else(|_| lexical(path), Path::to_owned);
        let rest = rest.strip_prefix(workspace).map(Path::to_owned).unwrap_or(rest);
        let root = openat(CWD, workspace, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut held = vec![root];
        let mut names = names(&rest);
        let mut links = 0;
        while let Some(name) = names.pop_front() {
            if name == ".." {
                if held.len() == 1 {
                    return Err(Stop::Leaves(workspace.join("..")));
                }
                held.pop();
                continue;
            }
            let Some(top) = held.last() else { break };
            let entry = match openat(top, &name, HOLD, Mode::empty()) {
                Err(Errno::NOENT) if names.is_empty() => return Ok(Self::at(held, name, path)),
                Err(Errno::NOENT) if missing == Missing::Make => {
                    match mkdirat(top, &name, NEW_DIRECTORY) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    openat(top, &name, HOLD, Mode::empty())?
                }
                other => other?,
            };
            match FileType::from_raw_mode(fstat(&entry)?.st_mode) {
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = PathBuf::from(OsString::from_vec(readlinkat(&entry, "", Vec::new())?.into_bytes()));
                    let target = match (target.is_absolute(), target.strip_prefix(workspace)) {
                        (false, _) => target,
                        (true, Ok(rest)) => {
                            held.truncate(1);
                            rest.to_owned()
                        }
                        (true, Err(_)) => return Err(Stop::Leaves(target)),
                    };
                    for name in self::names(&target).into_iter().rev() {
                        names.push_front(name);
                    }
                }
                _ if names.is_empty() => return Ok(Self::at(held, name, path)),
                FileType::Directory => held.push(entry),
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        Ok(Self::at(held, ".".into(), path))
    }

    fn outside(path: &Path, missing: Missing) -> io::Result<Self> {
        let real = match std::fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if error.kind() == ErrorKind::NotFound => match std::fs::read_link(path) {
                Ok(link) => path.parent().unwrap_or(path).join(link),
                Err(_) => path.to_owned(),
            },
            Err(error) => return Err(error),
        };
        let (parent, name) = match (real.parent(), real.file_name()) {
            (Some(parent), Some(name)) => (parent, name.to_owned()),
            _ => (real.as_path(), OsString::from(".")),
        };
        if missing == Missing::Make {
            std::fs::create_dir_all(parent).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => io::Error::from(ErrorKind::NotADirectory),
                _ => error,
            })?;
        }
        let directory = openat(CWD, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { directory, name, shown: path.to_owned() })
    }

    fn at(mut held: Vec<OwnedFd>, name: OsString, path: &Path) -> Self {
        // The first one is never taken away, so that the last one is always there.
        let directory = held.swap_remove(held.len() - 1);
        Self { directory, name, shown: path.to_owned() }
    }

    /// A name in a directory that was reached in another way.
    pub(super) fn in_directory(directory: OwnedFd, name: &OsStr, shown: &Path) -> Self {
        Self { directory, name: name.to_owned(), shown: shown.to_owned() }
    }

    /// The directory of the place.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// The name in it.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// A path to the directory that stays right whatever is renamed, as long as this value lives.
    pub(super) fn directory_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }

    /// What is there, without following a link.
    pub(super) fn stat(&self) -> io::Result<Stat> {
        Ok(statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens what is there for reading. It waits for nobody, and follows no link.
    pub(super) fn open(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&self.directory, &self.name, flags, Mode::empty())?.into())
    }
}

/// The path without `.` and with `..` taken literally: what it says, not where it leads.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => _ = plain.pop(),
            other => plain.push(other),
        }
    }
    plain
}

fn names(path: &Path) -> VecDeque<OsString> {
    let of = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::from_bytes(b"..").to_owned()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rstest::rstest;

    use super::{Missing, Place, lexical};

    /// A workspace `w` beside a file that is none of its business.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let workspace = base.join("w");
        fs::create_dir_all(workspace.join("sub/deep")).unwrap();
        fs::write(base.join("secret"), "secret").unwrap();
        fs::write(workspace.join("sub/file"), "inside").unwrap();
        let link = |target: &str, name: &str| symlink(target, workspace.join(name)).unwrap();
        link("sub", "to-sub");
        link("../file", "sub/deep/up");
        link("../secret", "relative");
        link(base.join("secret").to_str().unwrap(), "absolute");
        link(workspace.join("sub/file").to_str().unwrap(), "absolute-inside");
        link("..", "parent");
        link("relative", "chain");
        link("ring-b", "ring-a");
        link("ring-a", "ring-b");
        link("sub/new", "dangling");
        (dir, workspace)
    }

    fn read(workspace: &Path, path: &str) -> Result<String, String> {
        let place = Place::find(workspace, &workspace.join(path), Missing::Fail).map_err(|error| error.0)?;
        let mut text = String::new();
        place.open().and_then(|mut file| file.read_to_string(&mut text)).map_err(|error| error.to_string())?;
        Ok(text)
    }

    #[rstest]
    #[case("sub/file")]
    #[case("./sub//deep/../file")]
    #[case("to-sub/file")]
    #[case("to-sub/deep/up")]
    #[case("absolute-inside")]
    #[case("to-sub/../to-sub/file")]
    fn links_inside_are_followed(#[case] path: &str) {
        let (_dir, workspace) = tree();
        assert_eq!(read(&workspace, path).unwrap(), "inside");
        assert_eq!(read(&workspace, workspace.join(path).to_str().unwrap()).unwrap(), "inside");
    }

    #[rstest]
    #[case("relative")]
    #[case("absolute")]
    #[case("chain")]
    #[case("parent/secret")]
    #[case("parent/w/parent/secret")]
    #[case("to-sub/../../w/relative")]
    fn links_that_lead_out_are_refused(#[case] path: &str) {
        let (_dir, workspace) = tree();
        let error = read(&workspace, path).unwrap_err();
        assert!(error.contains("leads out of the workspace by a link, to "), "{error}");
    }

    #[test]
    fn what_is_named_outside_is_taken_as_it_is() {
        let (dir, workspace) = tree();
        assert_eq!(read(&workspace, "../secret").unwrap(), "secret");
        let link = dir.path().canonicalize().unwrap().join("link");
        symlink("secret", &link).unwrap();
        assert_eq!(read(&workspace, link.to_str().unwrap()).unwrap(), "secret");
    }

    #[rstest]
    #[case("ring-a", "symbolic links")]
    #[case("missing/file", "does not exist")]
    #[case("sub/file/below", "a part of the path is not a directory")]
    fn what_is_wrong_is_said(#[case] path: &str, #[case] message: &str) {
        let (_dir, workspace) = tree();
        let error = read(&workspace, path).unwrap_err();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn what_does_not_exist_has_a_place() {
        let (_dir, workspace) = tree();
        let find = |path: &str, missing| Place::find(&workspace, &workspace.join(path), missing);
        let place = find("dangling", Missing::Fail).unwrap();
        fs::write(place.directory_path().join(place.name()), "made").unwrap();
        assert_eq!(fs::read_to_string(workspace.join("sub/new")).unwrap(), "made");
        let place = find("to-sub/a/b/c", Missing::Make).unwrap();
        assert!(workspace.join("sub/a/b").is_dir() && place.stat().is_err());
        assert_eq!(find(".", Missing::Fail).unwrap().name(), ".");
    }

    #[test]
    fn nobody_wins_a_race_with_a_walk() {
        let (_dir, workspace) = tree();
        let flip = workspace.join("flip");
        fs::create_dir(&flip).unwrap();
        fs::write(flip.join("secret"), "inside").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&flip, workspace.join("aside")).unwrap();
                    symlink("..", &flip).unwrap();
                    fs::remove_file(&flip).unwrap();
                    fs::rename(workspace.join("aside"), &flip).unwrap();
                }
            });
            for _ in 0..3000 {
                if let Ok(text) = read(&workspace, "flip/secret") {
                    assert_eq!(text, "inside");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    #[rstest]
    #[case("/a/./b/../c", "/a/c")]
    #[case("/a/../../b", "/b")]
    #[case("/", "/")]
    fn a_path_says_what_it_says(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(lexical(Path::new(path)), Path::new(expected));
    }
}
