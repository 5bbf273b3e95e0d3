//! The authorities that programs trust: those of the image, and the one of the session's proxy.
//!
//! Tools run as the same user as `sandboxd` and may write wherever it may, so that the bundle is no file of a directory but
//! sealed memory behind a descriptor, which nobody can change and whose path stays when another one takes its place.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{DupFlags, dup3};

/// More than any distribution ships.
const MAX_ROOTS: u64 = 4 * 1024 * 1024;
/// Where distributions keep their roots in one file.
const USUAL: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The file with the image's roots, if it has one: where `SSL_CERT_FILE` says, or in a usual place.
pub(super) fn roots(environment: &[(OsString, OsString)]) -> Option<PathBuf> {
    let named = environment.iter().find(|(name, _)| name == "SSL_CERT_FILE").map(|(_, value)| PathBuf::from(value));
    named.into_iter().chain(USUAL.map(PathBuf::from)).find(|path| path.is_file())
}

/// The bundle.
pub(super) struct Bundle {
    roots: Option<PathBuf>,
    path: PathBuf,
    slot: Mutex<OwnedFd>,
}

impl Bundle {
    /// With the roots of the image alone.
    pub(super) fn new(roots: Option<PathBuf>) -> io::Result<Self> {
        let slot = sealed(roots.as_deref(), b"")?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), slot.as_raw_fd()));
        Ok(Self { roots, path, slot: Mutex::new(slot) })
    }

    /// Where programs read it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The roots of the image and `authority`, in the place of what was there.
    pub(super) fn with(&self, authority: &[u8]) -> io::Result<()> {
        let next = sealed(self.roots.as_deref(), authority)?;
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(dup3(&next, &mut slot, DupFlags::CLOEXEC)?)
    }
}

fn sealed(roots: Option<&Path>, authority: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create("authorities.pem", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    if let Some(roots) = roots {
        io::copy(&mut File::open(roots)?.take(MAX_ROOTS), &mut file)?;
        file.write_all(b"\n")?;
    }
    file.write_all(authority)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::{Bundle, roots};

    #[test]
    fn the_path_stays_and_nobody_can_write_there() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("roots.pem");
        std::fs::write(&own, "ROOTS").unwrap();
        let bundle = Bundle::new(roots(&[("SSL_CERT_FILE".into(), own.into())])).unwrap();
        let path = bundle.path().to_owned();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "ROOTS\n");
        for authority in ["ONE", "TWO"] {
            bundle.with(authority.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("ROOTS\n{authority}"));
            assert!(std::fs::write(&path, "MINE").is_err());
            let mut appending = std::fs::File::options().append(true).open(&path).unwrap();
            assert!(std::io::Write::write(&mut appending, b"MINE").is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("ROOTS\n{authority}"));
        }
    }

    #[test]
    fn an_image_without_roots_has_a_bundle_all_the_same() {
        let bundle = Bundle::new(None).unwrap();
        assert_eq!(std::fs::read_to_string(bundle.path()).unwrap(), "");
        bundle.with(b"ONE").unwrap();
        assert_eq!(std::fs::read_to_string(bundle.path()).unwrap(), "ONE");
    }
}
