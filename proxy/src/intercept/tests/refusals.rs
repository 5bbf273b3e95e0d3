//! What upstreams say of credentials is known for each of them.

use std::time::Instant;

use super::support::{HOST, World, reply};

#[tokio::test]
async fn a_401_counts_for_the_credential_that_was_sent() {
    let world = World::new(async |request: http::Request<hyper::body::Incoming>| {
        let mut reply = reply("");
        *reply.status_mut() = request.uri().path()[1..].parse().unwrap();
        reply
    })
    .await;
    let refused = || {
        let words: Vec<_> = world.egress.credentials(Instant::now()).map(|(bound, _)| bound.last_word.get()).collect();
        words[0].map(|word| word.refused)
    };
    let bearer = format!("Authorization: Bearer {}", World::placeholder());
    let get = async |status: &str, arguments: &[&str]| {
        let url = format!("https://{HOST}/{status}");
        assert_eq!(world.curl(&[&[url.as_str()], arguments].concat()).await.0, status);
    };
    get("401", &[]).await;
    assert_eq!(refused(), None, "a request without the credential says nothing of it");
    get("401", &["--header", &bearer]).await;
    assert_eq!(refused(), Some(true));
    get("200", &[]).await;
    assert_eq!(refused(), Some(true), "a request without the credential says nothing of it");
    get("200", &["--header", &format!("X-Anything: {}", World::placeholder())]).await;
    assert_eq!(refused(), Some(true), "no server looks there");
    get("403", &["--header", &bearer]).await;
    assert_eq!(refused(), Some(true));
    get("200", &["--header", &bearer]).await;
    assert_eq!(refused(), Some(false));
}
