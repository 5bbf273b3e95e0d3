use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use longhand_crds::agent_session::{AgentSessionStatus, HarnessStatus};
use longhand_crds::{AgentSession, AgentStatus, derived_session_id};
use longhand_protocol::event::Usage;
use longhand_protocol::internal::{SessionSummary, Wake};
use longhand_protocol::wire::SessionStatus;
use longhand_session_log::wake::WakeEvent;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::proxy_health::{Credentials, Proxies};
use super::{Sessions, reconcile};
use crate::fixtures;
use crate::testing::{Call, FakeLog, Server, context_with, store};
use crate::vault::sightings::Sightings;
use crate::wakes::Wakes;

const UID: &str = "3e8f1a2b-quickstart";
const POD: &str = "quickstart-harness-3e8f1a-1";
const PODS: &str = "/api/v1/namespaces/team/pods";
const POD_PATH: &str = "/api/v1/namespaces/team/pods/quickstart-harness-3e8f1a-1";
pub(super) const STATUS: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/agentsessions/quickstart/status";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/team/events";

pub(super) struct NoProxies;

#[async_trait]
impl Proxies for NoProxies {
    async fn credentials(&self, _: &str) -> Credentials {
        Credentials::Unknown
    }
}

pub(super) fn summary(owner: Option<&str>, wake: bool) -> SessionSummary {
    SessionSummary {
        session_id: derived_session_id(UID),
        status: if wake { SessionStatus::Running } else { SessionStatus::Idle },
        epoch: 1,
        head: 3,
        delivered_inputs: 1,
        owner_pod_uid: owner.map(ToOwned::to_owned),
        wake,
        usage: Usage::default(),
        limit: None,
    }
}

pub(super) fn sessions(log: Arc<FakeLog>, woken: bool, pods: Vec<Pod>) -> (Arc<Sessions>, Server) {
    let (context, server) = context_with(log);
    let wakes = Wakes::default();
    if woken {
        let wake = Wake { namespace: "team".into(), name: "quickstart".into(), uid: UID.into(), ..Wake::default() };
        wakes.apply(WakeEvent::Set(derived_session_id(UID), wake), Timestamp::now());
    }
    let sessions = Sessions {
        context,
        agents: store([DeserializeGuard(Ok(fixtures::agent()))]),
        vaults: store([DeserializeGuard(Ok(fixtures::vault()))]),
        templates: store([DeserializeGuard(Ok(fixtures::template()))]),
        pods: store(pods),
        wakes: Arc::new(wakes),
        proxies: Arc::new(NoProxies),
        asking: Semaphore::new(1),
        sightings: Arc::new(Sightings::new().0),
    };
    (Arc::new(sessions), server)
}

pub(super) fn pod(status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": POD, "namespace": "team", "uid": "pod-1",
            "labels": { "longhand.dev/session-uid": UID },
            "ownerReferences": [{ "apiVersion": "longhand.dev/v1alpha1", "kind": "AgentSession", "name": "quickstart", "uid": UID, "controller": true }],
        },
        "status": status,
    }))
    .unwrap()
}

fn answer(pod: &Pod) -> Value {
    serde_json::to_value(pod).unwrap()
}

pub(super) fn written() -> Value {
    serde_json::to_value(fixtures::session()).unwrap()
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": message })
}

fn event() -> Call<'static> {
    ("POST", EVENTS, 201, json!({ "metadata": { "name": "e" }, "eventTime": null }))
}

pub(super) fn session(status: Option<AgentSessionStatus>) -> Arc<AgentSession> {
    Arc::new(AgentSession { status, ..fixtures::session() })
}

pub(super) fn known(pod_uid: Option<&str>) -> AgentSessionStatus {
    AgentSessionStatus {
        session_id: Some(derived_session_id(UID).to_string()),
        phase: Some("idle".into()),
        delivered_inputs: Some(1),
        delivered_generation: Some(1),
        harness: Some(HarnessStatus {
            generation: 1,
            pod_name: pod_uid.map(|_| POD.to_owned()),
            pod_uid: pod_uid.map(ToOwned::to_owned),
            warm: false,
            failures: 0,
        }),
        ..AgentSessionStatus::default()
    }
}

#[tokio::test]
async fn a_new_session_gets_its_log_and_then_its_harness() {
    let log = Arc::new(FakeLog { summary: Some(summary(None, true)), ..FakeLog::default() });
    let (sessions, server) = sessions(log.clone(), false, vec![]);
    let server = server.expect([
        ("POST", PODS, 201, answer(&pod(&json!({})))),
        ("PATCH", STATUS, 200, written()),
        ("PATCH", STATUS, 200, written()),
        event(),
    ]);
    let action = reconcile(session(None), sessions.clone()).await.unwrap();
    assert_eq!(action, Action::requeue(Duration::from_secs(30)));
    assert_eq!(log.calls(), ["ensure"]);
    let sent = server.nothing_else(sessions).await;
    assert_eq!(sent[0]["metadata"]["name"], POD);
    assert_eq!(
        sent[1]["status"],
        json!({ "harness": { "generation": 1, "podName": POD, "podUID": "pod-1", "failures": 0 } })
    );
    assert_eq!(sent[2]["status"]["phase"], "running");
    assert_eq!(sent[2]["status"]["harness"]["podUID"], "pod-1");
    assert_eq!(sent[3]["reason"], "HarnessStarted");
}

