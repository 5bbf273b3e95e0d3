//! Long, large and two-way bodies.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{StreamExt, channel::mpsc};
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{HOST, SECRET, World, reply, within};

const LARGE: usize = 24 * 1024 * 1024;

#[tokio::test]
async fn an_event_comes_at_once_and_a_rotation_does_not_let_the_old_value_through() {
    let (sender, receiver) = mpsc::unbounded::<Bytes>();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let world = World::new(move |request: Request<Incoming>| {
        let receiver = receiver.lock().unwrap().take();
        async move {
            let Some(receiver) = receiver else {
                return reply(request.headers()[header::AUTHORIZATION].as_bytes().to_vec());
            };
            let body = StreamBody::new(receiver.map(|data| Ok::<_, std::io::Error>(Frame::data(data))));
            Response::new(body.map_err(Into::into).boxed_unsync())
        }
    })
    .await;
    let mut tls = world.tls(HOST, HOST).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {}\r\n\r\n", World::placeholder());
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    for event in ["data: one\n\n", "data: two\n\n"] {
        sender.unbounded_send(Bytes::from_static(event.as_bytes())).unwrap();
        within(async {
            while !String::from_utf8_lossy(&got).contains(event) {
                tls.read_buf(&mut got).await.unwrap();
            }
        })
        .await;
    }
    world.rotate("another-value-for-it");
    tokio::time::sleep(std::time::Duration::from_millis(1_050)).await;
    let good = format!("Authorization: Bearer {}", World::placeholder());
    // What was sent is the new value, and neither comes back.
    let (status, text) = world.curl(&["--header", &good, "https://git.example/"]).await;
    assert_eq!((status.as_str(), text.as_str()), ("200", "Bearer [credential removed]"));
    for part in ["data: ", &SECRET[..5], &SECRET[5..], "\n\n"] {
        sender.unbounded_send(Bytes::from_static(part.as_bytes())).unwrap();
    }
    drop(sender);
    within(async {
        while !String::from_utf8_lossy(&got).ends_with("0\r\n\r\n") {
            tls.read_buf(&mut got).await.unwrap();
        }
    })
    .await;
    let text = String::from_utf8_lossy(&got).into_owned();
    assert!(!text.contains(&SECRET[5..]) && text.contains("[credential removed]"), "{text}");
}

#[tokio::test]
async fn large_bodies_stream_in_both_directions() {
    let world = World::new(|request: Request<Incoming>| async move {
        // As it comes, so that a body is never held as a whole anywhere.
        Response::new(request.into_body().map_err(Into::into).boxed_unsync())
    })
    .await;
    let file = super::support::path(&world, "large");
    let content: Vec<u8> = (0..LARGE).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
    std::fs::write(&file, &content).unwrap();
    let good = format!("Authorization: Bearer {}", World::placeholder());
    let upload = format!("@{}", file.display());
    let back = super::support::path(&world, "back");
    for version in ["--http1.1", "--http2"] {
        for framing in ["X-Framing: length", "Transfer-Encoding: chunked"] {
            if version == "--http2" && framing.contains("chunked") {
                continue;
            }
            let arguments = [
                version,
                "--header",
                &good,
                "--header",
                framing,
                "--data-binary",
                &upload,
                "--output",
                back.to_str().unwrap(),
                "https://git.example/",
            ];
            let (status, _) = world.curl(&arguments).await;
            assert_eq!(status, "200", "{version} {framing}");
            assert!(std::fs::read(&back).unwrap() == content, "{version} {framing}");
        }
    }
}

#[tokio::test]
async fn a_websocket_passes_without_values() {
    let world = World::new(|mut request: Request<Incoming>| async move {
        assert!(request.headers()[header::AUTHORIZATION] == format!("Bearer {SECRET}").as_str());
        assert!(!request.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS));
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut got = [0; 4];
            io.read_exact(&mut got).await.unwrap();
            io.write_all(&[b"\x81\x20".as_slice(), &got, b" ", SECRET.as_bytes(), b" bye"].concat()).await.unwrap();
            io.shutdown().await.unwrap();
        });
        let mut answer = reply("");
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
        answer.headers_mut().insert(header::UPGRADE, "websocket".parse().unwrap());
        answer.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, "x".parse().unwrap());
        answer
    })
    .await;
    let mut tls = world.tls(HOST, HOST).await.unwrap();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\
         Sec-WebSocket-Extensions: permessage-deflate\r\nAuthorization: Bearer {}\r\n\r\nping",
        World::placeholder()
    );
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    within(async { while !got.ends_with(b" bye") && tls.read_buf(&mut got).await.unwrap() > 0 {} }).await;
    let text = String::from_utf8_lossy(&got);
    assert!(text.starts_with("HTTP/1.1 101") && text.contains("sec-websocket-accept: x"), "{text}");
    assert!(text.contains("ping [credential removed]") && text.ends_with(" bye") && !text.contains(SECRET), "{text}");
}
