//! What a credential proxy puts on record.

use longhand_protocol::event::EventBody;
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::World;

fn event(changes: &Value) -> Value {
    let mut event = json!({
        "outcome": "used", "credential": "work/github", "sandbox": "default", "host": "api.test", "port": 443,
        "method": "GET", "path_sha256": "00", "reason": null, "count": 1, "at": "2026-01-02T03:04:05Z",
    });
    for (key, value) in changes.as_object().unwrap() {
        event[key] = value.clone();
    }
    event
}

fn path(id: &longhand_protocol::SessionId) -> String {
    format!("/harness/v1/sessions/{id}/credential_events")
}

#[tokio::test]
async fn uses_and_refusals_are_in_the_log_when_the_proxy_is_answered() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world.claim(&id, "pod-1").await;
    let denied = event(&json!({"outcome": "denied", "credential": null, "reason": "no rule", "count": 7}));
    // More than one transaction takes.
    let all: Vec<Value> = std::iter::once(event(&json!({}))).chain(std::iter::repeat_n(denied, 130)).collect();
    let answer = world.call("POST", &path(&id), "proxy:pod-1", &json!({ "events": all })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let kinds = world.kinds(&id).await;
    assert_eq!(kinds[..3], ["x.session.woken", "x.credential.used", "x.credential.denied"]);
    assert_eq!(kinds.len(), 132);
    let records = world.store.read(&id, 2, 1).await.unwrap().records;
    let EventBody::CredentialDenied { reason, count: 7, credential: None, .. } = &records[0].event.body else {
        panic!("{records:?}")
    };
    assert_eq!(reason, "no rule");
}

/// An older proxy may send it, and what else it reports must not be lost.
#[tokio::test]
async fn what_is_too_long_is_in_the_log_as_far_as_it_fits() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world.claim(&id, "pod-1").await;
    let long =
        event(&json!({"outcome": "denied", "credential": null, "method": "M".repeat(65), "reason": "r".repeat(600)}));
    let body = json!({ "events": [event(&json!({})), long] });
    let answer = world.call("POST", &path(&id), "proxy:pod-1", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let records = world.store.read(&id, 2, 1).await.unwrap().records;
    let EventBody::CredentialDenied { reason, method, .. } = &records[0].event.body else { panic!("{records:?}") };
    assert_eq!((reason.len(), method.len()), (512, 64));
    assert!(reason.ends_with('…') && method.ends_with('…'), "{records:?}");
}

#[rstest]
#[case::the_harness_itself("pod-1", 401)]
#[case::another_pod("proxy:pod-2", 403)]
#[case::another_namespace("proxy:pod-elsewhere", 403)]
#[case::a_user("proxy:alice", 403)]
#[case::nobody("nonsense", 401)]
#[tokio::test]
async fn only_the_proxy_of_the_session_reports(#[case] token: &str, #[case] status: u16) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world.claim(&id, "pod-1").await;
    let answer = world.call("POST", &path(&id), token, &json!({ "events": [event(&json!({}))] })).await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(world.kinds(&id).await, ["x.session.woken"]);
}

#[tokio::test]
async fn the_proxy_may_do_nothing_else() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let claim = format!("/harness/v1/sessions/{id}/claim");
    assert_eq!(world.call("POST", &claim, "proxy:pod-1", &json!({})).await.status, 401);
}

#[rstest]
#[case(json!({ "events": [] }))]
#[case(json!({ "events": vec![event(&json!({})); 257] }))]
#[case(json!({ "events": [event(&json!({"outcome": "denied"}))] }))]
#[case(json!({ "events": [event(&json!({"credential": null}))] }))]
#[case(json!({ "events": [event(&json!({"value": "v"}))] }))]
#[tokio::test]
async fn what_is_no_report_is_refused(#[case] body: Value) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world.claim(&id, "pod-1").await;
    let answer = world.call("POST", &path(&id), "proxy:pod-1", &body).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(world.kinds(&id).await, ["x.session.woken"]);
}
