//! Files and folders through the client, and through the real binary.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::sandboxd::Sandboxd;
use crate::support::eventually;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame};
use longhand_sandbox::client::{NotStarted, Reading, SandboxError};
use longhand_sandbox::wire::{Stored, Unpacked};
use rstest::rstest;

async fn all(mut content: Reading) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(piece) = content.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// So many bytes, which nobody holds at once; then the end, or a failure.
struct Bulk {
    left: usize,
    fails: bool,
}

impl Body for Bulk {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
        if self.left == 0 {
            return Poll::Ready(self.fails.then(|| Err(std::io::ErrorKind::ConnectionReset.into())));
        }
        let length = self.left.min(PIECE.len());
        self.left -= length;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PIECE[..length])))))
    }
}

fn peak(sandboxd: &Sandboxd) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sandboxd.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_large_file_goes_both_ways_in_little_memory() {
    const SIZE: usize = 200 * 1024 * 1024;
    let sandboxd = Sandboxd::start("0");
    let (client, target) = (&sandboxd.client, &sandboxd.target);
    let bulk = Bulk { left: SIZE, fails: false };
    let stored = client.upload(target, "new/ä b.bin", Some(0o640), bulk).await.unwrap();
    assert_eq!(stored, Stored { bytes: SIZE as u64, created: true });
    assert_eq!(std::fs::metadata(sandboxd.path("new/ä b.bin")).unwrap().mode() & 0o777, 0o640);
    let file = client.download(target, "new/ä b.bin").await.unwrap();
    assert_eq!((file.size, file.mode), (SIZE as u64, 0o640));
    let mut content = file.content;
    let mut received = 0;
    while let Some(piece) = content.next().await.unwrap() {
        assert!(piece.iter().all(|byte| *byte == b'x'));
        received += piece.len();
    }
    assert_eq!(received, SIZE);
    assert!(peak(&sandboxd) < 40 * 1024, "{} kB", peak(&sandboxd));
}

#[tokio::test]
async fn a_folder_goes_from_one_sandbox_to_another() {
    let (from, to) = (Sandboxd::start("0"), Sandboxd::start("0"));
    from.run("a", "mkdir -p d/e; echo 1 > d/e/f; chmod 700 d/e/f; ln -s e/f d/l; ln -s /etc/passwd d/out").await;
    let archive = from.client.download_folder(&from.target, "d").await.unwrap();
    let unpacked = to.client.upload_folder(&to.target, "copy", archive.into_body()).await.unwrap();
    assert_eq!(unpacked, Unpacked { files: 3, bytes: 2, skipped: 0 });
    let output = to.run("b", "cat copy/l; stat -c %a copy/e/f; readlink copy/out").await;
    assert_eq!(output.content, "1\n700\n/etc/passwd\n");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_file() {
    let sandboxd = Sandboxd::start("0");
    sandboxd.run("a", "echo old > f").await;
    let broken = sandboxd.client.upload(&sandboxd.target, "f", None, Bulk { left: 300_000, fails: true }).await;
    assert!(broken.is_err());
    eventually("the transfer is over", async || {
        sandboxd.client.activity(&sandboxd.target).await.unwrap().transfers == 0
    })
    .await;
    assert_eq!(sandboxd.run("b", "cat f; ls -A | wc -l").await.content, "old\n1\n");
}

#[rstest]
#[case("missing", 404, "does not exist")]
#[case("folder", 422, "is not a regular file")]
#[case("link", 422, "leads out of the workspace by a link, to /etc/passwd")]
#[case("", 422, "the path is empty")]
#[tokio::test]
async fn what_cannot_be_sent_is_said(#[case] path: &str, #[case] status: u16, #[case] message: &str) {
    let sandboxd = Sandboxd::start("0");
    std::fs::create_dir(sandboxd.path("folder")).unwrap();
    symlink("/etc/passwd", sandboxd.path("link")).unwrap();
    let refused = sandboxd.client.download(&sandboxd.target, path).await;
    let Err(SandboxError::NotStarted(NotStarted::Rejected { status: got, message: said })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(got.as_u16(), status);
    assert!(said.contains(message), "{said}");
}

#[tokio::test]
async fn a_file_outside_of_the_workspace_is_named_by_its_whole_path() {
    let sandboxd = Sandboxd::start("0");
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join("f");
    let path = path.to_str().unwrap();
    sandboxd.client.upload(&sandboxd.target, path, None, Full::new(Bytes::from("x"))).await.unwrap();
    let file = sandboxd.client.download(&sandboxd.target, path).await.unwrap();
    assert_eq!(all(file.content).await, b"x");
}

#[tokio::test]
async fn a_transfer_that_goes_on_keeps_the_sandbox_from_being_drained() {
    let sandboxd = Sandboxd::start("0");
    let (client, target) = (&sandboxd.client, &sandboxd.target);
    client.upload(target, "f", None, Bulk { left: 50 * 1024 * 1024, fails: false }).await.unwrap();
    let file = client.download(target, "f").await.unwrap();
    let activity = client.activity(target).await.unwrap();
    assert_eq!((activity.transfers, activity.idle_seconds), (1, 0));
    assert!(!client.drain(target, std::time::Duration::ZERO).await.unwrap().drained);
    drop(file);
    eventually("the transfer is over", async || client.activity(target).await.unwrap().transfers == 0).await;
    assert!(client.drain(target, std::time::Duration::ZERO).await.unwrap().drained);
    let refused = client.upload(target, "f", None, Full::new(Bytes::new())).await;
    assert!(matches!(refused, Err(SandboxError::NotStarted(NotStarted::Draining))), "{refused:?}");
}
