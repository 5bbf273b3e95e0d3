use longhand_protocol::event::{EventBody, NewEvent, StopReason};
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::auth::Access;
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
async fn sessions_of_one_second_are_listed_in_the_order_in_which_they_were_made() {
    let world = World::new();
    let mut made = Vec::new();
    for _ in 0..12 {
        let answer = world.call("POST", "/v1/sessions", "alice", &json!({"agent": "helper"})).await;
        made.push((answer.body["created_at"].clone(), answer.body["id"].clone()));
    }
    assert!(made.is_sorted_by_key(|(created, _)| created.as_str().unwrap().parse::<jiff::Timestamp>().unwrap()));
    for (order, expected) in [("asc", made.clone()), ("desc", made.iter().rev().cloned().collect())] {
        let listed = world.call("GET", &format!("/v1/sessions?order={order}"), "alice", &Value::Null).await;
        let listed = listed.body["data"].as_array().unwrap().iter();
        let listed: Vec<_> = listed.map(|session| (session["created_at"].clone(), session["id"].clone())).collect();
        assert_eq!(listed, expected);
    }
}

#[tokio::test]
async fn an_agent_of_the_wire_api_is_run_with_the_default_credential_of_its_namespace() {
    let world = World::new();
    world.cluster.allow("system:serviceaccount:team-a:alice", Access::Kind("agents", "create"), "team-a");
    world.cluster.allow("system:serviceaccount:team-a:bob", Access::Kind("agents", "create"), "team-a");
    let without_use = world.call("POST", "/v1/agents", "bob", &json!({"name": "a", "model": "m"})).await;
    assert_eq!(without_use.status, 403, "{without_use:?}");
    let made = world.call("POST", "/v1/agents", "alice", &json!({"name": "a", "model": "m"})).await;
    assert_eq!(made.status, 200, "{made:?}");
    let body = json!({"agent": made.body["id"]});
    let vault = |credential: &str| {
        let credential = json!({"name": credential, "secretRef": {"name": "s", "key": "k"},
            "allow": {"hosts": ["model.test"]}, "placement": {"type": "bearer"}});
        world.cluster.add_vault("team-a", "models", json!({"credentials": [credential]}));
    };
    let refused = async || {
        let answer = world.call("POST", "/v1/sessions", "alice", &body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        for part in ["make the Vault `models`", "credential `api-key`", "namespace team-a"] {
            assert!(answer.message().contains(part), "{}", answer.message());
        }
    };
    refused().await;
    vault("another");
    refused().await;
    vault("api-key");
    let answer = world.call("POST", "/v1/sessions", "alice", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
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
    assert_eq!((&session["type"], &session["status"]), (&json!("session"), &json!("running")));
    let environment = world.call("GET", "/v1/environments/tools", "alice", &Value::Null).await.body;
    assert_eq!((&session["environment_id"], &session["title"]), (&environment["id"], &json!("A title")));
    assert_eq!(session["metadata"], json!({"k": "v"}));
    assert_eq!(session["agent"]["tools"][0]["type"], "agent_toolset_20260401");
    assert_eq!((&session["agent"]["name"], &session["agent"]["version"]), (&json!("helper"), &json!(1)));
    assert_eq!(world.cluster.state_counts().1, ["AgentSession team-a/sesn-1"]);
    let id = session["id"].as_str().unwrap().parse().unwrap();
    let queued = world.store.inbox(&id).await.unwrap();
    assert_eq!(queued.items.len(), 2);
    assert!(queued.wake_revision.is_some());
}

#[rstest]
#[case(json!({"agent": "nobody"}), 404, "`agent`")]
#[case(json!({"agent": "helper", "environment_id": "nothing"}), 404, "`environment_id`")]
#[case(json!({"agent": "helper", "vault_ids": ["v"]}), 404, "`vault_ids[0]`")]
#[case(json!({"agent": "helper", "initial_events": [say("a"), {"type": "user.message"}]}), 400, "`initial_events[1].content`")]
#[case(json!("text"), 400, "must be an object")]
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
    world.store.enqueue(&id, vec![NewEvent::new(EventBody::UserInterrupt { session_thread_id: None })]).await.unwrap();
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
        ("limit=201".to_owned(), "`limit`"),
        ("statuses[]=busy".to_owned(), "`statuses[]`"),
    ] {
        let answer = world.call("GET", &format!("/v1/sessions?{query}"), "alice", &Value::Null).await;
        assert_eq!(answer.status, 400);
        assert!(answer.message().contains(part), "{}", answer.message());
    }
}

