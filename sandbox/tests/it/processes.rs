//! What commands may do to the sandbox, tried on the real binary: its supervisors are a part of it.

use std::time::{Duration, Instant};

use crate::sandboxd::Sandboxd;
use crate::support::{LONG, alive, call, eventually, exists};
use longhand_sandbox::wire::{CallId, ToolOutput};
use serde_json::{Value, json};

async fn tool(sandboxd: &Sandboxd, id: &str, name: &str, input: Value) -> ToolOutput {
    sandboxd.client.execute(&sandboxd.target, &call(id, name, input), LONG).await.unwrap()
}

fn read(sandboxd: &Sandboxd, name: &str) -> String {
    std::fs::read_to_string(sandboxd.path(name)).unwrap_or_default()
}

/// Leaves its group and session, loses its parent, forgets its environment, and is deaf to polite signals.
const ESCAPE: &str = r#"env -i PATH="$PATH" setsid sh -c '
    (trap "" TERM HUP; exec sh -c "echo \$\$ > escaped; exec sleep 60") &
    sh -c "echo \$\$ > second; exec sleep 60" &' &
    while [ ! -s escaped ] || [ ! -s second ]; do sleep 0.02; done"#;

#[tokio::test]
async fn a_timeout_reaches_what_has_left_group_session_and_parent() {
    let sandboxd = Sandboxd::start("0");
    // Another call and its processes are none of its business.
    let bystander =
        tool(&sandboxd, "bystander", "bash", json!({"command": "setsid sleep 60 >/dev/null 2>&1 & echo $!"}));
    let bystander = bystander.await.content;
    let started = Instant::now();
    let command = format!("{ESCAPE}; sleep 60");
    let output = tool(&sandboxd, "a", "bash", json!({"command": command, "timeout_ms": 5_000})).await;
    assert_eq!(output, ToolOutput::error("timed out after 5 s; the command and what it started were killed"));
    assert!(started.elapsed() < Duration::from_secs(10));
    for name in ["escaped", "second"] {
        let pid = read(&sandboxd, name);
        assert!(!pid.is_empty() && !alive(&pid), "{name}");
    }
    assert!(alive(&bystander));
}

#[tokio::test]
async fn cancelling_reaches_them_too() {
    let sandboxd = Sandboxd::start("0");
    let (client, target) = (sandboxd.client.clone(), sandboxd.target.clone());
    let request = call("a", "bash", json!({"command": format!("{ESCAPE}; touch begun; sleep 60")}));
    let waiting = tokio::spawn(async move { client.execute(&target, &request, LONG).await });
    exists(&sandboxd.path("begun")).await;
    assert!(sandboxd.client.cancel(&sandboxd.target, &CallId::new("a").unwrap()).await.unwrap().cancelled);
    let output = waiting.await.unwrap().unwrap();
    assert!(output.is_error && output.content.ends_with("interrupted"), "{output:?}");
    assert!(!alive(&read(&sandboxd, "escaped")) && !alive(&read(&sandboxd, "second")));
}

#[tokio::test]
async fn a_supervisor_does_not_show() {
    let sandboxd = Sandboxd::start("0");
    // Whatever this test has been given, it hands on.
    let usual = std::process::Command::new("bash").args(["-c", "ls /proc/self/fd"]).output().unwrap();
    let cases = [
        ("echo out; echo err >&2; exit 3", ToolOutput::error("out\nerr\nexit code 3")),
        ("kill -KILL $$", ToolOutput::error("killed by SIGKILL")),
        ("cat; readlink /proc/self/fd/0", ToolOutput::ok("/dev/null\n")),
        ("nonexistent", ToolOutput::error("bash: line 1: nonexistent: command not found\nexit code 127")),
        ("trap 'echo got it; exit 5' TERM; kill -TERM $$", ToolOutput::error("got it\nexit code 5")),
        ("ls /proc/self/fd", ToolOutput::ok(String::from_utf8(usual.stdout).unwrap())),
        ("cat /proc/self/oom_score_adj", ToolOutput::ok("1000\n")),
        ("grep SigBlk /proc/self/status | tr -d '\\t'", ToolOutput::ok("SigBlk:0000000000000000\n")),
    ];
    for (n, (command, expected)) in cases.into_iter().enumerate() {
        assert_eq!(sandboxd.run(&n.to_string(), command).await, expected, "{command}");
    }
    let own = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", sandboxd.child.id())).unwrap();
    assert_ne!(own.trim(), "1000");
}

