//! The real binary, as a container would run it.

use crate::sandboxd::{Sandboxd, command};
use crate::support::{LONG, POD, alive, bash, call, client, eventually, exists, state};
use longhand_sandbox::client::SandboxError;
use longhand_sandbox::wire::{ExecuteRequest, ToolOutput};
use serde_json::json;

#[tokio::test]
async fn sigterm_lets_a_call_finish() {
    let mut sandboxd = Sandboxd::start("20");
    let (client, target) = (sandboxd.client.clone(), sandboxd.target.clone());
    let call = bash("a", "touch begun; while [ ! -e go ]; do sleep 0.02; done; echo done");
    let waiting = tokio::spawn(async move { client.execute(&target, &call, LONG).await });
    exists(&sandboxd.path("begun")).await;
    sandboxd.terminate();
    std::fs::write(sandboxd.path("go"), "").unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), ToolOutput::ok("done\n"));
    assert_eq!(sandboxd.ended().await, Some(0));
}

#[tokio::test]
async fn sigterm_kills_what_does_not_finish() {
    let mut sandboxd = Sandboxd::start("0");
    let (client, target) = (sandboxd.client.clone(), sandboxd.target.clone());
    let call = bash("a", "trap '' TERM; sleep 60 & echo $! > child; echo begun; touch begun; wait; sleep 60");
    let waiting = tokio::spawn(async move { client.execute(&target, &call, LONG).await });
    exists(&sandboxd.path("begun")).await;
    sandboxd.terminate();
    assert_eq!(waiting.await.unwrap().unwrap(), ToolOutput::error("begun\ninterrupted"));
    assert_eq!(sandboxd.ended().await, Some(0));
    let child = std::fs::read_to_string(sandboxd.path("child")).unwrap();
    eventually("the child is gone", async || !alive(&child)).await;
}

#[tokio::test]
async fn orphans_are_adopted_and_reaped_and_no_exit_status_is_stolen() {
    let sandboxd = Sandboxd::start("0");
    // Each command leaves an orphan, and all of them end at about the same time as other commands do.
    for round in 0..10 {
        let calls = (0..16).map(|n| {
            let (client, target) = (sandboxd.client.clone(), sandboxd.target.clone());
            let command = "(sleep 0.02 & echo $! >> orphans) >/dev/null 2>&1; exit 7";
            let call = bash(&format!("c{round}-{n}"), command);
            tokio::spawn(async move { client.execute(&target, &call, LONG).await })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap().unwrap(), ToolOutput::error("exit code 7"));
        }
    }
    let orphans = std::fs::read_to_string(sandboxd.path("orphans")).unwrap();
    assert_eq!(orphans.lines().count(), 160);
    for orphan in orphans.lines() {
        eventually("the orphan is reaped", async || state(orphan).is_none()).await;
    }
}

#[tokio::test]
async fn tools_do_not_see_the_settings_of_sandboxd() {
    let sandboxd = Sandboxd::start("0");
    let output = sandboxd.run("a", "env | grep -c -e ^SANDBOXD_ -e ^POD_UID; pwd -P").await;
    assert!(output.content.starts_with("0\n") && output.content.ends_with("/made/by/sandboxd\n"), "{}", output.content);
}

#[tokio::test]
async fn a_sandboxd_at_rest_is_small() {
    let sandboxd = Sandboxd::start("0");
    sandboxd.client.activity(&sandboxd.target).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", sandboxd.child.id())).unwrap();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    // What is read from the binary itself differs between builds; what is allocated does not.
    assert!(of("RssAnon:") < 4096, "{status}");
    eprintln!("VmRSS {} kB, RssAnon {} kB", of("VmRSS:"), of("RssAnon:"));
}

#[test]
fn a_wrong_setting_ends_it_with_a_message() {
    let output = command().env_remove("POD_UID").env("SANDBOXD_VERIFY_KEY", "x").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("the environment variable POD_UID is required"), "{log}");
}

