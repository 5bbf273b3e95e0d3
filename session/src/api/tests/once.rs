use std::time::Duration;

use axum::body::Body;
use jiff::Timestamp;
use longhand_protocol::EventId;
use longhand_session_log::SessionStore as _;
use longhand_session_log::requests::{KEPT, Requests as _};
use rstest::rstest;
use serde_json::{Value, json};

use crate::auth::Access;
use crate::limits::Rates;
use crate::testing::{Answer, UNLIMITED, World, limits, say};

/// Alice may make everything.
fn world() -> World {
    permitted(World::new())
}

fn permitted(world: World) -> World {
    for kind in ["agents", "sandboxtemplates", "vaults"] {
        for verb in ["create", "update", "get"] {
            world.cluster.allow("system:serviceaccount:team-a:alice", Access::Kind(kind, verb), "team-a");
        }
    }
    world
}

async fn post(world: &World, path: &str, token: &str, key: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", key)];
    world.raw("POST", path, &headers, Body::from(body.to_string())).await
}

fn is_replayed(answer: &Answer) -> bool {
    answer.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// What there is of everything.
async fn made(world: &World) -> usize {
    let mut events = 0;
    for meta in world.store.list(None, 1_000).await.unwrap() {
        events += world.store.inbox(&meta.id).await.unwrap().items.len();
    }
    let vaults = crate::resources::named::Named::<longhand_crds::Vault>::page(&*world.cluster, "team-a", None);
    let vaults = vaults.await.unwrap().0.len();
    let cluster = &world.cluster;
    events + vaults + cluster.agents.names().len() + cluster.environments.names().len() + cluster.state_counts().1.len()
}

#[rstest]
#[case::agent("/v1/agents", json!({"name": "one", "model": "m"}), json!({"name": "two", "model": "m"}))]
#[case::environment("/v1/environments", json!({"name": "one"}), json!({"name": "two"}))]
#[case::vault("/v1/vaults", json!({"display_name": "one"}), json!({"display_name": "two"}))]
#[case::session(
    "/v1/sessions",
    json!({"agent": "helper", "initial_events": [say("a"), say("b")]}),
    json!({"agent": "helper", "initial_events": [say("a")]})
)]
#[tokio::test]
async fn one_key_makes_one_thing_on_every_replica(#[case] path: &str, #[case] body: Value, #[case] other: Value) {
    let world = world();
    let before = made(&world).await;
    let first = post(&world, path, "alice", "k1", &body).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert!(!is_replayed(&first));
    let after = made(&world).await;
    assert!(after > before);
    for world in [&world, &world.replica()] {
        let again = post(world, path, "alice", "k1", &body).await;
        assert_eq!((again.status.as_u16(), &again.body), (200, &first.body));
        assert!(is_replayed(&again));
        assert_eq!(again.headers["content-type"], "application/json");
        for (path, body) in
            [(path, &other), ("/v1/sessions/sesn_1/archive", &body), (&format!("{path}?beta=true"), &body)]
        {
            let refused = post(world, path, "alice", "k1", body).await;
            assert_eq!(refused.status, 409);
            assert_eq!(refused.headers["x-should-retry"], "false");
            assert!(refused.message().contains("`Idempotency-Key` was used for another request"), "{refused:?}");
        }
    }
    assert_eq!(made(&world).await, after);
    assert_ne!(post(&world, path, "alice", "k2", &other).await.body["id"], first.body["id"]);
}

/// A replica that dies after the thing was made, or an etcd that takes no answer: nothing is made twice.
#[rstest]
#[case::agent("/v1/agents", json!({"name": "one", "model": "m"}))]
#[case::environment("/v1/environments", json!({"name": "one"}))]
#[case::vault("/v1/vaults", json!({"display_name": "one"}))]
#[case::session("/v1/sessions", json!({"agent": "helper", "initial_events": [say("a"), say("b")], "resources": [
    {"type": "github_repository", "url": "https://github.com/a/b", "authorization_token": "t"}]}))]
#[tokio::test]
async fn what_was_made_without_an_answer_is_found(#[case] path: &str, #[case] body: Value) {
    let world = world();
    let first = post(&world, path, "alice", "k1", &body).await;
    assert_eq!(first.status, 200, "{first:?}");
    let (after, secrets) = (made(&world).await, world.cluster.secrets());
    world.requests.lose_answers();
    let again = post(&world.replica(), path, "alice", "k1", &body).await;
    assert_eq!(again.status, 200, "{again:?}");
    assert!(!is_replayed(&again));
    assert_eq!(again.body["id"], first.body["id"]);
    assert_eq!((made(&world).await, world.cluster.secrets()), (after, secrets));
}