#[tokio::test]
async fn a_killed_supervisor_is_said_and_not_waited_for() {
    let sandboxd = Sandboxd::start("0");
    let output = sandboxd.run("a", "kill -KILL $PPID; sleep 60").await;
    assert!(output.is_error && output.content.contains("its supervisor was killed"), "{output:?}");
}

#[tokio::test]
async fn a_fork_bomb_is_ended_and_said() {
    let sandboxd = Sandboxd::with(&[("SANDBOXD_MAX_PROCESSES", "300")]);
    let started = Instant::now();
    // It doubles at each step, and stops at about 2000 in case that nobody stops it.
    let bomb =
        "bomb() { if [ $1 -gt 9 ]; then sleep 30; else bomb $(($1 + 1)) | bomb $(($1 + 1)) & fi; }; bomb 0; sleep 60";
    let output = tool(&sandboxd, "a", "bash", json!({"command": bomb, "timeout_ms": 60_000})).await;
    assert!(output.is_error, "{output:?}");
    assert!(output.content.contains("more than the 300 that a sandbox may have"), "{output:?}");
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    // What survives would go on.
    eventually("nothing of it is left", async || {
        let activity = sandboxd.client.activity(&sandboxd.target).await.unwrap();
        (activity.running_calls, activity.background) == (0, 0)
    })
    .await;
    assert_eq!(sandboxd.run("b", "echo alive").await, ToolOutput::ok("alive\n"));
}

#[tokio::test]
async fn a_gigabyte_of_output_takes_neither_memory_nor_disk() {
    survives_output_of(1).await;
}

#[tokio::test]
#[ignore = "takes up to a minute on two busy cores; hack/test runs it by itself"]
async fn ten_gigabytes_of_output_take_neither_memory_nor_disk() {
    survives_output_of(10).await;
}

