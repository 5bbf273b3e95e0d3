use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use longhand_crds::Sandbox;
use longhand_crds::sandbox::SandboxStatus;
use longhand_protocol::internal::Drained;
use rstest::rstest;
use serde_json::{Value, json};

use super::{Sandboxes, network_policy, reconcile};
use crate::fixtures;
use crate::testing::{Call, FakeLog, Server, context_with, store};

const UID: &str = "3e8f1a2b-quickstart-main-3e8f1a";
const PODS: &str = "/api/v1/namespaces/team/pods";
const POD: &str = "/api/v1/namespaces/team/pods/quickstart-main-3e8f1a-0";
const SANDBOX: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/sandboxes/quickstart-main-3e8f1a";
const STATUS: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/sandboxes/quickstart-main-3e8f1a/status";
const POLICY: &str = "/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/longhand-sandbox";
const KEYS: &str = "/api/v1/namespaces/longhand-system/configmaps/longhand-session-keys";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/team/events";

fn sandboxes(log: Arc<FakeLog>, pods: Vec<Pod>, policies: Vec<NetworkPolicy>) -> (Arc<Sandboxes>, Server) {
    let (context, server) = context_with(log);
    let templates = store([DeserializeGuard(Ok(fixtures::template()))]);
    (Arc::new(Sandboxes { context, templates, pods: store(pods), policies: store(policies) }), server)
}

fn fence() -> NetworkPolicy {
    network_policy::build("team", "longhand-system")
}

fn pod(status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "quickstart-main-3e8f1a-0", "namespace": "team", "uid": "pod-0",
            "creationTimestamp": Timestamp::now().to_string(),
            "labels": { "longhand.dev/sandbox-uid": UID },
            "ownerReferences": [{ "apiVersion": "longhand.dev/v1alpha1", "kind": "Sandbox", "name": "x", "uid": UID, "controller": true }],
        },
        "status": status,
    }))
    .unwrap()
}

fn running(ready_since: &str) -> Value {
    json!({
        "phase": "Running", "podIP": "10.0.0.7",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": ready_since }],
        "containerStatuses": [{ "name": "sandbox", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": { "running": { "startedAt": ready_since } } }],
    })
}

fn sandbox(pod_uid: Option<&str>) -> Arc<Sandbox> {
    let mut sandbox = fixtures::sandbox();
    sandbox.status = pod_uid.map(|uid| SandboxStatus {
        pod_name: Some("quickstart-main-3e8f1a-0".into()),
        pod_uid: Some(uid.into()),
        ..SandboxStatus::default()
    });
    Arc::new(sandbox)
}

fn answer(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}

fn keys() -> Call<'static> {
    let map = json!({ "metadata": { "name": "longhand-session-keys" }, "data": { "sandboxd-verify-key": "key=" } });
    ("GET", KEYS, 200, map)
}

fn event() -> Call<'static> {
    ("POST", EVENTS, 201, json!({ "metadata": { "name": "e" }, "eventTime": null }))
}

fn status() -> Call<'static> {
    ("PATCH", STATUS, 200, answer(&fixtures::sandbox()))
}

fn failure(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason })
}

#[tokio::test]
async fn the_fence_is_up_before_the_first_pod() {
    let (sandboxes, server) = sandboxes(Arc::default(), vec![], vec![]);
    let server = server.expect([
        ("PATCH", POLICY, 200, answer(&fence())),
        keys(),
        ("POST", PODS, 201, answer(&pod(&json!({})))),
        status(),
        event(),
    ]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[0]["kind"], "NetworkPolicy");
    assert_eq!(sent[2]["metadata"]["name"], "quickstart-main-3e8f1a-0");
    assert_eq!(sent[3]["status"]["podUID"], "pod-0");
    assert_eq!(sent[4]["reason"], "SandboxCreated");
}

#[tokio::test]
async fn no_pod_is_made_without_the_fence() {
    let (sandboxes, server) = sandboxes(Arc::default(), vec![], vec![]);
    let server = server.expect([("PATCH", POLICY, 403, failure(403, "Forbidden")), keys(), status()]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap_err();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[2]["status"]["conditions"][0]["reason"], "Forbidden");
}

#[tokio::test]
async fn a_key_that_is_not_published_is_a_condition() {
    let (sandboxes, server) = sandboxes(Arc::default(), vec![], vec![fence()]);
    let server = server.expect([("GET", KEYS, 404, failure(404, "NotFound")), status()]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap_err();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[1]["status"]["conditions"][0]["reason"], "VerifyKeyMissing");
}

#[tokio::test]
async fn a_ready_pod_is_published_and_nothing_else_is_done() {
    let ready = pod(&running(&Timestamp::now().to_string()));
    let (sandboxes, server) = sandboxes(Arc::default(), vec![ready], vec![fence()]);
    let server = server.expect([status()]);
    reconcile(sandbox(Some("pod-0")), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[0]["status"]["address"], "10.0.0.7:8090");
}

#[tokio::test]
async fn a_loss_is_written_before_the_next_pod_is_made() {
    let (sandboxes, server) = sandboxes(Arc::default(), vec![], vec![fence()]);
    let mut next = pod(&json!({}));
    next.metadata.name = Some("quickstart-main-3e8f1a-1".into());
    next.metadata.uid = Some("pod-1".into());
    let server = server.expect([
        ("GET", POD, 404, failure(404, "NotFound")),
        status(),
        keys(),
        ("POST", PODS, 201, answer(&next)),
        status(),
        event(),
        event(),
    ]);
    reconcile(sandbox(Some("pod-0")), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[1]["status"]["lastLoss"]["podUID"], "pod-0");
    assert_eq!(sent[1]["status"]["podUID"], Value::Null);
    assert_eq!(sent[3]["metadata"]["name"], "quickstart-main-3e8f1a-1");
    assert_eq!((&sent[4]["status"]["podUID"], &sent[4]["status"]["restarts"]), (&json!("pod-1"), &json!(1)));
}

#[rstest]
#[case::idle(Drained { drained: true, idle_seconds: 10 }, true, Action::await_change())]
#[case::in_use(Drained { drained: false, idle_seconds: 0 }, false, Action::requeue(Duration::from_secs(10)))]
#[case::used_a_moment_ago(Drained { drained: false, idle_seconds: 7 }, false, Action::requeue(Duration::from_secs(3)))]
#[tokio::test]
async fn only_a_drained_sandbox_is_removed(#[case] drained: Drained, #[case] gone: bool, #[case] expected: Action) {
    let log = Arc::new(FakeLog { drained: Some(drained), ..FakeLog::default() });
    let idle = pod(&running("2020-01-01T00:00:00Z"));
    let (sandboxes, server) = sandboxes(log.clone(), vec![idle.clone()], vec![fence()]);
    let mut calls = vec![status()];
    if gone {
        let deleted = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
        calls.extend([("DELETE", SANDBOX, 200, deleted), ("DELETE", POD, 200, answer(&idle)), event()]);
    }
    let server = server.expect(calls);
    assert_eq!(reconcile(sandbox(Some("pod-0")), sandboxes.clone()).await.unwrap(), expected);
    assert_eq!(log.calls(), ["drain"]);
    let sent = server.nothing_else(sandboxes).await;
    if gone {
        assert_eq!(sent[1]["preconditions"]["uid"], UID);
        assert_eq!(sent[2]["preconditions"]["uid"], "pod-0");
    }
}
