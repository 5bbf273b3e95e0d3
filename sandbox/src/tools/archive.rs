//! Folders as tar archives. An archive may come from anywhere: nothing in it is followed, and all that is kept of it in memory
//! is bounded.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, fchmod, linkat, mkdirat, openat, readlinkat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tar::{Archive, Builder, EntryType, Header, PaxExtensions};

use super::place::Place;
use super::transfer::{Incoming, TransferError, broken};
use crate::wire::Unpacked;

pub(super) const MAX_PATH: usize = 4096;
pub(super) const MAX_DEPTH: usize = 200;
/// Of the extensions of one entry, which hold its long names.
const MAX_EXTENSIONS: u64 = 64 * 1024;
/// Their modes are set at the end, so that one without write permission can be filled.
pub(super) const MAX_DIRECTORIES: usize = 1_000_000;

pub(super) const READ_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const READ_FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Writes what is below `root`. What is neither a directory, a regular file nor a link is left out; what goes meanwhile too.
pub(super) fn pack(root: &OwnedFd, to: &mut impl Write) -> io::Result<()> {
    let mut builder = Builder::new(to);
    builder.sparse(false);
    pack_directory(&mut builder, root, Path::new(""), 0)?;
    builder.finish()
}

fn pack_directory(builder: &mut Builder<impl Write>, directory: &OwnedFd, at: &Path, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{} is more than {MAX_DEPTH} directories deep", at.display())));
    }
    for name in names(directory)? {
        let name = OsStr::from_bytes(&name);
        match pack_entry(builder, directory, name, &at.join(name), depth) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// What is in a directory, in order.
pub(super) fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn pack_entry(
    builder: &mut Builder<impl Write>,
    directory: &OwnedFd,
    name: &OsStr,
    path: &Path,
    depth: usize,
) -> io::Result<()> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header.set_size(0);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let below = openat(directory, name, READ_DIRECTORY, Mode::empty())?;
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, path, io::empty())?;
            pack_directory(builder, &below, path, depth + 1)
        }
        FileType::RegularFile => {
            let file = File::from(openat(directory, name, READ_FILE, Mode::empty())?);
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Ok(());
            }
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
            let mut content = Exactly { file: file.take(metadata.len()), left: metadata.len() };
            builder.append_data(&mut header, path, &mut content)
        }
        FileType::Symlink => {
            let target = readlinkat(directory, name, Vec::new())?;
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, path, OsStr::from_bytes(target.to_bytes()))
        }
        _ => Ok(()),
    }
}

/// A file that fails if it ends before its size, which the archive has promised.
struct Exactly {
    file: io::Take<File>,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.left = self.left.saturating_sub(length as u64);
        if length == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other("a file has become shorter while it was read"));
        }
        Ok(length)
    }
}

/// Reads an archive into `root`. Links are made as they are, wherever they lead, and never followed.
pub(super) fn unpack(root: &OwnedFd, from: &mut impl Read) -> Result<Unpacked, TransferError> {
    let mut archive = Archive::new(from);
    let mut unpacked = Unpacked::default();
    let mut modes: Vec<(PathBuf, u32)> = Vec::new();
    let mut long = Long::default();
    // Raw: long names are read here, within bounds.
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions() {
            long.take(kind, &mut entry)?;
            continue;
        }
        if kind.is_pax_global_extensions() {
            continue;
        }
        let Long { path, link, size } = std::mem::take(&mut long);
        let in_header = entry.header().entry_size().map_err(broken)?;
        if size.is_some_and(|size| size != in_header) {
            return Err(refused(
                "the archive has a file whose size is in an extension only; pack it in the GNU format",
            ));
        }
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let Some(path) = relative(&path)? else { continue };
        let shown = path.clone();
        let failed = |error: io::Error| TransferError::of(&shown, &error);
        let mode = entry.header().mode().map_err(broken)?;
        let link = link.or_else(|| entry.link_name_bytes().map(Cow::into_owned));
        match kind {
            EntryType::Directory => {
                walk(root, &path).map_err(failed)?;
                if modes.len() >= MAX_DIRECTORIES {
                    return Err(refused("the archive has too many directories"));
                }
                modes.push((path, mode));
                continue;
            }
            EntryType::Regular | EntryType::Continuous => {
                let place = place(root, &path).map_err(failed)?;
                let mut incoming = Incoming::new(&place).map_err(failed)?;
                incoming.fill(&mut entry, &path)?;
                incoming.set_mode(mode).map_err(failed)?;
                let time = entry.header().mtime().unwrap_or_default();
                if let Some(time) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time)) {
                    incoming.file().set_modified(time).map_err(failed)?;
                }
                unpacked.bytes += incoming.persist(&place).map_err(failed)?;
            }
            EntryType::Symlink | EntryType::Link => {
                let target = link.filter(|link| (1..=MAX_PATH).contains(&link.len()) && !link.contains(&0));
                let target = target.ok_or_else(|| refused("the archive has a link without a target"))?;
                let place = place(root, &path).map_err(failed)?;
                make_link(root, &place, kind, &target).map_err(|error| match error {
                    Linking::Io(error) => failed(error),
                    Linking::Refused(error) => error,
                })?;
            }
            _ => {
                unpacked.skipped += 1;
                continue;
            }
        }
        unpacked.files += 1;
    }
    for (path, mode) in modes.iter().rev() {
        let set = || Ok::<_, io::Error>(fchmod(readable(root, path)?, Mode::from_raw_mode(mode & 0o777))?);
        set().map_err(|error| TransferError::of(path, &error))?;
    }
    Ok(unpacked)
}