#[tokio::test]
async fn a_program_runs_beside_the_tools_and_is_their_first_job() {
    let command = r#"["sh", "-c", "echo begun; echo \"$1\" > told; exec sleep 60", "sh", "a b"]"#;
    let mut sandboxd = Sandboxd::with(&[("SANDBOXD_COMMAND", command)]);
    exists(&sandboxd.path("told")).await;
    assert_eq!(std::fs::read_to_string(sandboxd.path("told")).unwrap(), "a b\n");
    let looked = call("a", "process", json!({"id": 1}));
    let job = sandboxd.client.execute(&sandboxd.target, &looked, LONG).await.unwrap();
    assert!(job.content.contains("job 1 (process ") && job.content.ends_with("begun\n"), "{}", job.content);
    let pid = job.content.split_once("(process ").unwrap().1.split_once(')').unwrap().0.to_owned();
    let activity = sandboxd.client.activity(&sandboxd.target).await.unwrap();
    assert!(activity.running_calls == 0 && activity.background > 0, "{activity:?}");
    sandboxd.terminate();
    assert_eq!(sandboxd.ended().await, Some(0));
    eventually("the program is gone", async || !alive(&pid)).await;
}

#[test]
fn a_program_that_is_not_there_ends_it_with_a_message() {
    let workspace = tempfile::tempdir().unwrap();
    let output = command()
        .env("SANDBOXD_LISTEN", "127.0.0.1:0")
        .env("SANDBOXD_RELAY", "127.0.0.1:0")
        .env("POD_UID", POD)
        .env("SANDBOXD_VERIFY_KEY", client().1)
        .env("SANDBOXD_WORKSPACE", workspace.path())
        .env("SANDBOXD_COMMAND", r#"["nonesuch"]"#)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        log.contains("nonesuch cannot run beside the tools (SANDBOXD_COMMAND): this image has no nonesuch"),
        "{log}"
    );
}

#[test]
fn a_workspace_that_cannot_be_made_ends_it_with_a_message() {
    let (_, key) = client();
    let output = command()
        .env("SANDBOXD_LISTEN", "127.0.0.1:0")
        .env("SANDBOXD_RELAY", "127.0.0.1:0")
        .env("POD_UID", POD)
        .env("SANDBOXD_VERIFY_KEY", key)
        .env("SANDBOXD_WORKSPACE", "/dev/null/workspace")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("the workspace /dev/null/workspace cannot be used (SANDBOXD_WORKSPACE)"), "{log}");
}

#[tokio::test]
async fn a_restarted_sandboxd_runs_no_call_twice() {
    let sandboxd = Sandboxd::start("0");
    let finished = sandboxd.run("finished", "echo ran >> runs; echo done").await;
    let (client, target) = (sandboxd.client.clone(), sandboxd.target.clone());
    let cut = bash("cut", "echo ran >> runs; touch begun; sleep 8");
    let request = cut.clone();
    let waiting = tokio::spawn(async move { client.execute(&target, &request, LONG).await });
    exists(&sandboxd.path("begun")).await;
    let sandboxd = sandboxd.killed_and_restarted();
    waiting.abort();
    assert_eq!(sandboxd.run("finished", "echo ran >> runs; echo done").await, finished);
    for request in [cut.clone(), ExecuteRequest { attach_only: true, ..cut.clone() }] {
        let unknown = sandboxd.client.execute(&sandboxd.target, &request, LONG).await;
        assert!(matches!(unknown, Err(SandboxError::OutcomeUnknown { .. })), "{unknown:?}");
    }
    let other = sandboxd.client.execute(&sandboxd.target, &bash("cut", "another"), LONG).await;
    assert!(matches!(other, Err(SandboxError::Mismatch { .. })), "{other:?}");
    assert_eq!(sandboxd.run("new", "cat runs").await, ToolOutput::ok("ran\nran\n"));
}

#[tokio::test]
async fn without_a_place_for_its_state_it_works_all_the_same() {
    let sandboxd = Sandboxd::with(&[("SANDBOXD_STATE", "/dev/null/state")]);
    assert_eq!(sandboxd.run("a", "echo works").await, ToolOutput::ok("works\n"));
}
