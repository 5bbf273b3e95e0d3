//! Tool calls against a real `sandboxd`, with an operator of make-believe.

use std::sync::Arc;
use std::time::Duration;

use longhand_crds::SandboxStatus;
use longhand_protocol::event::{ClientEvent, EventBody, NewEvent, Permission, Verdict};
use longhand_protocol::{EventId, Record, SessionId};
use longhand_sandbox::client::{SandboxClient, Target};
use longhand_sandbox::wire::{CallId, ExecuteRequest};
use longhand_session_log::SessionStore as _;
use longhand_session_log::store::{CallState, Incarnation};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{ExecuteError, Executor, Hosted, Limits};
use crate::resources::{Resources as _, plan};
use crate::testing::hands::{Hands, eventually, hands};
use crate::testing::{SOON, World, limits};

pub(super) type Result = std::result::Result<Record, ExecuteError>;

pub(super) fn execute(world: &World, id: &SessionId, epoch: u64, call: &EventId) -> JoinHandle<Result> {
    execute_at(&world.executor, id, epoch, call)
}

/// A replica whose watch has not seen anything yet.
fn other_replica(world: &World) -> Arc<Executor> {
    Arc::new(Executor::new(
        Arc::new(world.store.clone()),
        world.cluster.clone(),
        Arc::default(),
        Hosted::new(world.app.executor.hosted.work.clone(), world.cluster.clone(), world.cluster.clone()),
        SandboxClient::new(world.signer.clone()),
        limits(SOON, SOON),
    ))
}

fn execute_at(executor: &Arc<Executor>, id: &SessionId, epoch: u64, call: &EventId) -> JoinHandle<Result> {
    let (executor, id, call) = (Arc::clone(executor), id.clone(), call.clone());
    tokio::spawn(async move { executor.execute(&id, epoch, &call).await })
}

pub(super) async fn result(running: JoinHandle<Result>) -> Result {
    timeout(SOON, running).await.expect("a result in time").unwrap()
}

/// What the model reads, and whether it is an error.
pub(super) fn said(record: &Record) -> (String, bool) {
    let EventBody::AgentToolResult { content: Some(content), is_error: Some(is_error), .. } = &record.event.body else {
        panic!("{record:?}")
    };
    (content[0]["text"].as_str().unwrap().to_owned(), *is_error)
}

pub(super) async fn made(world: &World) -> String {
    eventually(async || world.cluster.sandbox_name().is_some()).await;
    world.cluster.sandbox_name().unwrap()
}

/// A call that runs in a sandbox.
pub(super) async fn running() -> (World, SessionId, u64, EventId, Hands, String, JoinHandle<Result>) {
    let world = World::new();
    let (id, epoch, call) = world.session_with_call("one", "bash", Hands::until_go()).await;
    let hands = hands(&world.signer, "hands-1").await;
    let call_running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    hands.begun().await;
    (world, id, epoch, call, hands, name, call_running)
}

#[tokio::test]
async fn the_first_call_makes_the_sandbox_and_the_next_one_uses_it() {
    let world = World::new();
    let (id, epoch, call) =
        world.session_with_call("one", "bash", json!({"command": "echo greetings > file; cat file"})).await;
    let hands = hands(&world.signer, "hands-1").await;
    let first = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    assert!(name.starts_with("one-default-"), "{name}");
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    let (text, is_error) = said(&result(first).await.unwrap());
    assert!(text.contains("greetings") && !is_error, "{text}");
    let again = result(execute(&world, &id, epoch, &call)).await.unwrap();
    assert_eq!(said(&again).0, text, "a repetition gets the same result");
    let second = world.tool_use(&id, epoch, "read", json!({"file_path": "file"})).await;
    world.cluster.take_reads();
    assert!(said(&result(execute(&world, &id, epoch, &second)).await.unwrap()).0.contains("greetings"));
    assert!(world.cluster.take_reads().is_empty(), "a sandbox that is ready is known");
    let expected = [
        "x.session.woken",
        "agent.tool_use",
        "x.sandbox.provisioning",
        "x.sandbox.ready",
        "agent.tool_result",
        "agent.tool_use",
        "agent.tool_result",
    ];
    assert_eq!(world.kinds(&id).await, expected);
    assert_eq!(world.cluster.state_counts().1, [format!("Sandbox {name}")]);
}