#[tokio::test]
async fn credentials_resources_and_forks_are_made_once() {
    let world = world();
    let vault = post(&world, "/v1/vaults", "alice", "v", &json!({"display_name": "v"})).await.body;
    let session = post(&world, "/v1/sessions", "alice", "s", &json!({"agent": "helper"})).await.body;
    let (vault, session) = (vault["id"].as_str().unwrap(), session["id"].as_str().unwrap());
    let credential = json!({"auth": {"type": "static_bearer", "token": "t", "mcp_server_url": "https://mcp.test/x"}});
    let repository = json!({"type": "github_repository", "url": "https://github.com/a/b", "authorization_token": "t"});
    let cases = [
        (format!("/v1/vaults/{vault}/credentials"), credential),
        (format!("/v1/sessions/{session}/resources"), repository),
        ("/v1/sessions".to_owned(), json!({"fork": {"session": session}, "initial_events": [say("on")]})),
    ];
    for (path, body) in cases {
        let first = post(&world, &path, "alice", &path, &body).await;
        assert_eq!(first.status, 200, "{first:?}");
        let (after, secrets) = (made(&world).await, world.cluster.secrets());
        assert_eq!(post(&world, &path, "alice", &path, &body).await.body, first.body);
        world.requests.lose_answers();
        let again = post(&world, &path, "alice", &path, &body).await;
        assert_eq!((again.status.as_u16(), &again.body["id"]), (200, &first.body["id"]), "{again:?}");
        assert_eq!((made(&world).await, world.cluster.secrets()), (after, secrets), "{path}");
    }
    let all = format!("/v1/vaults/{vault}/credentials");
    assert_eq!(world.call("GET", &all, "alice", &Value::Null).await.body["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn events_are_sent_once_and_answered_as_at_first() {
    let world = world();
    let id = world.session("one", "pod-1").await;
    let path = format!("/v1/sessions/{id}/events");
    let body = json!({"events": [say("a"), say("b")]});
    let first = post(&world, &path, "alice", "k", &body).await;
    assert_eq!(first.status, 200, "{first:?}");
    let ids: Vec<EventId> =
        serde_json::from_value(json!([first.body["data"][0]["id"], first.body["data"][1]["id"]])).unwrap();
    let epoch = world.claim(&id, "pod-1").await;
    world.store.promote(&id, epoch, 1, &ids, vec![]).await.unwrap();
    assert_eq!(post(&world, &path, "alice", "k", &body).await.body, first.body, "it was queued then");
    // A part of it is another request, and the same key of somebody else is another key.
    for other in [json!({"events": [say("a")]}), json!({"events": [say("a"), say("b"), say("c")]})] {
        assert_eq!(post(&world, &path, "alice", "k", &other).await.status, 409);
    }
    assert_eq!(post(&world, &path, "bob", "k", &body).await.status, 403);
    world.requests.lose_answers();
    let again = post(&world, &path, "alice", "k", &body).await;
    assert_eq!(again.body["data"][0]["id"], first.body["data"][0]["id"]);
    assert!(again.body["data"][0]["processed_at"].is_string());
    assert_eq!(world.kinds(&id).await, ["x.session.woken", "user.message", "user.message"]);
    assert!(world.store.inbox(&id).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_refusal_is_forgotten_and_a_key_ends() {
    let world = world();
    let wrong = post(&world, "/v1/agents", "alice", "k", &json!({"name": "one"})).await;
    assert_eq!(wrong.status, 400, "{wrong:?}");
    let right = post(&world, "/v1/agents", "alice", "k", &json!({"name": "one", "model": "m"})).await;
    assert_eq!(right.status, 200, "{right:?}");
    assert_eq!(post(&world, "/v1/agents", "alice", "k", &json!({"name": "two", "model": "m"})).await.status, 409);
    assert_eq!(world.requests.sweep(Timestamp::now() + KEPT).await.unwrap(), 1);
    let next = post(&world, "/v1/agents", "alice", "k", &json!({"name": "two", "model": "m"})).await;
    assert_eq!(next.status, 200, "{next:?}");
    assert_ne!(next.body["id"], right.body["id"]);
}

#[tokio::test]
async fn one_of_many_at_once_makes_it() {
    let (one, body) = (world(), json!({"agent": "helper", "initial_events": [say("a")]}));
    let two = one.replica();
    let before = made(&one).await;
    let sent =
        (0..8).map(|number| post(if number % 2 == 0 { &one } else { &two }, "/v1/sessions", "alice", "k", &body));
    let answers = futures::future::join_all(sent).await;
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &answer.body["id"]), (200, &answers[0].body["id"]), "{answer:?}");
    }
    assert_eq!(made(&one).await, before + 2, "a resource, and an event");
}

#[rstest]
#[case("", 400)]
#[case("ä", 400)]
#[case("k", 200)]
#[tokio::test]
async fn a_key_is_checked(#[case] key: &str, #[case] status: u16) {
    let world = world();
    let answer = post(&world, "/v1/agents", "alice", key, &json!({"name": "one", "model": "m"})).await;
    assert_eq!(answer.status, status, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded() {
    let rates = Rates { idempotency_keys_per_second: 1, ..UNLIMITED };
    let second = Duration::from_secs(1);
    let world = permitted(World::with_rates(limits(second, second), rates));
    let body = json!({"name": "one"});
    for number in 0..600 {
        assert_eq!(post(&world, "/v1/agents", "alice", &number.to_string(), &body).await.status, 400);
    }
    let refused = post(&world, "/v1/agents", "alice", "one more", &body).await;
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(world.call("POST", "/v1/agents", "alice", &body).await.status, 400, "without a key");
}
