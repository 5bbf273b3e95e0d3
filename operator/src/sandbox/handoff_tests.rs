//! A sandbox that is handed to another session, against a fake API server that notices every call.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::runtime::controller::Action;
use longhand_crds::Sandbox;
use longhand_crds::sandbox::SessionRef;
use longhand_protocol::internal::Handoff;
use serde_json::{Value, json};

use super::tests::{POD, SANDBOX, UID, answer, event, fence, pod, running, sandbox, sandboxes, status};
use super::{Sandboxes, reconcile};
use crate::testing::{Call, FakeLog, Server, store};

const NAME: &str = "quickstart-main-3e8f1a-3e8f1";
const CLAIM: &str = "/api/v1/namespaces/team/persistentvolumeclaims/quickstart-main-3e8f1a-3e8f1";

fn claim(owner: &str) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {
            "name": NAME, "namespace": "team", "resourceVersion": "7",
            "ownerReferences": [{ "apiVersion": "longhand.dev/v1alpha1", "kind": "Sandbox", "name": "x", "uid": owner, "controller": true }],
        },
        "status": { "phase": "Bound" },
    }))
    .unwrap()
}

/// A sandbox on its way to another session, and what the session service says of it.
fn handed_over(
    said: Handoff,
    pods: Vec<Pod>,
    named: Option<&str>,
) -> (Arc<FakeLog>, Arc<Sandboxes>, Server, Arc<Sandbox>) {
    let log = Arc::new(FakeLog { handoff: Some(said), ..FakeLog::default() });
    let (mut all, server) = sandboxes(log.clone(), pods, vec![fence()]);
    Arc::get_mut(&mut all).unwrap().claims = store([claim(UID)]);
    let mut sandbox = sandbox(named);
    let to = SessionRef { name: "other".into(), uid: "other-uid".into(), sandbox: "main".into() };
    Arc::make_mut(&mut sandbox).spec.handoff_to = Some(to);
    (log, all, server, sandbox)
}

fn settled() -> Handoff {
    Handoff::Settled { name: "other-main".into(), uid: "other-main-uid".into() }
}

#[tokio::test]
async fn its_pod_ends_before_its_workspace_moves() {
    let pod = pod(&running("2020-01-01T00:00:00Z"));
    let (log, all, server, sandbox) = handed_over(settled(), vec![pod.clone()], Some("pod-0"));
    let server = server.expect([status(), ("DELETE", POD, 200, answer(&pod))]);
    reconcile(sandbox, all.clone()).await.unwrap();
    let sent = server.nothing_else(all).await;
    assert_eq!(sent[0]["status"]["conditions"][0]["reason"], "HandingOver");
    assert_eq!(sent[1]["preconditions"]["uid"], "pod-0");
    assert_eq!(log.calls(), ["settle_handoff"]);
}

#[tokio::test]
async fn its_pod_stays_while_something_runs_in_it() {
    let pod = pod(&running("2020-01-01T00:00:00Z"));
    let (_, all, server, sandbox) = handed_over(Handoff::InUse, vec![pod], Some("pod-0"));
    let server = server.expect([status()]);
    assert_eq!(reconcile(sandbox, all.clone()).await.unwrap(), Action::requeue(Duration::from_secs(2)));
    server.nothing_else(all).await;
}

#[tokio::test]
async fn its_pod_stays_while_its_workspace_is_copied_and_then_both_go() {
    let pod = pod(&running("2020-01-01T00:00:00Z"));
    let (_, mut all, server, sandbox) = handed_over(Handoff::Moving, vec![pod], Some("pod-0"));
    Arc::get_mut(&mut all).unwrap().claims = store::<PersistentVolumeClaim>([]);
    let server = server.expect([status()]);
    assert_eq!(reconcile(sandbox, all.clone()).await.unwrap(), Action::requeue(Duration::from_secs(2)));
    server.nothing_else(all).await;

    let (_, mut all, server, sandbox) = handed_over(settled(), vec![], None);
    Arc::get_mut(&mut all).unwrap().claims = store::<PersistentVolumeClaim>([]);
    let gone: Value = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
    let server = server.expect([status(), ("DELETE", SANDBOX, 200, gone), event()]);
    reconcile(sandbox, all.clone()).await.unwrap();
    server.nothing_else(all).await;
}