#[tokio::test]
async fn parallel_calls_share_one_sandbox_and_one_announcement() {
    let world = World::new();
    let (id, epoch, first) = world.session_with_call("one", "bash", json!({"command": "echo 1"})).await;
    let second = world.tool_use(&id, epoch, "bash", json!({"command": "echo 2"})).await;
    let hands = hands(&world.signer, "hands-1").await;
    let calls = [execute(&world, &id, epoch, &first), execute(&world, &id, epoch, &second)];
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    for call in calls {
        assert!(!said(&result(call).await.unwrap()).1);
    }
    let kinds = world.kinds(&id).await;
    for once in ["x.sandbox.provisioning", "x.sandbox.ready"] {
        assert_eq!(kinds.iter().filter(|kind| *kind == once).count(), 1, "{kinds:?}");
    }
    assert_eq!(world.cluster.state_counts().1.len(), 1);
}

#[tokio::test]
async fn a_call_outlives_who_asked_and_runs_once() {
    let (world, id, epoch, call, hands, _, first) = running().await;
    first.abort();
    world.cluster.name_harness("team-a", "one", Some("pod-2"));
    let later = world.claim(&id, "pod-2").await;
    assert!(later > epoch);
    let second = execute(&world, &id, later, &call);
    hands.go();
    assert!(said(&result(second).await.unwrap()).0.contains("gone"));
    assert_eq!(hands.runs(), 1);
}

#[tokio::test]
async fn another_replica_joins_the_call_that_runs() {
    let (world, id, epoch, call, hands, _, first) = running().await;
    world.executor.stop(Duration::ZERO).await;
    assert!(matches!(result(first).await, Err(ExecuteError::Stopping)));
    assert!(matches!(result(execute(&world, &id, epoch, &call)).await, Err(ExecuteError::Stopping)));
    let joined = execute_at(&other_replica(&world), &id, epoch, &call);
    hands.go();
    assert!(said(&result(joined).await.unwrap()).0.contains("gone"));
    assert_eq!(hands.runs(), 1);
}

#[tokio::test]
async fn a_request_of_another_replica_that_is_on_its_way_is_waited_for() {
    let world = World::with(Limits { arrival: SOON, ..limits(SOON, SOON) });
    let (id, epoch, call) =
        world.session_with_call("one", "bash", json!({"command": "echo run >> runs; echo greetings"})).await;
    let hands = hands(&world.signer, "hands-1").await;
    let resource = world.cluster.session("team-a", "one").await.unwrap().unwrap();
    let sandbox = world.cluster.ensure_sandbox(plan::sandbox(&resource, "default").unwrap()).await.unwrap();
    let name = sandbox.metadata.name.unwrap();
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    // The other replica has recorded its dispatch and not sent the request yet.
    let given = Incarnation { sandbox: name, pod_uid: "hands-1".to_owned(), attempt: "of the other".to_owned() };
    world.store.dispatch(&id, epoch, &call, &given).await.unwrap();
    let joined = execute(&world, &id, epoch, &call);
    sleep(Duration::from_millis(100)).await;
    let target = Target { address: hands.address.clone(), pod_uid: "hands-1".to_owned() };
    let request = ExecuteRequest {
        call_id: CallId::new(call.as_str()).unwrap(),
        name: "bash".to_owned(),
        input: json!({"command": "echo run >> runs; echo greetings"}),
        attach_only: false,
    };
    SandboxClient::new(world.signer.clone()).execute(&target, &request, SOON).await.unwrap();
    assert!(said(&result(joined).await.unwrap()).0.contains("greetings"));
    assert_eq!(hands.runs(), 1);
}

#[tokio::test]
async fn replicas_that_wait_for_one_sandbox_run_the_call_once() {
    let world = World::new();
    let (id, epoch, call) =
        world.session_with_call("one", "bash", json!({"command": "echo run >> runs; echo greetings"})).await;
    let hands = hands(&world.signer, "hands-1").await;
    let calls = [execute(&world, &id, epoch, &call), execute_at(&other_replica(&world), &id, epoch, &call)];
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    for call in calls {
        assert!(said(&result(call).await.unwrap()).0.contains("greetings"));
    }
    assert_eq!(hands.runs(), 1);
    assert_eq!(world.kinds(&id).await.iter().filter(|kind| *kind == "agent.tool_result").count(), 1);
}

