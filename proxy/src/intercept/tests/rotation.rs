//! A credential that changes while a request that has it is on its way.

use http::{Request, header};
use http_body_util::{BodyExt, Collected};
use hyper::body::Incoming;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{HOST, Reply, SECRET, World, reply, within};

/// Answers with the credential that it got, and with the first one.
async fn reflect(request: Request<Incoming>) -> Reply {
    let sent = request.headers().get(header::AUTHORIZATION).map_or("", |value| value.to_str().unwrap()).to_owned();
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    reply(format!("{} {sent} {SECRET} {} bytes", if sent.contains(SECRET) { "first" } else { "later" }, body.len()))
}

#[tokio::test]
async fn what_was_placed_before_the_body_came_does_not_come_back_however_often_it_has_changed() {
    let change = |config: &mut serde_json::Value| {
        config["bindings"][0]["placement"]["locations"] = json!(["header", "body"]);
    };
    let world = World::with(change, &[b"http/1.1"], reflect).await;
    let good = format!("Authorization: Bearer {}", World::placeholder());
    let mut tls = world.tls(HOST, HOST).await.unwrap();
    let head =
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{good}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhel");
    tls.write_all(head.as_bytes()).await.unwrap();
    for number in 0..4 {
        let value = format!("value-number-{number}");
        // Its length shows that a value is in use: what comes back has as many characters.
        let (_, before) = world.curl(&["--header", &good, "https://git.example/"]).await;
        world.rotate(&format!("{value}{}", "x".repeat(40 + number)));
        within(async {
            while world.curl(&["--header", &good, "https://git.example/"]).await.1.len() == before.len() {}
        })
        .await;
    }
    tls.write_all(b"lo").await.unwrap();
    let mut answer = Vec::new();
    let _ = within(tls.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("first Bearer ") && answer.ends_with(" 5 bytes"), "{answer}");
    assert!(!answer.contains(SECRET), "{answer}");
}
