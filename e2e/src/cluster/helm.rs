//! The chart of this tree.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::TestResult;

/// A pinned one may have to be built first, and an upgrade waits for pods.
const DEADLINE: Duration = Duration::from_secs(300);

/// Runs `helm` in the root of the tree, where the chart is `charts/longhand`, and returns what it writes to standard output.
///
/// # Errors
/// When it fails, with what it said, or takes longer than five minutes.
pub async fn helm(arguments: &[&str]) -> TestResult<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tools = Command::new(root.join("e2e/kind/tools")).arg("helm").kill_on_drop(true).output();
    let folder = String::from_utf8(timeout(DEADLINE, tools).await??.stdout)?;
    let run = Command::new(Path::new(folder.trim()).join("helm"))
        .args(arguments)
        .current_dir(&root)
        .kill_on_drop(true)
        .output();
    let output = timeout(DEADLINE, run).await??;
    if !output.status.success() {
        return Err(format!("helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
