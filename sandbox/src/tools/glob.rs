//! The tool `glob`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::FileType;

use super::budget::Budget;
use super::files::io_error;
use super::input::SearchInput;
use super::place::{Missing, Place};
use super::walk::Walk;
use super::{ToolError, ToolResult, fail, resolve};
use crate::wire::ToolOutput;

const MAX_RESULTS: usize = 200;

/// Lists the files whose path below `path` matches, the newest first.
pub(super) fn glob(workspace: &Path, input: &SearchInput, budget: &Budget) -> ToolResult {
    let (base, pattern) = start(workspace, input)?;
    let matcher = matcher(&pattern)?;
    let place = Place::find(workspace, &base, Missing::Fail)?;
    let kind = place.stat().map_err(|error| io_error("search", &base, &error))?.st_mode;
    if FileType::from_raw_mode(kind) != FileType::Directory {
        return fail(format!("{} is not a directory", base.display()));
    }
    let mut newest: BinaryHeap<Reverse<(SystemTime, Reverse<PathBuf>)>> = BinaryHeap::new();
    let mut total = 0_usize;
    let mut walk = Walk::new(&place, budget)?;
    while let Some(next) = walk.next(budget)? {
        if !next.path.strip_prefix(&base).is_ok_and(|relative| matcher.is_match(relative)) {
            continue;
        }
        let modified = next.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        newest.push(Reverse((modified, Reverse(next.path))));
        total += 1;
        if newest.len() > MAX_RESULTS {
            newest.pop();
        }
    }
    if total == 0 {
        return Ok(ToolOutput::ok(format!("no file below {} matches {pattern}", base.display())));
    }
    let mut lines: Vec<String> =
        newest.into_sorted_vec().into_iter().map(|Reverse((_, Reverse(path)))| path.display().to_string()).collect();
    let truncated = total > MAX_RESULTS;
    if truncated {
        lines.push(format!("[the newest {MAX_RESULTS} of {total} matches; a narrower pattern shows others]"));
    }
    Ok(ToolOutput { content: lines.join("\n"), is_error: false, truncated })
}

fn matcher(pattern: &str) -> Result<GlobMatcher, ToolError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    Ok(glob.map_err(|error| ToolError(format!("the pattern is wrong: {error}")))?.compile_matcher())
}

/// The directory to walk and the pattern below it. An absolute pattern names its directory itself.
fn start(workspace: &Path, input: &SearchInput) -> Result<(PathBuf, String), ToolError> {
    let pattern = input.pattern.strip_prefix("./").unwrap_or(&input.pattern);
    if pattern.is_empty() {
        return fail("the pattern is empty");
    }
    let given = input.path.as_deref().map(|path| resolve(workspace, path)).transpose()?;
    let base = given.unwrap_or_else(|| workspace.to_owned());
    if !pattern.starts_with('/') {
        return Ok((base, pattern.to_owned()));
    }
    let is_literal =
        |part: &Component<'_>| !part.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[]{}\\!".contains(byte));
    let components: Vec<_> = Path::new(pattern).components().collect();
    let literal = components.iter().take(components.len() - 1).take_while(|part| is_literal(part)).count();
    let base = components[..literal].iter().collect();
    let rest: PathBuf = components[literal..].iter().collect();
    match rest.to_str() {
        Some(rest) if literal > 0 && !rest.is_empty() => Ok((base, rest.to_owned())),
        _ => fail("the pattern names a directory, not files"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, SystemTime};

    use rstest::rstest;

    use super::{glob, start};
    use crate::tools::budget::{ample, spent};
    use crate::tools::input::SearchInput;

    fn input(pattern: &str, path: Option<&str>) -> SearchInput {
        SearchInput { pattern: pattern.into(), path: path.map(str::to_owned) }
    }

    /// Files, the first of which is the newest.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (age, name) in files.iter().enumerate() {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = fs::File::create(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age as u64 * 60)).unwrap();
        }
        dir
    }

    fn found(dir: &Path, pattern: &str, path: Option<&str>) -> Vec<String> {
        let output = glob(dir, &input(pattern, path), &ample()).unwrap();
        assert!(!output.is_error && !output.truncated);
        let relative = |line: &str| Path::new(line).strip_prefix(dir).map(|path| path.display().to_string());
        output.content.lines().map(|line| relative(line).unwrap_or_else(|_| line.to_owned())).collect()
    }

    #[rstest]
    #[case("*.rs", None, &["a.rs"])]
    #[case("./*.rs", None, &["a.rs"])]
    #[case("**/*.rs", None, &["src/new.rs", "a.rs", "src/deep/old.rs"])]
    #[case("**/*.rs", Some("src"), &["src/new.rs", "src/deep/old.rs"])]
    #[case("src/*.{rs,toml}", None, &["src/new.rs", "src/b.toml"])]
    #[case(".github/*", None, &[".github/ci.yaml"])]
    #[case("**/.git/**", None, &["no file below"])]
    #[case("*.none", None, &["no file below"])]
    fn the_newest_comes_first(#[case] pattern: &str, #[case] path: Option<&str>, #[case] expected: &[&str]) {
        let dir = tree(&["src/new.rs", "a.rs", "src/deep/old.rs", "src/b.toml", ".github/ci.yaml", ".git/config"]);
        let found = found(dir.path(), pattern, path);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(line, expected)| line.starts_with(expected)), "{found:?}");
    }

    #[test]
    fn what_git_ignores_is_skipped() {
        let dir = tree(&["kept.txt", "build/out.txt", ".git/HEAD"]);
        fs::write(dir.path().join(".gitignore"), "build/\n").unwrap();
        assert_eq!(found(dir.path(), "**/*.txt", None), ["kept.txt"]);
    }

    #[test]
    fn more_than_the_limit_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..205 {
            fs::write(dir.path().join(format!("{n}.txt")), "").unwrap();
        }
        let output = glob(dir.path(), &input("*.txt", None), &ample()).unwrap();
        assert!(output.truncated);
        assert_eq!(output.content.lines().count(), 201);
        assert!(output.content.ends_with("[the newest 200 of 205 matches; a narrower pattern shows others]"));
    }

    #[rstest]
    #[case("/w/src/**/*.rs", "/w/src", "**/*.rs")]
    #[case("/w/a.rs", "/w", "a.rs")]
    #[case("/*.rs", "/", "*.rs")]
    fn an_absolute_pattern_names_its_directory(#[case] pattern: &str, #[case] base: &str, #[case] rest: &str) {
        assert_eq!(start(Path::new("/x"), &input(pattern, None)).unwrap(), (PathBuf::from(base), rest.to_owned()));
    }

    #[rstest]
    #[case("", None, "the pattern is empty")]
    #[case("/", None, "names a directory")]
    #[case("a[", None, "the pattern is wrong")]
    #[case("*", Some("missing"), "does not exist")]
    #[case("*", Some("a.rs"), "is not a directory")]
    #[case("*", Some(""), "the path is empty")]
    fn what_is_wrong_is_said(#[case] pattern: &str, #[case] path: Option<&str>, #[case] message: &str) {
        let dir = tree(&["a.rs"]);
        let error = glob(dir.path(), &input(pattern, path), &ample()).unwrap_err().0;
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn a_walk_ends_when_its_time_is_over() {
        let dir = tree(&["a.rs"]);
        assert_eq!(glob(dir.path(), &input("*", None), &spent()).unwrap_err().0, "timed out after 120 s");
    }
}
