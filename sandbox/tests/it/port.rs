//! Ports of the real binary's loopback.

use longhand_sandbox::client::{NotStarted, SandboxError};
use longhand_sandbox::token::Scope;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::sandboxd::Sandboxd;
use crate::support::{LONG, POD, eventually};

const SIZE: usize = 8 * 1024 * 1024;

#[tokio::test]
async fn a_server_is_reached_and_keeps_the_sandbox_from_being_drained() {
    let sandboxd = Sandboxd::start("0");
    let (client, target) = (&sandboxd.client, &sandboxd.target);
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    // Says back what it hears, until the other side has ended.
    let serving = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let tunnel = client.open_port(target, port).await.unwrap();
    let activity = client.activity(target).await.unwrap();
    assert_eq!((activity.tunnels, activity.idle_seconds), (1, 0));
    assert!(!client.drain(target, std::time::Duration::ZERO).await.unwrap().drained);
    let (mut from, mut to) = tokio::io::split(tunnel);
    let sending = async {
        to.write_all(&vec![b'x'; SIZE]).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let both = async { tokio::join!(sending, from.read_to_end(&mut heard)) };
    timeout(LONG, both).await.unwrap().1.unwrap();
    assert_eq!(heard.len(), SIZE);
    serving.await.unwrap();
    eventually("it is closed", async || client.activity(target).await.unwrap().tunnels == 0).await;
    assert!(client.drain(target, std::time::Duration::ZERO).await.unwrap().drained);
    let refused = client.open_port(target, port).await;
    assert!(matches!(refused, Err(SandboxError::NotStarted(NotStarted::Draining))), "{refused:?}");
}

#[tokio::test]
async fn what_cannot_be_reached_is_said() {
    let sandboxd = Sandboxd::start("0");
    let own: u16 = sandboxd.target.address.rsplit(':').next().unwrap().parse().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    for (port, expected, part) in [(own, 403, "that of sandboxd itself"), (free, 502, "nothing listens on port")] {
        let refused = sandboxd.client.open_port(&sandboxd.target, port).await;
        let Err(SandboxError::NotStarted(NotStarted::Rejected { status, message })) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(status.as_u16(), expected);
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn a_port_needs_a_token_of_its_own() {
    let sandboxd = Sandboxd::start("0");
    for scope in [Scope::Tools, Scope::Terminal] {
        let token = sandboxd.signer.sign_for(POD, scope).unwrap();
        let answer = sandboxd.raw("GET /v1/ports/80", &token).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("scope does not open this path"), "{answer}");
    }
    let token = sandboxd.signer.sign_for(POD, Scope::Port).unwrap();
    let answer = sandboxd.raw("GET /v1/activity", &token).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    for (path, status) in
        [("/v1/ports/80", "426"), ("/v1/ports/0", "404"), ("/v1/ports/70000", "404"), ("/v1/ports/x", "404")]
    {
        let answer = sandboxd.raw(&format!("GET {path}"), &token).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
}
