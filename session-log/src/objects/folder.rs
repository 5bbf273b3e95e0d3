//! What writes into a folder leave when they are broken off: files that are not shown as objects.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Removes files of unfinished writes that are older than `limit`, and returns how many they were.
pub(super) fn remove_unfinished(folder: &Path, limit: SystemTime) -> std::io::Result<u64> {
    let (mut removed, mut folders) = (0, vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // A file or folder may go while we look.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if is_unfinished(&entry.file_name().to_string_lossy()) && meta.modified()? <= limit {
                std::fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// The folder's store writes `name#1` first, then gives it its name.
fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::remove_unfinished;

    #[test]
    fn only_old_unfinished_files_go() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for name in ["a/b/x", "a/b/x#1", "a/y#22", "a/b/z#", "a#b"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let now = SystemTime::now();
        assert_eq!(remove_unfinished(dir.path(), now - Duration::from_secs(60)).unwrap(), 0);
        assert_eq!(remove_unfinished(dir.path(), now + Duration::from_secs(60)).unwrap(), 2);
        assert!(["a/b/x", "a/b/z#", "a#b"].iter().all(|name| dir.path().join(name).exists()));
    }
}