#[tokio::test]
async fn a_wake_makes_the_pod_before_the_service_is_asked() {
    let log = Arc::new(FakeLog::default());
    let (sessions, server) = sessions(log.clone(), true, vec![]);
    let status = AgentSessionStatus { harness: None, ..known(None) };
    let server = server.expect([
        ("POST", PODS, 201, answer(&pod(&json!({})))),
        ("PATCH", STATUS, 200, written()),
        ("PATCH", STATUS, 200, written()),
        event(),
    ]);
    // The service is away, and the pod is made all the same.
    reconcile(session(Some(status)), sessions.clone()).await.unwrap_err();
    assert_eq!(log.calls(), ["summary"]);
    let sent = server.nothing_else(sessions).await;
    let ready = sent[2]["status"]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Ready").unwrap();
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("SessionServiceUnavailable")));
    assert_eq!(sent[2]["status"]["harness"]["podUID"], "pod-1");
}

#[tokio::test]
async fn a_pod_made_before_the_status_could_be_written_is_taken_up() {
    let log = Arc::new(FakeLog { summary: Some(summary(None, true)), ..FakeLog::default() });
    let (sessions, server) = sessions(log, true, vec![]);
    let server = server.expect([
        ("POST", PODS, 409, failure(409, "AlreadyExists", "exists")),
        ("GET", POD_PATH, 200, answer(&pod(&json!({})))),
        ("PATCH", STATUS, 200, written()),
        ("PATCH", STATUS, 200, written()),
        event(),
    ]);
    reconcile(session(None), sessions.clone()).await.unwrap();
    let sent = server.nothing_else(sessions).await;
    assert_eq!(sent[2]["status"]["harness"]["podUID"], "pod-1");
}

#[tokio::test]
async fn a_foreign_pod_is_left_alone_and_reported() {
    let log = Arc::new(FakeLog { summary: Some(summary(None, true)), ..FakeLog::default() });
    let (sessions, server) = sessions(log, true, vec![]);
    let mut foreign = pod(&json!({}));
    foreign.metadata.owner_references = None;
    let server = server.expect([
        ("POST", PODS, 409, failure(409, "AlreadyExists", "exists")),
        ("GET", POD_PATH, 200, answer(&foreign)),
        ("PATCH", STATUS, 200, written()),
    ]);
    reconcile(session(None), sessions.clone()).await.unwrap_err();
    let sent = server.nothing_else(sessions).await;
    let ready = sent[2]["status"]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Ready").unwrap();
    assert_eq!(ready["reason"], "PodNameTaken");
}

#[tokio::test]
async fn a_quota_is_a_condition() {
    let log = Arc::new(FakeLog { summary: Some(summary(None, true)), ..FakeLog::default() });
    let (sessions, server) = sessions(log, true, vec![]);
    let message = "pods \"x\" is forbidden: exceeded quota: pods";
    let server =
        server.expect([("POST", PODS, 403, failure(403, "Forbidden", message)), ("PATCH", STATUS, 200, written())]);
    reconcile(session(None), sessions.clone()).await.unwrap_err();
    let sent = server.nothing_else(sessions).await;
    let conditions = sent[1]["status"]["conditions"].as_array().unwrap();
    for kind in ["Ready", "HarnessReady"] {
        let condition = conditions.iter().find(|one| one["type"] == kind).unwrap();
        assert_eq!(condition["reason"], "QuotaExceeded");
        assert!(condition["message"].as_str().unwrap().contains(message));
    }
}

#[tokio::test]
async fn a_pod_that_the_watch_has_not_brought_yet_is_not_made_twice() {
    let log = Arc::new(FakeLog { summary: Some(summary(None, true)), ..FakeLog::default() });
    let (sessions, server) = sessions(log, true, vec![]);
    let server = server.expect([
        ("GET", POD_PATH, 200, answer(&pod(&json!({ "phase": "Pending" })))),
        ("PATCH", STATUS, 200, written()),
    ]);
    reconcile(session(Some(known(Some("pod-1")))), sessions.clone()).await.unwrap();
    server.nothing_else(sessions).await;
}

