//! A walk through a folder for `glob` and `grep`, in the order of the paths.
//!
//! Each directory is held open while what is in it is looked at, and no link is followed, so that a change of the tree meanwhile
//! leads nowhere else, and nothing but a regular file is ever read. What git ignores is left out, and what a file `.ignore` names;
//! what is merely hidden is not, but `.git` itself.

mod rules;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

use self::rules::{GIT, Rules, above, are_ignored};
use super::ToolError;
use super::archive::MAX_DEPTH;
use super::budget::Budget;
use super::files::io_error;
use super::place::Place;

const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// What was found: no directory, but maybe a link, a pipe or a socket.
#[derive(Debug)]
pub(super) struct Found {
    directory: Arc<OwnedFd>,
    name: OsString,
    kind: FileType,
    /// Below the path that the walk was given.
    pub(super) path: PathBuf,
}

impl Found {
    /// Opens it, if it is a regular file.
    pub(super) fn open(&self) -> Option<File> {
        (self.kind == FileType::RegularFile).then(|| open_regular(&*self.directory, &self.name)).flatten()
    }

    /// When it was changed; of a link, when the link was.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        let stat = statat(&*self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let part = Duration::from_nanos(stat.st_mtime_nsec);
        match u64::try_from(stat.st_mtime) {
            Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after) + part),
            Err(_) => None,
        }
    }
}

/// A regular file, opened without waiting for anybody.
fn open_regular(directory: impl AsFd, name: &OsStr) -> Option<File> {
    let file = File::from(openat(directory, name, READ, Mode::empty()).ok()?);
    file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
}

fn open_directory(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(directory, name, READ | OFlags::DIRECTORY, Mode::empty())?)
}

/// A directory on the way, with the names in it that are still to come.
#[derive(Debug)]
struct Level {
    directory: Arc<OwnedFd>,
    /// Relative to the start.
    path: PathBuf,
    names: std::vec::IntoIter<(OsString, FileType)>,
}

/// The walk.
#[derive(Debug)]
pub(super) struct Walk {
    /// What the start is called.
    shown: PathBuf,
    /// Where it is: what is ignored may be said above it.
    real: PathBuf,
    levels: Vec<Level>,
    /// Of the directories above the start, and of those on the way; the innermost last.
    rules: Vec<Rules>,
}

impl Walk {
    /// Starts in the directory at `place`.
    pub(super) fn new(place: &Place, budget: &Budget) -> Result<Self, ToolError> {
        let failed = |error: io::Error| io_error("search", &place.shown, &error);
        let directory = open_directory(place.directory(), place.name()).map_err(failed)?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).map_err(failed)?;
        let rules = above(&directory, &real);
        let mut walk = Self { shown: place.shown.clone(), real, levels: Vec::new(), rules };
        walk.enter(directory, PathBuf::new(), budget)?;
        Ok(walk)
    }

    /// The next one. What cannot be read (no permission, just deleted) is as if it were not there, and so is what is more than 200
    /// directories deep.
    pub(super) fn next(&mut self, budget: &Budget) -> Result<Option<Found>, ToolError> {
        while let Some(level) = self.levels.last_mut() {
            budget.check()?;
            let Some((name, kind)) = level.names.next() else {
                self.levels.pop();
                self.rules.pop();
                continue;
            };
            let (path, directory) = (level.path.join(&name), Arc::clone(&level.directory));
            let is_directory = kind == FileType::Directory;
            if are_ignored(&self.rules, &self.real.join(&path), is_directory) {
                continue;
            }
            if !is_directory {
                return Ok(Some(Found { directory, name, kind, path: self.shown.join(path) }));
            }
            if self.levels.len() < MAX_DEPTH
                && let Ok(inner) = open_directory(&*directory, &name)
            {
                self.enter(inner, path, budget)?;
            }
        }
        Ok(None)
    }

    fn enter(&mut self, directory: OwnedFd, path: PathBuf, budget: &Budget) -> Result<(), ToolError> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).into_iter().flatten() {
            budget.check()?;
            let Ok(entry) = entry else { break };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." || name == GIT {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(_) => continue,
                },
                known => known,
            };
            names.push((name.to_owned(), kind));
        }
        names.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        self.rules.push(Rules::of(&directory, &self.real.join(&path)));
        self.levels.push(Level { directory: Arc::new(directory), path, names: names.into_iter() });
        Ok(())
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
