//! The tool `grep`.

use std::fs::File;
use std::io;
use std::path::Path;

use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};

use super::budget::{Budget, Within};
use super::files::io_error;
use super::glob::walk;
use super::input::SearchInput;
use super::place;
use super::{ToolError, ToolResult, fail, resolve};
use crate::wire::ToolOutput;

const MAX_OUTPUT: usize = 100 * 1024;
const MAX_LINE: usize = 2 * 1024;
// A file with a longer line is searched up to there.
const MAX_LINE_BUFFER: usize = 8 * 1024 * 1024;
const MAX_REGEX: usize = 10 * 1024 * 1024;

/// Lists the lines that match, as `file:line:text`.
pub(super) fn grep(workspace: &Path, input: &SearchInput, budget: &Budget) -> ToolResult {
    let base = match input.path.as_deref() {
        Some(path) => resolve(workspace, path)?,
        None => workspace.to_owned(),
    };
    let matcher = matcher(&input.pattern)?;
    place::check(workspace, &base)?;
    std::fs::metadata(&base).map_err(|error| io_error("search", &base, &error))?;
    let mut searcher = SearcherBuilder::new()
        .line_number(true)
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(MAX_LINE_BUFFER))
        .build();
    let mut found = Found::default();
    for entry in walk(&base).sort_by_file_path(Path::cmp).build() {
        budget.check()?;
        // What cannot be read (no permission, just deleted) is as if it were not there.
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        // A link below the base is not followed; the base may be one.
        let is_file =
            if entry.depth() == 0 { path.is_file() } else { entry.file_type().is_some_and(|kind| kind.is_file()) };
        if !is_file {
            continue;
        }
        let Ok(file) = File::open(path) else { continue };
        let sink = Lines { path: path.display().to_string(), found: &mut found };
        if searcher.search_reader(&matcher, Within { budget, inner: file }, sink).is_err() {
            budget.check()?;
            found.skipped += 1;
        }
        if found.full {
            break;
        }
    }
    Ok(found.into_output(&input.pattern, &base))
}

fn matcher(pattern: &str) -> Result<RegexMatcher, ToolError> {
    if pattern.is_empty() {
        return fail("the pattern is empty");
    }
    RegexMatcherBuilder::new()
        .line_terminator(Some(b'\n'))
        .size_limit(MAX_REGEX)
        .dfa_size_limit(MAX_REGEX)
        .build(pattern)
        .map_err(|error| ToolError(format!("the pattern is not a regular expression that works line by line: {error}")))
}

#[derive(Debug, Default)]
struct Found {
    text: String,
    full: bool,
    skipped: usize,
}

impl Found {
    fn into_output(mut self, pattern: &str, base: &Path) -> ToolOutput {
        if self.text.is_empty() {
            self.text = format!("no line below {} matches {pattern}\n", base.display());
        }
        if self.full {
            self.text.push_str("[there are more matches; a narrower pattern or path shows others]\n");
        }
        if self.skipped > 0 {
            let skipped = format!("[{} files could not be searched to their end]\n", self.skipped);
            self.text.push_str(&skipped);
        }
        self.text.pop();
        ToolOutput { content: self.text, is_error: false, truncated: self.full }
    }
}

struct Lines<'a> {
    path: String,
    found: &'a mut Found,
}

