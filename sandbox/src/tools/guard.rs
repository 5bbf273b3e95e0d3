//! Keeps commands from taking the sandbox down: the greediest is killed when there are too many processes, or when memory is
//! about to run out where the kernel would end the whole container. It looks only while a command has processes.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::sleep;
use tracing::warn;

use super::cgroup::{Memory, Usage};
use super::spawned::{Commands, Excess, Watched};
use super::tree::{self, Snapshot};

const PAUSE: Duration = Duration::from_millis(200);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// Memory cannot be filled faster: a page must be cleared first.
const FILLED_A_SECOND: u64 = 4 << 30;
const LEAST_RESERVE: u64 = 16 << 20;

/// Watches over `commands` for ever.
pub(super) async fn run(commands: Commands, memory: Option<Memory>, max_processes: usize) {
    // Where the kernel takes one process after the other, it does so better than we can.
    let memory = memory.filter(Memory::dies_as_one);
    loop {
        commands.any().await;
        let usage = memory.as_ref().and_then(Memory::usage);
        if let Some(usage) = usage.filter(|usage| usage.available() < reserve(usage.limit)) {
            relieve(&commands, |all, snapshot| most_memory(all, snapshot, usage)).await;
        } else if tree::count() > max_processes {
            relieve(&commands, |all, snapshot| most_processes(all, snapshot, max_processes)).await;
        }
        sleep(usage.map_or(PAUSE, pause)).await;
    }
}

async fn relieve(
    commands: &Commands,
    choose: impl FnOnce(&[Arc<Watched>], &Snapshot) -> Option<(Arc<Watched>, Excess)>,
) {
    let Some((greedy, excess)) = choose(&commands.all(), &tree::snapshot()) else { return };
    warn!(root = greedy.tree.root, %excess, "a command is killed");
    let memory = matches!(excess, Excess::Memory { .. });
    greedy.condemn(excess);
    if memory {
        // Its memory is needed now: whoever is born meanwhile starts small.
        greedy.tree.signal(Signal::SIGKILL);
    }
    if !greedy.tree.kill().await {
        warn!(root = greedy.tree.root, "not all of its processes have ended");
    }
}

fn most_processes(all: &[Arc<Watched>], snapshot: &Snapshot, limit: usize) -> Option<(Arc<Watched>, Excess)> {
    let sizes: Vec<_> = all.iter().map(|watched| (watched.tree.of(snapshot).len(), watched)).collect();
    let total: usize = sizes.iter().map(|(size, _)| size).sum();
    let (found, greediest) = sizes.into_iter().max_by_key(|(size, _)| *size)?;
    (total > limit).then(|| (Arc::clone(greediest), Excess::Processes { found, limit }))
}

fn most_memory(all: &[Arc<Watched>], snapshot: &Snapshot, usage: Usage) -> Option<(Arc<Watched>, Excess)> {
    let page = rustix::param::page_size() as u64;
    let held = |watched: &Arc<Watched>| {
        let pages = watched.tree.of(snapshot).into_iter().filter_map(|pid| Some(snapshot.get(&pid)?.pages));
        pages.sum::<u64>() * page
    };
    let (held, greediest) = all.iter().map(|watched| (held(watched), watched)).max_by_key(|(held, _)| *held)?;
    let Usage { used, limit } = usage;
    (held > 0).then(|| (Arc::clone(greediest), Excess::Memory { used, limit, held }))
}

/// So much stays free.
fn reserve(limit: u64) -> u64 {
    (limit / 32).max(LEAST_RESERVE).min(limit / 4)
}

/// Half of the time in which what is free above the reserve can be gone.
fn pause(usage: Usage) -> Duration {
    let free = usage.available().saturating_sub(reserve(usage.limit));
    Duration::from_micros(free / (FILLED_A_SECOND / 500_000)).clamp(SHORTEST_PAUSE, PAUSE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;

    use tokio_util::sync::CancellationToken;

    use super::{Usage, pause, reserve, run};
    use crate::egress::Variables;
    use crate::tools::bash::Bash;
    use crate::tools::cgroup::{Memory, pretend};
    use crate::tools::input::BashInput;
    use crate::tools::scratch::Scratch;
    use crate::tools::spawned::Launcher;

    const MIB: u64 = 1 << 20;

    #[rstest]
    #[case::as_one("1", true)]
    #[case::one_by_one("0", false)]
    #[tokio::test]
    async fn a_command_is_killed_before_the_kernel_kills_all(#[case] group: &str, #[case] killed: bool) {
        let root = tempfile::tempdir().unwrap();
        let used = |used: u64| pretend(root.path(), &[("memory.current", &(used * MIB).to_string())]);
        used(100);
        let limit = (1024 * MIB).to_string();
        pretend(root.path(), &[("memory.max", &limit), ("memory.events", "oom_kill 0"), ("memory.oom.group", group)]);
        let launcher = Launcher::default();
        let guard = tokio::spawn(run(launcher.commands.clone(), Memory::at(root.path()), usize::MAX));
        let path = std::env::var_os("PATH").unwrap();
        let scratch = Scratch::new(root.path()).unwrap();
        let bash =
            Bash::new(root.path().to_owned(), (vec![("PATH".into(), path)], Variables::default()), scratch, launcher);
        // Who is to be killed gives the guard all the time that it may need.
        let rest = if killed { 30 } else { 1 };
        let command = format!("x=$(head -c 20000000 /dev/zero | tr '\\0' x); touch held; sleep {rest}; echo spared");
        let input = BashInput { command: Some(command), ..BashInput::default() };
        let cancel = CancellationToken::new();
        let (output, ()) = tokio::join!(bash.run(input, &cancel), async {
            while !root.path().join("held").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            used(1010);
        });
        guard.abort();
        let output = output.unwrap();
        assert_eq!(
            output.content.contains("(1010 of 1024 MiB used), and this command held the most, "),
            killed,
            "{output:?}"
        );
        assert_eq!(output.content.contains("spared"), !killed);
    }

    #[rstest]
    #[case(2048, 64)]
    #[case(128, 16)]
    #[case(16, 4)]
    fn some_memory_stays_free(#[case] limit: u64, #[case] expected: u64) {
        assert_eq!(reserve(limit * MIB), expected * MIB);
    }

    #[rstest]
    #[case(2048, 0, 200)]
    #[case(2048, 1500, 59)]
    #[case(2048, 1960, 5)]
    #[case(2048, 2047, 5)]
    #[case(2048, 3000, 5)]
    fn the_fuller_the_more_often_it_looks(#[case] limit: u64, #[case] used: u64, #[case] expected: u64) {
        let found = pause(Usage { used: used * MIB, limit: limit * MIB });
        assert_eq!(found.as_millis(), Duration::from_millis(expected).as_millis());
    }
}
