use std::fs;
use std::io::{Cursor, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rstest::rstest;
use tar::{Builder, EntryType, Header};

use super::{MAX_EXTENSIONS, pack, unpack};
use crate::tools::transfer::TransferError;
use crate::wire::Unpacked;

fn directory(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn packed(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(&directory(path), &mut bytes).unwrap();
    bytes
}

fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, Result<Unpacked, TransferError>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    let result = unpack(&directory(&dir.path().join("root")), &mut Cursor::new(bytes));
    (dir, result)
}

#[test]
fn a_folder_comes_out_as_it_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("a/b/run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at("a/b/run.sh"), PermissionsExt::from_mode(0o750)).unwrap();
    fs::write(at("bin"), [0, 255, 13, 10].repeat(100_000)).unwrap();
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(200));
    fs::create_dir(at(&long).parent().unwrap()).unwrap();
    fs::write(at(&long), "é").unwrap();
    fs::write(at("naïve \n name"), "x").unwrap();
    symlink("../elsewhere", at("a/link")).unwrap();
    symlink("x".repeat(300), at("long-link")).unwrap();
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::open(at("bin")).unwrap().set_modified(time).unwrap();
    fs::set_permissions(at("a/b"), PermissionsExt::from_mode(0o555)).unwrap();

    let (out, result) = unpacked(&packed(dir.path()));
    let result = result.unwrap();
    assert_eq!((result.files, result.skipped), (6, 0));
    let out = out.path().join("root");
    assert_eq!(fs::read(out.join("bin")).unwrap(), fs::read(at("bin")).unwrap());
    assert_eq!(fs::metadata(out.join("bin")).unwrap().modified().unwrap(), time);
    assert_eq!(fs::metadata(out.join("a/b/run.sh")).unwrap().mode() & 0o777, 0o750);
    assert_eq!(fs::metadata(out.join("a/b")).unwrap().mode() & 0o777, 0o555);
    assert_eq!(fs::read_to_string(out.join(&long)).unwrap(), "é");
    assert_eq!(fs::read_to_string(out.join("naïve \n name")).unwrap(), "x");
    assert_eq!(fs::read_link(out.join("a/link")).unwrap(), Path::new("../elsewhere"));
    assert_eq!(fs::read_link(out.join("long-link")).unwrap().as_os_str().len(), 300);
    assert!(out.join("empty").is_dir() && !out.join("pipe").exists());
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        // By hand: the crate would not write a path that leads out.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.set_link_name_literal(content).unwrap();
        }
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        header.set_cksum();
        builder.append(&header, if is_link { &b""[..] } else { content.as_bytes() }).unwrap();
    }
    builder.into_inner().unwrap()
}

use EntryType::{Directory, Fifo, Link, Regular, Symlink};

#[rstest]
#[case::up(&[(Regular, "../out", "x")])]
#[case::up_inside(&[(Regular, "a/../../out", "x")])]
#[case::absolute(&[(Regular, "/tmp/longhand-out", "x")])]
#[case::through_a_link(&[(Symlink, "l", ".."), (Regular, "l/out", "x")])]
#[case::directory_through_a_link(&[(Symlink, "l", ".."), (Directory, "l/out", "")])]
#[case::hard_link_out(&[(Link, "l", "../out")])]
#[case::hard_link_through_a_link(&[(Symlink, "l", ".."), (Link, "k", "l/victim")])]
#[case::empty_link(&[(Symlink, "l", "")])]
fn nothing_leads_out(#[case] entries: &[(EntryType, &str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    fs::write(dir.path().join("victim"), "x").unwrap();
    let result = unpack(&directory(&dir.path().join("root")), &mut Cursor::new(archive(entries)));
    assert!(result.is_err(), "{result:?}");
    assert!(!dir.path().join("out").exists() && !dir.path().join("root/k").exists());
}

#[test]
fn a_file_replaces_a_link_and_does_not_follow_it() {
    let (dir, result) = unpacked(&archive(&[(Symlink, "f", "../victim"), (Regular, "f", "new")]));
    assert_eq!(result.unwrap(), Unpacked { files: 2, bytes: 3, skipped: 0 });
    assert!(!dir.path().join("victim").exists());
    assert_eq!(fs::read_to_string(dir.path().join("root/f")).unwrap(), "new");
}

#[test]
fn hard_links_are_made_and_what_is_no_file_is_counted() {
    let entries = [(Regular, "./a", "x"), (Link, "b", "./a"), (Fifo, "p", ""), (Directory, "./", "")];
    let (dir, result) = unpacked(&archive(&entries));
    assert_eq!(result.unwrap(), Unpacked { files: 2, bytes: 1, skipped: 1 });
    assert_eq!(fs::metadata(dir.path().join("root/b")).unwrap().nlink(), 2);
    assert!(!dir.path().join("root/p").exists());
}

#[test]
fn a_name_without_end_is_not_read_to_its_end() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let mut endless = Cursor::new(header.as_bytes().to_vec()).chain(std::io::repeat(b'x')).take(10 * MAX_EXTENSIONS);
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(&directory(dir.path()), &mut endless).unwrap_err();
    assert!(error.to_string().contains("a name that is too long"), "{error}");
    assert!(endless.limit() > 8 * MAX_EXTENSIONS);
}

#[rstest]
#[case(700)]
#[case(1400)]
fn an_archive_that_ends_too_soon_is_an_error_and_leaves_no_part_of_a_file(#[case] length: usize) {
    let bytes = archive(&[(Regular, "a", "whole"), (Regular, "b", &"x".repeat(2000))]);
    let (dir, result) = unpacked(&bytes[..length]);
    assert!(matches!(result, Err(TransferError::Broken(_))), "{result:?}");
    let names: Vec<_> =
        fs::read_dir(dir.path().join("root")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "a"), "{names:?}");
}

#[test]
fn junk_is_no_archive() {
    let (_, result) = unpacked(&[7; 2048]);
    assert!(matches!(result, Err(TransferError::Broken(_))), "{result:?}");
}
