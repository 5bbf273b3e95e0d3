//! Files, folders, ports and terminals of sandboxes, through the client that the command line has.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use longhand_crds::sandbox::DesiredState;
use longhand_crds::{Sandbox, SandboxStatus};
use longhand_protocol::SessionId;
use longhand_protocol::client::sandboxes::{FileStored, Parts, SandboxOf, Terminal};
use longhand_protocol::client::{Error, WireClient};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::auth::Access;
use crate::resources::plan::sandbox_name;
use crate::resources::{Resources as _, plan};
use crate::testing::hands::{Hands, eventually, hands};
use crate::testing::{SOON, World};

const ALICE: &str = "system:serviceaccount:team-a:alice";
const PIECE: usize = 64 * 1024;
const PIECES: usize = 128;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn of_session(session: &SessionId) -> SandboxOf {
    SandboxOf::Session { session: session.clone(), sandbox: "default".to_owned() }
}

fn bench() -> SandboxOf {
    SandboxOf::Object { name: "bench".to_owned() }
}

/// A session with a sandbox, and one that stands for itself; both are these hands.
struct Reach {
    world: World,
    hands: Hands,
    session: SessionId,
    name: String,
    client: WireClient,
}

impl Reach {
    async fn new() -> Self {
        let world = World::new();
        let session = world.session("hello", "pod-1").await;
        let resource = world.cluster.session("team-a", "hello").await.unwrap().unwrap();
        world.cluster.ensure_sandbox(plan::sandbox(&resource, "default").unwrap()).await.unwrap();
        let bench =
            json!({"metadata": {"namespace": "team-a", "name": "bench"}, "spec": {"templateRef": {"name": "tools"}}});
        world.cluster.ensure_sandbox(serde_json::from_value::<Sandbox>(bench).unwrap()).await.unwrap();
        let hands = hands(&world.signer, "hands-1").await;
        let name = sandbox_name("hello", "uid-hello", "default");
        for name in [&name, "bench"] {
            world.cluster.sandbox_ready(name, "hands-1", &hands.address);
            for (part, verb) in [("files", "get"), ("files", "create"), ("exec", "create"), ("portforward", "create")] {
                world.cluster.allow(ALICE, Access::InSandbox { part, verb, name }, "team-a");
            }
        }
        let client = world.client().await;
        Self { world, hands, session, name, client }
    }
}

async fn all(parts: Parts) -> Vec<u8> {
    let parts: Vec<Bytes> = timeout(SOON, parts.try_collect()).await.unwrap().unwrap();
    parts.concat()
}

fn pieces() -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    stream::iter((0..PIECES).map(|piece| Ok(Bytes::from(vec![u8::try_from(piece).unwrap(); PIECE]))))
}