#[tokio::test]
async fn a_lost_sandbox_is_an_error_that_names_the_cause_and_the_next_call_gets_another() {
    let (world, id, epoch, _, _hands, name, call) = running().await;
    // The connection stays as it is: only the operator has noticed.
    world.cluster.sandbox_lost(&name, "hands-1", "OOMKilled");
    let (text, is_error) = said(&result(call).await.unwrap());
    assert!(is_error && text.contains("OOMKilled") && text.contains("unknown"), "{text}");
    let kinds = world.kinds(&id).await;
    assert_eq!(kinds[kinds.len() - 3..], ["x.sandbox.lost", "x.tool.outcome_unknown", "agent.tool_result"]);

    let next = world.tool_use(&id, epoch, "bash", json!({"command": "echo greetings"})).await;
    let fresh = hands(&world.signer, "hands-2").await;
    let next = execute(&world, &id, epoch, &next);
    eventually(async || world.kinds(&id).await.iter().filter(|kind| *kind == "x.sandbox.provisioning").count() == 2)
        .await;
    world.cluster.sandbox_ready(&name, "hands-2", &fresh.address);
    assert!(!said(&result(next).await.unwrap()).1);
}

#[tokio::test]
async fn a_result_that_comes_after_the_loss_was_recorded_changes_nothing() {
    let (world, id, epoch, call, hands, name, first) = running().await;
    world.cluster.remove_sandbox(&name);
    let lost = result(first).await.unwrap();
    assert!(said(&lost).0.contains("deleted"));
    hands.go();
    assert_eq!(result(execute(&world, &id, epoch, &call)).await.unwrap(), lost);
    assert_eq!(world.kinds(&id).await.iter().filter(|kind| *kind == "agent.tool_result").count(), 1);
}

#[tokio::test]
async fn a_sandbox_that_dies_before_the_operator_knows_is_waited_for() {
    let (world, _, _, _, hands, name, call) = running().await;
    hands.stop.cancel();
    sleep(Duration::from_millis(100)).await;
    world.cluster.sandbox_lost(&name, "hands-1", "Evicted");
    let (text, is_error) = said(&result(call).await.unwrap());
    // The process had time to say that it was interrupted, or it had not.
    assert!(is_error && (text.contains("Evicted") || text.contains("interrupted")), "{text}");
}

#[tokio::test]
async fn a_call_that_was_given_to_a_process_which_does_not_know_it_is_not_run_again() {
    let world = World::new();
    let (id, epoch, call) = world.session_with_call("one", "bash", Hands::until_go()).await;
    let hands = hands(&world.signer, "hands-1").await;
    let resource = world.cluster.session("team-a", "one").await.unwrap().unwrap();
    world.cluster.ensure_sandbox(plan::sandbox(&resource, "default").unwrap()).await.unwrap();
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    let given =
        Incarnation { sandbox: name, pod_uid: "hands-1".to_owned(), attempt: "of a replica that died".to_owned() };
    world.store.dispatch(&id, epoch, &call, &given).await.unwrap();
    let (text, is_error) = said(&result(execute(&world, &id, epoch, &call)).await.unwrap());
    assert!(is_error && text.contains("outcome of this call is unknown"), "{text}");
    assert_eq!(hands.runs(), 0);
}

#[tokio::test]
async fn a_drained_sandbox_is_left_for_the_next_one() {
    let world = World::new();
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({"command": "echo one"})).await;
    let old = hands(&world.signer, "hands-1").await;
    let first = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &old.address);
    result(first).await.unwrap();

    let drain = |pod: &str, idle: u64| json!({"podUid": pod, "idleSeconds": idle});
    let path = format!("/internal/v1/namespaces/team-a/sandboxes/{name}/drain");
    let answer = world.call("POST", &path, "operator", &drain("hands-1", 3_600)).await;
    assert_eq!(answer.body["drained"], false, "{answer:?}");
    assert_eq!(world.call("POST", &path, "operator", &drain("hands-9", 0)).await.status, 409);
    for _ in 0..2 {
        let answer = world.call("POST", &path, "operator", &drain("hands-1", 0)).await;
        assert_eq!(answer.body["drained"], true, "{answer:?}");
    }
    let kinds = world.kinds(&id).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "x.sandbox.reclaimed").count(), 1, "{kinds:?}");

    // A call comes before the operator has removed it.
    let second = world.tool_use(&id, epoch, "bash", json!({"command": "echo two"})).await;
    let running = execute(&world, &id, epoch, &second);
    eventually(async || world.store.call(&id, &second).await.unwrap() == CallState::Open && !running.is_finished())
        .await;
    world.cluster.remove_sandbox(&name);
    eventually(async || world.cluster.state_counts().1.len() == 2).await;
    let fresh = hands(&world.signer, "hands-2").await;
    world.cluster.sandbox_ready(&name, "hands-2", &fresh.address);
    assert!(said(&result(running).await.unwrap()).0.contains("two"));
}

