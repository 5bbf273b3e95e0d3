use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource as _;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use longhand_crds::Sandbox;
use longhand_crds::sandbox::{SandboxStatus, WorkspaceFrom};
use longhand_crds::sandbox_template::Persistence;
use longhand_protocol::internal::Drained;
use rstest::rstest;
use serde_json::{Value, json};

use super::fence::Fence;
use super::fence::tests::Told;
use super::written::Written;
use super::{Sandboxes, network_policy, pod, reconcile};
use crate::fixtures;
use crate::owned_pods::listed;
use crate::testing::{Call, FakeLog, Server, context_with, fencing, images, store};

pub(super) const UID: &str = "3e8f1a2b-quickstart-main-3e8f1a";
const PODS: &str = "/api/v1/namespaces/team/pods";
pub(super) const POD: &str = "/api/v1/namespaces/team/pods/quickstart-main-3e8f1a-3e8f1-0";
pub(super) const SANDBOX: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/sandboxes/quickstart-main-3e8f1a";
const STATUS: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/sandboxes/quickstart-main-3e8f1a/status";
const POLICY: &str = "/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/longhand-sandbox";
const KEYS: &str = "/api/v1/namespaces/longhand-system/configmaps/longhand-session-keys";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/team/events";

pub(super) fn sandboxes(log: Arc<FakeLog>, pods: Vec<Pod>, policies: Vec<NetworkPolicy>) -> (Arc<Sandboxes>, Server) {
    let (context, server) = context_with(log);
    let templates = store([DeserializeGuard(Ok(fixtures::template()))]);
    let (pods, policies, claims) = (listed(pods), store(policies), store(Vec::<PersistentVolumeClaim>::new()));
    let reservations = super::Reservations::default();
    (
        Arc::new(Sandboxes {
            context,
            templates,
            pods,
            claims,
            policies,
            reservations,
            written: Written::default(),
            fence: Fence::new(Arc::new(Told::default())),
            complaints: super::Complaints::default(),
        }),
        server,
    )
}

/// The same, of which each pod says that it is fenced in.
fn fenced(pods: Vec<Pod>) -> (Arc<Sandboxes>, Server) {
    let (mut sandboxes, server) = sandboxes(Arc::default(), pods, vec![fence()]);
    Arc::get_mut(&mut sandboxes).unwrap().fence = Fence::new(Arc::new(Told::fenced()));
    (sandboxes, server)
}

/// Each condition of a status that was sent, and its value.
fn conditions(sent: &Value) -> Vec<(&str, &str)> {
    let all = sent["status"]["conditions"].as_array().unwrap();
    all.iter().map(|one| (one["type"].as_str().unwrap(), one["status"].as_str().unwrap())).collect()
}

pub(super) fn fence() -> NetworkPolicy {
    network_policy::build("team", "longhand-system")
}

pub(super) fn pod(status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "quickstart-main-3e8f1a-3e8f1-0", "namespace": "team", "uid": "pod-0",
            "creationTimestamp": Timestamp::now().to_string(),
            "annotations": { "longhand.dev/incarnation": "0" },
            "ownerReferences": [{ "apiVersion": "longhand.dev/v1alpha1", "kind": "Sandbox", "name": "x", "uid": UID, "controller": true }],
        },
        "status": status,
    }))
    .unwrap()
}

pub(super) fn running(ready_since: &str) -> Value {
    json!({
        "phase": "Running", "podIP": "10.0.0.7", "hostIP": "10.0.0.1",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": ready_since }],
        "containerStatuses": [{ "name": "sandbox", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": { "running": { "startedAt": ready_since } } }],
    })
}

pub(super) fn sandbox(pod_uid: Option<&str>) -> Arc<Sandbox> {
    let mut sandbox = fixtures::sandbox();
    sandbox.metadata.creation_timestamp = Some(Time(Timestamp::now()));
    sandbox.status = pod_uid.map(|uid| SandboxStatus {
        pod_name: Some("quickstart-main-3e8f1a-3e8f1-0".into()),
        pod_uid: Some(uid.into()),
        ..SandboxStatus::default()
    });
    Arc::new(sandbox)
}

pub(super) fn answer(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}

fn keys() -> Call<'static> {
    let map = json!({ "metadata": { "name": "longhand-session-keys" }, "data": { "sandboxd-verify-key": "key=" } });
    ("GET", KEYS, 200, map)
}

pub(super) fn event() -> Call<'static> {
    ("POST", EVENTS, 201, json!({ "metadata": { "name": "e" }, "eventTime": null }))
}

