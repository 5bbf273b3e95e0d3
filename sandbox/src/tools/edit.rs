//! The tool `edit`.

use std::path::Path;

use super::budget::Budget;
use super::files::{read_text, replace};
use super::input::EditInput;
use super::place::{Missing, Place};
use super::{ToolError, ToolResult, fail, resolve};
use crate::wire::ToolOutput;

const MAX_EDIT: u64 = 16 * 1024 * 1024;

/// Replaces the one place where `old_string` is, or all of them with `replace_all`.
pub(super) fn edit(workspace: &Path, input: &EditInput, budget: &Budget) -> ToolResult {
    let path = resolve(workspace, &input.file_path)?;
    let place = Place::find(workspace, &path, Missing::Fail)?;
    let text = read_text(&place, MAX_EDIT, budget)?;
    let (edited, count) =
        edited(&text, input).map_err(|error| ToolError(format!("{}: {}", path.display(), error.0)))?;
    if edited.len() as u64 > MAX_EDIT {
        return fail(format!("{} would be larger than {MAX_EDIT} bytes", path.display()));
    }
    budget.check()?;
    replace(&place, edited.as_bytes())?;
    let places = if count == 1 { "1 place".to_owned() } else { format!("{count} places") };
    Ok(ToolOutput::ok(format!("edited {} in {places}", path.display())))
}

fn edited(text: &str, input: &EditInput) -> Result<(String, usize), ToolError> {
    let EditInput { old_string, new_string, replace_all, .. } = input;
    if old_string.is_empty() {
        return fail("old_string is empty; use write to make a file or replace all of it");
    }
    if old_string == new_string {
        return fail("old_string and new_string are the same");
    }
    match text.matches(old_string.as_str()).count() {
        0 => {
            fail("old_string is not in the file (0 matches); it must match exactly, with its white space and line ends")
        }
        count if count > 1 && *replace_all != Some(true) => fail(format!(
            "old_string is in the file {count} times; give more of the lines around it, or set replace_all"
        )),
        count if grown(text, old_string, new_string, count) > MAX_EDIT => {
            fail(format!("it would be larger than {MAX_EDIT} bytes"))
        }
        count => Ok((text.replace(old_string.as_str(), new_string), count)),
    }
}

fn grown(text: &str, old: &str, new: &str, count: usize) -> u64 {
    (text.len() as u64).saturating_add((count as u64).saturating_mul((new.len().saturating_sub(old.len())) as u64))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;

    use super::edit;
    use crate::tools::budget::{ample, spent};
    use crate::tools::input::EditInput;

    fn input(old: &str, new: &str, replace_all: Option<bool>) -> EditInput {
        EditInput { file_path: "f.txt".into(), old_string: old.into(), new_string: new.into(), replace_all }
    }

    #[rstest]
    #[case("a b c", "b", "x", None, Ok("a x c"))]
    #[case("a b c", "b ", "", None, Ok("a c"))]
    #[case("one\ntwo\n", "one\ntwo", "1\n2", None, Ok("1\n2\n"))]
    #[case("b b b", "b", "bb", Some(true), Ok("bb bb bb"))]
    #[case("äb", "ä", "ü", Some(true), Ok("üb"))]
    #[case("aaa", "aa", "b", None, Ok("ba"))]
    #[case("b b b", "b", "x", None, Err("3 times"))]
    #[case("b b b", "b", "x", Some(false), Err("3 times"))]
    #[case("abc", "x", "y", Some(true), Err("(0 matches)"))]
    #[case("a\r\nb", "a\nb", "y", None, Err("(0 matches)"))]
    #[case("abc", "", "y", None, Err("old_string is empty"))]
    #[case("abc", "b", "b", None, Err("are the same"))]
    fn edits(
        #[case] before: &str,
        #[case] old: &str,
        #[case] new: &str,
        #[case] all: Option<bool>,
        #[case] expected: Result<&str, &str>,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.txt");
        fs::write(&file, before).unwrap();
        let result = edit(dir.path(), &input(old, new, all), &ample());
        let after = fs::read_to_string(&file).unwrap();
        match expected {
            Ok(text) => assert_eq!((after.as_str(), result.is_ok()), (text, true)),
            Err(message) => {
                assert!(result.unwrap_err().0.contains(message));
                assert_eq!(after, before, "a refused edit changes nothing");
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the file");
    }

    #[test]
    fn the_mode_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.txt");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o751)).unwrap();
        assert_eq!(
            edit(dir.path(), &input("/bin/sh", "/bin/bash", None), &ample()).unwrap().content,
            format!("edited {} in 1 place", file.display())
        );
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o751);
    }

    #[test]
    fn what_is_not_a_text_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(edit(dir.path(), &input("a", "b", None), &ample()).unwrap_err().0.contains("does not exist"));
        fs::write(dir.path().join("f.txt"), b"a\xFF").unwrap();
        assert!(edit(dir.path(), &input("a", "b", None), &ample()).unwrap_err().0.contains("is not UTF-8 text"));
        assert_eq!(edit(dir.path(), &input("a", "b", None), &spent()).unwrap_err().0, "timed out after 120 s");
        fs::remove_file(dir.path().join("f.txt")).unwrap();
        fs::create_dir(dir.path().join("f.txt")).unwrap();
        assert!(edit(dir.path(), &input("a", "b", None), &ample()).unwrap_err().0.contains("is a directory"));
    }

    #[test]
    fn an_edit_does_not_explode() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f.txt"), "a".repeat(100_000)).unwrap();
        let error = edit(dir.path(), &input("a", &"b".repeat(1000), Some(true)), &ample()).unwrap_err().0;
        assert!(error.contains("larger than 16777216 bytes"), "{error}");
    }
}
