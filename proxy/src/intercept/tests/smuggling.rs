//! Raw bytes inside of a tunnel, and tunnels to other names than they say.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use longhand_protocol::egress::CredentialOutcome;

use super::support::{HOST, World, reply};

#[tokio::test]
async fn a_request_that_can_be_read_in_two_ways_reaches_nobody() {
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = requests.clone();
    let world = World::new(move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
        async { reply("reached") }
    })
    .await;
    let long = format!("{} / HTTP/1.1\r\nHost: git.example\r\n\r\n", "M".repeat(65));
    for request in [
        long.as_str(),
        "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: git.example\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET https://evil.example/ HTTP/1.1\r\nHost: git.example\r\n\r\n",
        "GET https://git.example/ HTTP/1.1\r\nHost: git.example\r\n\r\n",
        "GET http://169.254.169.254/ HTTP/1.1\r\nHost: git.example\r\n\r\n",
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: git.example\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: git.example\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: git.example\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "POST / HTTP/1.1\r\nHost: git.example\r\nContent-Length: +5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: git.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: git.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: git.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: git.example\r\nX-A: b\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: git.example\r\nX-A: b\0c\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: git.example\r\n\r\n",
        "GET /a\tb HTTP/1.1\r\nHost: git.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: git.example\r\n: x\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: git.example\r\n\r\n",
        "garbage\r\n\r\n",
    ] {
        let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        let answer = world.raw(&request).await;
        assert!(!answer.contains("reached") && !answer.starts_with("HTTP/1.1 2"), "{request:?} {answer}");
    }
    assert_eq!(requests.load(Ordering::Relaxed), 0);
    let answer = world.raw("GET /%20a HTTP/1.1\r\nHost: git.example:443\r\nConnection: close\r\n\r\n").await;
    assert!(answer.ends_with("reached"), "{answer}");
}

#[tokio::test]
async fn of_two_lengths_one_goes_on_and_nothing_behind_the_body_is_a_request() {
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = requests.clone();
    let world = World::with(
        |_| {},
        &[b"http/1.1"],
        move |request: Request<Incoming>| {
            seen.fetch_add(1, Ordering::Relaxed);
            async move {
                let framing = format!("{:?}", request.headers());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                reply(format!("{framing} body {body:?}"))
            }
        },
    )
    .await;
    // Said twice, it is said once more by the proxy.
    let same = "Content-Length: 5\r\nContent-Length: 5";
    let answer =
        world.raw(&format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{same}\r\nConnection: close\r\n\r\nhello")).await;
    assert!(answer.contains("\"content-length\": \"5\"") && answer.ends_with("body b\"hello\""), "{answer}");
    for framing in
        ["Content-Length: 36\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 36"]
    {
        let before = requests.load(Ordering::Relaxed);
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        );
        let answer = world.raw(&request).await;
        assert!(answer.contains("chunked") && answer.ends_with("body b\"\""), "{answer}");
        // The answer has one of its own.
        assert_eq!(answer.matches("content-length").count(), 1, "{answer}");
        assert_eq!(requests.load(Ordering::Relaxed), before + 1);
    }
}

#[tokio::test]
async fn tls_for_another_name_than_the_tunnel_is_refused() {
    let world = World::new(|_| async { reply("reached") }).await;
    // The authority is not good for other hosts either; that the name is refused before is what the record shows.
    assert!(world.tls(HOST, "evil.example").await.is_err());
    world.event(CredentialOutcome::Denied, "SNI").await;
    assert!(world.tls(HOST, "8.8.8.8").await.is_err());
    assert!(world.tls(HOST, HOST).await.is_ok());
}
