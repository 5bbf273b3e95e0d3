//! What the session's log gets.

use std::sync::Arc;

use longhand_protocol::egress::{CredentialOutcome, path_sha256};
use rstest::rstest;

use super::support::{Options, Running, SECRET, post, request, within};
use crate::egress::testing::Recorder;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

async fn start() -> (Running, Arc<Recorder>) {
    let log = Arc::new(Recorder::default());
    (Running::with(Options { log: Some(log.clone()), ..Options::default() }).await, log)
}

#[tokio::test]
async fn the_first_use_is_on_record_before_it_happens_and_later_ones_follow() {
    let (running, log) = start().await;
    let mut client = running.client().await;
    client.send(post("/model/v1/messages?x=1")).await;
    let mut upstream = running.accept().await;
    assert!(upstream.message().await.contains(SECRET));
    let events = log.events();
    assert_eq!(events.len(), 1, "{events:?}");
    let first = &events[0];
    assert_eq!((first.outcome, first.credential.as_deref()), (CredentialOutcome::Used, Some("models/anthropic")));
    let port = running.upstream.local_addr().unwrap().port();
    assert_eq!((&*first.sandbox, &*first.host, first.port, &*first.method), ("", "127.0.0.1", port, "POST"));
    assert_eq!(first.path_sha256, Some(path_sha256("/base/v1/messages")));
    for _ in 0..3 {
        upstream.send(OK).await;
        client.answer().await;
        client.send(post("/model/v1/messages")).await;
        upstream.message().await;
    }
    within(async {
        while log.events().iter().map(|event| event.count).sum::<u64>() < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_use_that_is_not_on_record_does_not_happen() {
    let (running, log) = start().await;
    log.fail(Some(false));
    let answer = running.refused(post("/model/v1/messages")).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("cannot be put on record"), "{answer}");
    log.fail(None);
    let mut client = running.client().await;
    client.send(post("/model/v1/messages")).await;
    running.accept().await.message().await;
    let events = log.events();
    assert_eq!((events.len(), events[0].outcome), (1, CredentialOutcome::Used));
}

#[rstest]
#[case::method("DELETE", "/model/v1/messages", "it allows methods", "/base/v1/messages")]
#[case::path("POST", "/model/v1/files", "it allows paths", "/base/v1/files")]
#[case::ambiguous("POST", "/model/v1/messages/../files", "dot segment", "/base/v1/messages/../files")]
#[tokio::test]
async fn refusals_are_on_record(#[case] method: &str, #[case] target: &str, #[case] reason: &str, #[case] path: &str) {
    let (running, log) = start().await;
    running.refused(request(method, target, "", "")).await;
    let event = log.at_least(1).await.remove(0);
    assert_eq!((event.outcome, event.credential.as_deref()), (CredentialOutcome::Denied, Some("models/anthropic")));
    assert!(event.reason.as_ref().is_some_and(|text| text.contains(reason)), "{event:?}");
    assert_eq!((&*event.method, event.path_sha256), (method, Some(path_sha256(path))));
}

#[tokio::test]
async fn what_is_of_no_session_s_harness_is_in_no_log() {
    let (running, log) = start().await;
    running.refused(post("/model/v1/messages").replace("x-api-key", "x-other")).await;
    running.refused(post("/elsewhere")).await;
    // What comes later is there alone.
    running.refused(post("/model/v1/files")).await;
    assert!(log.at_least(1).await.remove(0).reason.unwrap().contains("it allows paths"));
}

#[tokio::test]
async fn a_method_that_no_log_takes_is_refused() {
    let (running, _log) = start().await;
    let answer = running.refused(request(&"M".repeat(65), "/model/v1/messages", "", "")).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("its method is too long"), "{answer}");
}
