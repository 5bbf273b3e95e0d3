//! The authorities that programs trust: those of the image, and the one of the session's proxy; once in PEM, once for Java.
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

use super::truststore;

const PEM: &str = "authorities.pem";
const TRUSTSTORE: &str = "authorities.jks";
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
    pem: Slot,
    truststore: Slot,
}

impl Bundle {
    /// With the roots of the image alone.
    pub(super) fn new(roots: Option<PathBuf>) -> io::Result<Self> {
        let pem = all(roots.as_deref(), b"")?;
        let truststore = Slot::new(TRUSTSTORE, &truststore::jks(&pem))?;
        Ok(Self { roots, pem: Slot::new(PEM, &pem)?, truststore })
    }

    /// Where programs read it in PEM.
    pub(super) fn path(&self) -> &Path {
        &self.pem.path
    }

    /// Where Java reads it.
    pub(super) fn truststore(&self) -> &Path {
        &self.truststore.path
    }

    /// The roots of the image and `authority`, in the place of what was there.
    pub(super) fn with(&self, authority: &[u8]) -> io::Result<()> {
        let pem = all(self.roots.as_deref(), authority)?;
        self.truststore.fill(TRUSTSTORE, &truststore::jks(&pem))?;
        self.pem.fill(PEM, &pem)
    }
}

/// The roots and `authority`, in PEM.
fn all(roots: Option<&Path>, authority: &[u8]) -> io::Result<Vec<u8>> {
    let mut pem = Vec::new();
    if let Some(roots) = roots {
        File::open(roots)?.take(MAX_ROOTS).read_to_end(&mut pem)?;
        pem.push(b'\n');
    }
    pem.extend_from_slice(authority);
    Ok(pem)
}

/// A path that stays, with sealed memory behind it.
struct Slot {
    path: PathBuf,
    descriptor: Mutex<OwnedFd>,
}

impl Slot {
    fn new(name: &str, content: &[u8]) -> io::Result<Self> {
        let descriptor = sealed(name, content)?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), descriptor.as_raw_fd()));
        Ok(Self { path, descriptor: Mutex::new(descriptor) })
    }

    /// In the place of what was there.
    fn fill(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let next = sealed(name, content)?;
        let mut descriptor = self.descriptor.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(dup3(&next, &mut descriptor, DupFlags::CLOEXEC)?)
    }
}

fn sealed(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(content)?;
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
    fn java_is_given_the_same() {
        let bundle = Bundle::new(None).unwrap();
        let path = bundle.truststore().to_owned();
        let empty = std::fs::read(&path).unwrap();
        bundle.with(b"-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n").unwrap();
        let one = std::fs::read(&path).unwrap();
        assert!(one.starts_with(&[0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2, 0, 0, 0, 1]) && one.len() > empty.len());
        assert!(std::fs::write(&path, "MINE").is_err());
    }

    #[test]
    fn an_image_without_roots_has_a_bundle_all_the_same() {
        let bundle = Bundle::new(None).unwrap();
        assert_eq!(std::fs::read_to_string(bundle.path()).unwrap(), "");
        bundle.with(b"ONE").unwrap();
        assert_eq!(std::fs::read_to_string(bundle.path()).unwrap(), "ONE");
    }
}