/// What is asked of the API server when nothing runs any more.
fn moved() -> [Call<'static>; 5] {
    let gone: Value = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
    [
        status(),
        ("GET", CLAIM, 200, answer(&claim(UID))),
        ("PATCH", CLAIM, 200, answer(&claim("other-main-uid"))),
        ("DELETE", SANDBOX, 200, gone),
        event(),
    ]
}

#[tokio::test]
async fn a_workspace_that_no_watch_has_brought_yet_moves_too() {
    let (_, mut all, server, mut sandbox) = handed_over(settled(), vec![], None);
    Arc::get_mut(&mut all).unwrap().claims = store::<PersistentVolumeClaim>([]);
    Arc::make_mut(&mut sandbox).status.get_or_insert_default().workspace_claim = Some(NAME.into());
    let looked_for = ("GET", CLAIM, 200, answer(&claim(UID)));
    let server = server.expect(std::iter::once(looked_for).chain(moved()));
    reconcile(sandbox, all.clone()).await.unwrap();
    server.nothing_else(all).await;
}

#[tokio::test]
async fn its_workspace_gets_another_owner_and_then_it_goes() {
    let (_, all, server, sandbox) = handed_over(settled(), vec![], None);
    let server = server.expect(moved());
    reconcile(sandbox, all.clone()).await.unwrap();
    let sent = server.nothing_else(all).await;
    let changed = &sent[2]["metadata"];
    assert_eq!(changed["resourceVersion"], "7", "nothing that has changed since");
    assert_eq!(changed["labels"], json!({ "longhand.dev/sandbox-uid": "other-main-uid" }));
    let owner = json!({ "apiVersion": "longhand.dev/v1alpha1", "kind": "Sandbox", "name": "other-main", "uid": "other-main-uid", "controller": true });
    assert_eq!(changed["ownerReferences"], json!([owner]));
    assert_eq!((&sent[3]["preconditions"]["uid"], &sent[4]["reason"]), (&json!(UID), &json!("SandboxHandedOff")));
}

#[tokio::test]
async fn an_operator_that_died_between_the_two_is_succeeded() {
    let (_, all, server, sandbox) = handed_over(settled(), vec![], None);
    let gone: Value = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
    // The store has not heard of it yet.
    let server = server.expect([
        status(),
        ("GET", CLAIM, 200, answer(&claim("other-main-uid"))),
        ("DELETE", SANDBOX, 200, gone),
        event(),
    ]);
    reconcile(sandbox, all.clone()).await.unwrap();
    server.nothing_else(all).await;
}

#[tokio::test]
async fn a_claim_that_is_somebody_elses_is_left_alone() {
    let (_, all, server, sandbox) = handed_over(settled(), vec![], None);
    let server = server.expect([status(), ("GET", CLAIM, 200, answer(&claim("nobody")))]);
    let error = reconcile(sandbox, all.clone()).await.unwrap_err();
    assert_eq!(error.reason(), "VolumeNameTaken");
    server.nothing_else(all).await;
}

#[tokio::test]
async fn one_that_is_taken_back_stays_as_it_is() {
    let taken_back = Handoff::TakenBack { reason: "the AgentSession other is gone".into() };
    let pod = pod(&running("2020-01-01T00:00:00Z"));
    let (_, all, server, sandbox) = handed_over(taken_back, vec![pod], Some("pod-0"));
    let server = server.expect([status(), event()]);
    reconcile(sandbox, all.clone()).await.unwrap();
    let sent = server.nothing_else(all).await;
    assert_eq!((&sent[1]["reason"], &sent[1]["type"]), (&json!("SandboxHandoffTakenBack"), &json!("Warning")));
}
