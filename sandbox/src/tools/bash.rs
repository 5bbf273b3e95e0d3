//! The tool `bash`.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::capture::{Capture, Shown};
use super::cgroup::Memory;
use super::input::{BashInput, ProcessInput};
use super::jobs::Jobs;
use super::process::{Ended, Output, Process};
use super::scratch::Scratch;
use super::shell::{self, Handover, Interpreter, ShellState};
use super::spawned::Launcher;
use super::terminal::{Size, Terminal, TerminalError};
use super::{ToolError, ToolResult, fail};
use crate::egress::Variables;
use crate::wire::{TerminalOptions, ToolOutput};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
// Background output that is read at the same time; more of it is cut off.
const MAX_BACKGROUND: usize = 64;

/// Runs commands in shells.
pub(super) struct Bash {
    initial: ShellState,
    state: Mutex<ShellState>,
    variables: Variables,
    scratch: Scratch,
    launcher: Launcher,
    jobs: Jobs,
    memory: Option<Memory>,
    background: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Drop for Bash {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bash {
    pub(super) fn new(
        workspace: PathBuf,
        (environment, variables): (Vec<(OsString, OsString)>, Variables),
        scratch: Scratch,
        launcher: Launcher,
    ) -> Self {
        let initial = ShellState { cwd: workspace, environment };
        Self {
            state: Mutex::new(initial.clone()),
            initial,
            variables,
            scratch,
            launcher,
            jobs: Jobs::default(),
            memory: Memory::find(),
            background: Arc::new(Semaphore::new(MAX_BACKGROUND)),
            stop: CancellationToken::new(),
        }
    }

    /// Runs a command to its end, its deadline or its cancellation.
    pub(super) async fn run(&self, input: BashInput, cancel: &CancellationToken) -> ToolResult {
        let timeout = timeout(input.timeout_ms)?;
        if input.restart == Some(true) {
            *self.state() = self.initial.clone();
        }
        let background = input.run_in_background == Some(true);
        if background && input.timeout_ms.is_some() {
            return fail("timeout_ms does not apply to a command in the background; end it with the tool process");
        }
        match input.command {
            Some(command) if command.contains('\0') => fail("the command contains a NUL byte"),
            Some(command) if background => self.background(&command).await,
            Some(command) => self.command(&command, timeout, cancel).await,
            None if input.restart == Some(true) => {
                Ok(ToolOutput::ok("The shell was restarted: its directory and environment are those of the start."))
            }
            None => fail("the input of bash needs a command, or restart: true"),
        }
    }

    /// The tool `process`.
    pub(super) async fn process(&self, input: &ProcessInput, cancel: &CancellationToken) -> ToolResult {
        self.jobs.run(input, cancel).await
    }

    async fn command(&self, command: &str, timeout: Duration, cancel: &CancellationToken) -> ToolResult {
        let kills = self.memory.as_ref().map(Memory::oom_kills);
        let (state, notice) = self.start_state();
        let handover = self.hand_over(command)?;
        let process = self.start(&state, &handover)?;
        let mut capture = Capture::new(&self.scratch);
        if let Some(notice) = notice {
            capture.push(notice.as_bytes()).await;
        }
        let (ended, held) = process.finish(Instant::now() + timeout, cancel, &mut capture).await;
        if let Some(left) = handover.state() {
            *self.state() = left;
        }
        let (shown, background) = match held {
            None => (capture.finish().await, None),
            Some(output) => self.keep_reading(output, capture).await,
        };
        let (end, is_error) = describe(&ended, timeout);
        let killed = kills.and_then(|before| self.killed_since(before));
        let content = [end, killed, background].iter().flatten().fold(shown.text, |text, line| with_line(text, line));
        Ok(ToolOutput { content, is_error, truncated: shown.truncated })
    }

    /// Starts a command and does not wait for it. The directory and the environment stay as they are.
    async fn background(&self, command: &str) -> ToolResult {
        self.jobs.check()?;
        let (state, notice) = self.start_state();
        let handover = self.hand_over(command)?;
        let process = self.start(&state, &handover)?;
        let mut output = self.jobs.adopt(process, Some(handover), command, &self.scratch).await?;
        if let Some(notice) = notice {
            output.content.insert_str(0, &notice);
        }
        Ok(output)
    }

    /// Starts a program of the image in the workspace, in the environment of the start, as a job.
    pub(super) async fn beside(&self, program: &str, arguments: &[String]) -> Result<(), ToolError> {
        let ShellState { cwd, environment } = &self.initial;
        let Some(found) = shell::program(program, self.path()) else {
            return fail(format!("this image has no {program}"));
        };
        let mut command = Command::new(found);
        command.args(arguments).env_clear().envs(self.variables.added_to(environment, environment));
        command.env("PWD", cwd).current_dir(cwd);
        let process = Process::start(command, &self.launcher).map_err(|error| ToolError(error.to_string()))?;
        let shown = std::iter::once(program).chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        self.jobs.adopt(process, None, &shown, &self.scratch).await.map(drop)
    }

    /// Starts a shell on a terminal or with pipes, in the workspace.
    pub(super) fn terminal(&self, options: &TerminalOptions) -> Result<Terminal, TerminalError> {
        let given = options.command.as_deref().unwrap_or_default();
        if given.contains('\0') || options.term.contains('\0') {
            return Err(TerminalError::Nul);
        }
        let ShellState { cwd, environment } = &self.initial;
        let interpreter = Interpreter::find(self.path()).ok_or(TerminalError::NoShell)?;
        let mut command = Command::new(&interpreter.program);
        match &options.command {
            Some(given) => command.arg("-c").arg(given),
            None if options.tty => command.arg("-i"),
            None => command.arg("-s"),
        };
        command.env_clear().envs(self.variables.added_to(environment, environment)).env("PWD", cwd).current_dir(cwd);
        if !options.tty {
            return Terminal::start_with_pipes(command, &self.launcher);
        }
        let size = Size { columns: options.columns, rows: options.rows };
        Terminal::start(command, size, &options.term, &self.launcher)
    }

    /// Runs a program of the image in the workspace, in the environment of the start and `besides`. Its output is the reason if
    /// it fails.
    pub(super) async fn program(
        &self,
        mut command: Command,
        besides: &[(&str, &str)],
        until: Instant,
        cancel: &CancellationToken,
    ) -> Result<(), ToolError> {
        let ShellState { cwd, environment } = &self.initial;
        let name = command.get_program().to_string_lossy().into_owned();
        command.env_clear().envs(self.variables.added_to(environment, environment));
        command.envs(besides.iter().copied()).env("PWD", cwd).current_dir(cwd);
        let missing = || ToolError(format!("this image has no {name}"));
        let process = match Process::start(command, &self.launcher) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing()),
            started => started.map_err(|error| ToolError(format!("{name} could not be started: {error}")))?,
        };
        let limit = until.saturating_duration_since(Instant::now());
        let mut capture = Capture::new(&self.scratch);
        // What it may leave behind has nobody to read its output.
        let (ended, _) = process.finish(until, cancel, &mut capture).await;
        let said = capture.finish().await.text;
        match (&ended, describe(&ended, limit)) {
            (Ended::Exited(Err(error)), _) if error.kind() == ErrorKind::NotFound => Err(missing()),
            (_, (_, false)) => Ok(()),
            (_, (end, true)) => {
                let end = end.map(|end| format!("[{name}: {end}]"));
                fail(end.iter().fold(said, |text, line| with_line(text, line)))
            }
        }
    }

