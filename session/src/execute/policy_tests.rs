//! Calls that are run again, or asked about, when their sandbox is lost, and calls that need no sandbox.

use longhand_protocol::event::{ClientEvent, EventBody, NewEvent, Permission};
use longhand_protocol::harness::{OutcomePolicy, RECALL};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore as _;
use longhand_session_log::store::Incarnation;
use serde_json::{Value, json};

use super::tests::{execute, made, result, said};
use super::{ExecuteError, plan};
use crate::testing::World;
use crate::testing::hands::{Hands, eventually, hands};

/// A call of a tool with this policy for when its sandbox is lost.
async fn with_policy(policy: OutcomePolicy) -> (World, SessionId, u64, EventId) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let mut agent = world.store.state(&id).await.unwrap().meta.agent;
    agent.on_unknown_outcome.insert("bash".to_owned(), policy);
    let told = NewEvent::new(EventBody::SessionUpdated { agent: None, metadata: None, title: Some("t".to_owned()) });
    world.store.change_agent(&id, agent, told).await.unwrap();
    let epoch = world.claim(&id, "pod-1").await;
    let call = world.tool_use(&id, epoch, "bash", Hands::until_go()).await;
    (world, id, epoch, call)
}

#[tokio::test]
async fn a_call_whose_policy_says_so_is_run_again_twice_when_its_sandbox_is_lost() {
    let (world, id, epoch, call) = with_policy(OutcomePolicy::Retry).await;
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    let mut last = None;
    for pod in ["hands-1", "hands-2", "hands-3"] {
        let next = hands(&world.signer, pod).await;
        world.cluster.sandbox_ready(&name, pod, &next.address);
        next.begun().await;
        assert_eq!(next.runs(), 1);
        next.stop.cancel();
        world.cluster.sandbox_lost(&name, pod, "OOMKilled");
        let lost = async || world.kinds(&id).await.iter().filter(|kind| *kind == "x.sandbox.lost").count();
        let count = if last.is_none() { 1 } else { 2 };
        if pod != "hands-3" {
            eventually(async || lost().await >= count).await;
        }
        last = Some(next);
    }
    let (text, is_error) = said(&result(running).await.unwrap());
    assert!(is_error && text.contains("OOMKilled"), "{text}");
    let kinds = world.kinds(&id).await;
    let count = |wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
    assert_eq!((count("x.tool.retried"), count("x.tool.outcome_unknown"), count("agent.tool_result")), (2, 1, 1));
}

#[tokio::test]
async fn a_call_that_is_run_again_has_the_result_of_the_next_sandbox() {
    let (world, id, epoch, call) = with_policy(OutcomePolicy::Retry).await;
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    let first = hands(&world.signer, "hands-1").await;
    world.cluster.sandbox_ready(&name, "hands-1", &first.address);
    first.begun().await;
    world.cluster.sandbox_lost(&name, "hands-1", "Evicted");
    first.stop.cancel();
    let second = hands(&world.signer, "hands-2").await;
    world.cluster.sandbox_ready(&name, "hands-2", &second.address);
    second.begun().await;
    second.go();
    let (text, is_error) = said(&result(running).await.unwrap());
    assert!(!is_error && text.contains("gone"), "{text}");
    let kinds = world.kinds(&id).await;
    assert!(kinds.contains(&"x.tool.retried".to_owned()), "{kinds:?}");
    assert!(!kinds.contains(&"x.tool.outcome_unknown".to_owned()), "{kinds:?}");
}

/// A call whose sandbox was lost, so that the client is asked; the name of the sandbox.
async fn asked() -> (World, SessionId, u64, EventId, String) {
    let (world, id, epoch, call) = with_policy(OutcomePolicy::Ask).await;
    let early = confirm(&world, &id, &call, json!({"result": "allow"})).await;
    assert_eq!(early.0, 400, "nobody has asked yet: {early:?}");
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    let first = hands(&world.signer, "hands-1").await;
    world.cluster.sandbox_ready(&name, "hands-1", &first.address);
    first.begun().await;
    world.cluster.sandbox_lost(&name, "hands-1", "OOMKilled");
    first.stop.cancel();
    for asking in [running, execute(&world, &id, epoch, &call)] {
        let error = result(asking).await.unwrap_err();
        assert!(matches!(&error, ExecuteError::NotConfirmed(of) if *of == call), "{error}");
    }
    assert_eq!(counts(&world, &id).await, (1, 0, 0));
    (world, id, epoch, call, name)
}

/// How often the client was asked, the outcome was reported as unknown, and there was a result.
async fn counts(world: &World, id: &SessionId) -> (usize, usize, usize) {
    let kinds = world.kinds(id).await;
    let count = |wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
    (count("x.tool.outcome_asked"), count("x.tool.outcome_unknown"), count("agent.tool_result"))
}

/// Sends a client's word on the call; the status, and why it was refused.
async fn confirm(world: &World, id: &SessionId, call: &EventId, says: Value) -> (u16, String) {
    let mut event = says;
    event["type"] = json!("user.tool_confirmation");
    event["tool_use_id"] = json!(call);
    let sent = world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &json!({"events": [event]})).await;
    (sent.status.as_u16(), if sent.status == 200 { String::new() } else { sent.message().to_owned() })
}

