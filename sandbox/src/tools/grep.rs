//! The tool `grep`.

use std::fs::File;
use std::io;
use std::path::Path;

use grep_matcher::{Match, Matcher, NoCaptures, NoError};
use grep_regex::{ErrorKind, RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use rustix::fs::FileType;

use super::budget::{Budget, Within};
use super::files::{io_error, open_regular};
use super::input::SearchInput;
use super::place::{Missing, Place};
use super::walk::Walk;
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
    let matcher = LineMatcher::new(&input.pattern)?;
    let place = Place::find(workspace, &base, Missing::Fail)?;
    let kind = place.stat().map_err(|error| io_error("search", &base, &error))?.st_mode;
    let mut searcher = SearcherBuilder::new()
        .line_number(true)
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(MAX_LINE_BUFFER))
        .build();
    let mut found = Found::default();
    let mut look = |path: &Path, file: File| {
        let sink = Lines { path: path.display().to_string(), found: &mut found };
        if searcher.search_reader(&matcher, Within { budget, inner: file }, sink).is_err() {
            budget.check()?;
            found.skipped += 1;
        }
        Ok::<_, ToolError>(found.full)
    };
    if FileType::from_raw_mode(kind) == FileType::Directory {
        let mut walk = Walk::new(&place, budget)?;
        while let Some(next) = walk.next(budget)? {
            if let Some(file) = next.open()
                && look(&next.path, file)?
            {
                break;
            }
        }
    } else {
        look(&base, open_regular(&place)?.0)?;
    }
    Ok(found.into_output(&input.pattern, &base))
}

/// Matches a line without its terminator, so that `$` is its end after CRLF as after LF, and `\s` none of it.
#[derive(Debug)]
struct LineMatcher {
    regex: RegexMatcher,
    /// Whether a carriage return at the end belongs to the terminator. Not for who asks for one.
    ends_in_crlf: bool,
}

impl LineMatcher {
    fn new(pattern: &str) -> Result<Self, ToolError> {
        if pattern.is_empty() {
            return fail("the pattern is empty");
        }
        let mut builder = RegexMatcherBuilder::new();
        builder.size_limit(MAX_REGEX).dfa_size_limit(MAX_REGEX);
        // It takes no pattern that has to match one.
        let asks = builder.clone().crlf(true).build(pattern);
        let asks = asks.is_err_and(|error| matches!(error.kind(), ErrorKind::NotAllowed(found) if found == "\r"));
        let regex = builder.line_terminator(Some(b'\n')).build(pattern).map_err(|error| {
            ToolError(format!("the pattern is not a regular expression that works line by line: {error}"))
        })?;
        Ok(Self { regex, ends_in_crlf: !asks })
    }

    fn text<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        line.strip_suffix(b"\r").filter(|_| self.ends_in_crlf).unwrap_or(line)
    }
}

// It names no terminator, so that the searcher hands over line by line.
impl Matcher for LineMatcher {
    type Captures = NoCaptures;
    type Error = NoError;

    fn find_at(&self, line: &[u8], at: usize) -> Result<Option<Match>, NoError> {
        let text = self.text(line);
        if at > text.len() { Ok(None) } else { self.regex.find_at(text, at) }
    }

    fn shortest_match_at(&self, line: &[u8], at: usize) -> Result<Option<usize>, NoError> {
        let text = self.text(line);
        if at > text.len() { Ok(None) } else { self.regex.shortest_match_at(text, at) }
    }

    fn new_captures(&self) -> Result<NoCaptures, NoError> {
        Ok(NoCaptures::new())
    }
}

