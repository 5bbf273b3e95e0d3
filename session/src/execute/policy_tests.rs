//! Calls that are run again when their sandbox is lost, and calls that need no sandbox.

use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::harness::{OutcomePolicy, RECALL};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore as _;
use serde_json::json;

use super::tests::{execute, made, result, said};
use crate::testing::World;
use crate::testing::hands::{Hands, eventually, hands};

/// A call of a tool that is run again when its sandbox is lost.
async fn retried() -> (World, SessionId, u64, EventId) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let mut agent = world.store.state(&id).await.unwrap().meta.agent;
    agent.on_unknown_outcome.insert("bash".to_owned(), OutcomePolicy::Retry);
    let told = NewEvent::new(EventBody::SessionUpdated { agent: None, metadata: None, title: Some("t".to_owned()) });
    world.store.change_agent(&id, agent, told).await.unwrap();
    let epoch = world.claim(&id, "pod-1").await;
    let call = world.tool_use(&id, epoch, "bash", Hands::until_go()).await;
    (world, id, epoch, call)
}

#[tokio::test]
async fn a_call_whose_policy_says_so_is_run_again_twice_when_its_sandbox_is_lost() {
    let (world, id, epoch, call) = retried().await;
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
    let (world, id, epoch, call) = retried().await;
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
