//! A private directory for what passes between `sandboxd` and shells, and for output that is too long to show.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

// Together with the bound of one file, this bounds the room on the node: 16 files of 16 MiB.
const KEPT_OUTPUTS: usize = 16;

/// What the directory's name begins with.
pub(super) const PREFIX: &str = ".sandboxd-";

/// The directory; it goes with `sandboxd`.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: TempDir,
    next: AtomicU64,
    outputs: Mutex<VecDeque<PathBuf>>,
}

impl Scratch {
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        Ok(Self { dir, next: AtomicU64::new(1), outputs: Mutex::default() })
    }

    /// A path that no other call uses, without an extension.
    pub(super) fn unique(&self) -> PathBuf {
        self.dir.path().join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Where a long output may be kept. The oldest one makes room.
    pub(super) async fn output(&self) -> PathBuf {
        let path = self.unique().with_extension("log");
        let oldest = {
            let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
            outputs.push_back(path.clone());
            if outputs.len() > KEPT_OUTPUTS { outputs.pop_front() } else { None }
        };
        if let Some(oldest) = oldest
            && let Err(error) = tokio::fs::remove_file(&oldest).await
        {
            tracing::debug!(path = %oldest.display(), %error, "an old output could not be removed");
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT_OUTPUTS, Scratch};

    #[tokio::test]
    async fn only_the_newest_outputs_are_kept() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path()).unwrap();
        let mut paths = Vec::new();
        for _ in 0..KEPT_OUTPUTS + 2 {
            let path = scratch.output().await;
            std::fs::write(&path, "x").unwrap();
            paths.push(path);
        }
        let kept: Vec<_> = paths.iter().map(|path| path.exists()).collect();
        assert_eq!(kept.iter().filter(|kept| **kept).count(), KEPT_OUTPUTS);
        assert_eq!(kept[..3], [false, false, true]);
    }
}
