//! A disk that is really full: a small file system under the workspace, the temporary files and the journal.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sandboxd::Sandboxd;
use crate::support::{LONG, bash, call};
use longhand_sandbox::client::SandboxError;
use longhand_sandbox::token::Signer;
use longhand_sandbox::wire::ToolOutput;
use serde_json::json;

const LONG_OUTPUT: &str = "head -c 300000 /dev/zero | tr '\\0' x";

/// A file system in memory, until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// None where this is not allowed, as it is to root only.
    fn at(path: &Path, size: &str) -> Option<Self> {
        let options = format!("size={size},mode=0700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).output();
        match mount {
            Ok(output) if output.status.success() => return Some(Self(path.to_owned())),
            Ok(output) => eprintln!("skipped: nothing can be mounted: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("skipped: nothing can be mounted: {error}"),
        }
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What still has a file open there keeps it.
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
        std::fs::remove_dir(&self.0).ok();
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::at(dir.path(), "4m") else { return };
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let signer = Signer::generate().unwrap().0;
    let sandboxd = Sandboxd::at(dir, signer, &[("TMPDIR", temporary.to_str().unwrap())]);

    let filled = sandboxd.run("fill", "head -c 8M /dev/zero > fill").await;
    assert!(filled.is_error && filled.content.contains("No space left on device"), "{filled:?}");
    assert!(filled.content.ends_with("exit code 1"), "{filled:?}");

    let write = call("write", "write", json!({"file_path": "new", "content": "x".repeat(100_000)}));
    let written = sandboxd.client.execute(&sandboxd.target, &write, LONG).await.unwrap();
    let path = sandboxd.path("new");
    assert_eq!(written, ToolOutput::error(format!("cannot write {}: no space is left", path.display())));
    let names = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["fill"], "nothing of it is left");

    let long = sandboxd.run("long", LONG_OUTPUT).await;
    assert!(long.truncated && !long.is_error, "{long:?}");
    assert!(long.content.contains("they could not be kept: No space left on device"), "{long:?}");
    let job = call("job", "bash", json!({"command": "echo out", "run_in_background": true}));
    assert!(!sandboxd.client.execute(&sandboxd.target, &job, LONG).await.unwrap().content.is_empty());

    // The journal has room for the calls, and none for what they have answered.
    let restarted = sandboxd.killed_and_restarted();
    let again = restarted.client.execute(&restarted.target, &bash("long", LONG_OUTPUT), LONG).await;
    assert!(matches!(again, Err(SandboxError::Evicted { .. })), "{again:?}");

    assert_eq!(restarted.run("room", "rm fill && echo made").await, ToolOutput::ok("made\n"));
    let written = call("write-again", "write", json!({"file_path": "new", "content": "x"}));
    let written = restarted.client.execute(&restarted.target, &written, LONG).await.unwrap();
    assert!(!written.is_error, "{written:?}");
}