#[tokio::test]
async fn sessions_are_filtered() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        world.session(name, "pod-1").await;
    }
    world.cluster.add_agent("team-a", "other");
    world.cluster.change_session("team-a", "b", |session| {
        session.spec.agent_ref.name = "other".to_owned();
        session.metadata.creation_timestamp = Some(serde_json::from_value(json!("2026-02-01T00:00:00Z")).unwrap());
    });
    let id = world.session("d", "pod-1").await;
    let answer = world.call("POST", &format!("/v1/sessions/{id}/archive"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for (query, expected) in [
        ("", vec!["b", "c", "a"]),
        ("include_archived=true", vec!["b", "d", "c", "a"]),
        ("include_archived=true&statuses[]=terminated", vec!["d"]),
        ("statuses[]=idle&statuses[]=running&order=asc", vec!["a", "c", "b"]),
        ("statuses[]=running", vec![]),
        ("agent_id=other", vec!["b"]),
        ("agent_id=helper&order=asc", vec!["a", "c"]),
        ("agent_id=agent_unknown", vec![]),
        ("deployment_id=d", vec![]),
        // Where nothing can be, no page is looked for.
        ("deployment_id=d&page=page", vec![]),
        ("created_at[gte]=2026-02-01T00:00:00Z", vec!["b"]),
        ("created_at[lt]=2026-02-01T00:00:00Z", vec!["c", "a"]),
    ] {
        let answer = world.call("GET", &format!("/v1/sessions?{query}"), "alice", &Value::Null).await;
        let titles: Vec<&str> =
            answer.body["data"].as_array().unwrap().iter().map(|session| session["title"].as_str().unwrap()).collect();
        assert_eq!(titles, expected, "{query}");
    }
}

#[tokio::test]
async fn a_session_is_changed_and_the_log_says_so() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let path = format!("/v1/sessions/{id}");
    let answer = world.call("POST", &path, "alice", &json!({})).await;
    assert_eq!(answer.body["title"], "one");
    let body = json!({"title": "new", "metadata": {"k": "v", "absent": null}});
    let answer = world.call("POST", &path, "alice", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!((&answer.body["title"], &answer.body["metadata"]), (&json!("new"), &json!({"k": "v"})));
    assert_eq!(world.kinds(&id).await, ["session.updated"]);
    for (body, status, part) in [
        (json!({"title": 1}), 400, "`title`"),
        (json!({"vault_ids": ["nothing"]}), 404, "`vault_ids[0]`"),
        (json!({"environment_id": "tools"}), 400, "`environment_id`"),
    ] {
        let answer = world.call("POST", &path, "alice", &body).await;
        assert_eq!(answer.status, status);
        assert!(answer.message().contains(part), "{}", answer.message());
    }
    assert_eq!(world.call("POST", &path, "bob", &json!({})).await.status, 403);
}

#[tokio::test]
async fn an_archived_session_has_ended_for_good() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let path = format!("/v1/sessions/{id}");
    world.store.enqueue(&id, vec![NewEvent::new(EventBody::UserInterrupt { session_thread_id: None })]).await.unwrap();
    let answer = world.call("POST", &format!("{path}/archive"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 409);

    let idle = world.session("two", "pod-1").await;
    let path = format!("/v1/sessions/{idle}");
    for _ in 0..2 {
        let answer = world.call("POST", &format!("{path}/archive"), "alice", &Value::Null).await;
        assert_eq!(answer.body["status"], "terminated", "{answer:?}");
        assert!(answer.body["archived_at"].is_string());
    }
    assert_eq!(world.kinds(&idle).await, ["session.status_terminated"]);
    let answer = world.call("POST", &format!("{path}/events"), "alice", &json!({"events": [say("hi")]})).await;
    assert_eq!(answer.status, 400);
    let answer = world.call("POST", &path, "alice", &json!({"title": "t"})).await;
    assert_eq!(answer.status, 400);
    let answer = world.call("GET", &path, "alice", &Value::Null).await;
    assert_eq!(answer.body["status"], "terminated");
}

#[tokio::test]
async fn the_primary_thread_is_the_session() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let threads = format!("/v1/sessions/{id}/threads");
    let answer = world.call("GET", &threads, "alice", &Value::Null).await;
    let thread = answer.body["data"][0].clone();
    assert_eq!((&thread["type"], &thread["session_id"]), (&json!("session_thread"), &json!(id)));
    assert_eq!((&thread["status"], &thread["parent_thread_id"]), (&json!("idle"), &Value::Null));
    let path = format!("{threads}/{}", thread["id"].as_str().unwrap());
    assert_eq!(world.call("GET", &path, "alice", &Value::Null).await.body["id"], thread["id"]);
    for query in ["statuses[]=running", "statuses[]=idle&page=page", "statuses[]=busy"] {
        let answer = world.call("GET", &format!("{threads}?{query}"), "alice", &Value::Null).await;
        assert!(answer.status == 400 || answer.body["data"] == json!([]), "{answer:?}");
    }

    let interrupt = |thread: &Value| json!({"events": [{"type": "user.interrupt", "session_thread_id": thread}]});
    let events = format!("/v1/sessions/{id}/events");
    let answer = world.call("POST", &events, "alice", &interrupt(&json!("sthr_other"))).await;
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("`events[0].session_thread_id`"), "{}", answer.message());
    let answer = world.call("POST", &events, "alice", &interrupt(&thread["id"])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = world.call("GET", &format!("{path}/events"), "alice", &Value::Null).await;
    assert_eq!(answer.body["data"][0]["session_thread_id"], thread["id"]);

    let answer = world.call("POST", &format!("{path}/archive"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 400);
    world.store.archive(&id).await.unwrap();
    let answer = world.call("POST", &format!("{path}/archive"), "alice", &Value::Null).await;
    assert!(answer.body["archived_at"].is_string(), "{answer:?}");
    for path in ["sthr_other", "sthr_other/events", "sthr_other/stream"] {
        let answer = world.call("GET", &format!("{threads}/{path}"), "alice", &Value::Null).await;
        assert_eq!(answer.status, 404);
    }
}

#[tokio::test]
async fn a_repository_is_to_be_in_the_workspace() {
    let world = World::new();
    let repository =
        |path: &str| json!({"type": "github_repository", "url": "https://github.com/o/r", "mount_path": path});
    let session = |path: &str| json!({"agent": "helper", "environment_id": "tools", "resources": [repository(path)]});
    let refused = world.call("POST", "/v1/sessions", "alice", &session("/mnt/r")).await;
    let why = "`mount_path`: /mnt/r is not below the workspace of the session's sandbox, /workspace";
    assert_eq!((refused.status.as_u16(), refused.message()), (400, why));
    let made = world.call("POST", "/v1/sessions", "alice", &session("/workspace/r")).await;
    assert_eq!(made.status, 200, "{made:?}");
    let more = format!("/v1/sessions/{}/resources", made.body["id"].as_str().unwrap());
    let refused = world.call("POST", &more, "alice", &repository("/workspace")).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(world.call("POST", &more, "alice", &repository("/workspace/s")).await.status, 200);
}
