//! Harnesses that are ready before there is a session for them.

use std::time::Duration;

use futures::stream;
use kube::runtime::watcher::Event;
use longhand_crds::agent_session::HarnessStatus;
use longhand_crds::wire_id::derived_id;
use longhand_crds::{Agent, LocalRef};
use longhand_protocol::SessionId;
use longhand_protocol::internal::Wake;
use longhand_session_log::SessionStore as _;
use longhand_session_log::wake::WakeEvent;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::testing::{Answer, SOON, World, meta, say};
use crate::warm;

const PARKED: &str = "/harness/v1/parked";

/// The operator says that the agent `helper` has these pods.
async fn name_pods(world: &World, pods: &[(&str, &str)]) {
    let pods: Vec<Value> = pods
        .iter()
        .map(|(uid, state)| json!({"name": uid, "uid": uid, "state": state, "since": "2026-01-01T00:00:00Z"}))
        .collect();
    let agent: Agent = serde_json::from_value(json!({
        "metadata": {"name": "helper", "namespace": "team-a", "uid": "uid-helper"},
        "spec": {"model": {"id": "m"}},
        "status": {"warmPods": pods},
    }))
    .unwrap();
    world.app.warm.pods().follow(stream::iter([Event::Apply(agent)])).await;
}

/// A session of the agent `helper` that has no pod.
async fn session(world: &World, name: &str) -> SessionId {
    let uid = format!("uid-{name}");
    world.cluster.add_session("team-a", name, &uid);
    let mut meta = meta("team-a", name, &uid);
    meta.agent.id = derived_id("agent_", "uid-helper");
    let id = meta.id.clone();
    world.store.create(meta).await.unwrap();
    id
}

async fn park(world: &World, pod: &str, wait: u64) -> Answer {
    world.call("POST", PARKED, pod, &json!({"wait_seconds": wait})).await
}

async fn send(world: &World, id: &SessionId) {
    let sent =
        world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &json!({"events": [say("hello")]})).await;
    assert_eq!(sent.status, 200, "{sent:?}");
}

async fn claim(world: &World, id: &SessionId, pod: &str) -> Answer {
    world.call("POST", &format!("/harness/v1/sessions/{id}/claim"), pod, &json!({})).await
}

/// Returns when a pod waits for sessions of `helper`.
async fn until_parked(world: &World, id: &SessionId) {
    let waits = async {
        let state = world.store.state(id).await.unwrap();
        while !warm::somebody_waits(&world.app, &state) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, waits).await.expect("no pod waits");
}

#[tokio::test]
async fn a_message_is_given_to_a_harness_that_waits() {
    let world = World::new();
    name_pods(&world, &[("pod-1", "Parked")]).await;
    let id = session(&world, "one").await;
    let (offer, ()) = tokio::join!(park(&world, "pod-1", 20), async {
        until_parked(&world, &id).await;
        send(&world, &id).await;
    });
    assert_eq!(offer.body, json!({"offer": "session", "session": id}), "{offer:?}");
    let claimed = claim(&world, &id, "pod-1").await;
    assert_eq!((claimed.status.as_u16(), &claimed.body["epoch"]), (200, &json!(1)), "{claimed:?}");
    // It is the owner, and may do what an owner does, also when the operator has named nobody yet.
    let lease = world.call("POST", &format!("/harness/v1/sessions/{id}/lease"), "pod-1", &json!({"epoch": 1})).await;
    assert_eq!(lease.status, 200);
    assert_eq!(park(&world, "pod-1", 0).await.body, json!({"offer": "nothing"}));
    // One that was offered the same session finds it taken.
    name_pods(&world, &[("pod-1", "Taken"), ("pod-2", "Parked")]).await;
    assert_eq!(claim(&world, &id, "pod-2").await.status, 409);
    assert_eq!(world.store.state(&id).await.unwrap().epoch, 1);
}

/// The way from a message to a harness that waits asks the API server for the session once, and for no token and no
/// permission that it was asked for a moment before.
#[tokio::test]
async fn what_is_known_of_a_session_that_is_offered_is_not_asked_for_again() {
    let world = World::new();
    name_pods(&world, &[("pod-1", "Parked")]).await;
    let (first, id) = (session(&world, "zero").await, session(&world, "one").await);
    send(&world, &first).await;
    world.cluster.take_reads();
    let (offer, ()) = tokio::join!(park(&world, "pod-1", 20), async {
        until_parked(&world, &id).await;
        let (reviews, _) = world.cluster.state_counts();
        send(&world, &id).await;
        assert_eq!(world.cluster.state_counts().0, reviews);
    });
    assert_eq!(offer.body["session"], json!(id), "{offer:?}");
    let (reviews, _) = world.cluster.state_counts();
    assert_eq!(claim(&world, &id, "pod-1").await.status, 200);
    assert_eq!(world.cluster.take_reads(), ["AgentSession team-a/one"]);
    assert_eq!(world.cluster.state_counts().0, reviews);
    // What was said of it is good for one claim: the next one finds what has changed.
    world.cluster.change_session("team-a", "one", |session| {
        session.spec.vault_refs.push(LocalRef { name: "v".to_owned() });
    });
    name_pods(&world, &[("pod-1", "Taken"), ("pod-2", "Parked")]).await;
    assert_eq!(claim(&world, &id, "pod-2").await.status, 403);
}

