//! Who may ask, and for which hosts and addresses.

use std::net::Ipv4Addr;

use longhand_protocol::egress::CredentialOutcome;
use rstest::rstest;
use serde_json::{Value, json};

use super::support::{Options, PUBLIC, Running, TlsServer};
use crate::egress::{
    serve::{BindError, bind},
    testing::{FakeSockets, TokenMaker},
};

/// A proxy whose sandbox may reach some names, none of which has a server.
async fn start() -> Running {
    let sockets = FakeSockets::default()
        .name("api.example", &[&[PUBLIC]])
        .name("private.example", &[&["10.0.0.1"]])
        .name("mixed.example", &[&[PUBLIC, "192.168.0.1"]])
        .name("loopback.example", &[&["127.0.0.1"]])
        .name("metadata.example", &[&["169.254.169.254"]])
        .name("cgnat.example", &[&["100.64.0.1"]])
        .name("mapped.example", &[&["::ffff:8.8.8.8"]])
        .name("local6.example", &[&["fd00::1"]])
        .name("link.internal.example", &[&["169.254.169.254"]])
        .name("empty.example", &[&[]]);
    let mut options =
        Options::new(&["*.example", "9.9.9.9", "10.0.0.9", "::ffff:10.0.0.9", "169.254.169.254"], sockets);
    options.bindings = json!([
        {"name": "internal", "hosts": ["*.internal.example", "169.254.170.2"], "allowPrivate": true},
        {"name": "api", "hosts": ["bound.example"]},
    ]);
    Running::start(options).await
}

#[rstest]
#[case::none("", "407", "no_token")]
#[case::basic("proxy-authorization: Basic TOKEN\r\n", "407", "no_token")]
#[case::junk("proxy-authorization: Bearer junk\r\n", "407", "token_refused")]
#[case::twice("proxy-authorization: Bearer TOKEN\r\nproxy-authorization: Bearer TOKEN\r\n", "400", "malformed")]
#[case::elsewhere("authorization: Bearer TOKEN\r\n", "407", "no_token")]
#[tokio::test]
async fn nobody_gets_through_without_a_token(#[case] header: &str, #[case] status: &str, #[case] rule: &str) {
    let proxy = start().await;
    let header = header.replace("TOKEN", &proxy.token());
    for request in [
        format!("CONNECT api.example:443 HTTP/1.1\r\n{header}\r\n"),
        format!("GET http://api.example/ HTTP/1.1\r\nhost: api.example\r\n{header}\r\n"),
    ] {
        let mut client = proxy.client().await;
        client.send(request).await;
        let answer = client.message().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(&format!("x-longhand-denied: {rule}\r\n")), "{answer}");
    }
    assert!(proxy.sockets.dialled().is_empty());
}

#[rstest]
#[case::session("sub", json!("sesn_another"), "token_refused", "of another session")]
#[case::pod("harness", json!("another"), "token_refused", "the proxy of another pod")]
#[case::old("exp", json!(1_000), "token_refused", "has expired")]
#[case::audience("aud", json!("sandboxd"), "token_refused", "audience")]
#[case::sandbox("sandbox", json!("another"), "unknown_sandbox", "no sandbox \"another\"")]
#[tokio::test]
async fn a_token_is_good_for_one_sandbox_of_one_session(
    #[case] claim: &str,
    #[case] value: Value,
    #[case] rule: &str,
    #[case] reason: &str,
) {
    let proxy = start().await;
    let token = proxy.tokens.token(|claims| claims[claim] = value);
    let mut client = proxy.client().await;
    client.send(format!("CONNECT api.example:443 HTTP/1.1\r\nproxy-authorization: Bearer {token}\r\n\r\n")).await;
    let answer = client.message().await;
    assert!(answer.starts_with("HTTP/1.1 407 ") && answer.contains("proxy-authenticate: Bearer"), "{answer}");
    assert!(answer.contains(&format!("x-longhand-denied: {rule}\r\n")) && answer.contains(reason), "{answer}");
    assert!(proxy.sockets.dialled().is_empty());
}

#[tokio::test]
async fn another_service_signs_nothing_here() {
    let proxy = start().await;
    let token = TokenMaker::new().token(|_| {});
    let mut client = proxy.client().await;
    client.send(format!("CONNECT api.example:443 HTTP/1.1\r\nproxy-authorization: Bearer {token}\r\n\r\n")).await;
    assert!(client.message().await.contains("signature"));
}

#[rstest]
#[case("evil.test:443", "403", "host_not_allowed")]
#[case("example:443", "403", "host_not_allowed")]
#[case("localhost:443", "403", "host_not_allowed")]
#[case("8.8.8.8:443", "403", "address_not_named")]
#[case("[2606:4700::1111]:443", "403", "address_not_named")]
#[case("127.0.0.1:443", "403", "address_not_named")]
#[case("private.example:443", "403", "address_refused")]
#[case("mixed.example:443", "403", "address_refused")]
#[case("loopback.example:443", "403", "address_refused")]
#[case("metadata.example:443", "403", "address_refused")]
#[case("cgnat.example:443", "403", "address_refused")]
#[case("mapped.example:443", "403", "address_refused")]
#[case("local6.example:443", "403", "address_refused")]
// Named, but private or worse all the same.
#[case("10.0.0.9:443", "403", "address_refused")]
#[case("[::ffff:10.0.0.9]:443", "403", "address_refused")]
#[case("[::ffff:a00:9]:443", "403", "address_refused")]
#[case("169.254.169.254:443", "403", "address_refused")]
// Link-local and metadata addresses are nothing that a binding could open.
#[case("link.internal.example:443", "403", "address_refused")]
#[case("169.254.170.2:443", "403", "address_refused")]
#[case("bound.example:8443", "403", "bound_elsewhere")]
#[case("127.1:443", "400", "malformed")]
#[case("0x7f.1:443", "400", "malformed")]
#[case("2130706433:443", "400", "malformed")]
#[case("user@api.example:443", "400", "malformed")]
#[case("xn--bcher-kva.test:443", "403", "host_not_allowed")]
#[tokio::test]
async fn hosts_that_are_refused(#[case] authority: &str, #[case] status: &str, #[case] rule: &str) {
    let proxy = start().await;
    let answer = proxy.ask("CONNECT", authority, "").await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains(&format!("x-longhand-denied: {rule}\r\n")), "{answer}");
    assert!(answer.contains(&format!("({rule})\n")), "{answer}");
    assert!(proxy.sockets.dialled().is_empty());
}

