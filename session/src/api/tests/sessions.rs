use longhand_crds::session_id;
use longhand_protocol::event::{EventBody, NewEvent, StopReason};
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::{World, meta, say};

#[tokio::test]
async fn who_is_not_known_is_401_and_asked_about_once() {
    let world = World::new();
    for _ in 0..3 {
        let answer = world.call("GET", "/v1/sessions", "stranger", &Value::Null).await;
        assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (401, &json!("authentication_error")));
    }
    assert_eq!(world.cluster.state_counts().0, 1);
    let answer = world.raw("GET", "/v1/sessions", &[], axum::body::Body::empty()).await;
    assert_eq!(answer.status, 401);
    let answer = world.call("GET", "/v1/sessions", "unreachable", &Value::Null).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["retry-after"], "1");
    let answer = world.raw("GET", "/v1/sessions", &[("x-api-key", "alice")], axum::body::Body::empty()).await;
    assert_eq!(answer.status, 200);
}

#[rstest]
#[case("GET", "/v1/sessions", "list agentsessions.")]
#[case("POST", "/v1/sessions", "create agentsessions.")]
#[case("GET", "/v1/sessions/{id}", "get agentsessions.")]
#[case("DELETE", "/v1/sessions/{id}", "delete agentsessions.")]
#[case("GET", "/v1/sessions/{id}/events", "get agentsessions/events.")]
#[case("POST", "/v1/sessions/{id}/events", "create agentsessions/events.")]
#[case("GET", "/v1/sessions/{id}/events/stream", "get agentsessions/events.")]
#[tokio::test]
async fn who_may_not_is_403_and_told_what(#[case] method: &str, #[case] path: &str, #[case] what: &str) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let path = path.replace("{id}", id.as_str());
    let body = json!({"agent": "helper", "events": [say("hi")]});
    let answer = world.call(method, &path, "bob", &body).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.message().contains(what), "{}", answer.message());
    assert_eq!(world.kinds(&id).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_session_of_another_namespace_is_403_and_an_unknown_one_404() {
    let world = World::new();
    let other = meta("team-b", "two", "uid-two");
    let id = other.id.clone();
    world.store.create(other).await.unwrap();
    let answer = world.call("GET", &format!("/v1/sessions/{id}"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 403);
    let id = world.session("one", "pod-1").await;
    let answer = world.call("GET", &format!("/namespaces/team-b/v1/sessions/{id}"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 404);
    let answer = world.call("GET", &format!("/namespaces/team-a/v1/sessions/{id}"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 200);
    for unknown in ["sesn_unknown", "nonsense"] {
        let answer = world.call("GET", &format!("/v1/sessions/{unknown}"), "alice", &Value::Null).await;
        assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (404, &json!("not_found_error")));
    }
    let answer = world.call("PATCH", "/v1/sessions", "alice", &Value::Null).await;
    assert_eq!(answer.status, 405);
    let answer = world.call("GET", "/v2", "alice", &Value::Null).await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn a_session_is_made_with_its_resource_and_its_first_message() {
    let world = World::new();
    let body = json!({"agent": {"type": "agent", "id": "helper"}, "environment_id": "tools", "title": "A title",
        "metadata": {"k": "v"}, "initial_events": [say("hi"), say("there")]});
    let answer = world.call("POST", "/v1/sessions?beta=true", "alice", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let session = &answer.body;
    let keys = [
        "id",
        "type",
        "agent",
        "status",
        "environment_id",
        "title",
        "metadata",
        "resources",
        "vault_ids",
        "outcome_evaluations",
        "stats",
        "usage",
        "budget",
        "deployment_id",
        "created_at",
        "updated_at",
        "archived_at",
    ];
    for key in keys {
        assert!(session.get(key).is_some(), "{key} is missing in {session}");
    }
    assert_eq!(session["id"], session_id("made-1").as_str());
    assert_eq!((&session["type"], &session["status"]), (&json!("session"), &json!("running")));
    assert_eq!((&session["environment_id"], &session["title"]), (&json!("tools"), &json!("A title")));
    assert_eq!(session["metadata"], json!({"k": "v"}));
    assert_eq!(session["agent"]["tools"][0]["configs"][0]["name"], "bash");
    assert_eq!(world.cluster.state_counts().1, ["AgentSession team-a/sesn-1"]);
    let queued = world.store.inbox(&session_id("made-1")).await.unwrap();
    assert_eq!(queued.items.len(), 2);
    assert!(queued.wake_revision.is_some());
}

#[rstest]
#[case(json!({"agent": "nobody"}), 404, "`agent`")]
#[case(json!({"agent": "helper", "environment_id": "nothing"}), 404, "`environment_id`")]
#[case(json!({"agent": "helper", "vault_ids": ["v"]}), 400, "`vault_ids`")]
#[case(json!({"agent": "helper", "initial_events": [say("a"), {"type": "user.message"}]}), 400, "`initial_events[1]`")]
#[case(json!("text"), 400, "malformed")]
#[tokio::test]
async fn a_session_that_cannot_be_is_not_made(#[case] body: Value, #[case] status: u16, #[case] part: &str) {
    let world = World::new();
    let answer = world.call("POST", "/v1/sessions", "alice", &body).await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.message().contains(part), "{}", answer.message());
    assert_eq!(world.cluster.state_counts().1, Vec::<String>::new());
}

#[tokio::test]
async fn a_running_session_is_not_deleted_and_an_idle_one_goes_with_its_resource() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let path = format!("/v1/sessions/{id}");
    world.store.enqueue(&id, vec![NewEvent::new(EventBody::UserInterrupt {})]).await.unwrap();
    let answer = world.call("DELETE", &path, "alice", &Value::Null).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (409, &json!("invalid_request_error")));
    assert_eq!(answer.headers["x-should-retry"], "false");
    assert!(world.cluster.has_session("team-a", "one"));

    let epoch = world.claim(&id, "pod-1").await;
    let inbox = world.store.inbox(&id).await.unwrap();
    let head = world.store.state(&id).await.unwrap().head;
    let queued = [inbox.items[0].event.id.clone()];
    let head = world.store.promote(&id, epoch, head, &queued, Vec::new()).await.unwrap().head;
    let idle = NewEvent::new(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn });
    world.store.idle(&id, epoch, head, inbox.wake_revision.unwrap(), vec![idle]).await.unwrap();
    let answer = world.call("DELETE", &path, "alice", &json!({})).await;
    assert_eq!(answer.body, json!({"id": id, "type": "session_deleted"}));
    assert!(!world.cluster.has_session("team-a", "one"));
    let answer = world.call("GET", &path, "alice", &Value::Null).await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn sessions_are_listed_in_pages() {
    let world = World::new();
    for (name, second) in [("a", 2), ("b", 3), ("c", 1), ("d", 5), ("e", 4)] {
        world.session(name, "pod-1").await;
        world.cluster.change_session("team-a", name, |session| {
            let created = format!("2026-01-01T00:00:0{second}Z");
            session.metadata.creation_timestamp = Some(serde_json::from_value(json!(created)).unwrap());
        });
    }
    world.cluster.add_session("team-a", "without-a-log", "uid-none");
    world.cluster.add_session("team-b", "elsewhere", "uid-elsewhere");
    let mut titles = Vec::new();
    let mut path = "/v1/sessions?limit=2".to_owned();
    loop {
        let answer = world.call("GET", &path, "alice", &Value::Null).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["prev_page"].is_null(), titles.is_empty());
        titles.extend(answer.body["data"].as_array().unwrap().iter().map(|session| session["title"].clone()));
        match answer.body["next_page"].as_str() {
            Some(page) => path = format!("/v1/sessions?limit=2&page={page}"),
            None => break,
        }
    }
    assert_eq!(titles, ["d", "e", "b", "a", "c"]);
    let page = path.rsplit('=').next().unwrap();
    for (query, part) in [
        (format!("order=asc&page={page}"), "order"),
        ("page=page".to_owned(), "`page`"),
        ("limit=0".to_owned(), "`limit`"),
        ("statuses[]=idle".to_owned(), "`statuses[]`"),
    ] {
        let answer = world.call("GET", &format!("/v1/sessions?{query}"), "alice", &Value::Null).await;
        assert_eq!(answer.status, 400);
        assert!(answer.message().contains(part), "{}", answer.message());
    }
}
