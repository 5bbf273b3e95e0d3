use longhand_crds::agent_session::Input;
use longhand_crds::derived_session_id;
use longhand_protocol::EventId;
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::auth::Access;
use crate::quota::SizeLimits;
use crate::testing::{Answer, World, meta, say};

const TEN: SizeLimits = SizeLimits { session_max_events: 10, limit_warning_percent: 50, ..SizeLimits::NONE };
const TWO: SizeLimits = SizeLimits { namespace_max_sessions: 2, limit_warning_percent: 50, ..SizeLimits::NONE };
const SMALL: SizeLimits = SizeLimits { namespace_max_bytes: 1_000, limit_warning_percent: 50, ..SizeLimits::NONE };

fn event(kind: &str, fields: Value) -> Value {
    let mut event = fields;
    event["type"] = json!(kind);
    event["id"] = json!(EventId::generate());
    event
}

fn assert_limit(answer: &Answer, of: &str, what: &str, limit: u64) {
    assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (400, &json!("invalid_request_error")));
    let details = json!({"error_code": "limit_reached", "of": of, "what": what, "limit": limit});
    assert_eq!(answer.body["error"]["details"], details, "{answer:?}");
}

#[tokio::test]
async fn a_full_session_says_what_to_do_and_ends_its_turn() {
    let world = World::sized(TEN);
    let id = world.session("one", "pod-1").await;
    let (events, harness) = (format!("/v1/sessions/{id}/events"), format!("/harness/v1/sessions/{id}"));
    assert_eq!(world.call("POST", &events, "alice", &json!({"events": [say("hi")]})).await.status, 200);
    let epoch = world.claim(&id, "pod-1").await;
    let queued = world.store.inbox(&id).await.unwrap().items[0].event.id.clone();
    let head = world.store.promote(&id, epoch, 1, &[queued], vec![]).await.unwrap().head;
    let rest = (head..10).map(|_| event("agent.thinking", json!({}))).collect::<Vec<_>>();
    let body = json!({"epoch": epoch, "expected_head": head, "events": rest});
    assert_eq!(world.call("POST", &format!("{harness}/append"), "pod-1", &body).await.body["head"], 10);

    let refused = world.call("POST", &events, "alice", &json!({"events": [say("more")]})).await;
    assert_limit(&refused, "session", "events", 10);
    assert!(refused.message().contains("fork it or start a new one"), "{}", refused.message());
    let refused = world.call("POST", &format!("/v1/sessions/{id}"), "alice", &json!({"title": "new"})).await;
    assert_limit(&refused, "session", "events", 10);
    let answer = world.call("GET", &format!("/v1/sessions/{id}"), "alice", &Value::Null).await;
    assert_eq!(answer.body["title"], "one", "nothing was changed");

    // What the log says of it by itself is hidden from who does not ask.
    let head = world.store.state(&id).await.unwrap().head;
    let begin =
        json!({"epoch": epoch, "expected_head": head, "events": [event("span.model_request_start", json!({}))]});
    assert_limit(&world.call("POST", &format!("{harness}/append"), "pod-1", &begin).await, "session", "events", 10);
    let answer = world.call("GET", &format!("{events}?types[]=x.session.near_limit"), "alice", &Value::Null).await;
    let warning = &answer.body["data"][0];
    assert_eq!((&warning["what"], &warning["used"], &warning["limit"]), (&json!("events"), &json!(10), &json!(10)));
    let answer = world.call("GET", &events, "alice", &Value::Null).await;
    assert!(!answer.body.to_string().contains("x.session.near_limit"));

    let stop = json!({"events": [{"type": "user.interrupt"}]});
    assert_eq!(world.call("POST", &events, "alice", &stop).await.status, 200, "what runs can be stopped");
    let inbox = world.store.inbox(&id).await.unwrap();
    let (wake, queued) = (inbox.wake_revision.unwrap(), inbox.items[0].event.id.clone());
    let head = world.store.promote(&id, epoch, head, &[queued], vec![]).await.unwrap().head;
    let usage = event(
        "session.usage",
        json!({"usage": {"input_tokens": 1, "output_tokens": 1,
        "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
        "cache_read_input_tokens": 0, "active_seconds": null, "list_cost": null}}),
    );
    let idle = event("session.status_idle", json!({"stop_reason": {"type": "end_turn"}}));
    let body = json!({"epoch": epoch, "expected_head": head, "wake_revision": wake, "events": [usage, idle]});
    let answer = world.call("POST", &format!("{harness}/idle"), "pod-1", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_limit(&world.call("POST", &events, "alice", &stop).await, "session", "events", 10);

    let fork = world.call("POST", "/v1/sessions", "alice", &json!({"fork": {"session": id, "seq": 3}})).await;
    assert_eq!(fork.status, 200, "{fork:?}");
    let path = format!("/v1/sessions/{}/events", fork.body["id"].as_str().unwrap());
    assert_eq!(world.call("POST", &path, "alice", &json!({"events": [say("on")]})).await.status, 200);
    assert_eq!(world.call("POST", &format!("/v1/sessions/{id}/archive"), "alice", &Value::Null).await.status, 200);
}

#[tokio::test]
async fn a_full_namespace_takes_no_more_sessions() {
    let world = World::sized(TWO);
    let create = json!({"agent": "helper"});
    for _ in 0..2 {
        assert_eq!(world.call("POST", "/v1/sessions", "alice", &create).await.status, 200);
    }
    let made = world.cluster.state_counts().1.len();
    let refused = world.call("POST", "/v1/sessions", "alice", &create).await;
    assert_limit(&refused, "namespace", "sessions", 2);
    assert!(refused.message().contains("namespace team-a"), "{}", refused.message());
    assert_eq!(world.cluster.state_counts().1.len(), made, "no resource was made");

    // Neither does the operator make one of a resource that kubectl has made.
    world.cluster.add_session("team-a", "applied", "uid-applied");
    let path = "/internal/v1/namespaces/team-a/sessions/applied";
    let refused = world.call("PUT", path, "operator", &json!({"uid": "uid-applied"})).await;
    assert_limit(&refused, "namespace", "sessions", 2);
    assert!(world.store.state(&derived_session_id("uid-applied")).await.is_err());
}

#[tokio::test]
async fn a_namespace_that_holds_too_much_takes_no_more_messages() {
    let world = World::sized(SMALL);
    let id = world.session("one", "pod-1").await;
    let events = format!("/v1/sessions/{id}/events");
    let said = (0..20).map(|_| longhand_protocol::NewEvent::new(crate::testing::message("x"))).collect();
    world.store.append_unfenced(&id, said).await.unwrap();
    assert_limit(
        &world.call("POST", &events, "alice", &json!({"events": [say("hi")]})).await,
        "namespace",
        "bytes",
        1_000,
    );
    assert_limit(
        &world.call("POST", "/v1/sessions", "alice", &json!({"agent": "helper"})).await,
        "namespace",
        "bytes",
        1_000,
    );
    let stop = json!({"events": [{"type": "user.interrupt"}]});
    assert_eq!(world.call("POST", &events, "alice", &stop).await.status, 200);
    let alice = "system:serviceaccount:team-a:alice";
    world.cluster.allow(alice, Access::SendEvents, "team-b");
    let other = meta("team-b", "two", "uid-two");
    world.store.create(other.clone()).await.unwrap();
    let path = format!("/v1/sessions/{}/events", other.id);
    assert_eq!(world.call("POST", &path, "alice", &json!({"events": [say("hi")]})).await.status, 200, "another's");
}

#[rstest]
#[case::own(TEN, json!({"of": "session", "what": "events", "limit": 10, "reached": true}))]
#[case::of_the_namespace(SMALL, json!({"of": "namespace", "what": "bytes", "limit": 1_000, "reached": true}))]
#[tokio::test]
async fn the_operator_is_told_and_input_waits(#[case] sizes: SizeLimits, #[case] notice: Value) {
    let world = World::sized(sizes);
    world.cluster.add_session("team-a", "one", "uid-one");
    let (path, ensure) = ("/internal/v1/namespaces/team-a/sessions/one", json!({"uid": "uid-one"}));
    let summary = world.call("PUT", path, "operator", &ensure).await.body;
    assert_eq!(summary.get("limit"), None);
    let id = derived_session_id("uid-one");
    let said = (0..10).map(|_| longhand_protocol::NewEvent::new(crate::testing::message("x"))).collect();
    world.store.append_unfenced(&id, said).await.unwrap();
    world.cluster.change_session("team-a", "one", |session| {
        session.spec.input = vec![Input { text: "more".to_owned() }];
    });
    // What was known a moment ago of the namespace is old in another replica.
    let world = world.replica();
    for _ in 0..2 {
        let summary = world.call("PUT", path, "operator", &ensure).await;
        assert_eq!(summary.status, 200, "{summary:?}");
        assert_eq!((&summary.body["limit"], &summary.body["deliveredInputs"]), (&notice, &json!(0)));
    }
    assert_eq!(world.store.inbox(&id).await.unwrap().items, []);
    assert_eq!(world.call("GET", path, "operator", &Value::Null).await.body["limit"], notice);
}
