//! The processes below one process, from `/proc`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

/// Everything must be gone so long after it was killed; what is not hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// What is of interest about one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) dead: bool,
    /// Resident memory in pages.
    pub(super) pages: u64,
}

/// All processes at one moment, by id.
pub(super) type Snapshot = BTreeMap<i32, Entry>;

/// Reads all processes. What ends meanwhile may be in it or not.
pub(super) fn snapshot() -> Snapshot {
    let read = |pid: i32| Some((pid, parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?));
    ids().filter_map(read).collect()
}

/// How many processes there are, without a look at any of them.
pub(super) fn count() -> usize {
    ids().count()
}

fn ids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Reads `/proc/PID/stat`. The name in it may hold anything, so what counts comes after the last parenthesis.
fn parse(stat: &[u8]) -> Option<Entry> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // These were the fields 3 to 5; the resident size is field 24.
    let pages = fields.nth(18)?.parse().ok()?;
    Some(Entry { parent, group, dead: matches!(state, "Z" | "X"), pages })
}

/// The living processes below `root`, without itself.
pub(super) fn below(snapshot: &Snapshot, root: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, entry) in snapshot {
        children.entry(entry.parent).or_default().push(*pid);
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    let mut seen = HashSet::from([root]);
    while let Some(parent) = next.pop() {
        for child in children.get(&parent).into_iter().flatten().filter(|child| seen.insert(**child)) {
            next.push(*child);
            if snapshot.get(child).is_some_and(|entry| !entry.dead) {
                found.push(*child);
            }
        }
    }
    found
}

/// The processes of a command: those below its supervisor, or those of its group if it has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    pub(super) root: i32,
    pub(super) supervised: bool,
}

impl Tree {
    /// Its living processes at the moment of `snapshot`, the shell before what it has started: one that is signalled first does
    /// not remark on the end of the others.
    pub(super) fn of(self, snapshot: &Snapshot) -> Vec<i32> {
        if self.supervised {
            return below(snapshot, self.root);
        }
        let members = snapshot.iter().filter(|(_, entry)| entry.group == self.root && !entry.dead);
        let mut members: Vec<i32> = members.map(|(pid, _)| *pid).collect();
        members.sort_by_key(|pid| *pid != self.root);
        members
    }

    /// Sends a signal to each of its processes; how many there were.
    pub(super) fn signal(self, signal: Signal) -> usize {
        let processes = self.of(&snapshot());
        for pid in &processes {
            send(*pid, signal);
        }
        processes.len()
    }

    pub(super) fn is_gone(self) -> bool {
        self.of(&snapshot()).is_empty()
    }

    /// Kills all of it, whatever it does to get away: it is stopped first, so that nothing is born while it dies.
    /// Whether all of it is gone.
    pub(super) async fn kill(self) -> bool {
        let until = Instant::now() + KILL_LIMIT;
        let mut stopped = HashSet::new();
        while Instant::now() < until {
            let fresh: Vec<i32> = self.of(&snapshot()).into_iter().filter(|pid| stopped.insert(*pid)).collect();
            for pid in &fresh {
                send(*pid, Signal::SIGSTOP);
            }
            if fresh.is_empty() {
                break;
            }
            tokio::task::yield_now().await;
        }
        while Instant::now() < until {
            if self.signal(Signal::SIGKILL) == 0 {
                return true;
            }
            sleep(PAUSE).await;
        }
        self.is_gone()
    }
}

fn send(pid: i32, signal: Signal) {
    // ESRCH is what we want; EPERM is a program that changed its user, which is not ours to end.
    kill(Pid::from_raw(pid), signal).ok();
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Entry, Snapshot, Tree, below, parse, snapshot};

    fn entry(parent: i32, dead: bool) -> Entry {
        Entry { parent, group: parent, dead, pages: 1 }
    }

    #[rstest]
    #[case(b"7 (sh) S 3 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 99 1000 42 18446744073709551615", Some(Entry { parent: 3, group: 7, dead: false, pages: 42 }))]
    #[case(b"7 (a) R 1) Z 3 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 99 1000 0 1", Some(Entry { parent: 3, group: 7, dead: true, pages: 0 }))]
    #[case(b"7 (sh) S", None)]
    #[case(b"", None)]
    fn stats_are_read(#[case] stat: &[u8], #[case] expected: Option<Entry>) {
        assert_eq!(parse(stat), expected);
    }

    #[test]
    fn all_that_lives_below_is_found_and_nothing_else() {
        let snapshot: Snapshot = [
            (1, entry(0, false)),
            (2, entry(1, false)),
            (3, entry(2, false)),
            (4, entry(3, true)),
            (5, entry(4, false)),
            (6, entry(1, false)),
            // What changes while it is read may look like a ring.
            (8, entry(9, false)),
            (9, entry(8, false)),
        ]
        .into();
        let sorted = |mut found: Vec<i32>| {
            found.sort_unstable();
            found
        };
        assert_eq!(sorted(below(&snapshot, 2)), [3, 5]);
        assert_eq!(sorted(below(&snapshot, 8)), [9]);
        assert_eq!(sorted(Tree { root: 1, supervised: false }.of(&snapshot)), [2, 6]);
        let wrapped: Snapshot = [(3, entry(9, false)), (9, Entry { group: 9, ..entry(1, false) })].into();
        assert_eq!(Tree { root: 9, supervised: false }.of(&wrapped), [9, 3]);
        assert_eq!(below(&[(3, entry(9, false)), (9, entry(12, false))].into(), 12), [9, 3]);
        assert_eq!(sorted(Tree { root: 2, supervised: true }.of(&snapshot)), [3, 5]);
        assert!(Tree { root: 4, supervised: true }.of(&snapshot) == [5] && below(&snapshot, 7).is_empty());
    }

    #[test]
    fn this_process_is_among_all() {
        let own = snapshot()[&i32::try_from(std::process::id()).unwrap()];
        assert!(!own.dead && own.pages > 0);
    }
}