#[tokio::test]
async fn another_replica_gives_it_to_one_that_waits_there() {
    let world = World::new();
    let other = world.replica();
    name_pods(&other, &[("pod-1", "Parked")]).await;
    let id = session(&world, "one").await;
    let wake = Wake { namespace: "team-a".into(), name: "one".into(), uid: "uid-one".into(), ..Wake::default() };
    let (offer, ()) = tokio::join!(park(&other, "pod-1", 20), async {
        until_parked(&other, &id).await;
        send(&world, &id).await;
        warm::follow_wakes(&other.app, stream::iter([WakeEvent::Set(id.clone(), wake)])).await;
    });
    assert_eq!(offer.body["session"], json!(id), "{offer:?}");
}

#[tokio::test]
async fn a_pod_that_is_not_named_is_no_ready_harness() {
    let world = World::new();
    name_pods(&world, &[("pod-elsewhere", "Parked")]).await;
    for pod in ["pod-1", "pod-elsewhere", "alice"] {
        let answer = park(&world, pod, 1).await;
        assert_eq!(answer.status, 403, "{pod}: {answer:?}");
    }
    assert_eq!(park(&world, "pod-1", 31).await.status, 400);
    // A pod may be faster than the operator.
    let (offer, ()) = tokio::join!(park(&world, "pod-1", 0), async {
        tokio::task::yield_now().await;
        name_pods(&world, &[("pod-1", "Starting")]).await;
    });
    assert_eq!(offer.body, json!({"offer": "nothing"}), "{offer:?}");
}

#[tokio::test]
async fn one_that_is_to_go_is_told_at_once() {
    let world = World::new();
    name_pods(&world, &[("pod-1", "Parked"), ("pod-2", "Parked")]).await;
    let id = session(&world, "one").await;
    let (told, ()) = tokio::join!(park(&world, "pod-1", 20), async {
        until_parked(&world, &id).await;
        name_pods(&world, &[("pod-1", "Retiring"), ("pod-2", "Parked")]).await;
    });
    assert_eq!(told.body, json!({"offer": "retire"}), "{told:?}");
    let (stays, ()) = tokio::join!(park(&world, "pod-2", 20), async {
        until_parked(&world, &id).await;
        send(&world, &id).await;
    });
    assert_eq!(stays.body["session"], json!(id), "{stays:?}");
}

#[rstest]
#[case::with_a_pod_of_its_own(|status: &mut Option<HarnessStatus>, _: &mut Vec<LocalRef>| {
    *status = Some(HarnessStatus { pod_uid: Some("pod-9".to_owned()), ..HarnessStatus::default() });
})]
#[case::with_vaults(|_: &mut Option<HarnessStatus>, vaults: &mut Vec<LocalRef>| {
    vaults.push(LocalRef { name: "v".to_owned() });
})]
#[tokio::test]
async fn a_session_that_needs_a_pod_of_its_own_is_not_offered(
    #[case] change: fn(&mut Option<HarnessStatus>, &mut Vec<LocalRef>),
) {
    let world = World::new();
    name_pods(&world, &[("pod-1", "Parked")]).await;
    let (own, plain) = (session(&world, "own").await, session(&world, "plain").await);
    world.cluster.change_session("team-a", "own", |session| {
        change(&mut session.status.get_or_insert_default().harness, &mut session.spec.vault_refs);
    });
    let (offer, ()) = tokio::join!(park(&world, "pod-1", 20), async {
        until_parked(&world, &own).await;
        send(&world, &own).await;
        send(&world, &plain).await;
    });
    assert_eq!(offer.body["session"], json!(plain), "{offer:?}");
    let refused = claim(&world, &own, "pod-1").await;
    assert_eq!(refused.status, 403, "{refused:?}");
    assert_eq!(world.store.state(&own).await.unwrap().epoch, 0);
}

#[tokio::test]
async fn a_session_without_work_is_not_taken() {
    let world = World::new();
    name_pods(&world, &[("pod-1", "Parked")]).await;
    let id = session(&world, "one").await;
    let refused = claim(&world, &id, "pod-1").await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.message().contains("no work is open"), "{refused:?}");
    assert_eq!(world.store.state(&id).await.unwrap().epoch, 0);
}

#[tokio::test]
async fn a_session_whose_sandboxes_have_a_way_out_needs_a_pod_of_its_own() {
    let world = World::new();
    name_pods(&world, &[("pod-1", "Parked")]).await;
    let id = session(&world, "one").await;
    world.cluster.networks.lock().unwrap().insert(("team-a".to_owned(), "tools".to_owned()));
    let (offer, ()) = tokio::join!(park(&world, "pod-1", 1), async {
        until_parked(&world, &id).await;
        send(&world, &id).await;
    });
    assert_eq!(offer.body, json!({"offer": "nothing"}), "{offer:?}");
    let refused = claim(&world, &id, "pod-1").await;
    assert_eq!(refused.status, 403, "{refused:?}");
}