pub(super) fn status() -> Call<'static> {
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
    assert_eq!(sent[2]["metadata"]["name"], "quickstart-main-3e8f1a-3e8f1-0");
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
    next.metadata.name = Some("quickstart-main-3e8f1a-3e8f1-1".into());
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
    assert_eq!(sent[3]["metadata"]["name"], "quickstart-main-3e8f1a-3e8f1-1");
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
    let (mut sandboxes, server) = sandboxes(log.clone(), vec![idle.clone()], vec![fence()]);
    Arc::get_mut(&mut sandboxes).unwrap().fence = Fence::new(Arc::new(Told::fenced()));
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

const SHELL: &str = "/api/v1/namespaces/team/pods/shell-0";
const NEXT: &str = "/api/v1/namespaces/team/pods/shell-1";

/// A pod that waits in the pool, in this state.
fn warm(name: &str, version: &str) -> Pod {
    let mut pod = pod::build_warm((&images(), &fencing()), &fixtures::template(), "key=", name);
    let made = self::pod(&running(&Timestamp::now().to_string()));
    pod.metadata.uid = Some(format!("uid-of-{name}"));
    pod.metadata.resource_version = Some(version.into());
    pod.metadata.creation_timestamp = made.metadata.creation_timestamp;
    pod.status = made.status;
    pod
}

/// The same when it is ours.
fn taken(name: &str) -> Pod {
    let mut pod = warm(name, "8");
    pod.metadata.owner_references = self::pod(&json!({})).metadata.owner_references;
    pod
}

#[tokio::test]
async fn a_pod_of_the_pool_is_taken_by_one_write_and_is_ready_at_once() {
    let (sandboxes, server) = sandboxes(Arc::default(), vec![warm("shell-0", "7")], vec![fence()]);
    let server = server.expect([("PATCH", SHELL, 200, answer(&taken("shell-0"))), status()]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    let metadata = &sent[0]["metadata"];
    assert_eq!((&metadata["resourceVersion"], &metadata["uid"]), (&json!("7"), &json!("uid-of-shell-0")));
    assert_eq!(metadata["ownerReferences"], json!([answer(&fixtures::sandbox().controller_owner_ref(&()))]));
    assert_eq!(metadata["annotations"], json!({ "longhand.dev/incarnation": "0" }));
    assert_eq!(metadata["labels"], Value::Null, "networks know it by its labels, and would have to learn new ones");
    let written = &sent[1]["status"];
    assert_eq!((&written["podName"], &written["address"]), (&json!("shell-0"), &json!("10.0.0.7:8090")));
    assert_eq!((&written["conditions"][0]["status"], &written["provisioningDeadline"]), (&json!("True"), &Value::Null));
}

#[tokio::test]
async fn one_of_the_pool_that_gets_a_copy_of_a_workspace_is_not_ready_before_it_has_it() {
    let (sandboxes, server) = sandboxes(Arc::default(), vec![warm("shell-0", "7")], vec![fence()]);
    let server = server.expect([("PATCH", SHELL, 200, answer(&taken("shell-0"))), status()]);
    let mut sandbox = sandbox(None);
    let from = WorkspaceFrom { sandbox: "giver".into(), uid: "g".into(), ..WorkspaceFrom::default() };
    Arc::make_mut(&mut sandbox).spec.workspace_from = Some(from);
    reconcile(sandbox, sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    let written = &sent[1]["status"];
    assert_eq!((&written["podName"], &written["address"]), (&json!("shell-0"), &json!("10.0.0.7:8090")));
    let ready = &written["conditions"][0];
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("WorkspaceMoving")));
    assert_ne!(written["provisioningDeadline"], Value::Null);
}

