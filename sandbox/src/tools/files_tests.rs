use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rstest::rstest;

use super::{MAX_READ, read, write};
use crate::tools::budget::{ample, spent};
use crate::tools::input::{ReadInput, WriteInput};
use crate::wire::ToolOutput;

fn reading(dir: &Path, file_path: &str, view_range: Option<[i64; 2]>) -> Result<ToolOutput, String> {
    read(dir, &ReadInput { file_path: file_path.into(), view_range }, &ample()).map_err(|error| error.0)
}

fn writing(dir: &Path, file_path: &str, content: &str) -> Result<String, String> {
    let input = WriteInput { file_path: file_path.into(), content: content.into() };
    write(dir, &input, &ample()).map(|output| output.content).map_err(|error| error.0)
}

#[rstest]
#[case("", None, Ok(""))]
#[case("a\nb\nc\n", None, Ok("a\nb\nc\n"))]
#[case("a\nb\nc", Some([1, -1]), Ok("a\nb\nc"))]
#[case("a\nb\nc\n", Some([2, 2]), Ok("b\n"))]
#[case("a\nb\nc\n", Some([2, -1]), Ok("b\nc\n"))]
#[case("a\nb\nc", Some([3, 3]), Ok("c"))]
#[case("a\r\nb\r\n", Some([1, 1]), Ok("a\r\n"))]
#[case("a\nb\nc\n", Some([2, 99]), Ok("b\nc\n"))]
#[case("\n\n\n", Some([2, 2]), Ok("\n"))]
#[case("a\nb\nc\n", Some([4, 5]), Err("has only 3 lines; view_range starts at 4"))]
#[case("a\nb", Some([3, -1]), Err("has only 2 lines; view_range starts at 3"))]
#[case("a", Some([0, 1]), Err("view_range [0, 1] is wrong"))]
#[case("a", Some([2, 1]), Err("view_range [2, 1] is wrong"))]
#[case("a", Some([1, -2]), Err("view_range [1, -2] is wrong"))]
#[case("a", Some([i64::MIN, i64::MAX]), Err("is wrong"))]
fn lines_are_read(#[case] content: &str, #[case] range: Option<[i64; 2]>, #[case] expected: Result<&str, &str>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), content).unwrap();
    match (reading(dir.path(), "f", range), expected) {
        (Ok(output), Ok(text)) => assert_eq!(output, ToolOutput::ok(text)),
        (Err(error), Err(message)) => assert!(error.contains(message), "{error}"),
        (result, _) => panic!("{result:?}"),
    }
}

#[test]
fn a_large_file_is_cut_and_can_be_read_on() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("{}\n", "é".repeat(511));
    fs::write(dir.path().join("f"), line.repeat(1000)).unwrap();
    let output = reading(dir.path(), "f", None).unwrap();
    assert!(output.truncated);
    let (text, notice) = output.content.split_once("\n[... ").unwrap();
    assert_eq!(notice, "cut after 262144 bytes, in line 257, of a file of 1023000 bytes; read on with view_range ...]");
    assert!(text.len() > MAX_READ - 3 && !text.contains('\u{FFFD}'));
    let rest = reading(dir.path(), "f", Some([999, -1])).unwrap();
    assert_eq!(rest, ToolOutput::ok(line.repeat(2)));
}

#[test]
fn exactly_the_limit_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "x".repeat(MAX_READ)).unwrap();
    let output = reading(dir.path(), "f", None).unwrap();
    assert_eq!((output.content.len(), output.truncated), (MAX_READ, false));
}

#[test]
fn what_is_not_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bin"), b"\x7FELF\0\0").unwrap();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, message) in [
        ("bin", "is a binary file of 6 bytes"),
        ("fifo", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        (".", "is a directory"),
        ("missing", "does not exist"),
        ("bin/below", "a part of the path is not a directory"),
        ("", "the path is empty"),
        ("nul\0", "contains a NUL byte"),
    ] {
        let error = reading(dir.path(), name, None).unwrap_err();
        assert!(error.contains(message), "{name}: {error}");
    }
}

#[test]
fn text_in_another_encoding_is_read_as_well_as_can_be() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"caf\xE9\n").unwrap();
    assert_eq!(reading(dir.path(), "f", None).unwrap().content, "caf\u{FFFD}\n");
}

#[test]
fn reading_ends_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "x").unwrap();
    let input = ReadInput { file_path: "f".into(), view_range: None };
    assert_eq!(read(dir.path(), &input, &spent()).unwrap_err().0, "timed out after 120 s");
}

#[test]
fn a_file_is_created_with_its_directories_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/c.txt");
    assert_eq!(writing(dir.path(), "a/b/c.txt", "é").unwrap(), format!("created {} (2 bytes)", path.display()));
    assert_eq!(writing(dir.path(), "a/b/c.txt", "").unwrap(), format!("replaced {} (0 bytes)", path.display()));
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside the file");
    assert_eq!(
        writing(dir.path(), path.to_str().unwrap(), "x").unwrap(),
        format!("replaced {} (1 bytes)", path.display())
    );
}

#[test]
fn a_new_file_has_the_mode_that_any_program_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("usual"), "").unwrap();
    writing(dir.path(), "ours", "").unwrap();
    let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("ours"), mode("usual"));
}

#[test]
fn the_mode_of_an_old_file_stays_and_a_link_stays_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target.sh");
    fs::write(&target, "old").unwrap();
    fs::set_permissions(&target, PermissionsExt::from_mode(0o750)).unwrap();
    symlink("target.sh", dir.path().join("link")).unwrap();
    symlink("later.txt", dir.path().join("dangling")).unwrap();
    writing(dir.path(), "link", "new").unwrap();
    writing(dir.path(), "dangling", "made").unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "new");
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o750);
    assert!(fs::symlink_metadata(dir.path().join("link")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(dir.path().join("later.txt")).unwrap(), "made");
}

#[test]
fn what_cannot_be_written_is_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    for (name, message) in [
        ("dir", "is a directory"),
        ("file/below", "not a directory"),
        ("/dev/null", "is not a regular file"),
        ("/proc/longhand", "/proc/longhand"),
        ("", "the path is empty"),
    ] {
        let error = writing(dir.path(), name, "x").unwrap_err();
        assert!(error.contains(message), "{name}: {error}");
    }
}

#[test]
fn a_link_that_leads_out_of_the_workspace_is_refused_and_what_it_leads_to_is_untouched() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = other.path().join("target");
    fs::write(&target, "old").unwrap();
    symlink(&target, dir.path().join("file")).unwrap();
    symlink(other.path(), dir.path().join("folder")).unwrap();
    for name in ["file", "folder/target", "folder/new"] {
        for error in [writing(dir.path(), name, "x").unwrap_err(), reading(dir.path(), name, None).unwrap_err()] {
            assert!(error.contains("leads out of the workspace by a link, to "), "{name}: {error}");
        }
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "old");
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
    // Named by itself, it may be read and written.
    writing(dir.path(), target.to_str().unwrap(), "new").unwrap();
    assert_eq!(reading(dir.path(), target.to_str().unwrap(), None).unwrap().content, "new");
}
