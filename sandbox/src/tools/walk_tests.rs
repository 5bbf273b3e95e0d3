use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rstest::rstest;

use super::Walk;
use crate::tools::budget::{ample, spent};
use crate::tools::place::{Missing, Place};

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn walk(workspace: &Path, base: &Path) -> Walk {
    Walk::new(&Place::find(workspace, base, Missing::Fail).unwrap(), &ample()).unwrap()
}

fn found(workspace: &Path, base: &str) -> Vec<String> {
    let base = workspace.join(base);
    let mut walk = walk(workspace, &base);
    let mut found = Vec::new();
    while let Some(next) = walk.next(&ample()).unwrap() {
        found.push(next.path.strip_prefix(&base).unwrap().display().to_string());
    }
    found
}

#[rstest]
#[case::in_order("", &[("b/2", ""), ("a", ""), ("b/1", ""), (".hidden/x", ""), ("b.txt", "")], &[".hidden/x", "a", "b/1", "b/2", "b.txt"])]
#[case::no_repository("", &[(".gitignore", "a"), ("a", "")], &[".gitignore", "a"])]
#[case::a_repository("", &[(".git/HEAD", ""), (".gitignore", "a\n/out/"), ("a", ""), ("out/x", ""), ("sub/out/y", ""), ("sub/a", "")], &[".gitignore", "sub/out/y"])]
#[case::taken_back("", &[(".git/HEAD", ""), (".gitignore", "*.log\n!keep.log"), ("x.log", ""), ("keep.log", ""), ("sub/.gitignore", "!x.log"), ("sub/x.log", "")], &[".gitignore", "keep.log", "sub/.gitignore", "sub/x.log"])]
#[case::said_above("sub", &[(".git/HEAD", ""), (".gitignore", "a\n/sub/b"), ("sub/a", ""), ("sub/b", ""), ("sub/c", "")], &["c"])]
#[case::a_repository_in_one("", &[(".git/HEAD", ""), (".gitignore", "a"), ("sub/.git/HEAD", ""), ("sub/a", "")], &[".gitignore", "sub/a"])]
#[case::a_worktree("", &[(".git", "gitdir: elsewhere"), (".gitignore", "a"), ("a", "")], &[".gitignore"])]
#[case::excluded("", &[(".git/info/exclude", "a"), ("a", ""), ("b", "")], &["b"])]
#[case::without_git("", &[(".ignore", "a"), ("a", ""), ("sub/a", "")], &[".ignore"])]
#[case::no_pattern("", &[(".git/HEAD", ""), (".gitignore", "{\n\u{0}\na"), ("a", ""), ("b", "")], &[".gitignore", "b"])]
fn what_is_ignored_is_left_out(#[case] base: &str, #[case] files: &[(&str, &str)], #[case] expected: &[&str]) {
    let dir = tree(files);
    assert_eq!(found(dir.path(), base), expected);
}

#[test]
fn no_link_is_followed() {
    let outside = tree(&[("secret", "x")]);
    let dir = tree(&[("a", "x")]);
    symlink(outside.path(), dir.path().join("folder")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
    symlink("/dev/zero", dir.path().join(".ignore")).unwrap();
    let mut walk = walk(dir.path(), dir.path());
    let mut all = Vec::new();
    while let Some(next) = walk.next(&ample()).unwrap() {
        all.push((next.path.strip_prefix(dir.path()).unwrap().display().to_string(), next.open().is_some()));
    }
    let expected = [(".ignore", false), ("a", true), ("file", false), ("folder", false)];
    assert_eq!(all, expected.map(|(name, open)| (name.to_owned(), open)));
}

#[test]
fn a_pipe_blocks_nothing_wherever_it_is() {
    let dir = tree(&[(".git/info/x", ""), ("sub/x", "")]);
    for name in [".gitignore", ".ignore", ".git/info/exclude", "sub/.gitignore", "pipe"] {
        mkfifo(&dir.path().join(name), Mode::S_IRWXU).unwrap();
    }
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut walk = walk(dir.path(), &dir.path().join("sub"));
        while walk.next(&ample()).unwrap().is_some() {}
        sender.send(found(dir.path(), "").len()).unwrap();
    });
    assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(5));
}

#[test]
fn what_is_put_in_the_place_of_a_file_is_not_read() {
    let dir = tree(&[("a", "inside")]);
    let outside = tree(&[("secret", "outside")]);
    let file = dir.path().join("a");
    let next = || walk(dir.path(), dir.path()).next(&ample()).unwrap().unwrap();
    let as_file = next();
    fs::remove_file(&file).unwrap();
    symlink(outside.path().join("secret"), &file).unwrap();
    assert!(as_file.open().is_none(), "a link");
    fs::remove_file(&file).unwrap();
    mkfifo(&file, Mode::S_IRWXU).unwrap();
    assert!(as_file.open().is_none(), "a pipe");
}

#[test]
fn nobody_wins_a_race_with_a_walk() {
    let outside = tree(&[("inner/secret", "outside")]);
    let dir = tree(&[("flip/inner/secret", "inside")]);
    let (flip, aside) = (dir.path().join("flip"), dir.path().join("aside"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&flip, &aside).unwrap();
                symlink(outside.path(), &flip).unwrap();
                fs::remove_file(&flip).unwrap();
                fs::rename(&aside, &flip).unwrap();
            }
        });
        let mut seen = 0;
        for _ in 0..1_000 {
            let mut walk = walk(dir.path(), dir.path());
            while let Some(next) = walk.next(&ample()).unwrap() {
                let mut text = String::new();
                if next.open().is_some_and(|mut file| file.read_to_string(&mut text).is_ok()) {
                    assert_eq!(text, "inside", "{}", next.path.display());
                    seen += 1;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(seen > 0);
    });
}

#[test]
fn a_deep_tree_is_walked_to_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let mut path = dir.path().to_owned();
    for _ in 0..250 {
        path.push("d");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("f"), "").unwrap();
    }
    assert_eq!(found(dir.path(), "").len(), 199);
}

#[test]
fn a_walk_ends_when_its_time_is_over() {
    let dir = tree(&[("a", "")]);
    let mut walk = walk(dir.path(), dir.path());
    assert_eq!(walk.next(&spent()).unwrap_err().0, "timed out after 120 s");
}