#[tokio::test]
async fn a_harness_that_is_done_is_removed() {
    let log = Arc::new(FakeLog { summary: Some(summary(None, false)), ..FakeLog::default() });
    let (sessions, server) = sessions(log, false, vec![pod(&json!({ "phase": "Succeeded" }))]);
    let server =
        server.expect([("DELETE", POD_PATH, 200, answer(&pod(&json!({})))), ("PATCH", STATUS, 200, written())]);
    let action = reconcile(session(Some(known(Some("pod-1")))), sessions.clone()).await.unwrap();
    assert_eq!(action, Action::await_change());
    let sent = server.nothing_else(sessions).await;
    assert_eq!(sent[0]["preconditions"]["uid"], "pod-1");
    assert_eq!(sent[1]["status"]["harness"], json!({ "generation": 1, "failures": 0 }));
}

#[tokio::test]
async fn a_session_that_sleeps_costs_no_call() {
    let log = Arc::new(FakeLog { summary: Some(summary(None, false)), ..FakeLog::default() });
    let (first, server) = sessions(log.clone(), false, vec![]);
    let server = server.expect([("PATCH", STATUS, 200, written())]);
    reconcile(session(None), first.clone()).await.unwrap();
    let sent = server.nothing_else(first).await;
    let status = serde_json::from_value(sent[0]["status"].clone()).unwrap();
    let (second, server) = sessions(log.clone(), false, vec![]);
    reconcile(session(Some(status)), second.clone()).await.unwrap();
    server.expect([]).nothing_else(second).await;
    assert_eq!(log.calls(), ["ensure"]);
}

/// The same, of an agent that has a pod ready, `w`.
fn with_ready_pod(sessions: &mut Arc<Sessions>, stage: &Value) {
    let mut agent = fixtures::agent();
    (agent.spec.warm, agent.status) = (1, Some(AgentStatus { warm_ready: 1, ..AgentStatus::default() }));
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": "coder-warm-3e8f1a-1", "namespace": "team", "uid": "w",
            "ownerReferences": [{ "apiVersion": "longhand.dev/v1alpha1", "kind": "Agent", "name": "coder", "uid": "3e8f1a2b-coder", "controller": true }],
        },
        "status": stage,
    }))
    .unwrap();
    let sessions = Arc::get_mut(sessions).unwrap();
    (sessions.agents, sessions.pods) = (store([DeserializeGuard(Ok(agent))]), store([pod]));
}

#[tokio::test]
async fn a_wake_costs_no_call_while_a_ready_harness_may_take_it() {
    let log = Arc::new(FakeLog::default());
    let (mut sessions, server) = sessions(log.clone(), true, vec![]);
    with_ready_pod(&mut sessions, &json!({ "phase": "Running" }));
    let session = session(Some(AgentSessionStatus { harness: None, ..known(None) }));
    let action = reconcile(session, sessions.clone()).await.unwrap();
    assert_ne!(action, Action::await_change());
    server.expect([]).nothing_else(sessions).await;
    assert_eq!(log.calls(), [""; 0]);
}

#[tokio::test]
async fn the_ready_harness_that_took_it_is_named_and_given_back() {
    let log = Arc::new(FakeLog { summary: Some(summary(Some("w"), true)), ..FakeLog::default() });
    let running = json!({ "phase": "Running", "containerStatuses": [{ "name": "harness", "image": "", "imageID": "",
        "ready": true, "restartCount": 0, "state": { "running": {} } }] });
    let (mut first, server) = sessions(log, false, vec![]);
    with_ready_pod(&mut first, &running);
    let server = server.expect([("PATCH", STATUS, 200, written())]);
    reconcile(session(None), first.clone()).await.unwrap();
    let sent = server.nothing_else(first).await;
    let harness =
        json!({ "generation": 0, "podName": "coder-warm-3e8f1a-1", "podUID": "w", "warm": true, "failures": 0 });
    assert_eq!(sent[0]["status"]["harness"], harness);

    let status = serde_json::from_value(sent[0]["status"].clone()).unwrap();
    let log = Arc::new(FakeLog { summary: Some(summary(None, false)), ..FakeLog::default() });
    let (mut second, server) = sessions(log, false, vec![]);
    with_ready_pod(&mut second, &running);
    let server = server.expect([("PATCH", STATUS, 200, written())]);
    reconcile(session(Some(status)), second.clone()).await.unwrap();
    let sent = server.nothing_else(second).await;
    assert_eq!(sent[0]["status"]["harness"], Value::Null);
}

#[tokio::test]
async fn a_session_that_is_being_deleted_is_left_alone() {
    let log = Arc::new(FakeLog::default());
    let (sessions, server) = sessions(log.clone(), true, vec![]);
    let mut session = fixtures::session();
    session.metadata.deletion_timestamp = Some(Timestamp::now().into());
    reconcile(Arc::new(session), sessions.clone()).await.unwrap();
    server.expect([]).nothing_else(sessions).await;
    assert_eq!(log.calls(), [""; 0]);
}