impl Sink for Lines<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, matched: &SinkMatch<'_>) -> Result<bool, io::Error> {
        let line = matched.bytes().trim_ascii_end();
        let shown = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]);
        let more = if line.len() > MAX_LINE { "[...]" } else { "" };
        let number = matched.line_number().unwrap_or_default();
        let text = format!("{}:{number}:{shown}{more}\n", self.path);
        if self.found.text.len() + text.len() > MAX_OUTPUT {
            self.found.full = true;
            return Ok(false);
        }
        self.found.text.push_str(&text);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rstest::rstest;

    use super::{MAX_OUTPUT, grep};
    use crate::tools::budget::{ample, spent};
    use crate::tools::input::SearchInput;
    use crate::wire::ToolOutput;

    fn search(dir: &Path, pattern: &str, path: Option<&str>) -> ToolOutput {
        let input = SearchInput { pattern: pattern.into(), path: path.map(str::to_owned) };
        grep(dir, &input, &ample()).unwrap()
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("a.txt", &b"first\nneedle one  \n"[..]),
            ("sub/b.txt", b"needle two\r\nNeedle three\nlatin \xE9 needle"),
            ("bin.dat", b"needle\0binary"),
            ("ignored.txt", b"needle"),
            (".gitignore", b"ignored.txt\n"),
            (".hidden", b"a needle too"),
            (".git/config", b"needle"),
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[rstest]
    #[case("needle", None, &[".hidden:1:a needle too", "a.txt:2:needle one", "sub/b.txt:1:needle two", "sub/b.txt:3:latin \u{FFFD} needle"])]
    #[case("(?i)^NEEDLE t", None, &["sub/b.txt:1:needle two", "sub/b.txt:2:Needle three"])]
    #[case("needle", Some("sub"), &["sub/b.txt:1:needle two", "sub/b.txt:3:latin \u{FFFD} needle"])]
    #[case("^first$", Some("a.txt"), &["a.txt:1:first"])]
    fn matching_lines_are_listed(#[case] pattern: &str, #[case] path: Option<&str>, #[case] expected: &[&str]) {
        let dir = tree();
        let output = search(dir.path(), pattern, path);
        let expected: Vec<_> = expected.iter().map(|line| format!("{}/{line}", dir.path().display())).collect();
        assert_eq!(output.content.lines().collect::<Vec<_>>(), expected);
        assert!(!output.truncated);
    }

    #[test]
    fn no_match_is_said() {
        let dir = tree();
        let output = search(dir.path(), "nowhere", None);
        assert_eq!(output, ToolOutput::ok(format!("no line below {} matches nowhere", dir.path().display())));
    }

    #[test]
    fn output_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("many.txt"), "needle in a line of some length\n".repeat(10_000)).unwrap();
        let output = search(dir.path(), "needle", None);
        assert!(output.truncated && output.content.len() <= MAX_OUTPUT + 100);
        assert!(output.content.ends_with("[there are more matches; a narrower pattern or path shows others]"));
    }

    #[test]
    fn a_long_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("long.txt"), format!("needle{}\n", "x".repeat(1_000_000))).unwrap();
        let output = search(dir.path(), "needle", None);
        assert!(output.content.ends_with("x[...]") && output.content.len() < 3000);
    }

    #[test]
    fn an_endless_line_does_not_take_all_memory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("huge.txt"), "x".repeat(20 * 1024 * 1024)).unwrap();
        let output = search(dir.path(), "needle", None);
        assert!(output.content.ends_with("[1 files could not be searched to their end]"), "{}", output.content);
    }

    #[rstest]
    #[case("(", None, "the pattern is not a regular expression")]
    #[case("a\nb", None, "works line by line")]
    #[case("(a{1000}){1000}", None, "the pattern is not a regular expression")]
    #[case("", None, "the pattern is empty")]
    #[case("x", Some("missing"), "does not exist")]
    fn what_is_wrong_is_said(#[case] pattern: &str, #[case] path: Option<&str>, #[case] message: &str) {
        let dir = tree();
        let input = SearchInput { pattern: pattern.into(), path: path.map(str::to_owned) };
        let error = grep(dir.path(), &input, &ample()).unwrap_err().0;
        assert!(error.contains(message), "{error}");
        assert!(error.len() < 3000);
    }

    #[test]
    fn a_search_ends_when_its_time_is_over() {
        let dir = tree();
        let input = SearchInput { pattern: "needle".into(), path: None };
        assert_eq!(grep(dir.path(), &input, &spent()).unwrap_err().0, "timed out after 120 s");
    }
}