#[tokio::test]
async fn a_sandbox_with_a_call_is_not_drained() {
    let (world, _, _, _, hands, name, call) = running().await;
    let path = format!("/internal/v1/namespaces/team-a/sandboxes/{name}/drain");
    let answer = world.call("POST", &path, "operator", &json!({"podUid": "hands-1", "idleSeconds": 0})).await;
    assert_eq!(answer.body, json!({"drained": false, "idleSeconds": 0}));
    hands.go();
    assert!(said(&result(call).await.unwrap()).0.contains("gone"));
}

#[tokio::test]
async fn a_sandbox_that_never_comes_is_an_error_that_says_why_and_nothing_was_run() {
    let world = World::with(limits(Duration::from_secs(2), SOON));
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({"command": "ls"})).await;
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    let conditions = serde_json::from_value(json!([{"type": "Ready", "status": "False", "reason": "ImagePullBackOff",
        "message": "no such image", "lastTransitionTime": "2026-01-01T00:00:00Z"}]));
    world.cluster.sandbox_status(&name, SandboxStatus { conditions: conditions.unwrap(), ..SandboxStatus::default() });
    let (text, is_error) = said(&result(running).await.unwrap());
    assert!(is_error && text.contains("ImagePullBackOff: no such image") && text.contains("not run"), "{text}");
}

#[tokio::test]
async fn a_pod_that_cannot_be_reached_has_not_begun_the_call() {
    let world = World::new();
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({"command": "echo greetings"})).await;
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    world.cluster.sandbox_ready(&name, "hands-1", &address);
    eventually(async || world.kinds(&id).await.contains(&"x.sandbox.ready".to_owned())).await;
    let fresh = hands(&world.signer, "hands-2").await;
    world.cluster.sandbox_ready(&name, "hands-2", &fresh.address);
    assert!(said(&result(running).await.unwrap()).0.contains("greetings"));
    assert!(!world.kinds(&id).await.contains(&"x.sandbox.lost".to_owned()));
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_interrupted() {
    let world = World::with(limits(SOON, Duration::from_millis(700)));
    let (id, epoch, call) = world.session_with_call("one", "bash", Hands::until_go()).await;
    let hands = hands(&world.signer, "hands-1").await;
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    let (text, _) = said(&result(running).await.unwrap());
    assert!(text.contains("interrupted") || text.contains("unknown"), "{text}");
}

const INTERRUPT: ClientEvent = ClientEvent::UserInterrupt { session_thread_id: None };

#[tokio::test]
async fn an_interrupt_ends_the_call_that_runs() {
    let (world, id, epoch, _, hands, _, call) = running().await;
    world.taken_up(&id, epoch, INTERRUPT).await;
    let (text, is_error) = said(&result(call).await.unwrap());
    assert!(is_error && text.contains("interrupted"), "{text}");
    let kinds = world.kinds(&id).await;
    assert_eq!(kinds[kinds.len() - 2..], ["user.interrupt", "agent.tool_result"]);
    assert_eq!(hands.runs(), 1);
    let next = world.tool_use(&id, epoch, "bash", json!({"command": "echo next"})).await;
    assert!(said(&result(execute(&world, &id, epoch, &next)).await.unwrap()).0.contains("next"), "a later call runs");
}

#[tokio::test]
async fn who_is_asked_for_an_interrupted_call_ends_it() {
    let (world, id, epoch, call, _hands, _, first) = running().await;
    world.executor.stop(Duration::ZERO).await;
    assert!(matches!(result(first).await, Err(ExecuteError::Stopping)));
    world.taken_up(&id, epoch, INTERRUPT).await;
    let (text, is_error) = said(&result(execute_at(&other_replica(&world), &id, epoch, &call)).await.unwrap());
    assert!(is_error && text.contains("interrupted"), "{text}");
}

#[tokio::test]
async fn an_interrupted_call_does_not_wait_for_a_sandbox() {
    let world = World::with(limits(Duration::from_secs(600), SOON));
    let (id, epoch, call) = world.session_with_call("one", "bash", Hands::until_go()).await;
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    world.taken_up(&id, epoch, INTERRUPT).await;
    let (text, is_error) = said(&result(running).await.unwrap());
    assert!(is_error && text.contains("not run") && text.contains("stopped"), "{text}");
    // It is not given to the sandbox that comes at last.
    let hands = hands(&world.signer, "hands-1").await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    let next = world.tool_use(&id, epoch, "bash", json!({"command": "echo next"})).await;
    assert!(!said(&result(execute(&world, &id, epoch, &next)).await.unwrap()).1);
    assert_eq!(hands.runs(), 0);
}

