//! The tools. What a model asked wrongly is an answer that it can read, never a refused request.

mod archive;
mod bash;
mod budget;
mod capture;
mod cgroup;
mod edit;
mod files;
mod glob;
mod grep;
mod guard;
mod input;
mod jobs;
mod place;
mod process;
mod provision;
pub(crate) mod schema;
mod scratch;
mod shell;
mod spawned;
pub(crate) mod terminal;
pub(crate) mod transfer;
mod tree;
mod walk;
pub(crate) mod workspace;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::egress::Variables;
use crate::server::reaper::Children;
use crate::wire::{TerminalOptions, ToolOutput};
use bash::Bash;
use budget::{Budget, Stopped};
use cgroup::Memory;
use input::Tool;
use scratch::Scratch;
pub(crate) use spawned::Commands;
use spawned::Launcher;
use terminal::{Terminal, TerminalError};

const FILE_TOOL_LIMIT: Duration = Duration::from_secs(120);
// What a blocking thread gets to notice that its time is over, before nobody waits for it any more.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What the tools need to know of their surroundings.
pub(crate) struct Setup {
    pub(crate) workspace: PathBuf,
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// What processes find besides.
    pub(crate) variables: Variables,
    pub(crate) children: Children,
    /// More processes of commands than this are too many.
    pub(crate) max_processes: usize,
}

/// Why tools cannot work here.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no workspace.
    #[error(
        "the workspace {} cannot be used (SANDBOXD_WORKSPACE): {source}; mount a volume there that user and group of this container may write",
        path.display()
    )]
    Workspace {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no place for temporary files.
    #[error("neither {} nor {} takes temporary files: {source}", temporary.display(), workspace.display())]
    Scratch {
        /// The directory for temporary files.
        temporary: PathBuf,
        /// The workspace.
        workspace: PathBuf,
        /// Why the workspace does not.
        source: io::Error,
    },
}

/// A failure that the model reads.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct ToolError(String);

impl From<Stopped> for ToolError {
    fn from(stopped: Stopped) -> Self {
        Self(match stopped {
            Stopped::Interrupted => "interrupted".to_owned(),
            Stopped::TimedOut => format!("timed out after {} s", FILE_TOOL_LIMIT.as_secs()),
        })
    }
}

/// Shorthand for a failure with this message.
fn fail<T>(message: impl Into<String>) -> Result<T, ToolError> {
    Err(ToolError(message.into()))
}

type ToolResult = Result<ToolOutput, ToolError>;

fn into_output(result: ToolResult) -> ToolOutput {
    result.unwrap_or_else(|error| ToolOutput::error(error.0))
}

/// All tools of one sandbox.
pub(crate) struct Toolbox {
    workspace: Arc<Path>,
    bash: Bash,
    launcher: Launcher,
    /// Who holds it puts something into the workspace.
    provisioning: tokio::sync::Mutex<()>,
    _guard: DropGuard,
}

impl Toolbox {
    /// Runs a program as the first job in the background; the reason if it cannot be started.
    pub(crate) async fn run_beside(&self, program: &str, arguments: &[String]) -> Result<(), String> {
        self.bash.beside(program, arguments).await.map_err(|error| error.0)
    }

    /// Prepares the workspace. To be called in a runtime, which then watches over the processes of commands.
    pub(crate) fn new(setup: Setup) -> Result<Self, SetupError> {
        let Setup { workspace, environment, variables, children, max_processes } = setup;
        let workspace = usable(&workspace).map_err(|source| SetupError::Workspace { path: workspace, source })?;
        let temporary = std::env::temp_dir();
        let scratch = Scratch::new(&temporary).or_else(|_| Scratch::new(&workspace));
        let scratch =
            scratch.map_err(|source| SetupError::Scratch { temporary, workspace: workspace.clone(), source })?;
        let launcher = Launcher { children, ..Launcher::default() };
        let stop = CancellationToken::new();
        let guard = guard::run(launcher.commands.clone(), Memory::find(), max_processes);
        tokio::spawn(stop.clone().run_until_cancelled_owned(guard));
        let bash = Bash::new(workspace.clone(), (environment, variables), scratch, launcher.clone());
        let provisioning = tokio::sync::Mutex::default();
        Ok(Self { workspace: workspace.into(), bash, launcher, provisioning, _guard: stop.drop_guard() })
    }

    /// Where relative paths start.
    pub(crate) fn workspace(&self) -> Arc<Path> {
        Arc::clone(&self.workspace)
    }

    /// Ends what commands have left running.
    pub(crate) async fn end(&self) {
        self.launcher.commands.end().await;
    }

    /// Opens a terminal with a shell.
    pub(crate) fn terminal(&self, options: &TerminalOptions) -> Result<Terminal, TerminalError> {
        self.bash.terminal(options)
    }

    /// The commands whose processes live.
    pub(crate) fn commands(&self) -> &Commands {
        &self.launcher.commands
    }

    /// Runs one call to its end.
    pub(crate) async fn run(&self, name: &str, input: Value, cancel: &CancellationToken) -> ToolOutput {
        let workspace = Arc::clone(&self.workspace);
        match Tool::parse(name, input) {
            Err(error) => ToolOutput::error(error.0),
            Ok(Tool::Bash(input)) => into_output(self.bash.run(input, cancel).await),
            Ok(Tool::Process(input)) => into_output(self.bash.process(&input, cancel).await),
            Ok(Tool::Read(input)) => blocking(cancel, move |budget| files::read(&workspace, &input, budget)).await,
            Ok(Tool::Write(input)) => blocking(cancel, move |budget| files::write(&workspace, &input, budget)).await,
            Ok(Tool::Edit(input)) => blocking(cancel, move |budget| edit::edit(&workspace, &input, budget)).await,
            Ok(Tool::Glob(input)) => blocking(cancel, move |budget| glob::glob(&workspace, &input, budget)).await,
            Ok(Tool::Grep(input)) => blocking(cancel, move |budget| grep::grep(&workspace, &input, budget)).await,
        }
    }
}

fn usable(workspace: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(workspace)?;
    std::fs::canonicalize(workspace)
}

/// Runs file work on a thread of its own, which is told to stop when its time is over or the call is cancelled.
async fn blocking(cancel: &CancellationToken, work: impl FnOnce(&Budget) -> ToolResult + Send + 'static) -> ToolOutput {
    let budget = Budget::new(Instant::now() + FILE_TOOL_LIMIT, cancel.clone());
    let mut task = tokio::task::spawn_blocking(move || work(&budget));
    let stopped = tokio::select! {
        result = &mut task => return joined(result),
        () = cancel.cancelled() => Stopped::Interrupted,
        () = tokio::time::sleep(FILE_TOOL_LIMIT) => Stopped::TimedOut,
    };
    match tokio::time::timeout(STOP_LIMIT, task).await {
        Ok(result) => joined(result),
        Err(_) => ToolOutput::error(format!(
            "{}; the file system does not answer, so what was done is unknown",
            ToolError::from(stopped)
        )),
    }
}

fn joined(result: Result<ToolResult, tokio::task::JoinError>) -> ToolOutput {
    match result {
        Ok(result) => into_output(result),
        Err(_) => ToolOutput::error("the tool failed inside sandboxd; what it has done is unknown"),
    }
}

/// Where a path of the model's leads: relative ones start at the workspace.
fn resolve(workspace: &Path, path: &str) -> Result<PathBuf, ToolError> {
    if path.is_empty() {
        return fail("the path is empty");
    }
    if path.contains('\0') {
        return fail("the path contains a NUL byte");
    }
    Ok(workspace.join(path))
}
