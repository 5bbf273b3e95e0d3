//! Streams pass as they come, over plain connections and TLS, and end when either side does.

use std::{sync::Arc, time::Duration};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::support::{Options, Running, SECRET, TOKEN, Wire, post, within};
use crate::upstream::tls_config_with;

const SSE_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

#[tokio::test]
async fn each_event_passes_before_the_next_is_sent() {
    let running = Running::start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    upstream.send(SSE_HEAD).await;
    assert!(client.until("\r\n\r\n").await.contains("content-type: text/event-stream\r\n"));
    for number in 0..5 {
        let event = format!("event: ping\ndata: {number}\n\n");
        upstream.send(chunk(&event)).await;
        assert!(client.until(&format!("data: {number}\n\n")).await.contains("event: ping\n"));
    }
    upstream.send("0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_request_passes_as_it_comes_and_its_trailers_do_not() {
    let running = Running::start().await;
    let mut client = running.client().await;
    client
        .send(format!(
            "POST /model/v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {TOKEN}\r\ntransfer-encoding: chunked\r\ntrailer: x-api-key\r\n\r\n"
        ))
        .await;
    client.send(chunk("one")).await;
    let mut upstream = running.accept().await;
    upstream.until("one\r\n").await;
    client.send(chunk("two")).await;
    upstream.until("two\r\n").await;
    client.send("0\r\nx-api-key: attacker\r\n\r\n").await;
    assert_eq!(upstream.until("\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test]
async fn a_client_that_goes_takes_the_upstream_with_it() {
    let running = Running::start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    upstream.send(SSE_HEAD).await;
    client.until("\r\n\r\n").await;
    drop(client);
    assert_eq!(upstream.rest().await, "");
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_seen_as_broken() {
    let running = Running::start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    upstream.send(SSE_HEAD).await;
    upstream.send(chunk("half")).await;
    client.until("half\r\n").await;
    drop(upstream);
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn streams_in_flight_outlive_the_listener() {
    let running = Running::start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    upstream.send(SSE_HEAD).await;
    client.until("\r\n\r\n").await;
    running.shutdown.cancel();
    within(async {
        while TcpStream::connect(running.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    upstream.send(chunk("late")).await;
    upstream.send("0\r\n\r\n").await;
    assert!(client.rest().await.ends_with("late\r\n0\r\n\r\n"));
    within(running.task).await.unwrap();
}

#[tokio::test]
async fn what_outlives_the_grace_is_broken_off() {
    let running = Running::with(Options { grace: Duration::ZERO, ..Options::default() }).await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    upstream.message().await;
    upstream.send(SSE_HEAD).await;
    client.until("\r\n\r\n").await;
    running.shutdown.cancel();
    within(running.task).await.unwrap();
    assert_eq!(client.rest().await, "");
}

/// A server's and a client's settings; the client trusts the server if it shall.
fn tls(name: &str, trusted: bool) -> (TlsAcceptor, ClientConfig) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    if trusted {
        roots.add(cert.der().clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap())
        .unwrap();
    (TlsAcceptor::from(Arc::new(server)), tls_config_with(roots).unwrap())
}

fn over_tls(route: &mut serde_json::Value, port: u16) {
    route["upstream"] = json!(format!("https://localhost:{port}/base"));
    route["credential"]["allow"]["scheme"] = json!("https");
}

#[tokio::test]
async fn it_streams_over_tls() {
    let (acceptor, client_tls) = tls("localhost", true);
    let running = Running::with(Options { change: Box::new(over_tls), tls: client_tls, ..Options::default() }).await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let (tcp, _) = within(running.upstream.accept()).await.unwrap();
    let mut upstream = Wire::new(within(acceptor.accept(tcp)).await.unwrap());
    assert!(upstream.message().await.contains(&format!("x-api-key: {SECRET}\r\n")));
    upstream.send(SSE_HEAD).await;
    client.until("\r\n\r\n").await;
    upstream.send(chunk("data: 1\n\n")).await;
    client.until("data: 1\n\n").await;
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gets_nothing() {
    for (name, trusted) in [("localhost", false), ("other.example", true)] {
        let (acceptor, client_tls) = tls(name, trusted);
        let running =
            Running::with(Options { change: Box::new(over_tls), tls: client_tls, ..Options::default() }).await;
        let mut client = running.client().await;
        client.send(post("/model/v1/messages")).await;
        let (tcp, _) = within(running.upstream.accept()).await.unwrap();
        assert!(within(acceptor.accept(tcp)).await.is_err(), "{name}");
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && answer.contains("certificate"), "{answer}");
    }
}
