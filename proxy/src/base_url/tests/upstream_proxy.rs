//! Through the proxy of the cluster's owner.

use std::net::Ipv4Addr;

use rstest::rstest;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::support::{Options, Running, SECRET, Wire, post, within};

/// The upstream has a name that nobody here resolves: only the proxy of the cluster's owner can.
fn elsewhere(route: &mut Value, _: u16) {
    route["upstream"] = json!("http://model.example:8080/base");
    route["credential"]["allow"]["hosts"] = json!(["model.example"]);
    route["credential"]["allow"]["port"] = json!(8080);
    route["credential"]["allow"]["allowPrivate"] = json!(false);
}

async fn through(no_proxy: Value, change: fn(&mut Value, u16)) -> (TcpListener, Running) {
    let corporate = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", corporate.local_addr().unwrap());
    let more = json!({"upstreamProxy": {"url": url, "noProxy": no_proxy}});
    (corporate, Running::with(Options { change: Box::new(change), more, ..Options::default() }).await)
}

#[tokio::test]
async fn an_upstream_is_reached_through_it() {
    let (corporate, running) = through(json!([".corp.example"]), elsewhere).await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut tunnel = Wire::new(within(corporate.accept()).await.unwrap().0);
    let head = tunnel.message().await;
    assert!(head.starts_with("CONNECT model.example:8080 HTTP/1.1\r\n") && !head.contains(SECRET), "{head}");
    tunnel.send("HTTP/1.1 200 OK\r\n\r\n").await;
    let request = tunnel.message().await;
    assert!(request.starts_with("POST /base/v1/messages HTTP/1.1\r\n") && request.contains(SECRET), "{request}");
    tunnel.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer}");
}

#[tokio::test]
async fn its_refusal_is_told() {
    let (corporate, running) = through(json!([]), elsewhere).await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut tunnel = Wire::new(within(corporate.accept()).await.unwrap().0);
    tunnel.message().await;
    tunnel.send("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("status 407"), "{answer}");
}

#[rstest]
#[case::by_name("localhost")]
#[case::by_address("127.0.0.1")]
#[tokio::test]
async fn what_is_of_this_cluster_is_reached_directly(#[case] host: &'static str) {
    let change: fn(&mut Value, u16) = match host {
        "localhost" => |route, port| route["upstream"] = json!(format!("http://localhost:{port}/base")),
        _ => |_, _| {},
    };
    let (_corporate, running) = through(json!([]), change).await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    let mut upstream = running.accept().await;
    assert!(upstream.message().await.starts_with("POST /base/v1/messages "));
}

#[tokio::test]
async fn an_address_that_may_not_be_reached_is_not_asked_of_it() {
    fn metadata(route: &mut Value, _: u16) {
        route["upstream"] = json!("http://169.254.169.254/base");
        route["credential"]["allow"]["hosts"] = json!(["169.254.169.254"]);
        route["credential"]["allow"]["port"] = json!(80);
    }
    let (corporate, running) = through(json!([]), metadata).await;
    let answer = running.refused(post("/model/v1/messages")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    drop(corporate);
}
