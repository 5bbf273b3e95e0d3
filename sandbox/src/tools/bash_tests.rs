use std::time::{Duration, Instant};

use rstest::rstest;
use tokio_util::sync::CancellationToken;

use super::Bash;
use crate::tools::ToolResult;
use crate::tools::input::BashInput;
use crate::tools::scratch::Scratch;
use crate::tools::spawned::Launcher;
use crate::wire::ToolOutput;

struct Fixture {
    bash: Bash,
    dir: tempfile::TempDir,
    _scratch: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let path = std::env::var_os("PATH").unwrap();
        Self::with_environment(vec![("PATH".into(), path), ("FROM_IMAGE".into(), "yes".into())])
    }

    fn with_environment(environment: Vec<(std::ffi::OsString, std::ffi::OsString)>) -> Self {
        let (dir, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let scratch = Scratch::new(parent.path()).unwrap();
        let bash = Bash::new(
            dir.path().canonicalize().unwrap(),
            (environment, Default::default()),
            scratch,
            Launcher::default(),
        );
        Self { bash, dir, _scratch: parent }
    }

    async fn input(&self, input: BashInput) -> ToolResult {
        self.bash.run(input, &CancellationToken::new()).await
    }

    async fn run(&self, command: &str) -> ToolOutput {
        self.input(BashInput { command: Some(command.into()), timeout_ms: Some(20_000), ..BashInput::default() })
            .await
            .unwrap()
    }

    async fn run_for(&self, command: &str, timeout_ms: u64) -> ToolOutput {
        self.input(BashInput { command: Some(command.into()), timeout_ms: Some(timeout_ms), ..BashInput::default() })
            .await
            .unwrap()
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

/// Waits until `condition` holds, at most for some seconds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < until, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A process that waits to be reaped is dead enough.
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

#[rstest]
#[case("echo out; echo err >&2; echo more", "out\nerr\nmore\n", false)]
#[case("true", "", false)]
#[case("printf x; exit 3", "x\nexit code 3", true)]
#[case("false", "exit code 1", true)]
#[case("kill -KILL $$", "killed by SIGKILL", true)]
#[case("cat", "", false)]
#[case("echo \"$FROM_IMAGE $#\"", "yes 0\n", false)]
#[case("cat <<'END'\n$HOME 'quoted' \"twice\"\nEND", "$HOME 'quoted' \"twice\"\n", false)]
#[case("set -eu; false; echo never", "exit code 1", true)]
#[case("echo é | tr -d '\\n'", "é", false)]
#[tokio::test]
async fn commands_run(#[case] command: &str, #[case] content: &str, #[case] is_error: bool) {
    let output = Fixture::new().run(command).await;
    assert_eq!(output, ToolOutput { content: content.into(), is_error, truncated: false });
}

#[tokio::test]
async fn a_mistake_is_reported_in_the_words_of_the_shell() {
    let f = Fixture::new();
    let output = f.run("nonexistent-program").await;
    assert_eq!(output.content, "bash: line 1: nonexistent-program: command not found\nexit code 127");
    let output = f.run("if then").await;
    assert!(output.is_error && output.content.contains("syntax error"), "{}", output.content);
}

#[tokio::test]
async fn directory_and_environment_stay_and_restart_resets_them() {
    let f = Fixture::new();
    f.run("mkdir -p 'sub dir'; cd 'sub dir'; export KEPT=$'two\\nlines' ; unset FROM_IMAGE; LOCAL=gone; export PATH=$PATH:/more").await;
    let output = f.run("basename \"$PWD\"; echo \"$KEPT|${FROM_IMAGE-unset}|${LOCAL-unset}|${PATH##*:}\"").await;
    assert_eq!(output.content, "sub dir\ntwo\nlines|unset|unset|/more\n");
    let restart = BashInput { restart: Some(true), ..BashInput::default() };
    assert!(f.input(restart).await.unwrap().content.contains("restarted"));
    let output = f.run("pwd -P; echo \"${KEPT-unset}|$FROM_IMAGE\"").await;
    assert_eq!(output.content, format!("{}\nunset|yes\n", f.dir.path().canonicalize().unwrap().display()));
}

#[tokio::test]
async fn a_command_may_come_with_restart() {
    let f = Fixture::new();
    f.run("export KEPT=1").await;
    let both = BashInput { command: Some("echo ${KEPT-unset}".into()), restart: Some(true), ..BashInput::default() };
    assert_eq!(f.input(both).await.unwrap().content, "unset\n");
}

#[tokio::test]
async fn state_stays_also_after_a_failure_and_without_path() {
    let f = Fixture::new();
    f.run("export A=1; exit 9").await;
    f.run("set -e; export B=2; false").await;
    f.run("export PATH=/nowhere").await;
    assert_eq!(f.run("echo \"$A $B $PATH\"").await.content, "1 2 /nowhere\n");
}

#[tokio::test]
async fn a_directory_that_is_gone_is_replaced_by_the_workspace() {
    let f = Fixture::new();
    f.run("mkdir gone && cd gone && rmdir ../gone").await;
    let output = f.run("pwd -P").await;
    let home = f.dir.path().canonicalize().unwrap();
    assert!(output.content.contains("is not a directory any more; back in"), "{}", output.content);
    assert!(output.content.ends_with(&format!("{}\n", home.display())));
}

#[tokio::test]
async fn a_timeout_kills_the_whole_group_and_shows_the_output_so_far() {
    let f = Fixture::new();
    let started = Instant::now();
    let output = f.run_for("echo so far; (trap '' TERM; sleep 60 & echo $! > stubborn; wait; wait; sleep 60) & sleep 60 & echo $! > child; wait", 2_000).await;
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(output.content, "so far\ntimed out after 2 s; the command and what it started were killed");
    assert!(output.is_error);
    for name in ["child", "stubborn"] {
        let pid = f.file(name);
        assert!(!pid.is_empty());
        eventually("the process is gone", || !alive(&pid)).await;
    }
}

#[tokio::test]
async fn cancelling_kills_the_group() {
    let f = Fixture::new();
    let cancel = CancellationToken::new();
    let input = BashInput { command: Some("echo begun; echo $$ > pid; sleep 60".into()), ..BashInput::default() };
    let (output, ()) = tokio::join!(f.bash.run(input, &cancel), async {
        eventually("the command runs", || !f.file("pid").is_empty()).await;
        cancel.cancel();
    });
    let output = output.unwrap();
    // A bash that was about to wait for its child remarks on its end.
    let content = output.content.replace("Terminated\n", "");
    assert_eq!((content.as_str(), output.is_error), ("begun\ninterrupted", true));
    eventually("the process is gone", || !alive(&f.file("pid"))).await;
}

#[tokio::test]
async fn a_background_process_does_not_hold_the_answer_and_lives_on() {
    let f = Fixture::new();
    let started = Instant::now();
    let output = f.run("(while [ ! -e go ]; do sleep 0.05; done; echo later; echo later > done) & echo now").await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(!output.is_error);
    let (text, notice) = output.content.split_once('\n').unwrap();
    assert_eq!(text, "now");
    let path = notice
        .strip_prefix("[a process in the background holds the output; it goes on in ")
        .unwrap()
        .trim_end_matches(']');
    f.run("touch go").await;
    eventually("the process was not stopped by a broken pipe", || f.file("done") == "later\n").await;
    eventually("its output is in the file", || std::fs::read_to_string(path).unwrap() == "now\nlater\n").await;
}

#[tokio::test]
async fn a_background_process_that_writes_without_end_does_not_hold_the_answer() {
    let f = Fixture::new();
    let started = Instant::now();
    let output = f.run("yes & echo $! > pid").await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(!output.is_error);
    f.run("kill $(cat pid)").await;
}

#[tokio::test]
async fn long_output_is_cut_in_the_middle_and_kept() {
    let f = Fixture::new();
    let output = f.run("echo first; head -c 300000 /dev/zero | tr '\\0' x; echo; echo last").await;
    assert!(output.truncated && !output.is_error);
    assert!(output.content.starts_with("first\nxxx") && output.content.ends_with("xxx\nlast\n"));
    assert!(output.content.len() < 103_000);
    let path = output.content.split("the whole output is in ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().len(), 300_012);
}

#[tokio::test]
async fn commands_run_in_parallel() {
    let f = Fixture::new();
    let (a, b) = tokio::join!(
        f.run("touch a; while [ ! -e b ]; do sleep 0.02; done; echo a"),
        f.run("touch b; while [ ! -e a ]; do sleep 0.02; done; echo b"),
    );
    assert_eq!((a.content.as_str(), b.content.as_str()), ("a\n", "b\n"));
}

#[tokio::test]
async fn a_command_larger_than_an_argument_may_be_runs() {
    let f = Fixture::new();
    let output = f.run(&format!("cat > big <<'END'\n{}\nEND\nwc -c < big", "x".repeat(300_000))).await;
    assert_eq!(output.content.trim(), "300001");
}

#[rstest]
#[case(None, None, None, "needs a command")]
#[case(None, Some(false), None, "needs a command")]
#[case(Some("a\0b"), None, None, "NUL byte")]
#[case(Some("true"), None, Some(0), "between 1 and 600000")]
#[case(Some("true"), None, Some(600_001), "between 1 and 600000")]
#[tokio::test]
async fn what_is_wrong_is_said(
    #[case] command: Option<&str>,
    #[case] restart: Option<bool>,
    #[case] timeout_ms: Option<u64>,
    #[case] message: &str,
) {
    let input = BashInput { command: command.map(str::to_owned), restart, timeout_ms, ..BashInput::default() };
    let error = Fixture::new().input(input).await.unwrap_err().0;
    assert!(error.contains(message), "{error}");
}

#[tokio::test]
async fn without_bash_sh_does_the_same() {
    // The usual directories have a bash here, so that only the wrapper can be tried: as the image's `bash`.
    let bin = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/sh", bin.path().join("sh")).unwrap();
    let base = state.path().join("1");
    std::fs::write(base.with_extension("sh"), "cd /; export A=1; echo ran; exit 4").unwrap();
    let shell = super::Interpreter::sh(bin.path().join("sh"));
    let output = std::process::Command::new(&shell.program).args(shell.arguments(&base)).output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"ran\n"[..], Some(4)));
    assert_eq!(std::fs::read_to_string(base.with_extension("cwd")).unwrap(), "/\n");
    let environment = std::fs::read(base.with_extension("env")).unwrap();
    assert!(environment.split(|byte| *byte == 0).any(|pair| pair == b"A=1"));
}