#[tokio::test]
async fn a_warm_claim_is_two_writes_of_the_operator_the_fence_is_in_the_second() {
    let ours = taken("shell-0");
    let (before, server) = fenced(vec![warm("shell-0", "7")]);
    let server = server.expect([("PATCH", SHELL, 200, answer(&ours)), status()]);
    reconcile(sandbox(None), before.clone()).await.unwrap();
    let sent = server.nothing_else(before).await;
    assert_eq!(conditions(&sent[1]), [("EgressFenced", "True"), ("Ready", "True")]);
    let mut seen = Sandbox::clone(&sandbox(None));
    seen.status = serde_json::from_value(sent[1]["status"].clone()).unwrap();
    let (after, server) = fenced(vec![ours]);
    reconcile(Arc::new(seen), after.clone()).await.unwrap();
    server.expect([]).nothing_else(after).await;
}

#[tokio::test]
async fn what_no_watch_has_shown_yet_is_not_written_again() {
    let (sandboxes, server) = fenced(vec![pod(&running(&Timestamp::now().to_string()))]);
    let mut seen = Sandbox::clone(&sandbox(Some("pod-0")));
    seen.metadata.resource_version = Some("7".into());
    let server = server.expect([status()]);
    for _ in 0..2 {
        reconcile(Arc::new(seen.clone()), sandboxes.clone()).await.unwrap();
    }
    server.nothing_else(sandboxes).await;
}

