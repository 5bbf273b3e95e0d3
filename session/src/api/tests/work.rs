//! The work of self-hosted environments: a worker takes it, reads the calls from the log and writes their results to it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use longhand_protocol::event::{ClientEvent, EventBody, Record};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore as _;
use longhand_session_log::work::Queue;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::auth::Access;
use crate::execute::ExecuteError;
use crate::testing::{SOON, World};

const ALICE: &str = "system:serviceaccount:team-a:alice";
const WORK: &str = "/v1/environments/tools/work";

/// The environment of every session is self-hosted, and Alice is its worker.
fn world() -> World {
    let world = World::new();
    world.cluster.add_hosted("team-a", "tools");
    world.cluster.allow(ALICE, Access::SeeWork("tools"), "team-a");
    world.cluster.allow(ALICE, Access::DoWork("tools"), "team-a");
    world
}

struct Running {
    session: SessionId,
    epoch: u64,
    call: EventId,
    result: JoinHandle<Result<Record, ExecuteError>>,
}

/// A session whose brain has asked for a tool.
async fn asked(world: &World, name: &str) -> Running {
    let (session, epoch, call) = world.session_with_call(name, "bash", json!({"command": "echo hi"})).await;
    let (executor, id, wanted) = (world.executor.clone(), session.clone(), call.clone());
    let result = tokio::spawn(async move { executor.execute(&id, epoch, &wanted).await });
    Running { session, epoch, call, result }
}

async fn ok(world: &World, method: &str, path: &str, token: &str, body: Value) -> Value {
    let answer = world.call(method, path, token, &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{method} {path}: {}", answer.message());
    answer.body
}

/// Polls until there is work, as workers do; the work and the worker's token.
async fn take(world: &World) -> (Value, String) {
    let polled = async {
        loop {
            let work = ok(world, "GET", &format!("{WORK}/poll?block_ms=200"), "alice", Value::Null).await;
            if !work.is_null() {
                return work;
            }
        }
    };
    let work = timeout(SOON, polled).await.expect("work in time");
    let secret = URL_SAFE_NO_PAD.decode(work["secret"].as_str().unwrap()).unwrap();
    let secret: Value = serde_json::from_slice(&secret).unwrap();
    (work, secret["sessions_token"].as_str().unwrap().to_owned())
}

fn path(work: &Value) -> String {
    format!("{WORK}/{}", work["id"].as_str().unwrap())
}

fn result_of(call: &EventId, text: &str) -> Value {
    json!({"events": [{"type": "user.tool_result", "tool_use_id": call, "is_error": false,
        "content": [{"type": "text", "text": text}]}]})
}

#[tokio::test]
async fn a_worker_runs_a_tool_from_its_queue_to_the_log() {
    let world = world();
    let running = asked(&world, "s1").await;
    let (work, token) = take(&world).await;
    assert_eq!(work["data"], json!({"type": "session", "id": running.session}));
    assert_eq!((&work["state"], &work["type"]), (&json!("queued"), &json!("work")));
    assert_eq!(ok(&world, "GET", &format!("{WORK}/poll"), "alice", Value::Null).await, Value::Null, "it is taken");
    let acknowledged = ok(&world, "POST", &format!("{}/ack", path(&work)), "alice", Value::Null).await;
    assert_eq!((&acknowledged["state"], &acknowledged["secret"]), (&json!("starting"), &Value::Null));
    let beat = |expected: String| format!("{}/heartbeat?expected_last_heartbeat={expected}", path(&work));
    let first = ok(&world, "POST", &beat("NO_HEARTBEAT".to_owned()), &token, Value::Null).await;
    assert_eq!((&first["state"], &first["lease_extended"]), (&json!("active"), &json!(true)));
    let echo = first["last_heartbeat"].as_str().unwrap().to_owned();
    ok(&world, "POST", &beat(echo.clone()), &token, Value::Null).await;
    let lost = world.call("POST", &beat(echo), "alice", &Value::Null).await;
    assert_eq!(lost.status, 412);
    assert_eq!(lost.body["error"]["details"]["current_state"]["state"], "active");

    let session = format!("/v1/sessions/{}", running.session);
    assert_eq!(ok(&world, "GET", &session, &token, Value::Null).await["id"], json!(running.session));
    let events = ok(&world, "GET", &format!("{session}/events?limit=1000"), &token, Value::Null).await;
    assert!(events["data"].as_array().unwrap().iter().any(|event| event["id"] == json!(running.call)));
    let sent = ok(&world, "POST", &format!("{session}/events"), &token, result_of(&running.call, "hi")).await;
    assert!(sent["data"][0]["processed_at"].is_string(), "it is in the log, not in the queue");
    let record = timeout(SOON, running.result).await.unwrap().unwrap().unwrap();
    assert!(
        matches!(&record.event.body, EventBody::UserToolResult { tool_use_id, .. } if *tool_use_id == running.call)
    );
    let again = ok(&world, "POST", &format!("{session}/events"), &token, result_of(&running.call, "hi")).await;
    assert_eq!(again, sent, "a repeated result is found");
    let other = world.call("POST", &format!("{session}/events"), &token, &result_of(&running.call, "ho")).await;
    assert_eq!(other.status, 409);

    let stopped = ok(&world, "POST", &format!("{}/stop", path(&work)), &token, json!({"force": true})).await;
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(world.call("POST", &format!("{}/stop", path(&work)), "alice", &Value::Null).await.status, 409);
    assert_eq!(world.call("GET", &session, &token, &Value::Null).await.status, 403, "the token ends with the work");
    let kinds = world.kinds(&running.session).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "user.tool_result").count(), 1);
}

