//! What the control group of this container says of its memory. Both versions of control groups are read, and what gVisor shows in
//! their place; nothing is written.

use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// What the kernel of gVisor holds itself, which counts to the same limit on the host, and which it does not tell.
const SENTRY: u64 = 48 << 20;
// Version 1 says "no limit" with the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 60;

/// The names that a version has for the same things.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    /// The file by which it is known; the versions are asked for in order.
    sign: &'static str,
    limit: &'static str,
    used: &'static str,
    cache: &'static str,
    events: &'static str,
}

const V2: Names = Names {
    sign: "memory.events",
    limit: "memory.max",
    used: "memory.current",
    cache: "inactive_file",
    events: "memory.events",
};
const V1: Names = Names {
    sign: "memory/memory.oom_control",
    limit: "memory/memory.limit_in_bytes",
    used: "memory/memory.usage_in_bytes",
    cache: "total_inactive_file",
    events: "memory/memory.oom_control",
};

/// That of gVisor, which kills nothing itself: the host's kernel would end all of it.
const GVISOR: Names = Names { sign: "memory/memory.usage_in_bytes", ..V1 };

/// The memory controller of this container.
#[derive(Debug)]
pub(super) struct Memory {
    root: PathBuf,
    names: &'static Names,
}

/// How full the memory is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// What cannot be given back at once.
    pub(super) used: u64,
    pub(super) limit: u64,
}

impl Usage {
    pub(super) fn available(self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

impl Memory {
    /// The one of this process, if it can be seen.
    pub(super) fn find() -> Option<Self> {
        Self::at(Path::new(ROOT))
    }

    pub(super) fn at(root: &Path) -> Option<Self> {
        let names = [&V2, &V1, &GVISOR].into_iter().find(|names| root.join(names.sign).is_file())?;
        Some(Self { root: root.to_owned(), names })
    }

    /// How many processes the kernel has killed for want of memory.
    pub(super) fn oom_kills(&self) -> u64 {
        self.field(self.names.events, "oom_kill").unwrap_or_default()
    }

    /// How full it is, if there is a limit.
    pub(super) fn usage(&self) -> Option<Usage> {
        let limit = self.number(self.names.limit).filter(|limit| *limit < NO_LIMIT)?;
        let stat = Path::new(self.names.used).with_file_name("memory.stat");
        let cache = self.field(&stat.to_string_lossy(), self.names.cache).unwrap_or_default();
        let unseen = if self.is_gvisor() { SENTRY.min(limit / 4) } else { 0 };
        Some(Usage { used: self.number(self.names.used)?.saturating_sub(cache).saturating_add(unseen), limit })
    }

    /// Whether the whole container ends when memory runs out, as the kubelet asks the kernel to by default.
    pub(super) fn dies_as_one(&self) -> bool {
        self.is_gvisor() || self.number("memory.oom.group") == Some(1)
    }

    fn is_gvisor(&self) -> bool {
        *self.names == GVISOR
    }

    fn number(&self, name: &str) -> Option<u64> {
        std::fs::read_to_string(self.root.join(name)).ok()?.trim().parse().ok()
    }

    fn field(&self, name: &str, field: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.root.join(name)).ok()?;
        text.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == field))?.1.trim().parse().ok()
    }
}

#[cfg(test)]
pub(super) fn pretend(root: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::{Memory, Usage, pretend};

    #[test]
    fn version_2_is_read() {
        let root = tempfile::tempdir().unwrap();
        assert!(Memory::at(root.path()).is_none());
        let files = [
            ("memory.max", "1000\n"),
            ("memory.current", "700\n"),
            ("memory.stat", "anon 5\ninactive_file 200\nactive_file 7\n"),
            ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 1\n"),
            ("memory.oom.group", "1\n"),
        ];
        pretend(root.path(), &files);
        let memory = Memory::at(root.path()).unwrap();
        assert_eq!(memory.usage(), Some(Usage { used: 500, limit: 1000 }));
        assert_eq!((memory.oom_kills(), memory.dies_as_one()), (2, true));
        pretend(root.path(), &[("memory.max", "max\n"), ("memory.oom.group", "0\n")]);
        assert_eq!((memory.usage(), memory.dies_as_one()), (None, false));
    }

    #[test]
    fn version_1_is_read() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("memory/memory.limit_in_bytes", "1000\n"),
            ("memory/memory.usage_in_bytes", "700\n"),
            ("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
        ];
        pretend(root.path(), &files);
        let memory = Memory::at(root.path()).unwrap();
        assert_eq!(memory.usage(), Some(Usage { used: 600, limit: 1000 }));
        assert_eq!((memory.oom_kills(), memory.dies_as_one()), (4, false));
        pretend(root.path(), &[("memory/memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(memory.usage(), None);
    }

    #[test]
    fn gvisor_is_read() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("memory/memory.limit_in_bytes", "268435456\n"),
            ("memory/memory.usage_in_bytes", "2846720\n"),
            ("memory/memory.stat", "cache 5\ntotal_cache 5\n"),
        ];
        pretend(root.path(), &files);
        let memory = Memory::at(root.path()).unwrap();
        assert_eq!(memory.usage(), Some(Usage { used: 2_846_720 + (48 << 20), limit: 256 << 20 }));
        assert_eq!((memory.oom_kills(), memory.dies_as_one()), (0, true));
    }
}