#[tokio::test]
async fn a_cold_sandbox_is_ready_and_fenced_in_one_write() {
    let ready = pod(&running(&Timestamp::now().to_string()));
    let (sandboxes, server) = fenced(vec![ready]);
    let server = server.expect([status()]);
    reconcile(sandbox(Some("pod-0")), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(conditions(&sent[0]), [("EgressFenced", "True"), ("Ready", "True")]);
}

#[tokio::test]
async fn a_pod_that_somebody_else_has_taken_is_left_to_them() {
    let pool = vec![warm("shell-0", "7"), warm("shell-1", "7")];
    let (sandboxes, server) = sandboxes(Arc::default(), pool, vec![fence()]);
    let mut theirs = taken("shell-0");
    theirs.metadata.owner_references.as_mut().unwrap()[0].uid = "another".into();
    let server = server.expect([
        ("PATCH", SHELL, 409, failure(409, "Conflict")),
        ("GET", SHELL, 200, answer(&theirs)),
        ("PATCH", NEXT, 200, answer(&taken("shell-1"))),
        status(),
    ]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[3]["status"]["podName"], "shell-1");
}

#[tokio::test]
async fn a_pod_that_we_have_taken_before_is_not_doubled_although_no_watch_has_shown_it() {
    let pool = vec![warm("shell-0", "7"), warm("shell-1", "7")];
    let (sandboxes, server) = sandboxes(Arc::default(), pool, vec![fence()]);
    let server = server.expect([
        ("PATCH", SHELL, 409, failure(409, "Conflict")),
        ("GET", SHELL, 200, answer(&taken("shell-0"))),
        status(),
    ]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[2]["status"]["podName"], "shell-0");
}

#[tokio::test]
async fn an_empty_pool_falls_back_to_a_pod_of_its_own() {
    let mut other = warm("shell-0", "7");
    let labels = other.metadata.labels.as_mut().unwrap();
    labels.insert("longhand.dev/pool-hash".into(), "made of something else".into());
    let (sandboxes, server) = sandboxes(Arc::default(), vec![other], vec![fence()]);
    let server = server.expect([keys(), ("POST", PODS, 201, answer(&pod(&json!({})))), status(), event()]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap();
    server.nothing_else(sandboxes).await;
}

#[tokio::test]
async fn an_idle_sandbox_with_a_workspace_to_keep_is_drained_and_only_its_pod_removed() {
    let drained = Some(Drained { drained: true, idle_seconds: 10 });
    let log = Arc::new(FakeLog { drained, ..FakeLog::default() });
    let idle = pod(&running("2020-01-01T00:00:00Z"));
    let (mut sandboxes, server) = sandboxes(log.clone(), vec![idle.clone()], vec![fence()]);
    let mut template = fixtures::template();
    template.spec.workspace.persistence = Persistence::Persistent;
    Arc::get_mut(&mut sandboxes).unwrap().templates = store([DeserializeGuard(Ok(template))]);
    let server = server.expect([status(), ("DELETE", POD, 200, answer(&idle)), event()]);
    reconcile(sandbox(Some("pod-0")), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!((&sent[1]["preconditions"]["uid"], &sent[2]["reason"]), (&json!("pod-0"), &json!("SandboxSuspended")));
}

#[tokio::test]
async fn the_volume_comes_before_the_pod_and_belongs_to_the_sandbox() {
    let (mut sandboxes, server) = sandboxes(Arc::default(), vec![], vec![fence()]);
    let mut template = fixtures::template();
    template.spec.workspace.persistence = Persistence::Persistent;
    Arc::get_mut(&mut sandboxes).unwrap().templates = store([DeserializeGuard(Ok(template))]);
    let claims = "/api/v1/namespaces/team/persistentvolumeclaims";
    let server = server.expect([
        ("POST", claims, 409, failure(409, "AlreadyExists")),
        keys(),
        (
            "GET",
            "/api/v1/namespaces/team/persistentvolumeclaims/quickstart-main-3e8f1a-3e8f1",
            200,
            json!({ "metadata": { "name": "x" } }),
        ),
        status(),
    ]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap_err();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[0]["metadata"]["ownerReferences"][0]["uid"], UID);
    assert_eq!(sent[3]["status"]["conditions"][0]["reason"], "VolumeNameTaken");
}

#[rstest]
#[case::late_watch("Bound", true)]
#[case::gone("", false)]
#[tokio::test]
async fn a_claim_that_a_watch_does_not_show_is_asked_for(#[case] phase: &str, #[case] there: bool) {
    let (mut sandboxes, server) = sandboxes(Arc::default(), vec![], vec![fence()]);
    let mut template = fixtures::template();
    template.spec.workspace.persistence = Persistence::Persistent;
    Arc::get_mut(&mut sandboxes).unwrap().templates = store([DeserializeGuard(Ok(template))]);
    let name = "quickstart-main-3e8f1a-3e8f1";
    let mut known = (*sandbox(None)).clone();
    let workspace_claim = Some(name.to_owned());
    known.status = Some(SandboxStatus { workspace_claim, incarnation: 1, ..SandboxStatus::default() });
    let owner = json!([{ "apiVersion": "longhand.dev/v1alpha1", "kind": "Sandbox", "name": "x", "uid": UID }]);
    let claim = json!({ "metadata": { "name": name, "ownerReferences": owner }, "status": { "phase": phase } });
    let path = format!("/api/v1/namespaces/team/persistentvolumeclaims/{name}");
    let mut calls: Vec<Call<'_>> = match there {
        true => vec![("GET", path.as_str(), 200, claim), keys(), ("POST", PODS, 201, answer(&pod(&json!({}))))],
        false => vec![("GET", path.as_str(), 404, failure(404, "NotFound"))],
    };
    calls.extend([status(), event()]);
    let server = server.expect(calls);
    reconcile(Arc::new(known), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    let written = sent[sent.len() - 2].clone();
    assert_eq!(written.to_string().contains("WorkspaceLost"), !there, "{written}");
}

#[tokio::test]
async fn what_has_expired_is_removed() {
    let mut ended = (*sandbox(None)).clone();
    let finished = json!([{ "type": "Finished", "status": "True", "reason": "OOMKilled", "message": "", "lastTransitionTime": "2020-01-01T00:00:00Z" }]);
    ended.status =
        Some(SandboxStatus { conditions: serde_json::from_value(finished).unwrap(), ..SandboxStatus::default() });
    let deleted = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
    ended.metadata.resource_version = Some("7".into());
    let ended = Arc::new(ended);
    let (all, server) = sandboxes(Arc::default(), vec![], vec![fence()]);
    let server = server.expect([("DELETE", SANDBOX, 200, deleted), event()]);
    reconcile(ended.clone(), all.clone()).await.unwrap();
    let sent = server.nothing_else(all).await;
    assert_eq!(sent[0]["preconditions"], json!({ "uid": UID, "resourceVersion": "7" }));

    // Somebody asks for it at the same moment.
    let (all, server) = sandboxes(Arc::default(), vec![], vec![fence()]);
    let server = server.expect([("DELETE", SANDBOX, 409, failure(409, "Conflict"))]);
    assert_eq!(reconcile(ended, all.clone()).await.unwrap(), Action::requeue(Duration::from_millis(100)));
    server.nothing_else(all).await;
}

#[tokio::test]
async fn a_pod_on_a_lost_node_is_forgotten_before_the_next_is_made() {
    let mut silent = pod(&running("2020-01-01T00:00:00Z"));
    silent.metadata.deletion_timestamp = Some(Time(Timestamp::now() - Duration::from_secs(31)));
    let (sandboxes, server) = sandboxes(Arc::default(), vec![silent.clone()], vec![fence()]);
    let mut next = pod(&json!({}));
    next.metadata.name = Some("quickstart-main-3e8f1a-3e8f1-1".into());
    next.metadata.uid = Some("pod-1".into());
    let server = server.expect([
        status(),
        ("DELETE", POD, 200, answer(&silent)),
        keys(),
        ("POST", PODS, 201, answer(&next)),
        status(),
        event(),
        event(),
    ]);
    reconcile(sandbox(Some("pod-0")), sandboxes.clone()).await.unwrap();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[0]["status"]["lastLoss"]["reason"], "NodeLost");
    assert_eq!((&sent[1]["gracePeriodSeconds"], &sent[1]["preconditions"]["uid"]), (&json!(0), &json!("pod-0")));
    assert_eq!(sent[4]["status"]["podUID"], "pod-1");
}

#[rstest]
#[case::quota(403, "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1", "QuotaExceeded", 5)]
#[case::limit_range(
    403,
    "pods \"x\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi",
    "LimitRange",
    30
)]
#[case::pod_security(403, "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\"", "PodSecurity", 30)]
#[case::a_webhook(400, "admission webhook \"images.test\" denied the request: no latest", "AdmissionDenied", 30)]
#[case::rights(403, "pods is forbidden: User \"o\" cannot create resource", "Forbidden", 5)]
#[tokio::test]
async fn a_pod_that_is_refused_is_tried_again_and_the_servers_words_are_the_reason(
    #[case] code: u16,
    #[case] message: &str,
    #[case] reason: &str,
    #[case] again: u64,
) {
    let (sandboxes, server) = sandboxes(Arc::default(), vec![], vec![fence()]);
    let mut refused = failure(code, if code == 403 { "Forbidden" } else { "BadRequest" });
    refused["message"] = json!(message);
    let server = server.expect([keys(), ("POST", PODS, code, refused), status()]);
    let error = reconcile(sandbox(None), sandboxes.clone()).await.unwrap_err();
    assert_eq!(error.retry_after(), Duration::from_secs(again));
    let sent = server.nothing_else(sandboxes).await;
    let ready = &sent[2]["status"]["conditions"][0];
    assert_eq!(ready["reason"], reason);
    assert!(ready["message"].as_str().unwrap().contains(message), "{ready}");
    assert!(sent[2]["status"]["provisioningDeadline"].is_string());
}

#[tokio::test]
async fn a_pod_of_the_name_that_is_not_ours_is_left_alone() {
    let (sandboxes, server) = sandboxes(Arc::default(), vec![], vec![fence()]);
    let mut foreign = pod(&json!({}));
    foreign.metadata.owner_references = None;
    let server = server.expect([
        keys(),
        ("POST", PODS, 409, failure(409, "AlreadyExists")),
        ("GET", POD, 200, answer(&foreign)),
        status(),
    ]);
    reconcile(sandbox(None), sandboxes.clone()).await.unwrap_err();
    let sent = server.nothing_else(sandboxes).await;
    assert_eq!(sent[3]["status"]["conditions"][0]["reason"], "PodNameTaken");
}
