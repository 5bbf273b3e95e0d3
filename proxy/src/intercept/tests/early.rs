//! Answers that come before the end of a request, and clients that do not look at them until they have sent it.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{StreamExt, channel::mpsc};
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rstest::rstest;

use super::support::{HOST, Reply, World, reply, within};
use crate::testing::Wire;

const LARGE: usize = 4 * 1024 * 1024;

/// Answers without a look at the body.
async fn too_large(_: Request<Incoming>) -> Reply {
    let mut answer = reply("too large");
    *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
    answer
}

type Sent = UnsyncBoxBody<Bytes, Infallible>;

struct Http2(http2::SendRequest<Sent>);

impl Http2 {
    async fn new(world: &World) -> Self {
        let tls = world.tls_for(HOST, HOST, b"h2").await.unwrap();
        let (sender, connection) = within(http2::handshake(TokioExecutor::new(), TokioIo::new(tls))).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn ask(&mut self, authorization: &str, body: Sent) -> StatusCode {
        let uri = format!("https://{HOST}/");
        let request = Request::post(uri).header("authorization", authorization).body(body).unwrap();
        let answer = within(self.0.send_request(request)).await.unwrap();
        let status = answer.status();
        assert!(within(answer.collect()).await.is_ok());
        status
    }

    /// Whatever the proxy sent before it answers has been read after it.
    async fn round_trip(&mut self) {
        self.ask("Bearer attacker", Empty::new().boxed_unsync()).await;
    }
}

fn body() -> (mpsc::UnboundedSender<Bytes>, Sent) {
    let (sender, receiver) = mpsc::unbounded::<Bytes>();
    (sender, StreamBody::new(receiver.map(|data| Ok::<_, Infallible>(Frame::data(data)))).boxed_unsync())
}

#[rstest]
#[case::refused("Bearer attacker".to_owned(), StatusCode::FORBIDDEN)]
#[case::answered_early(format!("Bearer {}", World::placeholder()), StatusCode::PAYLOAD_TOO_LARGE)]
#[tokio::test]
async fn http2_is_not_reset_under_a_client_that_still_sends(#[case] authorization: String, #[case] status: StatusCode) {
    let world = World::new(too_large).await;
    let mut client = Http2::new(&world).await;
    let (sender, sent) = body();
    assert_eq!(client.ask(&authorization, sent).await, status);
    client.round_trip().await;
    assert!(!sender.is_closed(), "the stream was reset");
    sender.unbounded_send(Bytes::from_static(b"late")).unwrap();
    client.round_trip().await;
    assert!(!sender.is_closed(), "the stream was reset");

    // What is larger than anybody would read is broken off.
    for _ in 0..LARGE / 16_384 {
        if sender.unbounded_send(Bytes::from_static(&[0; 16_384])).is_err() {
            break;
        }
    }
    within(async {
        while !sender.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[rstest]
#[case::refused("Bearer attacker".to_owned(), "HTTP/1.1 403 ")]
#[case::answered_early(format!("Bearer {}", World::placeholder()), "HTTP/1.1 413 ")]
#[tokio::test]
async fn a_connection_is_not_closed_under_a_client_that_still_sends(
    #[case] authorization: String,
    #[case] status: &str,
) {
    let world = World::with(|_| {}, &[b"http/1.1"], too_large).await;
    let mut client = Wire::new(world.tls(HOST, HOST).await.unwrap());
    for _ in 0..2 {
        let head =
            format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {authorization}\r\nContent-Length: 4\r\n\r\n");
        client.send(head).await;
        let answer = client.message().await;
        assert!(answer.starts_with(status), "{answer}");
        client.send("late").await;
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_not_asked_for_the_body_of_what_is_refused() {
    let world = World::new(too_large).await;
    let mut client = Wire::new(world.tls(HOST, HOST).await.unwrap());
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer attacker\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    );
    client.send(head).await;
    let answer = client.message().await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
