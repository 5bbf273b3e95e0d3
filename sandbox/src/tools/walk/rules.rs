//! What a walk leaves out: the rules of git and of files `.ignore`.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};

use super::{open_directory, open_regular};

/// A repository's own folder, or the file that says where it is.
pub(super) const GIT: &str = ".git";
const GIT_RULES: &str = ".gitignore";
const OWN_RULES: &str = ".ignore";
/// Of a file with rules, the first of this many bytes count.
const MAX_RULES: u64 = 256 * 1024;
const MAX_ABOVE: usize = 64;

/// What one directory says of what is in it.
#[derive(Debug)]
pub(super) struct Rules {
    git: Gitignore,
    own: Gitignore,
    /// Whether it is the root of a repository, outside of which nothing is said of it.
    is_repository: bool,
}

impl Rules {
    /// Of this directory, which is at `path`.
    pub(super) fn of(directory: impl AsFd, path: &Path) -> Self {
        let directory = directory.as_fd();
        let is_repository = statat(directory, GIT, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let excluded = is_repository.then(|| {
            let info = open_directory(open_directory(directory, OsStr::new(GIT)).ok()?, OsStr::new("info")).ok()?;
            Some(lines(info, "exclude"))
        });
        let git = excluded.flatten().unwrap_or_default() + &lines(directory, GIT_RULES);
        Self { git: parsed(path, &git), own: parsed(path, &lines(directory, OWN_RULES)), is_repository }
    }
}

fn lines(directory: impl AsFd, name: &str) -> String {
    let mut bytes = Vec::new();
    if let Some(file) = open_regular(directory, OsStr::new(name)) {
        // What was read before a failure counts.
        file.take(MAX_RULES).read_to_end(&mut bytes).ok();
        bytes.push(b'\n');
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parsed(path: &Path, lines: &str) -> Gitignore {
    if lines.is_empty() {
        return Gitignore::empty();
    }
    let mut builder = GitignoreBuilder::new(path);
    for line in lines.lines() {
        // A line that is no pattern says nothing.
        builder.add_line(None, line).ok();
    }
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}

/// Of the directories above this one, which is at `path`; the innermost last.
pub(super) fn above(directory: &OwnedFd, path: &Path) -> Vec<Rules> {
    const HOLD: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    let mut found = Vec::new();
    let mut at = openat(directory, "..", HOLD, Mode::empty());
    for parent in path.ancestors().skip(1).take(MAX_ABOVE) {
        let Ok(held) = at else { break };
        found.push(Rules::of(&held, parent));
        at = openat(&held, "..", HOLD, Mode::empty());
    }
    found.reverse();
    found
}

/// Whether something at `path` is left out, by the rules of the directories that it is in, the innermost last.
pub(super) fn are_ignored(rules: &[Rules], path: &Path, is_directory: bool) -> bool {
    let own = rules.iter().rev().map(|rules| rules.own.matched(path, is_directory));
    // Without a repository around it, a `.gitignore` says nothing; and one outside of it says nothing of it.
    let innermost = rules.iter().rposition(|rules| rules.is_repository);
    let inside = innermost.map_or(&[][..], |root| &rules[root..]);
    let git = inside.iter().rev().map(|rules| rules.git.matched(path, is_directory));
    own.chain(git).find(|found| !found.is_none()).is_some_and(|found| matches!(found, Match::Ignore(_)))
}