    fn path(&self) -> Option<&OsStr> {
        self.initial.environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str())
    }

    fn hand_over(&self, command: &str) -> Result<Handover, ToolError> {
        let spares = [Path::new("/dev/shm"), &self.initial.cwd];
        Handover::write(self.scratch.unique(), &spares, command)
            .map_err(|error| ToolError(format!("the command could not be written: {error}")))
    }

    /// What the kernel has done meanwhile because the sandbox was out of memory.
    fn killed_since(&self, before: u64) -> Option<String> {
        let memory = self.memory.as_ref()?;
        let killed = memory.oom_kills().checked_sub(before).filter(|killed| *killed > 0)?;
        let limit = memory.usage().map(|usage| format!(" of {} MiB", usage.limit >> 20)).unwrap_or_default();
        Some(format!("[the sandbox ran out of its memory{limit}, and the kernel killed {killed} of its processes]"))
    }

    /// Where the next command starts. A directory that is gone is replaced by the workspace, which is said.
    fn start_state(&self) -> (ShellState, Option<String>) {
        let mut state = self.state().clone();
        if state.cwd.is_dir() {
            return (state, None);
        }
        let notice =
            format!("[{} is not a directory any more; back in {}]\n", state.cwd.display(), self.initial.cwd.display());
        state.cwd.clone_from(&self.initial.cwd);
        (state, Some(notice))
    }

    fn start(&self, state: &ShellState, handover: &Handover) -> Result<Process, ToolError> {
        let Some(interpreter) = Interpreter::find(self.path()) else {
            return fail("this image has neither bash nor sh");
        };
        let mut command = Command::new(&interpreter.program);
        command
            .args(interpreter.arguments(handover.base()))
            .env_clear()
            .envs(self.variables.added_to(&state.environment, &self.initial.environment))
            .env("PWD", &state.cwd)
            .current_dir(&state.cwd);
        Process::start(command, &self.launcher).map_err(|error| {
            ToolError(format!(
                "{} could not be started in {}: {error}",
                interpreter.program.display(),
                state.cwd.display()
            ))
        })
    }

    /// Reads on behind the back of the answer, so that background processes neither block nor get a broken pipe.
    async fn keep_reading(&self, output: Output, capture: Capture<'_>) -> (Shown, Option<String>) {
        let Ok(slot) = Arc::clone(&self.background).try_acquire_owned() else {
            let cut = format!(
                "[more than {MAX_BACKGROUND} commands left processes in the background; the output of this one is cut off]"
            );
            return (capture.finish().await, Some(cut));
        };
        let (shown, sink) = capture.continue_in_file().await;
        let Some(sink) = sink else {
            return (shown, Some("[a process in the background holds the output, which could not be kept]".to_owned()));
        };
        let line = background_line(sink.path());
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let _slot = slot;
            stop.run_until_cancelled(output.drain(sink)).await;
        });
        (shown, Some(line))
    }

    fn state(&self) -> MutexGuard<'_, ShellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn background_line(path: &Path) -> String {
    format!("[a process in the background holds the output; it goes on in {}]", path.display())
}

