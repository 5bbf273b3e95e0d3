//! The whole of a workspace, on its way from one sandbox to another. Blocking.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::{fs::File, io, io::Read, io::Write};

use rustix::fs::{Access, AtFlags, FileType, Mode, accessat, chmodat, openat, statat, unlinkat};

use super::archive::{self, MAX_DEPTH, MAX_DIRECTORIES, MAX_PATH, READ_DIRECTORY};
use super::scratch;
use super::transfer::TransferError;
use crate::wire::Unpacked;

/// What a file system gives out at once.
const BLOCK: u64 = 4096;
/// What some file systems have in their root, which is not ours.
const LOST_AND_FOUND: &str = "lost+found";

/// A workspace of which all can be sent.
#[derive(Debug)]
pub(crate) struct Whole {
    root: OwnedFd,
    /// What a file system needs for it at the most, in bytes.
    pub(crate) bytes: u64,
}

impl Whole {
    /// Opens a workspace, unless there is something in it that could not be sent or unpacked again. Nothing may change it from now on.
    pub(crate) fn open(workspace: &Path) -> Result<Self, TransferError> {
        let failed = |error: io::Error| TransferError::of(workspace, &error);
        let root = OwnedFd::from(File::open(workspace).map_err(failed)?);
        let mut measured = Measured::default();
        measured.add(&root, Path::new(""), 0)?;
        Ok(Self { root, bytes: measured.bytes })
    }

    /// Sends it as a tar archive: directories, regular files and links.
    pub(crate) fn send(self, to: &mut impl Write) -> io::Result<()> {
        archive::pack(&self.root, to)
    }
}

#[derive(Default)]
struct Measured {
    bytes: u64,
    directories: usize,
}