#[tokio::test]
async fn a_worker_that_stops_leaves_an_unknown_outcome_and_comes_too_late() {
    let world = world();
    let running = asked(&world, "s1").await;
    let (work, token) = take(&world).await;
    ok(&world, "POST", &format!("{}/ack", path(&work)), "alice", Value::Null).await;
    let given = async {
        while world
            .store
            .open_calls(&running.session)
            .await
            .unwrap()
            .iter()
            .all(|(_, state)| matches!(state, longhand_session_log::store::CallState::Open))
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, given).await.expect("the call is given to the worker");
    ok(&world, "POST", &format!("{}/stop", path(&work)), "alice", json!({"force": true})).await;
    let record = timeout(SOON, running.result).await.unwrap().unwrap().unwrap();
    assert!(matches!(&record.event.body, EventBody::UserToolResult { is_error: Some(true), .. }));
    let kinds = world.kinds(&running.session).await;
    assert_eq!(kinds[kinds.len() - 2..], ["x.tool.outcome_unknown", "user.tool_result"]);
    let late = format!("/v1/sessions/{}/events", running.session);
    assert_eq!(world.call("POST", &late, "alice", &result_of(&running.call, "hi")).await.status, 409);
    assert_eq!(world.call("POST", &late, &token, &result_of(&running.call, "hi")).await.status, 403);
}

#[tokio::test]
async fn an_interrupt_ends_a_call_that_no_worker_has_taken() {
    let world = world();
    let running = asked(&world, "s1").await;
    world.taken_up(&running.session, running.epoch, ClientEvent::UserInterrupt { session_thread_id: None }).await;
    let record = timeout(SOON, running.result).await.unwrap().unwrap().unwrap();
    assert!(matches!(&record.event.body, EventBody::UserToolResult { is_error: Some(true), .. }), "{record:?}");
}

