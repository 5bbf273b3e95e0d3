//! A whole workspace goes from one sandbox to another.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use crate::sandboxd::Sandboxd;
use crate::support::{alive, eventually, exists};
use bytes::Bytes;
use http_body_util::Full;
use longhand_sandbox::client::{NotStarted, SandboxError};
use longhand_sandbox::wire::Unpacked;

fn status(error: SandboxError) -> u16 {
    match error {
        SandboxError::NotStarted(NotStarted::Rejected { status, .. }) => status.as_u16(),
        other => panic!("{other:?}"),
    }
}

async fn drained(sandboxd: &Sandboxd) {
    assert!(sandboxd.client.drain(&sandboxd.target, Duration::ZERO).await.unwrap().drained);
}

#[tokio::test]
async fn it_is_whole_and_nothing_that_ran_changes_it() {
    let (from, to) = (Sandboxd::start("0"), Sandboxd::start("0"));
    from.run(
        "a",
        "mkdir -p .git/objects empty; echo x > .git/HEAD; seq 20000 > numbers; printf '#!/bin/sh\\necho run' > run; chmod 755 run; ln -s run link
         (while :; do date > changes; done) > /dev/null 2>&1 & echo $! > pid",
    )
    .await;
    exists(&from.path("changes")).await;
    assert_eq!(status(from.client.read_workspace(&from.target).await.unwrap_err()), 409, "it takes calls");
    drained(&from).await;

    let workspace = from.client.read_workspace(&from.target).await.unwrap();
    assert!(!alive(&std::fs::read_to_string(from.path("pid")).unwrap()), "the archive begins when nothing runs");
    // Of `changes`, whose writer was killed, there may be nothing.
    assert!(workspace.bytes >= 108_894, "the bytes of `seq 20000` alone, not {}", workspace.bytes);
    let unpacked = to.client.fill_workspace(&to.target, workspace.content.into_body()).await.unwrap();
    assert_eq!(unpacked.files, 6);
    let found = to.run("b", "./link; cat .git/HEAD; ls -A | tr '\\n' ' '; ls -A empty | wc -l").await.content;
    assert_eq!(found, "run\nx\n.git changes empty link numbers pid run 0\n");

    // Who has not heard the answer asks again, and undoes nothing.
    to.run("c", "echo new > new").await;
    let again = from.client.read_workspace(&from.target).await.unwrap();
    let unpacked = to.client.fill_workspace(&to.target, again.content.into_body()).await.unwrap();
    assert_eq!(unpacked, Unpacked::default());
    assert_eq!(to.run("d", "cat new").await.content, "new\n");
}

#[tokio::test]
async fn one_that_was_read_takes_calls_again() {
    let from = Sandboxd::start("0");
    from.run("a", "echo x > file").await;
    drained(&from).await;
    let mut workspace = from.client.read_workspace(&from.target).await.unwrap();
    while workspace.content.next().await.unwrap().is_some() {}
    from.client.resume(&from.target).await.unwrap();
    assert_eq!(from.run("b", "cat file").await.content, "x\n");
}

#[tokio::test]
async fn what_was_broken_off_is_begun_again_and_leaves_nothing() {
    let (from, to) = (Sandboxd::start("0"), Sandboxd::start("0"));
    from.run("a", "head -c 3000000 /dev/zero > a; echo b > b").await;
    drained(&from).await;
    let mut workspace = from.client.read_workspace(&from.target).await.unwrap();
    let mut archive = Vec::new();
    while let Some(piece) = workspace.content.next().await.unwrap() {
        archive.extend_from_slice(&piece);
    }
    let part = Full::new(Bytes::copy_from_slice(&archive[..1_000_000]));
    assert_eq!(status(to.client.fill_workspace(&to.target, part).await.unwrap_err()), 400);
    std::fs::create_dir(to.path("left")).unwrap();
    std::fs::set_permissions(to.path("left"), std::fs::Permissions::from_mode(0o500)).unwrap();
    to.client.fill_workspace(&to.target, Full::new(Bytes::from(archive))).await.unwrap();
    let mut names: Vec<_> = std::fs::read_dir(to.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(std::fs::metadata(to.path("a")).unwrap().size(), 3_000_000);
}

#[tokio::test]
async fn a_sandbox_that_was_used_keeps_its_own() {
    let to = Sandboxd::start("0");
    to.run("a", "echo own > own").await;
    let refused = to.client.fill_workspace(&to.target, Full::new(Bytes::new())).await.unwrap_err();
    assert_eq!(status(refused), 409);
    assert_eq!(to.run("b", "cat own").await.content, "own\n");
}

#[tokio::test]
async fn what_cannot_be_sent_is_said_first() {
    let from = Sandboxd::start("0");
    from.run("a", "d=.; for i in $(seq 201); do d=$d/d; done; mkdir -p $d").await;
    drained(&from).await;
    assert_eq!(status(from.client.read_workspace(&from.target).await.unwrap_err()), 422);
}

#[tokio::test]
async fn a_drained_sandbox_takes_calls_again() {
    let sandboxd = Sandboxd::start("0");
    sandboxd.run("a", "echo kept > f").await;
    drained(&sandboxd).await;
    for _ in 0..2 {
        assert!(!sandboxd.client.resume(&sandboxd.target).await.unwrap().draining);
    }
    assert_eq!(sandboxd.run("b", "cat f").await.content, "kept\n");
    eventually("it is idle", async || sandboxd.client.activity(&sandboxd.target).await.unwrap().running_calls == 0)
        .await;
}