fn refused<T>(outcome: Result<T, Error>, status: u16, part: &str) {
    let error = outcome.err().expect("it is refused");
    assert_eq!(error.status().map(|status| status.as_u16()), Some(status), "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[tokio::test]
async fn files_of_any_size_go_in_and_come_out_as_they_were() {
    let Reach { hands, session, client, world: _world, .. } = Reach::new().await;
    let expected: Vec<u8> = pieces().map(Result::unwrap).collect::<Vec<_>>().await.concat();
    for (of, file) in [(of_session(&session), "new/ä b"), (bench(), "other")] {
        let stored = client.upload_file(&of, file, Some(0o640), pieces()).await.unwrap();
        assert_eq!(stored, FileStored { bytes: (PIECE * PIECES) as u64, created: true });
        assert!(std::fs::read(hands.file(file)).unwrap() == expected);
        let found = client.download_file(&of, file).await.unwrap();
        assert_eq!(found.mode, Some(0o640));
        assert!(all(found.parts).await == expected);
    }
    refused(client.download_file(&bench(), "missing").await, 404, "does not exist");
    refused(client.download_file(&bench(), "new").await, 422, "is not a regular file");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_file() {
    let Reach { hands, client, world: _world, .. } = Reach::new().await;
    std::fs::write(hands.file("f"), "old").unwrap();
    let broken = pieces().take(3).chain(stream::iter([Err(std::io::Error::other("it went away"))]));
    client.upload_file(&bench(), "f", None, broken).await.unwrap_err();
    assert_eq!(std::fs::read(hands.file("f")).unwrap(), b"old");
}

#[tokio::test]
async fn a_folder_goes_out_and_in_again() {
    let Reach { hands, session, client, world: _world, .. } = Reach::new().await;
    std::fs::create_dir_all(hands.file("d/e")).unwrap();
    std::fs::write(hands.file("d/e/f"), "text").unwrap();
    let archive = client.download_folder(&of_session(&session), "d").await.unwrap();
    let archive = archive.map_err(std::io::Error::other);
    let unpacked = client.upload_folder(&bench(), "copy", archive).await.unwrap();
    assert_eq!((unpacked.files, unpacked.bytes), (1, 4));
    assert_eq!(std::fs::read(hands.file("copy/e/f")).unwrap(), b"text");
}

#[tokio::test]
async fn nothing_is_done_without_rights() {
    let Reach { world, hands, session, client, .. } = Reach::new().await;
    world.cluster.forbid_everything();
    for access in [Access::GetSession, Access::ReadEvents] {
        world.cluster.allow(ALICE, access, "team-a");
    }
    let terminal = Terminal { command: None, tty: true, size: (80, 24), term: "xterm", key: KEY };
    for of in [of_session(&session), bench()] {
        refused(client.download_file(&of, "f").await, 403, "may not get sandboxes/files.longhand.dev");
        refused(client.download_folder(&of, ".").await, 403, "may not get sandboxes/files.longhand.dev");
        refused(client.upload_file(&of, "f", None, pieces()).await, 403, "may not create sandboxes/files.longhand.dev");
        refused(client.upload_folder(&of, ".", pieces()).await, 403, "may not create sandboxes/files.longhand.dev");
        refused(client.open_terminal(&of, &terminal).await, 403, "may not create sandboxes/exec.longhand.dev");
        refused(client.open_port(&of, 80).await, 403, "may not create sandboxes/portforward.longhand.dev");
    }
    assert!(!hands.file("f").exists());
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let Reach { world, session, name, client, .. } = Reach::new().await;
    let other = SandboxOf::Session { session: session.clone(), sandbox: "other".to_owned() };
    refused(client.download_file(&other, "f").await, 404, "has no sandbox `other`");
    world.cluster.remove_sandbox(&name);
    refused(client.download_file(&of_session(&session), "f").await, 404, "is made when a tool call needs it");
    let ended = json!({"conditions": [{"type": "Finished", "status": "True", "reason": "LifetimeExceeded", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    world.cluster.sandbox_status("bench", serde_json::from_value::<SandboxStatus>(ended).unwrap());
    refused(client.download_file(&bench(), "f").await, 409, "has ended (LifetimeExceeded)");
}

#[rstest]
#[case("files", "`path` is missing")]
#[case("files?path=f&mode=999", "`mode` is not")]
#[case("archive?path=f&mode=644", "`mode` is not supported")]
#[tokio::test]
async fn what_is_wrong_is_named(#[case] rest: &str, #[case] part: &str) {
    let Reach { world, .. } = Reach::new().await;
    let answer = world.call("PUT", &format!("/v1/sandboxes/bench/{rest}"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains(part), "{answer:?}");
}

#[tokio::test]
async fn a_sandbox_that_sleeps_is_woken() {
    let Reach { world, hands, client, .. } = Reach::new().await;
    std::fs::write(hands.file("f"), "still here").unwrap();
    let asleep = world.cluster.sandbox("team-a", "bench").await.unwrap().unwrap();
    world.cluster.suspend_sandbox(&asleep).await.unwrap();
    world.cluster.sandbox_status("bench", SandboxStatus::default());
    let asking = tokio::spawn(async move { all(client.download_file(&bench(), "f").await.unwrap().parts).await });
    eventually(async || world.cluster.desired_state("bench") == DesiredState::Running).await;
    assert!(!asking.is_finished());
    world.cluster.sandbox_ready("bench", "hands-1", &hands.address);
    assert_eq!(timeout(SOON, asking).await.unwrap().unwrap(), b"still here");
}

/// A server that says everything back.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                // A client may go at any time.
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_port_is_reached_until_the_replica_stops() {
    let Reach { world, hands, session, client, .. } = Reach::new().await;
    let port = echo().await;
    let (mut from, mut to) = tokio::io::split(client.open_port(&of_session(&session), port).await.unwrap());
    let sending = async {
        to.write_all(&[7; 4 * 1024 * 1024]).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let both = async { tokio::join!(sending, from.read_to_end(&mut heard)) };
    timeout(SOON, both).await.unwrap().1.unwrap();
    assert_eq!(heard.len(), 4 * 1024 * 1024);

    let mut open = client.open_port(&bench(), port).await.unwrap();
    open.write_all(b"x").await.unwrap();
    assert_eq!(open.read_u8().await.unwrap(), b'x');
    world.app.stop.cancel();
    timeout(SOON, world.app.tunnels.closed()).await.unwrap();
    assert_eq!(timeout(SOON, open.read(&mut [0])).await.unwrap().unwrap_or(0), 0);

    let own: u16 = hands.address.rsplit(':').next().unwrap().parse().unwrap();
    refused(client.open_port(&bench(), own).await, 403, "that of sandboxd itself");
}

#[tokio::test]
async fn a_connection_ends_when_its_user_may_not_any_more() {
    let Reach { world, client, hands: _hands, .. } = Reach::new().await;
    let mut open = client.open_port(&bench(), echo().await).await.unwrap();
    open.write_all(b"x").await.unwrap();
    assert_eq!(open.read_u8().await.unwrap(), b'x');
    world.cluster.forbid_everything();
    assert_eq!(timeout(SOON, open.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
}

/// What a sandbox says to whoever asks for a terminal; the head of the request that it got.
async fn terminal_of_hands() -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
        String::from_utf8(head).unwrap()
    });
    (address, serving)
}

#[tokio::test]
async fn a_terminal_is_handed_through_as_it_is() {
    let Reach { world, client, .. } = Reach::new().await;
    let (address, serving) = terminal_of_hands().await;
    world.cluster.sandbox_ready("bench", "hands-2", &address);
    let terminal = Terminal { command: Some("ls -l"), tty: false, size: (132, 50), term: "xterm", key: KEY };
    let mut open = client.open_terminal(&bench(), &terminal).await.unwrap();
    assert_eq!(open.accept, ACCEPT);
    open.stream.write_all(b"any bytes").await.unwrap();
    open.stream.shutdown().await.unwrap();
    let mut heard = String::new();
    timeout(SOON, open.stream.read_to_string(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, "any bytes");
    let head = timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
    let line = "GET /v1/terminal?columns=132&rows=50&term=xterm&tty=false&command=ls%20-l HTTP/1.1\r\n";
    assert!(head.starts_with(line), "{head}");
    assert!(!head.contains("alice"), "the caller's token stays here: {head}");
}

#[tokio::test]
async fn a_terminal_and_a_port_are_connections() {
    let Reach { world, .. } = Reach::new().await;
    for (rest, part) in [("terminal", "takes a WebSocket"), ("ports/80", "upgraded")] {
        let answer = world.call("GET", &format!("/v1/sandboxes/bench/{rest}"), "alice", &Value::Null).await;
        assert_eq!(answer.status, 400);
        assert!(answer.message().contains(part), "{answer:?}");
    }
    for port in ["0", "65536", "x"] {
        let answer = world.call("GET", &format!("/v1/sandboxes/bench/ports/{port}"), "alice", &Value::Null).await;
        assert_eq!(answer.status, 404, "{port}");
    }
}