#[tokio::test]
async fn a_refusal_is_on_record() {
    let proxy = start().await;
    proxy.ask("CONNECT", "evil.test:443", "").await;
    proxy.ask("CONNECT", "evil.test:443", "").await;
    proxy.ask("GET", "http://private.example:8080/secret?x", "").await;
    let events = proxy.service.at_least(2).await;
    let first = &events[0];
    assert_eq!((first.outcome, first.count, first.credential.as_deref()), (CredentialOutcome::Denied, 2, None));
    assert_eq!((first.sandbox.as_str(), first.host.as_str(), first.port), ("default", "evil.test", 443));
    assert_eq!((first.method.as_str(), &first.path_sha256), ("CONNECT", &None));
    assert!(first.reason.as_ref().unwrap().contains("may not reach evil.test"));
    let second = &events[1];
    assert_eq!((second.host.as_str(), second.port, second.method.as_str()), ("private.example", 8080, "GET"));
    assert_eq!(second.path_sha256, Some(longhand_protocol::egress::path_sha256("/secret")));
}

#[tokio::test]
async fn a_head_that_is_refused_is_on_record_as_far_as_it_fits() {
    let proxy = start().await;
    let answer = proxy.ask(&"M".repeat(65), "http://api.example:81/x", "").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("its method is too long"), "{answer}");
    let event = proxy.service.at_least(1).await.remove(0);
    assert_eq!((&*event.host, event.port, event.method.len()), ("api.example", 81, 64));
    assert!(proxy.sockets.dialled().is_empty());
}

#[tokio::test]
async fn what_cannot_be_reached_is_no_refusal() {
    let proxy = start().await;
    for authority in ["api.example:443", "unknown.example:443", "empty.example:443"] {
        let answer = proxy.ask("CONNECT", authority, "").await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && !answer.contains("x-longhand-denied"), "{answer}");
    }
}

/// A name that stands for a public address when it is judged and for a private one when it is dialled.
#[tokio::test]
async fn a_name_that_is_rebound_is_dialled_where_it_was_judged() {
    let server = TlsServer::start(&["api.example"]).await;
    let sockets =
        FakeSockets::default().name("api.example", &[&[PUBLIC], &["127.0.0.1"]]).server(PUBLIC, server.address);
    let proxy = Running::start(Options::new(&["api.example"], sockets)).await;
    let stream = proxy.tunnel("api.example:443").await;
    let (client, _server) = tokio::join!(server.handshake(stream, "api.example"), server.accept());
    client.unwrap();
    assert_eq!(proxy.sockets.dialled(), [format!("{PUBLIC}:443")]);
    let answer = proxy.ask("CONNECT", "api.example:443", "").await;
    assert!(answer.contains("api.example is 127.0.0.1, a loopback address"), "{answer}");
}

#[rstest]
#[case::fold("GET http://api.example/ HTTP/1.1\r\nhost: api.example\r\nx: a\r\n b\r\n\r\n", "400")]
#[case::nul("GET http://api.example/ HTTP/1.1\r\nhost: api.ex\0ample\r\n\r\n", "400")]
#[case::nul_in_target("CONNECT api.example\0.evil.test:443 HTTP/1.1\r\n\r\n", "400")]
#[case::space("GET http://api.example/ HTTP/1.1\r\nhost : api.example\r\n\r\n", "400")]
#[case::version("GET http://api.example/ HTTP/3\r\n\r\n", "400")]
#[case::lengths("POST http://api.example/ HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "400")]
#[tokio::test]
async fn heads_that_can_be_read_in_two_ways(#[case] request: &str, #[case] status: &str) {
    let proxy = start().await;
    let token = proxy.token();
    let request = request.replacen("HTTP/1.1\r\n", &format!("HTTP/1.1\r\nproxy-authorization: Bearer {token}\r\n"), 1);
    let mut client = proxy.client().await;
    client.send(request).await;
    let answer = client.message().await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(proxy.sockets.dialled().is_empty());
}

#[tokio::test]
async fn a_head_has_a_bound() {
    let proxy = start().await;
    let mut client = proxy.client().await;
    client.send(format!("GET http://api.example/ HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(200_000))).await;
    assert!(client.message().await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn the_authority_is_for_bound_sandboxes() {
    let proxy = start().await;
    let token = proxy.token();
    for (header, status) in [
        (format!("proxy-authorization: Bearer {token}\r\n"), "200"),
        (format!("authorization: Bearer {token}\r\n"), "200"),
        (String::new(), "407"),
    ] {
        let mut client = proxy.client().await;
        client.send(format!("GET /ca.pem HTTP/1.1\r\nhost: x\r\n{header}\r\n")).await;
        let answer = client.message().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[tokio::test]
async fn it_listens_on_one_address_only() {
    let every = bind((Ipv4Addr::UNSPECIFIED, 0).into()).await;
    assert!(matches!(every, Err(BindError::Unspecified(_))));
}
