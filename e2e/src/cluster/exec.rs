//! What a command in a container says.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use super::TestResult;

/// Runs `command` in a container of a pod, the first one if none is named, and returns what it wrote to its standard output and to its
/// standard error.
///
/// # Errors
/// When it cannot be run, or its output does not end within `deadline`.
pub async fn exec(
    pods: &Api<Pod>,
    pod: &str,
    container: Option<&str>,
    command: &[&str],
    deadline: Duration,
) -> TestResult<(Vec<u8>, Vec<u8>)> {
    let params = AttachParams { container: container.map(ToOwned::to_owned), ..AttachParams::default() };
    let mut process = pods.exec(pod, command.iter().copied(), &params.stdout(true).stderr(true)).await?;
    let (stdout, stderr) = (process.stdout().ok_or("no output")?, process.stderr().ok_or("no output of errors")?);
    timeout(deadline, async { tokio::try_join!(all(stdout), all(stderr)) }).await?
}

async fn all(mut stream: impl AsyncRead + Unpin) -> TestResult<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await?;
    Ok(all)
}
