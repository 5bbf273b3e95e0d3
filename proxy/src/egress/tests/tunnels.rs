//! Tunnels to hosts that nothing is bound to.

use std::sync::Arc;

use rstest::rstest;
use rustls::{ClientConnection, RootCertStore, pki_types::ServerName};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::support::{Options, PUBLIC, Running, TlsServer, Wire, within};
use crate::{egress::testing::FakeSockets, upstream::tls_config_with};

async fn start(server: &TlsServer) -> Running {
    let sockets = FakeSockets::default().name("api.example", &[&[PUBLIC]]).server(PUBLIC, server.address);
    Running::start(Options::new(&["api.example", PUBLIC], sockets)).await
}

fn hello(name: &str) -> Vec<u8> {
    let config = Arc::new(tls_config_with(RootCertStore::empty()).unwrap());
    let mut client = ClientConnection::new(config, ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn bytes_pass_untouched_and_each_side_ends_on_its_own() {
    let server = TlsServer::start(&["api.example"]).await;
    let proxy = start(&server).await;
    let stream = proxy.tunnel("api.example:443").await;
    let (client, mut upstream) = tokio::join!(server.handshake(stream, "api.example"), server.accept());
    let mut client = client.unwrap();
    // The certificate is the server's own, or the handshake would have failed.
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(upstream.rest().await, "ping");
    upstream.send("pong").await;
    drop(upstream);
    let mut answer = Vec::new();
    _ = within(client.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"pong");
    proxy.stop().await;
}

#[tokio::test]
async fn a_large_body_passes_in_pieces() {
    let server = TlsServer::start(&["api.example"]).await;
    let proxy = start(&server).await;
    let stream = proxy.tunnel("api.example:443").await;
    let (client, mut upstream) = tokio::join!(server.handshake(stream, "api.example"), server.accept());
    let (mut from, mut to) = tokio::io::split(client.unwrap());
    let piece = vec![b'x'; 1 << 20];
    let sending = tokio::spawn(async move {
        for _ in 0..16 {
            to.write_all(&piece).await.unwrap();
        }
        to.shutdown().await.unwrap();
    });
    let received = upstream.rest().await;
    within(sending).await.unwrap();
    assert_eq!(received.len(), 16 << 20);
    let answering = async move {
        upstream.send(&received).await;
        drop(upstream);
    };
    let mut answer = Vec::new();
    // The server ends without a word, as many do.
    let ((), _) = tokio::join!(answering, within(from.read_to_end(&mut answer)));
    assert_eq!(answer.len(), 16 << 20);
}

#[rstest]
#[case::same("api.example", Some("api.example"), "")]
#[case::case("API.Example.", Some("api.example"), "")]
#[case::other("api.example", Some("evil.example"), "sni_mismatch")]
#[case::below("api.example", Some("x.api.example"), "sni_mismatch")]
#[case::none("api.example", None, "no_sni")]
#[case::address(PUBLIC, None, "")]
#[case::address_with_a_name(PUBLIC, Some("api.example"), "sni_mismatch")]
#[tokio::test]
async fn connect_and_sni_are_the_same(#[case] connect: &str, #[case] sni: Option<&str>, #[case] rule: &str) {
    let server = TlsServer::start(&["api.example"]).await;
    let proxy = start(&server).await;
    let mut client = Wire::new(proxy.tunnel(&format!("{connect}:443")).await);
    // A ClientHello for an address has no SNI.
    let bytes = hello(sni.unwrap_or("9.9.9.9"));
    client.send(&bytes).await;
    if rule.is_empty() {
        // The server answers: what was sent has reached it.
        let answered = tokio::join!(client.bytes(1), async { drop(server.accept_raw(bytes.len()).await) }).0;
        assert_eq!(answered, b"!");
    } else {
        // A fatal alert, and the end. The server has seen a connection, and not a byte.
        assert_eq!(client.raw_rest().await, [21, 3, 3, 0, 2, 2, 49]);
        assert_eq!(server.bytes_of_next_client().await, 0);
        let event = &proxy.service.at_least(1).await[0];
        assert_eq!((event.host.as_str(), event.method.as_str()), (connect, "CONNECT"));
        let reason = event.reason.as_deref().unwrap();
        assert!(reason.contains("TLS ClientHello"), "{reason}");
    }
}

#[rstest]
#[case::http(b"GET / HTTP/1.1\r\nhost: api.example\r\n\r\n")]
#[case::ssh(b"SSH-2.0-OpenSSH_9.6\r\n")]
#[tokio::test]
async fn a_tunnel_carries_tls_only(#[case] bytes: &[u8]) {
    let server = TlsServer::start(&["api.example"]).await;
    let proxy = start(&server).await;
    let mut client = Wire::new(proxy.tunnel("api.example:443").await);
    client.send(bytes).await;
    assert!(client.raw_rest().await.is_empty());
    assert_eq!(server.bytes_of_next_client().await, 0);
    assert!(proxy.service.at_least(1).await[0].reason.as_ref().unwrap().contains("not TLS"));
}

#[tokio::test]
async fn a_hello_may_come_byte_by_byte_and_with_more_behind_it() {
    let server = TlsServer::start(&["api.example"]).await;
    let proxy = start(&server).await;
    let mut client = Wire::new(proxy.tunnel("api.example:443").await);
    let mut bytes = hello("api.example");
    bytes.extend_from_slice(b"more");
    for byte in bytes.chunks(1) {
        client.send(byte).await;
    }
    assert_eq!(server.accept_raw(bytes.len()).await, bytes);
}

#[tokio::test]
async fn a_program_that_speaks_http_1_0_gets_its_tunnel() {
    let server = TlsServer::start(&["api.example"]).await;
    let proxy = start(&server).await;
    let mut client = proxy.client().await;
    let token = proxy.token();
    client.send(format!("CONNECT api.example:443 HTTP/1.0\r\nproxy-authorization: Bearer {token}\r\n\r\n")).await;
    assert!(client.until("\r\n\r\n").await.contains(" 200 "));
    let bytes = hello("api.example");
    client.send(&bytes).await;
    assert_eq!(server.accept_raw(bytes.len()).await, bytes);
}

#[tokio::test]
async fn an_idle_tunnel_does_not_keep_the_proxy() {
    let server = TlsServer::start(&["api.example"]).await;
    let proxy = start(&server).await;
    let stream = proxy.tunnel("api.example:443").await;
    let (client, _upstream) = tokio::join!(server.handshake(stream, "api.example"), server.accept());
    let mut client = client.unwrap();
    proxy.stop().await;
    let mut rest = Vec::new();
    _ = within(client.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}

/// The proxy of a cluster's owner: it resolves names, and is itself reached at a private address.
#[rstest]
#[case::taken("HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\nserver first", "HTTP/1.1 200 ", true)]
#[case::refused("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 502 ", false)]
#[case::not_http("SSH-2.0-x\r\n\r\n", "HTTP/1.1 502 ", false)]
#[tokio::test]
async fn through_an_upstream_proxy(#[case] answer: &str, #[case] expected: &str, #[case] open: bool) {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sockets = FakeSockets::default()
        .name("proxy.corp.example", &[&["10.1.2.3"]])
        .name("git.corp.example", &[&[PUBLIC]])
        .server("10.1.2.3", upstream.local_addr().unwrap());
    let mut options = Options::new(&["api.example", "git.corp.example", "10.0.0.7"], sockets);
    options.change = |section| {
        section["upstreamProxy"] = json!({"url": "http://proxy.corp.example:3128", "noProxy": [".corp.example"]});
    };
    let proxy = Running::start(options).await;
    let (mut client, token) = (proxy.client().await, proxy.token());
    client.send(format!("CONNECT api.example:443 HTTP/1.1\r\nproxy-authorization: Bearer {token}\r\n\r\n")).await;
    let mut server = Wire::new(within(upstream.accept()).await.unwrap().0);
    // The egress token stays here.
    assert_eq!(server.until("\r\n\r\n").await, "CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n");
    server.send(answer).await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with(expected), "{head}");
    if open {
        let bytes = hello("api.example");
        client.send(&bytes).await;
        assert_eq!(client.bytes("server first".len()).await, b"server first");
        assert_eq!(server.bytes(bytes.len()).await, bytes);
    }
    // What needs no proxy is dialled directly, and an address is judged in any case.
    proxy.ask("CONNECT", "git.corp.example:443", "").await;
    let answer = proxy.ask("CONNECT", "10.0.0.7:443", "").await;
    assert!(answer.contains("x-longhand-denied: address_refused"), "{answer}");
    assert_eq!(proxy.sockets.dialled(), ["10.1.2.3:3128".to_owned(), format!("{PUBLIC}:443")]);
}

#[tokio::test]
async fn a_client_that_goes_before_its_hello_is_no_refusal() {
    let server = TlsServer::start(&["api.example"]).await;
    let proxy = start(&server).await;
    let stream: TcpStream = proxy.tunnel("api.example:443").await;
    drop(stream);
    assert_eq!(server.bytes_of_next_client().await, 0);
    proxy.ask("CONNECT", "evil.test:443", "").await;
    let events = proxy.service.at_least(1).await;
    assert!(events.iter().all(|event| &*event.host == "evil.test"), "{events:?}");
}
