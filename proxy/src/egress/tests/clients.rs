//! curl, as it is in an image. Skipped where there is none.

use std::{path::Path, process::Output};

use tokio::process::Command;

use super::support::{Options, PUBLIC, Running, TlsServer, within};
use crate::egress::testing::FakeSockets;

/// Runs curl through the proxy, with the header that the relay would add.
async fn curl(proxy: &Running, authorities: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .args(["--silent", "--show-error", "--max-time", "20", "--proxy", &format!("http://{}", proxy.address)])
        .args(["--proxy-header", &format!("Proxy-Authorization: Bearer {}", proxy.token())])
        .args(["--write-out", "|%{http_connect}|%{http_code}"])
        .arg("--cacert")
        .arg(authorities)
        .args(arguments)
        .kill_on_drop(true);
    within(command.output()).await.unwrap()
}

#[tokio::test]
async fn curl_reaches_what_is_allowed_and_is_told_what_is_not() {
    if !has_curl().await {
        return;
    }
    let server = TlsServer::start(&["api.example"]).await;
    let sockets = FakeSockets::default().name("api.example", &[&[PUBLIC]]).server(PUBLIC, server.address);
    let proxy = Running::start(Options::new(&["api.example"], sockets)).await;
    let authorities = server.files.path().join("ca.pem");

    let answering = async {
        let mut upstream = server.accept().await;
        let head = upstream.until("\r\n\r\n").await;
        upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
        head
    };
    let arguments = ["https://api.example/x", "--header", "Authorization: Bearer own"];
    let (output, head) = tokio::join!(curl(&proxy, &authorities, &arguments), answering);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello|200|200", "{output:?}");
    assert!(head.starts_with("GET /x HTTP/1.1\r\nHost: api.example\r\n"), "{head}");
    assert!(head.contains("Authorization: Bearer own") && !head.contains("Proxy-"), "{head}");

    let output = curl(&proxy, &authorities, &["https://evil.test/"]).await;
    assert_eq!(output.status.code(), Some(56), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "|403|000");

    // The name in the URL and the name of the handshake differ: a front.
    let connect = ["--connect-to", "evil.test:443:api.example:443", "https://evil.test/"];
    let output = curl(&proxy, &authorities, &connect).await;
    assert!(!output.status.success() && output.stdout.ends_with(b"|200|000"), "{output:?}");
    let events = proxy.service.at_least(2).await;
    assert!(events[1].reason.as_ref().unwrap().contains("asks for evil.test"), "{events:?}");
}

async fn has_curl() -> bool {
    Command::new("curl").arg("--version").output().await.is_ok_and(|output| output.status.success())
}