#[tokio::test]
async fn a_token_is_good_for_its_own_session_and_work_only() {
    let world = world();
    let mine = asked(&world, "s1").await;
    let (work, token) = take(&world).await;
    let other = asked(&world, "s2").await;
    let (others, _) = take(&world).await;
    let session = |id: &SessionId| format!("/v1/sessions/{id}");
    for (method, path, body) in [
        ("GET", session(&other.session), Value::Null),
        ("GET", format!("{}/events", session(&other.session)), Value::Null),
        ("GET", "/v1/sessions".to_owned(), Value::Null),
        ("DELETE", session(&mine.session), Value::Null),
        ("POST", format!("{}/events", session(&other.session)), result_of(&other.call, "hi")),
        ("POST", format!("{}/events", session(&mine.session)), json!({"events": [crate::testing::say("hi")]})),
        ("GET", format!("{WORK}/poll"), Value::Null),
        ("GET", WORK.to_owned(), Value::Null),
        ("POST", format!("{}/stop", path(&others)), Value::Null),
        ("GET", "/v1/vaults".to_owned(), Value::Null),
    ] {
        let answer = world.call(method, &path, &token, &body).await;
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.body);
    }
    assert_eq!(ok(&world, "GET", &path(&work), &token, Value::Null).await["id"], work["id"]);
}

#[tokio::test]
async fn a_call_of_a_sandbox_is_answered_by_its_sandbox_only() {
    let world = World::new();
    let (session, _, call) = world.session_with_call("s1", "bash", json!({"command": "echo hi"})).await;
    let refused = world.call("POST", &format!("/v1/sessions/{session}/events"), "alice", &result_of(&call, "hi")).await;
    assert!(refused.status == 400 && refused.message().contains("self-hosted"), "{}", refused.message());
}

#[tokio::test]
async fn the_queue_says_how_full_it_is() {
    let world = world();
    let work = &world.executor.hosted.work;
    let queue = Queue { namespace: "team-a".to_owned(), environment: "tools".to_owned() };
    for name in ["s1", "s2", "s3"] {
        let session = world.session(name, "pod-1").await;
        work.ensure(&queue, &session).await.unwrap();
    }
    let (taken, _) = take(&world).await;
    let stats = ok(&world, "GET", &format!("{WORK}/stats"), "alice", Value::Null).await;
    assert_eq!((&stats["depth"], &stats["pending"]), (&json!(2), &json!(1)));
    assert_eq!(stats["oldest_queued_at"], taken["created_at"]);
    let first = ok(&world, "GET", &format!("{WORK}?limit=2"), "alice", Value::Null).await;
    let next = first["next_page"].as_str().unwrap();
    let second = ok(&world, "GET", &format!("{WORK}?limit=2&page={next}"), "alice", Value::Null).await;
    assert_eq!(first["data"].as_array().unwrap().len() + second["data"].as_array().unwrap().len(), 3);
    assert!(first["data"].as_array().unwrap().iter().all(|work| work["secret"].is_null()));
    let named = ok(&world, "POST", &path(&taken), "alice", json!({"metadata": {"host": "a"}})).await;
    assert_eq!(named["metadata"], json!({"host": "a"}));
}

#[tokio::test]
async fn work_of_a_session_that_is_gone_is_not_given_out() {
    let world = world();
    let queue = Queue { namespace: "team-a".to_owned(), environment: "tools".to_owned() };
    let gone = world.executor.hosted.work.ensure(&queue, &SessionId::generate()).await.unwrap();
    assert_eq!(ok(&world, "GET", &format!("{WORK}/poll"), "alice", Value::Null).await, Value::Null);
    let shown = ok(&world, "GET", &format!("{WORK}/{}", gone.id), "alice", Value::Null).await;
    assert_eq!(shown["state"], "stopped");
}

#[rstest]
#[case("GET", "/v1/environments/tools/work/poll", 403)]
#[case("GET", "/v1/environments/tools/work", 403)]
#[case("POST", "/v1/environments/tools/work/work_1/ack", 403)]
#[case("GET", "/v1/environments/none/work", 403)]
#[tokio::test]
async fn who_may_not_work_is_told_so(#[case] method: &str, #[case] path: &str, #[case] status: u16) {
    assert_eq!(world().call(method, path, "bob", &Value::Null).await.status, status);
}

#[rstest]
#[case("poll?block_ms=1000", 400)]
#[case("poll?block_ms=0", 400)]
#[case("work_none", 404)]
#[tokio::test]
async fn what_is_wrong_is_said(#[case] rest: &str, #[case] status: u16) {
    assert_eq!(world().call("GET", &format!("{WORK}/{rest}"), "alice", &Value::Null).await.status, status);
}
