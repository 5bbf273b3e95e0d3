//! `sandboxd install FOLDER`: the program copies itself there, for a container whose image does not hold it.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The argument that asks for it.
pub const ARGUMENT: &str = "install";

/// Why it is not there.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It was not said where.
    #[error("sandboxd install takes one folder")]
    Usage,
    /// The copy failed.
    #[error("sandboxd cannot be copied to {}: {source}", path.display())]
    Copy {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Copies this program into the folder that `arguments` name, as `sandboxd`, for everybody to run.
///
/// # Errors
/// See [`InstallError`]. There is never a part of it under that name.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Result<(), InstallError> {
    let (Some(folder), None) = (arguments.next(), arguments.next()) else { return Err(InstallError::Usage) };
    let path = PathBuf::from(folder).join("sandboxd");
    copy(Path::new("/proc/self/exe"), &path).map_err(|source| InstallError::Copy { path, source })
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let part = to.with_extension("part");
    let mut source = std::fs::File::open(from)?;
    let mut target = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&part)?;
    io::copy(&mut source, &mut target)?;
    // Whatever the mask of the process is: the sandbox may run as another user.
    target.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    drop(target);
    std::fs::rename(part, to)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{InstallError, main};

    #[test]
    fn the_program_is_copied_whole_and_can_be_run() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            main([folder.path().into()].into_iter()).unwrap();
        }
        let copy = folder.path().join("sandboxd");
        assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read("/proc/self/exe").unwrap());
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn what_is_asked_wrongly_is_said() {
        assert!(matches!(main(std::iter::empty()), Err(InstallError::Usage)));
        assert!(matches!(main(["a".into(), "b".into()].into_iter()), Err(InstallError::Usage)));
        let error = main(["/nowhere/at/all".into()].into_iter()).unwrap_err().to_string();
        assert!(error.starts_with("sandboxd cannot be copied to /nowhere/at/all/sandboxd: "), "{error}");
    }
}