fn timeout(milliseconds: Option<u64>) -> Result<Duration, ToolError> {
    match milliseconds.map(Duration::from_millis) {
        None => Ok(DEFAULT_TIMEOUT),
        Some(timeout) if !timeout.is_zero() && timeout <= MAX_TIMEOUT => Ok(timeout),
        Some(_) => fail(format!("timeout_ms must be between 1 and {}", MAX_TIMEOUT.as_millis())),
    }
}

/// The line that says how the command ended, if that has to be said, and whether it failed.
pub(super) fn describe(ended: &Ended, timeout: Duration) -> (Option<String>, bool) {
    match ended {
        Ended::Exited(Ok(status)) if status.success() => (None, false),
        Ended::Exited(Ok(status)) => (Some(describe_status(*status)), true),
        Ended::Exited(Err(error)) => (Some(format!("the exit status is not known: {error}")), true),
        Ended::Killed(excess) => (Some(excess.to_string()), true),
        Ended::TimedOut { all } => {
            let end = if *all { "were killed" } else { "were killed, but some of it has not ended" };
            let line = format!("timed out after {} s; the command and what it started {end}", timeout.as_secs_f64());
            (Some(line), true)
        }
        Ended::Interrupted => (Some("interrupted".to_owned()), true),
    }
}

fn describe_status(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {number}"),
        },
        (None, None) => status.to_string(),
    }
}

fn with_line(mut text: String, line: &str) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text
}

#[cfg(test)]
#[path = "bash_tests.rs"]
mod tests;
