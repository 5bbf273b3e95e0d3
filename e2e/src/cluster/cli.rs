//! The command line, as a user of a namespace runs it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use longhand_cli::{Args, command};
use tokio::time::timeout;

use super::{TestNamespace, TestResult};

const DEADLINE: Duration = Duration::from_secs(120);

/// Runs `longhand -n NAMESPACE WORDS...` in this process.
///
/// # Errors
/// Words that it does not take, what it fails with, or its deadline of two minutes.
pub async fn longhand(namespace: &TestNamespace, words: &[&str]) -> TestResult<ExitCode> {
    let words = ["longhand", "-n", &namespace.name].into_iter().chain(words.iter().copied());
    let args = Args::try_parse_from(words)?;
    Ok(timeout(DEADLINE, command::run(args)).await??)
}