#[tokio::test]
async fn a_call_that_asks_runs_when_it_is_allowed_and_a_denial_is_its_result() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let asks = async |text: &str| {
        world.tool_use_with(&id, epoch, "bash", json!({"command": format!("echo {text}")}), Permission::Ask).await
    };
    let confirm = |call: &EventId, result, message: Option<&str>| ClientEvent::UserToolConfirmation {
        tool_use_id: call.clone(),
        result,
        deny_message: message.map(ToOwned::to_owned),
    };
    let (allowed, denied) = (asks("greetings").await, asks("secrets").await);
    for call in [&allowed, &denied] {
        let refused = result(execute(&world, &id, epoch, call)).await;
        assert!(matches!(refused, Err(ExecuteError::NotConfirmed(_))), "{refused:?}");
    }
    let request = json!({"epoch": epoch, "tool_use_id": allowed});
    let answer = world.call("POST", &format!("/harness/v1/sessions/{id}/execute"), "pod-1", &request).await;
    assert_eq!(answer.status, 409, "{answer:?}");

    world.taken_up(&id, epoch, confirm(&denied, Verdict::Deny, Some("not today"))).await;
    let (text, is_error) = said(&result(execute(&world, &id, epoch, &denied)).await.unwrap());
    assert!(is_error && text.contains("denied it: not today"), "{text}");
    assert_eq!(world.cluster.state_counts().1, Vec::<String>::new(), "there is no sandbox for what does not run");

    world.taken_up(&id, epoch, confirm(&allowed, Verdict::Allow, None)).await;
    let hands = hands(&world.signer, "hands-1").await;
    let running = execute(&world, &id, epoch, &allowed);
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    assert!(said(&result(running).await.unwrap()).0.contains("greetings"));
}

#[tokio::test]
async fn a_call_that_nobody_confirmed_ends_with_the_turn() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let call = world.tool_use_with(&id, epoch, "bash", json!({"command": "ls"}), Permission::Ask).await;
    world.taken_up(&id, epoch, INTERRUPT).await;
    let (text, is_error) = said(&result(execute(&world, &id, epoch, &call)).await.unwrap());
    assert!(is_error && text.contains("not run") && text.contains("stopped"), "{text}");
}

#[tokio::test]
async fn what_may_not_or_cannot_run_has_a_result_and_no_sandbox() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let event = NewEvent::new(EventBody::AgentToolUse {
        name: "bash".to_owned(),
        input: json!({}),
        evaluated_permission: Permission::Deny,
        sandbox: None,
    });
    world.store.append(&id, epoch, 1, vec![event.clone()]).await.unwrap();
    assert!(said(&result(execute(&world, &id, epoch, &event.id)).await.unwrap()).0.contains("not permitted"));
    let unknown = result(execute(&world, &id, epoch, &EventId::generate())).await;
    assert!(matches!(unknown, Err(ExecuteError::Store(_))), "{unknown:?}");
    assert_eq!(world.cluster.state_counts().1, Vec::<String>::new());
}

#[tokio::test]
async fn a_harness_is_told_to_ask_again_while_a_call_runs() {
    let (world, id, epoch, call, hands, _, first) = running().await;
    let path = format!("/harness/v1/sessions/{id}/execute");
    let request = json!({"epoch": epoch, "tool_use_id": call});
    let answer = world.call("POST", &path, "pod-1", &request).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (504, &json!("timeout_error")));
    hands.go();
    let record = result(first).await.unwrap();
    let answer = world.call("POST", &path, "pod-1", &request).await;
    assert_eq!(answer.body["record"]["seq"], record.seq);
    assert_eq!(hands.runs(), 1);
}

#[tokio::test]
async fn a_zombie_cannot_begin_a_call_and_the_brain_that_lives_can() {
    let world = World::new();
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({"command": "echo greetings"})).await;
    let hands = hands(&world.signer, "hands-1").await;
    // Begun for an epoch that is over by the time there is a sandbox.
    let old = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    let later = world.claim(&id, "pod-2").await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    let refused = result(old).await;
    assert!(matches!(&refused, Err(ExecuteError::Store(error)) if error.to_string().contains("fenced")), "{refused:?}");
    assert_eq!(world.store.call(&id, &call).await.unwrap(), CallState::Open);
    assert!(said(&result(execute(&world, &id, later, &call)).await.unwrap()).0.contains("greetings"));
}
