//! Folders as tar. What comes from a sandbox was perhaps made by a model: it stays below the folder that it is unpacked in, and
//! brings no links.

use std::io::{self, Read, Write};
use std::path::Path;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Regular files.
    pub files: u64,
    /// Links and what else is neither a file nor a directory.
    pub skipped: u64,
}

/// Writes everything below `folder`, with paths that are relative to it. Links are kept as links.
///
/// # Errors
/// When something cannot be read.
pub fn pack(folder: &Path, to: &mut dyn Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    archive.append_dir_all(".", folder)?;
    archive.finish()
}

/// Unpacks files and directories below `folder`, which is made if it is missing.
///
/// # Errors
/// When the archive is broken or leads out of the folder, or something cannot be written.
pub fn unpack(folder: &Path, from: &mut dyn Read) -> io::Result<Unpacked> {
    std::fs::create_dir_all(folder)?;
    let mut archive = tar::Archive::new(&mut *from);
    let mut unpacked = Unpacked::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !kind.is_file() && !kind.is_dir() {
            unpacked.skipped += 1;
            continue;
        }
        if !entry.unpack_in(folder)? {
            let path = String::from_utf8_lossy(&entry.path_bytes()).chars().take(200).collect::<String>();
            return Err(io::Error::other(format!("the archive holds {path:?}, which is not below the folder")));
        }
        unpacked.files += u64::from(kind.is_file());
    }
    // What follows the end of an archive is padding.
    io::copy(from, &mut io::sink())?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use bytes::Bytes;
    use futures::{StreamExt as _, TryStreamExt as _, stream};
    use rstest::rstest;

    use super::super::blocking::{consumed, written};
    use super::{Unpacked, pack, unpack};

    #[tokio::test]
    async fn a_folder_is_the_same_on_the_other_side_but_for_its_links() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(from.path().join("a/empty")).unwrap();
        std::fs::write(from.path().join("a/large"), vec![7; 3_000_000]).unwrap();
        symlink("/etc/passwd", from.path().join("a/link")).unwrap();
        let folder = from.path().to_path_buf();
        let archive = written(move |to| pack(&folder, to)).boxed();
        let target = to.path().join("new");
        let below = target.clone();
        let unpacked = consumed(archive, move |from| unpack(&below, from)).await.unwrap();
        assert_eq!(unpacked, Unpacked { files: 1, skipped: 1 });
        assert_eq!(std::fs::read(target.join("a/large")).unwrap(), vec![7; 3_000_000]);
        assert!(target.join("a/empty").is_dir() && !target.join("a/link").exists());
    }

    fn archive_of(path: &str) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b"x"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[rstest]
    #[case("../out")]
    #[case("a/../../out")]
    fn nothing_gets_out_of_the_folder(#[case] path: &str) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("in");
        let error = unpack(&folder, &mut &archive_of(path)[..]).unwrap_err().to_string();
        assert!(error.contains("not below the folder"), "{error}");
        assert!(!root.path().join("out").exists());
    }

    #[test]
    fn a_link_that_was_there_before_leads_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let (folder, outside) = (root.path().join("in"), root.path().join("outside"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, folder.join("link")).unwrap();
        unpack(&folder, &mut &archive_of("link/f")[..]).unwrap_err();
        assert!(!outside.join("f").exists());
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("in");
        let whole = archive_of("f");
        let pieces = [Ok(Bytes::from(whole[..512].to_vec())), Err(std::io::Error::other("it went away"))];
        let error = consumed(stream::iter(pieces), move |from| unpack(&folder, from)).await.unwrap_err();
        assert!(error.to_string().contains("went away"), "{error}");
        let missing = root.path().join("missing");
        let error = written(move |to| pack(&missing, to)).boxed().try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