/// Long names, of the entry that follows.
#[derive(Default)]
struct Long {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Long {
    fn take(&mut self, kind: EntryType, entry: &mut impl Read) -> Result<(), TransferError> {
        let mut bytes = Vec::new();
        entry.take(MAX_EXTENSIONS + 1).read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 > MAX_EXTENSIONS {
            return Err(refused("the archive has a name that is too long"));
        }
        let name = |mut bytes: Vec<u8>| {
            bytes.pop_if(|last| *last == 0);
            Some(bytes)
        };
        if kind.is_gnu_longname() {
            self.path = name(bytes);
        } else if kind.is_gnu_longlink() {
            self.link = name(bytes);
        } else {
            for extension in PaxExtensions::new(&bytes) {
                let extension = extension.map_err(broken)?;
                match extension.key_bytes() {
                    b"path" => self.path = Some(extension.value_bytes().to_vec()),
                    b"linkpath" => self.link = Some(extension.value_bytes().to_vec()),
                    b"size" => self.size = extension.value().ok().and_then(|size| size.parse().ok()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn refused(message: &str) -> TransferError {
    TransferError::Refused(message.to_owned())
}

/// The path of an entry below the root; none if it is the root itself.
fn relative(path: &[u8]) -> Result<Option<PathBuf>, TransferError> {
    let wrong = || refused("the archive has a path that leads out of it, or is too long");
    if path.len() > MAX_PATH || path.contains(&0) {
        return Err(wrong());
    }
    let mut plain = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => plain.push(name),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(wrong()),
        }
    }
    if plain.components().count() > MAX_DEPTH {
        return Err(wrong());
    }
    Ok((!plain.as_os_str().is_empty()).then_some(plain))
}

/// Goes down to a directory, and makes what is missing. A link on the way is not followed.
fn walk(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = root.try_clone()?;
    for name in path {
        match mkdirat(&at, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        at = openat(&at, name, flags, Mode::empty())?;
    }
    Ok(at)
}

fn readable(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let parent = walk(root, path.parent().unwrap_or_else(|| Path::new("")))?;
    let name = path.file_name().unwrap_or_else(|| OsStr::new("."));
    Ok(openat(&parent, name, READ_DIRECTORY, Mode::empty())?)
}

fn place(root: &OwnedFd, path: &Path) -> io::Result<Place> {
    let parent = walk(root, path.parent().unwrap_or_else(|| Path::new("")))?;
    let name = path.file_name().unwrap_or_default();
    Ok(Place::in_directory(parent, name, path))
}

enum Linking {
    Io(io::Error),
    Refused(TransferError),
}

impl From<io::Error> for Linking {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn make_link(root: &OwnedFd, place: &Place, kind: EntryType, target: &[u8]) -> Result<(), Linking> {
    let (directory, name) = (place.directory(), place.name());
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(Linking::Io(error.into())),
    }
    if kind == EntryType::Symlink {
        symlinkat(OsStr::from_bytes(target), directory, name).map_err(io::Error::from)?;
        return Ok(());
    }
    let source = relative(target).map_err(Linking::Refused)?;
    let source = source.ok_or_else(|| Linking::Refused(refused("the archive has a link to its root")))?;
    let source = self::place(root, &source)?;
    linkat(source.directory(), source.name(), directory, name, AtFlags::empty()).map_err(io::Error::from)?;
    Ok(())
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