impl Measured {
    fn add(&mut self, directory: &OwnedFd, at: &Path, depth: usize) -> Result<(), TransferError> {
        for name in archive::names(directory).map_err(|error| TransferError::of(at, &error))? {
            let name = OsStr::from_bytes(&name);
            let path = at.join(name);
            if depth >= MAX_DEPTH || path.as_os_str().len() > MAX_PATH {
                return Err(refused(&path, "is too deep, or its path too long, to be sent"));
            }
            let failed = |error: rustix::io::Errno| match error {
                rustix::io::Errno::ACCESS => refused(&path, "cannot be read by sandboxd"),
                other => TransferError::of(&path, &other.into()),
            };
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    self.directories += 1;
                    if self.directories > MAX_DIRECTORIES {
                        return Err(refused(&path, "is one directory more than can be sent"));
                    }
                    self.bytes = self.bytes.saturating_add(BLOCK);
                    let below = openat(directory, name, READ_DIRECTORY, Mode::empty()).map_err(failed)?;
                    self.add(&below, &path, depth + 1)?;
                }
                FileType::RegularFile => {
                    accessat(directory, name, Access::READ_OK, AtFlags::empty()).map_err(failed)?;
                    let size = u64::try_from(stat.st_size).unwrap_or_default();
                    self.bytes = self.bytes.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn refused(path: &Path, why: &str) -> TransferError {
    TransferError::Refused(format!("{} {why}", path.display()))
}

/// Puts what an archive holds in place of all that there is. If it ends too soon, a part of it is there.
pub(crate) fn replace(workspace: &Path, from: &mut impl Read) -> Result<Unpacked, TransferError> {
    let failed = |error: io::Error| TransferError::of(workspace, &error);
    let root = OwnedFd::from(File::open(workspace).map_err(failed)?);
    let keeps = |name: &OsStr| name == LOST_AND_FOUND || name.as_bytes().starts_with(scratch::PREFIX.as_bytes());
    clear(&root, Path::new(""), &keeps)?;
    archive::unpack(&root, from)
}

fn clear(directory: &OwnedFd, at: &Path, keeps: &dyn Fn(&OsStr) -> bool) -> Result<(), TransferError> {
    for name in archive::names(directory).map_err(|error| TransferError::of(at, &error))? {
        let name = OsStr::from_bytes(&name);
        if keeps(name) {
            continue;
        }
        let path = at.join(name);
        let remove = || {
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return unlinkat(directory, name, AtFlags::empty()).map(|()| None);
            }
            // One without write permission is not emptied.
            chmodat(directory, name, Mode::RWXU, AtFlags::empty())?;
            openat(directory, name, READ_DIRECTORY, Mode::empty()).map(Some)
        };
        // A program that runs beside the tools may make and remove what it likes meanwhile.
        let tolerated = |error: rustix::io::Errno| match error {
            rustix::io::Errno::NOENT | rustix::io::Errno::NOTEMPTY => Ok(None),
            other => Err(TransferError::of(&path, &other.into())),
        };
        if let Some(below) = remove().or_else(tolerated)? {
            clear(&below, &path, &|_| false)?;
            unlinkat(directory, name, AtFlags::REMOVEDIR).map(|()| None).or_else(tolerated)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Cursor;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
    use std::path::Path;

    use super::{BLOCK, Whole, replace};
    use crate::tools::transfer::TransferError;

    fn sent(workspace: &Path) -> (u64, Vec<u8>) {
        let whole = Whole::open(workspace).unwrap();
        let (bytes, mut archive) = (whole.bytes, Vec::new());
        whole.send(&mut archive).unwrap();
        (bytes, archive)
    }

    #[test]
    fn a_workspace_takes_the_place_of_another_one() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| from.path().join(name);
        fs::create_dir_all(at(".git/refs/empty")).unwrap();
        fs::write(at(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::create_dir_all(at(".longhand/provisioned")).unwrap();
        fs::write(at(".longhand/provisioned/mark"), "x").unwrap();
        fs::write(at("run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(at("run"), PermissionsExt::from_mode(0o755)).unwrap();
        symlink("run", at("link")).unwrap();
        symlink("/etc/hostname", at("out")).unwrap();

        // What a copy has left that was broken off.
        let there = |name: &str| to.path().join(name);
        fs::create_dir_all(there("half/inner")).unwrap();
        fs::write(there("half/inner/file"), "x").unwrap();
        fs::set_permissions(there("half/inner"), PermissionsExt::from_mode(0o555)).unwrap();
        fs::set_permissions(there("half"), PermissionsExt::from_mode(0o500)).unwrap();
        symlink(from.path(), there("link")).unwrap();
        fs::create_dir(there("lost+found")).unwrap();

        let (bytes, archive) = sent(from.path());
        assert_eq!(bytes, 8 * BLOCK, "five directories and three files");
        replace(to.path(), &mut Cursor::new(archive)).unwrap();
        let mut names: Vec<_> = fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".git", ".longhand", "link", "lost+found", "out", "run"]);
        assert!(there(".git/refs/empty").is_dir());
        assert_eq!(fs::read_to_string(there(".longhand/provisioned/mark")).unwrap(), "x");
        assert_eq!(fs::metadata(there("run")).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::read_link(there("link")).unwrap(), Path::new("run"));
        assert_eq!(fs::read_link(there("out")).unwrap(), Path::new("/etc/hostname"));
        assert!(at("run").exists(), "a link is not followed");
    }

    #[test]
    fn what_could_not_be_unpacked_again_is_said_before_anything_is_sent() {
        let from = tempfile::tempdir().unwrap();
        let deep = "d/".repeat(super::MAX_DEPTH + 1);
        fs::create_dir_all(from.path().join(deep)).unwrap();
        let error = Whole::open(from.path()).unwrap_err();
        assert!(matches!(&error, TransferError::Refused(why) if why.contains("too deep")), "{error:?}");
    }

    #[test]
    fn an_archive_that_ends_too_soon_is_begun_again() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("a"), "x".repeat(10_000)).unwrap();
        fs::write(from.path().join("b"), "y").unwrap();
        let (_, archive) = sent(from.path());
        let error = replace(to.path(), &mut Cursor::new(&archive[..5_000])).unwrap_err();
        assert!(matches!(error, TransferError::Broken(_)), "{error:?}");
        fs::write(to.path().join("left"), "x").unwrap();
        replace(to.path(), &mut Cursor::new(&archive)).unwrap();
        assert!(!to.path().join("left").exists());
        assert_eq!(fs::read_to_string(to.path().join("b")).unwrap(), "y");
    }
}