async fn survives_output_of(gibibytes: u64) {
    let sandboxd = Sandboxd::start("0");
    let command = format!("yes | head -c {gibibytes}G; echo end");
    let request = call("a", "bash", json!({"command": command, "timeout_ms": 280_000}));
    let output = sandboxd.client.execute(&sandboxd.target, &request, Duration::from_secs(300)).await.unwrap();
    assert!(output.truncated && !output.is_error && output.content.ends_with("end\n"));
    let left_out = (gibibytes << 30) + 4 - 100 * 1024;
    assert!(output.content.contains(&format!("[... {left_out} bytes left out; ")), "all of it was taken");
    let path = output.content.split("of the output are in ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().len(), 16 * 1024 * 1024);
    let status = std::fs::read_to_string(format!("/proc/{}/status", sandboxd.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    assert!(peak.parse::<u64>().unwrap() < 64 * 1024, "{peak}");
}

#[tokio::test]
async fn jobs_run_in_the_background_and_are_looked_after() {
    let sandboxd = Sandboxd::start("0");
    assert_eq!(tool(&sandboxd, "0", "process", json!({})).await.content, "no command was started in the background");
    let server = "echo started; setsid sleep 60 & for i in $(seq 600); do sleep 0.05; done";
    let output = tool(&sandboxd, "1", "bash", json!({"command": server, "run_in_background": true})).await;
    assert!(output.content.starts_with("started in the background as job 1 (process "), "{output:?}");
    let output = tool(&sandboxd, "2", "bash", json!({"command": "echo x; exit 4", "run_in_background": true})).await;
    assert!(output.content.starts_with("started in the background as job 2 "), "{output:?}");
    let look = async |id: &str, input: Value| tool(&sandboxd, id, "process", input).await.content;
    let round = std::cell::Cell::new(0);
    eventually("both have said what they say", async || {
        round.set(round.get() + 1);
        let first = look(&format!("a{}", round.get()), json!({"id": 1})).await;
        let second = look(&format!("b{}", round.get()), json!({"id": 2})).await;
        first.contains("running for")
            && first.ends_with("\nstarted\n")
            && second.contains("ended: exit code 4")
            && second.ends_with("\nx\n")
    })
    .await;
    let activity = sandboxd.client.activity(&sandboxd.target).await.unwrap();
    assert_eq!((activity.running_calls, activity.background), (0, 1));
    let all = look("3", json!({})).await;
    assert_eq!(all.lines().count(), 2, "{all}");
    assert!(look("4", json!({"id": 1, "kill": true})).await.contains("ended: interrupted"));
    eventually("all of the job is gone", async || {
        sandboxd.client.activity(&sandboxd.target).await.unwrap().background == 0
    })
    .await;
    assert!(tool(&sandboxd, "5", "process", json!({"id": 9})).await.is_error);
    assert!(tool(&sandboxd, "6", "process", json!({"kill": true})).await.is_error);
    let both = json!({"command": "true", "run_in_background": true, "timeout_ms": 5});
    assert!(tool(&sandboxd, "7", "bash", both).await.content.contains("timeout_ms does not apply"));
}

#[tokio::test]
async fn an_ending_sandboxd_ends_what_runs_in_the_background() {
    let mut sandboxd = Sandboxd::start("0");
    let job = "trap 'echo ended > polite; exit' TERM; echo $$ > job; for i in $(seq 600); do sleep 0.05; done";
    tool(&sandboxd, "a", "bash", json!({"command": job, "run_in_background": true})).await;
    let stubborn = "trap '' TERM; echo $$ > stubborn; for i in $(seq 600); do sleep 0.05; done";
    tool(&sandboxd, "b", "bash", json!({"command": stubborn, "run_in_background": true})).await;
    exists(&sandboxd.path("job")).await;
    exists(&sandboxd.path("stubborn")).await;
    sandboxd.terminate();
    assert_eq!(sandboxd.ended().await, Some(0));
    assert_eq!(read(&sandboxd, "polite"), "ended\n");
    assert!(!alive(&read(&sandboxd, "job")) && !alive(&read(&sandboxd, "stubborn")));
}

#[tokio::test]
async fn too_many_jobs_are_refused() {
    let sandboxd = Sandboxd::start("0");
    for n in 0..16 {
        let job = json!({"command": "sleep 60", "run_in_background": true});
        assert!(!tool(&sandboxd, &n.to_string(), "bash", job).await.is_error);
    }
    let job = json!({"command": "touch never", "run_in_background": true});
    let refused = tool(&sandboxd, "more", "bash", job).await;
    assert!(refused.is_error && refused.content.contains("16 commands run in the background"), "{refused:?}");
    assert!(!sandboxd.path("never").exists());
}

#[tokio::test]
async fn what_a_command_leaves_behind_counts_until_it_ends() {
    let sandboxd = Sandboxd::start("0");
    sandboxd.run("a", "setsid sh -c 'while [ ! -e go ]; do sleep 0.02; done' >/dev/null 2>&1 &").await;
    let activity = sandboxd.client.activity(&sandboxd.target).await.unwrap();
    assert_eq!((activity.running_calls, activity.background), (0, 1));
    std::fs::write(sandboxd.path("go"), "").unwrap();
    eventually("it has ended", async || sandboxd.client.activity(&sandboxd.target).await.unwrap().background == 0)
        .await;
}
