//! HTTP/2 is for a few connections at a time; others are offered HTTP/1.1.

use super::support::{HOST, World, reply, within};
use crate::intercept::MULTIPLEXED;

#[tokio::test]
async fn one_connection_too_many_speaks_http1() {
    let world = World::new(|_| async { reply("ok") }).await;
    let mut all = Vec::new();
    for _ in 0..MULTIPLEXED {
        let tls = world.tls_for(HOST, HOST, b"h2").await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        all.push(tls);
    }
    // One that knows nothing else is refused, in the handshake.
    assert!(world.tls_for(HOST, HOST, b"h2").await.is_err());
    let (_, text) = world.curl(&["--http2", "--write-out", "%{http_version}", "https://git.example/"]).await;
    assert_eq!(text, "ok1.1");
    drop(all);
    within(async { while world.tls_for(HOST, HOST, b"h2").await.is_err() {} }).await;
}