/// The brain takes up what is queued.
async fn take_up(world: &World, id: &SessionId, epoch: u64) {
    let queued: Vec<EventId> =
        world.store.inbox(id).await.unwrap().items.into_iter().map(|item| item.event.id).collect();
    let head = world.store.state(id).await.unwrap().head;
    world.store.promote(id, epoch, head, &queued, Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_call_that_the_client_allows_is_run_again_and_asked_about_each_time() {
    let (world, id, epoch, call, name) = asked().await;
    for (pod, asks) in [("hands-2", 2), ("hands-3", 0)] {
        assert_eq!(confirm(&world, &id, &call, json!({"result": "allow"})).await.0, 200);
        take_up(&world, &id, epoch).await;
        let running = execute(&world, &id, epoch, &call);
        let next = hands(&world.signer, pod).await;
        world.cluster.sandbox_ready(&name, pod, &next.address);
        next.begun().await;
        assert_eq!(next.runs(), 1);
        if asks > 0 {
            world.cluster.sandbox_lost(&name, pod, "Evicted");
            next.stop.cancel();
            assert!(matches!(result(running).await, Err(ExecuteError::NotConfirmed(_))));
            assert_eq!(counts(&world, &id).await, (asks, 0, 0));
        } else {
            next.go();
            let (text, is_error) = said(&result(running).await.unwrap());
            assert!(!is_error && text.contains("gone"), "{text}");
        }
    }
    assert_eq!(counts(&world, &id).await, (2, 0, 1));
}

#[tokio::test]
async fn a_call_that_the_client_does_not_allow_again_is_reported() {
    let (world, id, epoch, call, _) = asked().await;
    let denied = json!({"result": "deny", "deny_message": "it costs money"});
    assert_eq!(confirm(&world, &id, &call, denied).await.0, 200);
    take_up(&world, &id, epoch).await;
    for _ in 0..2 {
        let (text, is_error) = said(&result(execute(&world, &id, epoch, &call)).await.unwrap());
        assert!(is_error && text.contains("OOMKilled") && text.contains("run again: it costs money"), "{text}");
    }
    assert_eq!(counts(&world, &id).await, (1, 1, 1));
}

#[tokio::test]
async fn who_stops_the_turn_or_cannot_be_asked_gets_what_is_known() {
    let (world, id, epoch, call, _) = asked().await;
    world.taken_up(&id, epoch, ClientEvent::UserInterrupt { session_thread_id: None }).await;
    let (text, is_error) = said(&result(execute(&world, &id, epoch, &call)).await.unwrap());
    assert!(is_error && text.contains("outcome of this call is unknown") && text.contains("OOMKilled"), "{text}");
    assert_eq!(counts(&world, &id).await, (1, 1, 1));

    let (world, id, epoch, call, _) = asked().await;
    for _ in 0..2 {
        let (text, is_error) = said(&world.executor.report(&id, epoch, &call).await.unwrap());
        assert!(is_error && text.contains("OOMKilled"), "{text}");
    }
    let waits = world.tool_use_with(&id, epoch, "bash", json!({}), Permission::Ask).await;
    let error = world.executor.report(&id, epoch, &waits).await.unwrap_err();
    assert!(matches!(error, ExecuteError::NotConfirmed(_)), "{error}");
}

#[tokio::test]
async fn a_replica_that_dies_between_the_question_and_taking_the_call_back_changes_nothing() {
    let (world, id, epoch, call) = with_policy(OutcomePolicy::Ask).await;
    let lost = Incarnation { sandbox: "gone".to_owned(), pod_uid: "hands-0".to_owned(), attempt: "a".to_owned() };
    world.store.dispatch(&id, epoch, &call, &lost).await.unwrap();
    let asked = plan::once(
        &[id.as_str(), call.as_str(), "hands-0", "a"],
        EventBody::ToolOutcomeAsked { tool_use_id: call.clone(), cause: "lost".to_owned() },
    );
    world.store.append_unfenced(&id, vec![asked]).await.unwrap();
    assert!(matches!(result(execute(&world, &id, epoch, &call)).await, Err(ExecuteError::NotConfirmed(_))));
    assert_eq!(confirm(&world, &id, &call, json!({"result": "allow"})).await.0, 200);
    take_up(&world, &id, epoch).await;
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    let next = hands(&world.signer, "hands-1").await;
    world.cluster.sandbox_ready(&name, "hands-1", &next.address);
    next.begun().await;
    next.go();
    assert!(!said(&result(running).await.unwrap()).1);
    assert_eq!(counts(&world, &id).await, (1, 0, 1));
}

#[tokio::test]
async fn recall_answers_from_the_log_without_a_sandbox() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let head = world.store.state(&id).await.unwrap().head;
    let said_by_model = vec![
        NewEvent::new(EventBody::AgentMessage { content: vec![json!({"type": "text", "text": "The Answer is 42."})] }),
        NewEvent::new(EventBody::ModelResponse {
            content: vec![json!({"type": "thinking", "thinking": "the answer, I think"})],
            stop_reason: None,
            model: None,
            tool_events: vec![],
            limited: false,
        }),
    ];
    world.store.append(&id, epoch, head, said_by_model).await.unwrap();
    let ask = async |input| {
        let call = world.tool_use(&id, epoch, RECALL, input).await;
        said(&result(execute(&world, &id, epoch, &call)).await.unwrap())
    };
    let (text, is_error) = ask(json!({"query": "the ANSWER"})).await;
    assert!(!is_error && text.contains("The Answer is 42.") && text.contains("agent.message"), "{text}");
    assert!(!text.contains("I think"), "{text}");
    let (again, _) = ask(json!({"query": "the answer"})).await;
    assert_eq!(again, text, "it does not find itself");
    let (text, _) = ask(json!({"types": ["x.*"], "query": "the answer"})).await;
    assert!(!text.contains("I think"), "{text}");
    assert!(ask(json!({"limit": 0})).await.1);
    assert_eq!(world.cluster.state_counts().1, Vec::<String>::new(), "there is no sandbox");
}
