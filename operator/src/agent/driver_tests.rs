use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use longhand_crds::agent::WarmPod;
use longhand_crds::agent_session::HarnessStatus;
use longhand_crds::{Agent, AgentStatus};
use serde_json::{Value, json};

use super::{Agents, reconcile};
use crate::agent_session::harness_pod;
use crate::agent_session::observe::References;
use crate::fixtures;
use crate::testing::{Server, context, store};

const PODS: &str = "/api/v1/namespaces/team/pods";
const STATUS: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/agents/coder/status";

fn agent(warm: i32, pods: Vec<WarmPod>) -> Arc<Agent> {
    let mut agent = fixtures::agent();
    agent.spec.warm = warm;
    let generation = i64::try_from(pods.len()).unwrap();
    agent.status = Some(AgentStatus {
        observed_generation: Some(1),
        version: Some(1),
        warm_pods: pods,
        warm_generation: generation,
        ..AgentStatus::default()
    });
    Arc::new(agent)
}

fn world(pods: Vec<Pod>, taken: Option<&str>) -> (Arc<Agents>, Server) {
    let (context, server) = context();
    let mut session = fixtures::session();
    session.status.get_or_insert_default().harness =
        taken.map(|uid| HarnessStatus { pod_uid: Some(uid.to_owned()), warm: true, ..HarnessStatus::default() });
    let agents = Agents {
        context,
        vaults: store([DeserializeGuard(Ok(fixtures::vault()))]),
        sessions: store([DeserializeGuard(Ok(session))]),
        pods: store(pods),
        counts: Mutex::default(),
    };
    (Arc::new(agents), server)
}

