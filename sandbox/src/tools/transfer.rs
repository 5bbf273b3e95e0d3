//! Whole files and folders, in and out, as streams. Blocking; how fast it goes is up to the other end.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use tempfile::NamedTempFile;

use super::place::{Missing, Place};
use super::{ToolError, resolve};
use crate::wire::{Stored, Unpacked};

const CHUNK: usize = 64 * 1024;
/// What a mode may hold: no set-user-id and the like.
const MODE: u32 = 0o777;

/// Why nothing, or not all, was sent or stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("{0} does not exist")]
    Missing(String),
    #[error("no space is left for {0}")]
    Full(String),
    /// The other end is the reason.
    #[error("the transfer was broken off: {0}")]
    Broken(io::Error),
    #[error("{0}")]
    Refused(String),
}

impl TransferError {
    pub(super) fn of(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::Missing(path.display().to_string()),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full(path.display().to_string()),
            _ => Self::Refused(format!("{}: {error}", path.display())),
        }
    }
}

impl From<ToolError> for TransferError {
    fn from(error: ToolError) -> Self {
        Self::Refused(error.0)
    }
}

/// Marks what failed on the other end, so that it is not taken for a failure here.
pub(super) fn broken(error: io::Error) -> TransferError {
    TransferError::Broken(error)
}

/// A file that can be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    file: File,
    /// Its size when it was opened, which is what is sent.
    pub(crate) size: u64,
    pub(crate) mode: u32,
}

impl Outgoing {
    /// Opens a regular file.
    pub(crate) fn open(workspace: &Path, path: &str) -> Result<Self, TransferError> {
        let place = place(workspace, path, Missing::Fail)?;
        let file = place.open().map_err(|error| TransferError::of(&place.shown, &error))?;
        let metadata = file.metadata().map_err(|error| TransferError::of(&place.shown, &error))?;
        if !metadata.is_file() {
            return Err(TransferError::Refused(format!("{} is not a regular file", place.shown.display())));
        }
        Ok(Self { file, size: metadata.len(), mode: metadata.permissions().mode() & MODE })
    }

    /// Sends it. It fails if the file has become shorter: the other end must not take a part for the whole.
    pub(crate) fn send(self, to: &mut impl Write) -> io::Result<()> {
        copy_exactly(&mut self.file.take(self.size), to, self.size)
    }
}

/// Copies `size` bytes, or fails.
pub(super) fn copy_exactly(from: &mut impl Read, to: &mut impl Write, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut left = size;
    while left > 0 {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file has become shorter while it was read"));
        }
        to.write_all(&buffer[..length])?;
        left = left.saturating_sub(length as u64);
    }
    Ok(())
}

/// A new file that is not in its place yet. It goes if it never gets there.
pub(super) struct Incoming {
    file: NamedTempFile,
    size: u64,
}

impl Incoming {
    /// In the directory of `place`.
    pub(super) fn new(place: &Place) -> io::Result<Self> {
        // As any program would make it: the umask takes away what it has to.
        let permissions = Permissions::from_mode(0o666);
        let file = tempfile::Builder::new()
            .prefix(".longhand-")
            .permissions(permissions)
            .tempfile_in(place.directory_path())?;
        Ok(Self { file, size: 0 })
    }

    /// Takes all that comes.
    pub(super) fn fill(&mut self, from: &mut impl Read, shown: &Path) -> Result<(), TransferError> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = from.read(&mut buffer).map_err(broken)?;
            if length == 0 {
                return Ok(());
            }
            self.file.write_all(&buffer[..length]).map_err(|error| TransferError::of(shown, &error))?;
            self.size += length as u64;
        }
    }

    pub(super) fn file(&self) -> &File {
        self.file.as_file()
    }

    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file().set_permissions(Permissions::from_mode(mode & MODE))
    }

    /// Puts it in its place, in one step.
    pub(super) fn persist(self, place: &Place) -> io::Result<u64> {
        self.file.persist(place.directory_path().join(place.name())).map_err(|error| error.error)?;
        Ok(self.size)
    }
}

/// Stores a file with all that `from` gives, in one step: there is the old file or the whole new one. Without a mode, an old
/// file's mode stays. Directories on the way are made.
pub(crate) fn store(
    workspace: &Path,
    path: &str,
    mode: Option<u32>,
    from: &mut impl Read,
) -> Result<Stored, TransferError> {
    let place = place(workspace, path, Missing::Make)?;
    let failed = |error: io::Error| TransferError::of(&place.shown, &error);
    let old = match place.stat() {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() => Some(stat.st_mode),
        Ok(_) => return Err(TransferError::Refused(format!("{} is not a regular file", place.shown.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let mut incoming = Incoming::new(&place).map_err(failed)?;
    incoming.fill(from, &place.shown)?;
    if let Some(mode) = mode.or(old) {
        incoming.set_mode(mode).map_err(failed)?;
    }
    let bytes = incoming.persist(&place).map_err(failed)?;
    Ok(Stored { bytes, created: old.is_none() })
}

/// A directory that can be sent.
#[derive(Debug)]
pub(crate) struct Folder(rustix::fd::OwnedFd);

impl Folder {
    /// Opens a directory that is there.
    pub(crate) fn open(workspace: &Path, path: &str) -> Result<Self, TransferError> {
        let place = place(workspace, path, Missing::Fail)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(place.directory(), place.name(), flags, Mode::empty());
        opened.map(Self).map_err(|error| TransferError::of(&place.shown, &error.into()))
    }

    /// Sends all that is in it as a tar archive: directories, regular files and links.
    pub(crate) fn send(self, to: &mut impl Write) -> io::Result<()> {
        super::archive::pack(&self.0, to)
    }
}

/// Unpacks a tar archive into a folder, which is made if it is missing. What was there and is not in the archive stays. Each
/// file is put in place in one step; an archive that ends too soon leaves what came before.
pub(crate) fn unpack(workspace: &Path, path: &str, from: &mut impl Read) -> Result<Unpacked, TransferError> {
    let place = place(workspace, path, Missing::Make)?;
    let target = place.directory_path().join(place.name());
    let failed = |error: io::Error| TransferError::of(&place.shown, &error);
    match fs::create_dir(&target) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match place.name().as_encoded_bytes() {
        b"." => openat(CWD, place.directory_path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()),
        _ => openat(place.directory(), place.name(), flags, Mode::empty()),
    };
    super::archive::unpack(&root.map_err(|error| failed(error.into()))?, from)
}

fn place(workspace: &Path, path: &str, missing: Missing) -> Result<Place, TransferError> {
    let path = resolve(workspace, path)?;
    Place::find(workspace, &path, missing).map_err(|error| {
        // The walk's words are for a model; a caller wants to know whether it is there.
        if error.0.ends_with("does not exist") {
            TransferError::Missing(path.display().to_string())
        } else {
            error.into()
        }
    })
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