/// A line as `edit` finds it: all of it but its terminator.
fn without_terminator(line: &[u8]) -> &[u8] {
    let Some(text) = line.strip_suffix(b"\n") else { return line };
    text.strip_suffix(b"\r").unwrap_or(text)
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
        let line = without_terminator(matched.bytes());
        let is_cut = line.len() > MAX_LINE;
        let shown = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]);
        // A character that the cut went through.
        let shown = if is_cut { shown.trim_end_matches('\u{FFFD}') } else { &shown };
        let more = if is_cut { "[...]" } else { "" };
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
    use crate::tools::edit::edit;
    use crate::tools::input::{EditInput, SearchInput};
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
    #[case("needle", None, &[".hidden:1:a needle too", "a.txt:2:needle one  ", "sub/b.txt:1:needle two", "sub/b.txt:3:latin \u{FFFD} needle"])]
    #[case("(?i)^NEEDLE t", None, &["sub/b.txt:1:needle two", "sub/b.txt:2:Needle three"])]
    #[case("needle", Some("sub"), &["sub/b.txt:1:needle two", "sub/b.txt:3:latin \u{FFFD} needle"])]
    #[case("^first$", Some("a.txt"), &["a.txt:1:first"])]
    fn matching_lines_are_listed(#[case] pattern: &str, #[case] path: Option<&str>, #[case] expected: &[&str]) {
        let dir = tree();
        let output = search(dir.path(), pattern, path);
        let expected: Vec<_> = expected.iter().map(|line| format!("{}/{line}", dir.path().display())).collect();
        assert_eq!(output.content.split('\n').collect::<Vec<_>>(), expected);
        assert!(!output.truncated);
    }

    #[rstest]
    #[case::lf("two$", "one two\ntwo \ntwo three\n", &[1])]
    #[case::crlf("two$", "one two\r\ntwo \r\ntwo three\r\n", &[1])]
    #[case::mixed("two$", "two\ntwo\r\ntwo\r\rx\n", &[1, 2])]
    #[case::the_last_line("two$", "two\r\ntwo", &[1, 2])]
    #[case::not_the_terminator(r"\s$", "a\r\nb\nc \r\nd\t\n", &[3, 4])]
    #[case::empty("^$", "a\r\n\r\n\nb \n", &[2, 3])]
    #[case::whole_lines("^a.b$", "a b\r\na\rb\r\na b\n", &[1, 2, 3])]
    #[case::nothing_follows("two.$", "two\r\ntwo!\r\n", &[2])]
    #[case::a_carriage_return_is_asked_for(r"\r$", "a\r\nb\nc\r\n", &[1, 3])]
    #[case::maybe_one(r"a\r?$", "a\r\na\n", &[1, 2])]
    #[case::a_folder(r"C:\\repo$", "C:\\repo\r\nC:\\repo\n", &[1, 2])]
    fn a_line_ends_before_its_terminator(#[case] pattern: &str, #[case] text: &str, #[case] expected: &[usize]) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), text).unwrap();
        let shown = search(dir.path(), pattern, None).content;
        let start = format!("{}:", dir.path().join("f").display());
        let number = |line: &str| line.strip_prefix(&start)?.split(':').next()?.parse().ok();
        assert_eq!(shown.split('\n').filter_map(number).collect::<Vec<usize>>(), expected, "{shown}");
    }

    #[rstest]
    #[case("one\n\tneedle  \nthree\n", "\tneedle  ")]
    #[case("one\r\n\tneedle \t\r\nthree\r\n", "\tneedle \t")]
    #[case("one\nneedle\u{a0}\r\nthree", "needle\u{a0}")]
    #[case("one\nneedle\r", "needle\r")]
    fn a_shown_line_can_be_edited_as_it_is(#[case] text: &str, #[case] line: &str) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, text).unwrap();
        let output = search(dir.path(), "needle", None);
        let shown = output.content.strip_prefix(&format!("{}:2:", file.display())).unwrap();
        assert_eq!(shown, line);
        let (file_path, new_string) = ("f".to_owned(), "x".to_owned());
        let input = EditInput { file_path, old_string: shown.to_owned(), new_string, replace_all: None };
        edit(dir.path(), &input, &ample()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), text.replace(line, "x"));
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
    #[case(r"a\r\nb", None, "works line by line")]
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