/// A pod of the pool as it would be made now, running.
fn pod(agents: &Agents, number: i64) -> Pod {
    let references = References { agent: (*agent(2, vec![])).clone(), ..References::fixture() };
    let mut pod = harness_pod::build_warm(&agents.context, &references, &format!("coder-warm-3e8f1a-{number}"));
    pod.metadata.uid = Some(format!("w-{number}"));
    pod.status = serde_json::from_value(json!({
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:02Z" }],
        "containerStatuses": [{ "name": "harness", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": "1970-01-01T00:00:02Z" } } }],
    }))
    .unwrap();
    pod
}

fn made(number: i64) -> Value {
    json!({ "metadata": { "name": format!("coder-warm-3e8f1a-{number}"), "namespace": "team", "uid": format!("w-{number}") } })
}

fn written() -> Value {
    serde_json::to_value(fixtures::agent()).unwrap()
}

fn states(sent: &Value) -> Vec<(&str, &str)> {
    let pods = sent["status"]["warmPods"].as_array().unwrap();
    pods.iter().map(|pod| (pod["uid"].as_str().unwrap(), pod["state"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn an_agent_gets_the_pods_that_it_wants_and_says_which() {
    let (agents, server) = world(vec![], None);
    let server =
        server.expect([("POST", PODS, 201, made(1)), ("POST", PODS, 201, made(2)), ("PATCH", STATUS, 200, written())]);
    assert_eq!(reconcile(agent(2, vec![]), agents.clone()).await.unwrap(), Action::await_change());
    let sent = server.nothing_else(agents).await;
    assert_eq!(sent[0]["metadata"]["name"], "coder-warm-3e8f1a-1");
    assert_eq!(sent[0]["metadata"]["ownerReferences"][0]["kind"], "Agent");
    assert_eq!(sent[0]["spec"]["containers"][0]["env"][0], json!({ "name": "SESSIONS_PER_POD", "value": "1" }));
    assert_eq!(states(&sent[2]), [("w-1", "Starting"), ("w-2", "Starting")]);
    assert_eq!(sent[2]["status"]["warmGeneration"], 2);
    assert_eq!(sent[2]["status"]["selector"], "longhand.dev/agent-uid=3e8f1a2b-coder,longhand.dev/role=harness");
}

#[tokio::test]
async fn a_pod_that_a_session_has_got_is_replaced() {
    let (mut agents, server) = world(vec![], Some("w-1"));
    let pods = [pod(&agents, 1), pod(&agents, 2)];
    let listed = |uid: &str| -> WarmPod {
        serde_json::from_value(json!({ "name": "", "uid": uid, "state": "Parked", "since": "1970-01-01T00:00:02Z" }))
            .unwrap()
    };
    Arc::get_mut(&mut agents).unwrap().pods = store(pods);
    let server = server.expect([("POST", PODS, 201, made(3)), ("PATCH", STATUS, 200, written())]);
    reconcile(agent(2, vec![listed("w-1"), listed("w-2")]), agents.clone()).await.unwrap();
    let sent = server.nothing_else(agents).await;
    assert_eq!(states(&sent[1]), [("w-1", "Taken"), ("w-2", "Parked"), ("w-3", "Starting")]);
    assert_eq!(sent[1]["status"]["warmReady"], 1);
}

#[tokio::test]
async fn a_quota_is_a_condition_and_what_was_made_before_is_known() {
    let (agents, server) = world(vec![], None);
    let message = "pods \"x\" is forbidden: exceeded quota: pods";
    let refusal = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": message });
    let event = json!({ "metadata": { "name": "e" }, "eventTime": null });
    let server = server.expect([
        ("POST", PODS, 201, made(1)),
        ("POST", PODS, 403, refusal),
        ("POST", "/apis/events.k8s.io/v1/namespaces/team/events", 201, event),
        ("PATCH", STATUS, 200, written()),
    ]);
    reconcile(agent(2, vec![]), agents.clone()).await.unwrap_err();
    let sent = server.nothing_else(agents).await;
    assert_eq!((sent[2]["reason"].as_str(), states(&sent[3])), (Some("WarmBlocked"), vec![("w-1", "Starting")]));
    assert_eq!(sent[3]["status"]["warmGeneration"], 1);
    let conditions = sent[3]["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|one| one["type"] == "WarmReady").unwrap();
    assert_eq!((&ready["reason"], &ready["status"]), (&json!("QuotaExceeded"), &json!("False")));
    assert!(ready["message"].as_str().unwrap().contains(message));
}

#[tokio::test]
async fn a_pod_that_the_watch_has_not_brought_yet_is_not_made_twice() {
    let (agents, server) = world(vec![], None);
    let listed: WarmPod = serde_json::from_value(
        json!({ "name": "coder-warm-3e8f1a-1", "uid": "w-1", "state": "Parked", "since": "1970-01-01T00:00:02Z" }),
    )
    .unwrap();
    let found = serde_json::to_value(pod(&agents, 1)).unwrap();
    let server = server.expect([
        ("GET", "/api/v1/namespaces/team/pods/coder-warm-3e8f1a-1", 200, found),
        ("PATCH", STATUS, 200, written()),
    ]);
    reconcile(agent(1, vec![listed]), agents.clone()).await.unwrap();
    let sent = server.nothing_else(agents).await;
    assert_eq!(states(&sent[1]), [("w-1", "Parked")]);
    assert_eq!(sent[1]["status"]["warmReady"], 1);
}

#[tokio::test]
async fn a_surplus_is_looked_at_again() {
    let (mut agents, server) = world(vec![], None);
    let pods = [pod(&agents, 1), pod(&agents, 2)];
    Arc::get_mut(&mut agents).unwrap().pods = store(pods);
    let listed = |uid: &str| WarmPod {
        name: String::new(),
        uid: uid.to_owned(),
        state: longhand_crds::agent::WarmState::Parked,
        since: jiff::Timestamp::now().into(),
    };
    let server = server.expect([("PATCH", STATUS, 200, written())]);
    let action = reconcile(agent(1, vec![listed("w-1"), listed("w-2")]), agents.clone()).await.unwrap();
    assert_ne!(action, Action::await_change());
    assert!(
        format!("{action:?}").contains("requeue") || action == Action::requeue(Duration::from_secs(60)),
        "{action:?}"
    );
    server.nothing_else(agents).await;
}
