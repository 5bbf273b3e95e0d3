use std::fs;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};

use rstest::rstest;

use super::{Folder, Outgoing, TransferError, store, unpack};
use crate::wire::Stored;

#[test]
fn a_file_is_stored_and_sent_with_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..200_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let stored = store(dir.path(), "a/b.bin", Some(0o4751), &mut Cursor::new(&content)).unwrap();
    assert_eq!(stored, Stored { bytes: 200_000, created: true });
    let file = Outgoing::open(dir.path(), "a/b.bin").unwrap();
    assert_eq!((file.size, file.mode), (200_000, 0o751));
    let mut sent = Vec::new();
    file.send(&mut sent).unwrap();
    assert!(sent == content);
    // Replaced without a mode, it keeps the old one.
    let stored = store(dir.path(), "a/b.bin", None, &mut Cursor::new("x")).unwrap();
    assert_eq!(stored, Stored { bytes: 1, created: false });
    assert_eq!(fs::metadata(dir.path().join("a/b.bin")).unwrap().mode() & 0o7777, 0o751);
}

#[test]
fn a_transfer_that_breaks_off_changes_nothing() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "old").unwrap();
    let error = store(dir.path(), "f", None, &mut Cursor::new(vec![b'x'; 100_000]).chain(Broken)).unwrap_err();
    assert!(matches!(error, TransferError::Broken(_)));
    assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the file");
}

#[test]
fn a_file_that_shrinks_is_not_sent_as_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "long enough").unwrap();
    let file = Outgoing::open(dir.path(), "f").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(3).unwrap();
    assert_eq!(file.send(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[rstest]
#[case("missing", true)]
#[case("folder", false)]
#[case("pipe", false)]
#[case("out", false)]
#[case("", false)]
fn what_cannot_be_sent_is_said(#[case] path: &str, #[case] missing: bool) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/etc/hostname", dir.path().join("out")).unwrap();
    let error = Outgoing::open(dir.path(), path).unwrap_err();
    assert_eq!(matches!(error, TransferError::Missing(_)), missing, "{error:?}");
}

#[test]
fn nothing_is_stored_through_a_link_that_leads_out() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    symlink(other.path(), dir.path().join("out")).unwrap();
    assert!(store(dir.path(), "out/f", None, &mut Cursor::new("x")).is_err());
    assert!(unpack(dir.path(), "out", &mut Cursor::new("")).is_err());
    assert!(Folder::open(dir.path(), "out").is_err());
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_goes_from_one_workspace_to_another() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("src")).unwrap();
    fs::write(from.path().join("src/a"), "1").unwrap();
    fs::set_permissions(from.path().join("src/a"), PermissionsExt::from_mode(0o700)).unwrap();
    for (source, target, found) in [(".", ".", "src/a"), ("src", "new/place", "new/place/a")] {
        let mut bytes = Vec::new();
        Folder::open(from.path(), source).unwrap().send(&mut bytes).unwrap();
        unpack(to.path(), target, &mut Cursor::new(bytes)).unwrap();
        assert_eq!(fs::metadata(to.path().join(found)).unwrap().mode() & 0o777, 0o700);
    }
    assert!(matches!(Folder::open(from.path(), "missing"), Err(TransferError::Missing(_))));
}
