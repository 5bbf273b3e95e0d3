use longhand_crds::agent_session::{AgentSessionSpec, Budget, LimitsSpec};
use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent, Spent, StopReason, Usage};
use longhand_protocol::harness::Limits;
use longhand_protocol::wire::Money;
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::{World, message};

const SESSION: &str = "/internal/v1/namespaces/team-a/sessions/one";

fn turns(spec: &mut AgentSessionSpec, turns: Option<i64>) {
    spec.limits = Some(LimitsSpec { turns, ..LimitsSpec::default() });
}

fn dollars(amount: &str) -> Budget {
    Budget { amount: amount.to_owned(), currency: "USD".to_owned() }
}

/// A turn that ends for this reason; what the harness was told of limits when it claimed the session.
async fn turn(world: &World, id: &SessionId, stop_reason: StopReason) {
    let claim = world.call("POST", &format!("/harness/v1/sessions/{id}/claim"), "pod-1", &json!({})).await.body;
    let epoch = claim["epoch"].as_u64().unwrap();
    let limits: Limits = serde_json::from_value(claim["session"]["limits"].clone()).unwrap();
    let budget: Option<Money> = serde_json::from_value(claim["session"]["budget"].clone()).unwrap();
    let inbox = world.store.inbox(id).await.unwrap();
    let queued: Vec<_> = inbox.items.into_iter().map(|item| item.event.id).collect();
    let head = world.store.state(id).await.unwrap().head;
    world.store.promote(id, epoch, head, &queued, vec![]).await.unwrap();
    let wake = world.store.inbox(id).await.unwrap().wake_revision;
    let head = world.store.state(id).await.unwrap().head;
    let limited = stop_reason == StopReason::BudgetReached;
    let reached = limited.then(|| EventBody::SessionLimitReached { limits, budget });
    let usage = EventBody::SessionUsage { usage: Spent { tokens: Usage::default(), list_cost: None } };
    let idle = EventBody::SessionStatusIdle { stop_reason };
    let events: Vec<NewEvent> = reached.into_iter().chain([usage, idle]).map(NewEvent::new).collect();
    let body = json!({"epoch": epoch, "expected_head": head, "wake_revision": wake, "events": events});
    let answer = world.call("POST", &format!("/harness/v1/sessions/{id}/idle"), "pod-1", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A session with a message, whose only turn has ended for this reason when it had one turn and a cent.
async fn ended(stop_reason: StopReason) -> (World, SessionId) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world.cluster.change_session("team-a", "one", |session| {
        turns(&mut session.spec, Some(1));
        session.spec.budget = Some(dollars("1"));
    });
    world.store.enqueue(&id, vec![NewEvent::new(message("hi"))]).await.unwrap();
    turn(&world, &id, stop_reason).await;
    (world, id)
}

/// What is queued after the operator has asked a few times, and whether work is open.
async fn ensured(world: &World, id: &SessionId) -> (Vec<String>, bool) {
    for _ in 0..3 {
        let answer = world.call("PUT", SESSION, "operator", &json!({"uid": "uid-one"})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let inbox = world.store.inbox(id).await.unwrap();
    (inbox.items.iter().map(|item| item.event.body.kind().to_owned()).collect(), inbox.wake_revision.is_some())
}

const RAISED: &str = "x.session.limit_raised";

#[rstest]
#[case::nothing_changed(|_: &mut AgentSessionSpec| (), false)]
#[case::raised(|spec: &mut AgentSessionSpec| turns(spec, Some(2)), true)]
#[case::removed(|spec: &mut AgentSessionSpec| spec.limits = None, true)]
#[case::budget(|spec: &mut AgentSessionSpec| spec.budget = Some(dollars("1.5")), true)]
#[case::lowered(|spec: &mut AgentSessionSpec| spec.budget = Some(dollars("0.5")), false)]
#[case::something_else(|spec: &mut AgentSessionSpec| spec.title = Some("new".to_owned()), false)]
#[tokio::test]
async fn a_raised_limit_wakes_the_session_that_it_has_stopped_once(
    #[case] change: impl FnOnce(&mut AgentSessionSpec),
    #[case] wakes: bool,
) {
    let (world, id) = ended(StopReason::BudgetReached).await;
    assert_eq!(ensured(&world, &id).await, (vec![], false));
    world.cluster.change_session("team-a", "one", |session| change(&mut session.spec));
    let expected = if wakes { vec![RAISED.to_owned()] } else { vec![] };
    assert_eq!(ensured(&world, &id).await, (expected, wakes));
    if wakes {
        // It was not enough: the same limits do not wake it again.
        turn(&world, &id, StopReason::BudgetReached).await;
        assert_eq!(ensured(&world.replica(), &id).await, (vec![], false));
        world.cluster.change_session("team-a", "one", |session| {
            (session.spec.limits, session.spec.budget) = (None, None);
        });
        assert_eq!(ensured(&world, &id).await, (vec![RAISED.to_owned()], true));
        turn(&world, &id, StopReason::EndTurn).await;
        assert_eq!(ensured(&world, &id).await, (vec![], false));
    }
}

#[tokio::test]
async fn a_session_that_was_not_stopped_by_a_limit_sleeps_on() {
    let (world, id) = ended(StopReason::EndTurn).await;
    world.cluster.change_session("team-a", "one", |session| turns(&mut session.spec, Some(2)));
    assert_eq!(ensured(&world, &id).await, (vec![], false));
}

#[tokio::test]
async fn a_budget_that_a_client_raises_wakes_the_session() {
    let (world, id) = ended(StopReason::BudgetReached).await;
    let path = format!("/v1/sessions/{id}");
    let budget =
        |amount: &str| json!({"budget": {"type": "limit", "max_list_cost": {"amount": amount, "currency": "USD"}}});
    for (amount, queued) in [("0.5", 0), ("2", 1), ("3", 1)] {
        let answer = world.call("POST", &path, "alice", &budget(amount)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(world.store.inbox(&id).await.unwrap().items.len(), queued, "{amount}");
    }
    let events = format!("/v1/sessions/{id}/events");
    let shown = world.call("GET", &events, "alice", &Value::Null).await;
    assert!(!shown.body.to_string().contains("limit_"), "extensions are hidden: {shown:?}");
}

#[tokio::test]
async fn a_fork_of_a_session_that_a_limit_has_stopped_waits_for_a_message() {
    let (world, id) = ended(StopReason::BudgetReached).await;
    let head = world.store.state(&id).await.unwrap().head;
    let fork = world.call("POST", "/v1/sessions", "alice", &json!({"fork": {"session": id, "seq": head}})).await;
    assert_eq!(fork.status, 200, "{fork:?}");
    let fork: SessionId = fork.body["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(world.store.inbox(&fork).await.unwrap().wake_revision, None);
}
