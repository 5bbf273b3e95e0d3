//! Workspaces that are in no volume go from one session's pod to another's.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use longhand_crds::SandboxStatus;
use longhand_crds::sandbox::DesiredState;
use longhand_sandbox::client::Target;
use rstest::rstest;
use serde_json::{Value, json};

use super::handoff_copy::{CopyError, WorkspaceCopy};
use super::handoff_tests::{Two, refused};
use super::sandboxes::SandboxKey;
use super::tests::{execute, result, said};
use crate::auth::Access;
use crate::resources::Resources as _;
use crate::resources::plan::sandbox_name;
use crate::testing::hands::{Hands, eventually, hands};

const MOVING: &str = "moving";
const SETTLED: &str = "settled";
const TAKEN_BACK: &str = "taken_back";

fn condition(kind: &str, truth: &str, reason: &str) -> Value {
    json!({"type": kind, "status": truth, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// A sandbox whose pod runs and takes no call before it has its workspace.
fn awaiting(pod: &str, address: &str) -> SandboxStatus {
    let ready = condition("Ready", "False", "WorkspaceMoving");
    serde_json::from_value(json!({"podUID": pod, "address": address, "conditions": [ready]})).unwrap()
}

impl Two {
    /// What is in the workspace from the start.
    fn furnish(&self) {
        let at = |name: &str| self.hands.file(name);
        std::fs::create_dir_all(at(".git/empty")).unwrap();
        std::fs::write(at("note"), "made here").unwrap();
        std::fs::write(at("run"), "#!/bin/sh\necho ran\n").unwrap();
        std::fs::set_permissions(at("run"), std::fs::Permissions::from_mode(0o755)).unwrap();
        symlink("run", at("link")).unwrap();
    }

    /// The operator has made a pod of the other sandbox.
    async fn pod(&self, uid: &str) -> Hands {
        let hands = hands(&self.world.signer, uid).await;
        self.world.cluster.sandbox_status(&self.name_there, awaiting(uid, &hands.address));
        hands
    }

    async fn copied_to(&self) -> Option<String> {
        self.sandbox(&self.name_there).await?.spec.workspace_from?.copied_to
    }

    async fn becomes(&self, state: &str) -> Value {
        eventually(async || self.settle().await["state"] == state).await;
        if state == TAKEN_BACK { Value::Null } else { self.settle().await }
    }

    /// Returns why it was taken back.
    async fn is_taken_back(&self) -> String {
        let mut reason = Value::Null;
        for _ in 0..1_000 {
            let answer = self.settle().await;
            if answer["state"] == TAKEN_BACK {
                reason = answer["reason"].clone();
                break;
            }
            assert_eq!(answer["state"], MOVING);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(self.sandbox(&self.name_there).await.is_none(), "the other one is nobody's");
        reason.as_str().expect("it is taken back in time").to_owned()
    }
}

#[tokio::test]
async fn a_workspace_is_copied_before_the_other_session_has_it() {
    let two = Two::in_no_volume().await;
    two.furnish();
    assert_eq!(two.hand_over().await.status, 200);
    let there = two.sandbox(&two.name_there).await.unwrap();
    let comes_from = there.spec.workspace_from.clone().unwrap();
    assert_eq!((comes_from.uid, comes_from.claim, comes_from.copied_to), (two.uid().await, None, None));
    assert_eq!(there.spec.desired_state, DesiredState::Running, "there has to be a pod that can be sent it");
    assert_eq!(two.settle().await, json!({"state": MOVING}));
    assert_eq!(two.said().await, (0, 0), "nothing has happened yet");

    // A call of the session that gets it waits.
    let epoch = two.world.claim(&two.to, "pod-2").await;
    let call = two.world.tool_use(&two.to, epoch, "bash", json!({"command": "cat note; ./link; ls -A .git"})).await;
    let waiting = execute(&two.world, &two.to, epoch, &call);
    let pod = two.pod("hands-2").await;
    let settled = two.becomes(SETTLED).await;
    assert_eq!(settled, json!({"state": SETTLED, "name": two.name_there, "uid": there.metadata.uid}));
    assert_eq!(two.copied_to().await.as_deref(), Some("hands-2"));
    assert_eq!(two.said().await, (1, 1));
    assert_eq!(pod.runs(), 0);

    two.world.cluster.sandbox_ready(&two.name_there, "hands-2", &pod.address);
    let (text, is_error) = said(&result(waiting).await.unwrap());
    assert!(text.contains("made here") && text.contains("ran") && text.contains("empty") && !is_error, "{text}");
    // The operator may ask as often as it likes, also when the first pod has ended.
    two.hands.stop.cancel();
    two.world.cluster.sandbox_status(&two.name, SandboxStatus::default());
    assert_eq!(two.settle().await["state"], SETTLED);
    assert_eq!(two.said().await, (1, 1));
    two.world.cluster.remove_sandbox(&two.name);
    assert_eq!(two.hand_over().await.status, 200, "what is done is not done again");
}

#[tokio::test]
async fn replicas_that_copy_at_the_same_time_do_not_mix() {
    let two = Two::in_no_volume().await;
    two.furnish();
    std::fs::write(two.hands.file("large"), vec![b'x'; 20_000_000]).unwrap();
    let replicas = [two.world.replica(), two.world.replica()];
    assert_eq!(two.hand_over().await.status, 200);
    for replica in &replicas {
        assert_eq!(two.settle_at(replica).await["state"], MOVING);
    }
    let pod = two.pod("hands-2").await;
    eventually(async || {
        let mut all = true;
        for replica in &replicas {
            all &= two.settle_at(replica).await["state"] == SETTLED;
        }
        all
    })
    .await;
    assert_eq!(std::fs::metadata(pod.file("large")).unwrap().len(), 20_000_000);
    assert_eq!(
        std::fs::read_dir(pod.file("")).unwrap().count(),
        std::fs::read_dir(two.hands.file("")).unwrap().count()
    );
    assert_eq!(two.said().await, (1, 1));
}

#[tokio::test]
async fn a_replica_that_dies_before_it_has_written_it_down_is_succeeded() {
    let two = Two::in_no_volume().await;
    two.furnish();
    two.decide().await;
    assert_eq!(two.settle().await["state"], MOVING);
    let pod = hands(&two.world.signer, "hands-2").await;
    let to = Target { address: pod.address.clone(), pod_uid: "hands-2".to_owned() };
    let from = Target { address: two.hands.address.clone(), pod_uid: "hands-1".to_owned() };
    let client = two.world.executor.client();
    let workspace = client.read_workspace(&from).await.unwrap();
    client.fill_workspace(&to, workspace.content.into_body()).await.unwrap();
    // Whatever it would be sent now, it has all of it.
    std::fs::remove_file(two.hands.file("note")).unwrap();
    two.world.cluster.sandbox_status(&two.name_there, awaiting("hands-2", &pod.address));
    two.becomes(SETTLED).await;
    assert!(pod.file("note").exists());
}

#[tokio::test]
async fn a_pod_that_is_lost_before_it_has_all_of_it_is_succeeded_by_the_next_one() {
    let two = Two::in_no_volume().await;
    two.furnish();
    assert_eq!(two.hand_over().await.status, 200);
    let lost = hands(&two.world.signer, "hands-2").await;
    lost.stop.cancel();
    two.world.cluster.sandbox_status(&two.name_there, awaiting("hands-2", &lost.address));
    assert_eq!(two.settle().await["state"], MOVING);
    let pod = two.pod("hands-3").await;
    two.becomes(SETTLED).await;
    assert_eq!(two.copied_to().await.as_deref(), Some("hands-3"));
    assert!(pod.file("note").exists());
}

#[tokio::test]
async fn a_copy_counts_only_in_the_pod_that_there_is_and_while_it_is_handed_over() {
    let two = Two::in_no_volume().await;
    two.decide().await;
    assert_eq!(two.settle().await["state"], MOVING);
    let target = |uid: &str| Target { address: two.hands.address.clone(), pod_uid: uid.to_owned() };
    let copy = WorkspaceCopy {
        source: (SandboxKey { namespace: "team-a".to_owned(), name: two.name.clone() }, two.uid().await),
        from: target("hands-1"),
        there: two.sandbox(&two.name_there).await.unwrap(),
        giver: None,
        receiver: (two.to.clone(), "default".to_owned()),
    };
    let executor = &two.world.executor;
    // It was whole, and then the pod was lost.
    two.world.cluster.sandbox_status(&two.name_there, awaiting("hands-3", "127.0.0.1:1"));
    let late = executor.commit(&copy, &target("hands-2")).await;
    assert!(matches!(late, Err(CopyError::OtherPod(_))), "{late:?}");
    assert_eq!(two.copied_to().await, None);

    assert!(executor.commit(&copy, &target("hands-3")).await.unwrap());
    assert_eq!(two.copied_to().await.as_deref(), Some("hands-3"));
    assert!(executor.commit(&copy, &target("hands-2")).await.unwrap(), "the first one counts");
    assert_eq!(two.copied_to().await.as_deref(), Some("hands-3"));

    let source = two.sandbox(&two.name).await.unwrap();
    two.world.cluster.take_back_sandbox(&source, false).await.unwrap();
    let late = executor.commit(&copy, &target("hands-3")).await;
    assert!(matches!(late, Err(CopyError::TakenBack)), "{late:?}");
}

#[tokio::test]
async fn a_workspace_that_is_lost_on_its_way_goes_to_nobody() {
    let two = Two::in_no_volume().await;
    assert_eq!(two.hand_over().await.status, 200);
    two.world.cluster.sandbox_status(&two.name, SandboxStatus::default());
    let reason = two.is_taken_back().await;
    assert!(reason.contains("its workspace with it"), "{reason}");
    assert_eq!(two.said().await, (0, 0));
    let source = two.sandbox(&two.name).await.unwrap();
    assert_eq!((source.spec.handoff_to, source.spec.desired_state), (None, DesiredState::Running));
}

#[tokio::test]
async fn a_sandbox_that_cannot_get_it_in_time_leaves_it_where_it_is() {
    let two = Two::in_no_volume().await;
    two.furnish();
    assert_eq!(two.hand_over().await.status, 200);
    let ended = condition("Finished", "True", "ProvisioningDeadlineExceeded");
    let status = serde_json::from_value(json!({"conditions": [ended]})).unwrap();
    two.world.cluster.sandbox_status(&two.name_there, status);
    let reason = two.is_taken_back().await;
    assert!(reason.contains("ProvisioningDeadlineExceeded"), "{reason}");
    two.is_untouched().await;
    assert!(two.hands.file("note").exists());
}

#[rstest]
#[case::too_large("8Ki", "bytes, and one of SandboxTemplate tools may hold 8192")]
#[case::too_deep("4Gi", "too deep")]
#[tokio::test]
async fn what_does_not_fit_stays_and_it_is_said_why(#[case] size: &str, #[case] why: &str) {
    let two = Two::in_no_volume().await;
    two.furnish();
    if size == "4Gi" {
        std::fs::create_dir_all(two.hands.file(&"d/".repeat(201))).unwrap();
    }
    let size = Quantity(size.to_owned());
    two.world.cluster.environments.edit("team-a", "tools", |template| template.spec.workspace.size = size);
    assert_eq!(two.hand_over().await.status, 200);
    let _pod = two.pod("hands-2").await;
    let reason = two.is_taken_back().await;
    assert!(reason.contains(why), "{reason}");
    two.is_untouched().await;
}

#[tokio::test]
async fn a_session_that_goes_meanwhile_gets_nothing() {
    let two = Two::in_no_volume().await;
    assert_eq!(two.hand_over().await.status, 200);
    two.world.cluster.remove_session("team-a", "two");
    assert!(two.is_taken_back().await.contains("the AgentSession two is gone"));
    two.is_untouched().await;
}

#[tokio::test]
async fn a_workspace_that_is_still_on_its_way_goes_no_further() {
    let two = Two::in_no_volume().await;
    assert_eq!(two.hand_over().await.status, 200);
    // A persistent template has given the other one a volume already.
    let mut status = awaiting("hands-2", "127.0.0.1:1");
    status.workspace_claim = Some("own".into());
    two.world.cluster.sandbox_status(&two.name_there, status);
    let third = two.world.session("three", "pod-3").await;
    let name = sandbox_name("three", "uid-three", "default");
    let handoff = |name| Access::InSandbox { part: "handoff", verb: "create", name };
    for access in [Access::Object("agentsessions", "update", "three"), handoff(&name)] {
        two.world.cluster.allow("system:serviceaccount:team-a:alice", access, "team-a");
    }
    let path = format!("/v1/sessions/{}/sandboxes/default/handoff", two.to);
    let answer = two.world.call("POST", &path, "alice", &json!({"to_session": third})).await;
    refused(&answer, 409, "no pod of the Sandbox");
}

#[tokio::test]
async fn what_was_copied_is_the_other_sessions_whatever_becomes_of_it() {
    let two = Two::in_no_volume().await;
    two.furnish();
    two.decide().await;
    assert_eq!(two.settle().await["state"], MOVING);
    let there = two.sandbox(&two.name_there).await.unwrap();
    two.world.cluster.copied_sandbox(&there, "hands-2").await.unwrap();
    two.world.cluster.remove_session("team-a", "two");
    assert_eq!(two.settle().await["state"], SETTLED);
}

#[tokio::test]
async fn a_pod_that_does_not_answer_is_not_given_up_before_it_could_be_told() {
    let two = Two::in_no_volume().await;
    assert_eq!(two.hand_over().await.status, 200);
    assert_eq!(two.settle().await["state"], MOVING);
    let silent = json!({"podUID": "hands-1", "conditions": [condition("Ready", "False", "HandingOver")]});
    two.world.cluster.sandbox_status(&two.name, serde_json::from_value(silent).unwrap());
    two.world.cluster.remove_session("team-a", "two");
    assert_eq!(two.settle().await["state"], MOVING, "it was drained, and would stay so");
    two.world.cluster.sandbox_ready(&two.name, "hands-1", &two.hands.address);
    assert!(two.is_taken_back().await.contains("the AgentSession two is gone"));
    two.is_untouched().await;
}

#[tokio::test]
async fn one_that_is_suspended_meanwhile_gets_nothing() {
    let two = Two::in_no_volume().await;
    assert_eq!(two.hand_over().await.status, 200);
    let there = two.sandbox(&two.name_there).await.unwrap();
    two.world.cluster.suspend_sandbox(&there).await.unwrap();
    assert!(two.is_taken_back().await.contains("was suspended"));
    two.is_untouched().await;
}

#[tokio::test]
async fn what_no_pod_has_now_cannot_be_copied() {
    let two = Two::in_no_volume().await;
    two.world.cluster.sandbox_status(&two.name, awaiting("hands-1", &two.hands.address));
    refused(&two.hand_over().await, 409, "no pod of the Sandbox");
    two.world.cluster.sandbox_ready(&two.name, "hands-1", &two.hands.address);
    two.is_untouched().await;
    let target = Target { address: two.hands.address.clone(), pod_uid: "hands-1".to_owned() };
    assert!(two.world.executor.client().drain(&target, Duration::ZERO).await.unwrap().drained);
    refused(&two.hand_over().await, 409, "is just being reclaimed");
}

#[tokio::test]
async fn a_sandbox_on_its_way_is_not_reclaimed() {
    let two = Two::in_no_volume().await;
    two.decide().await;
    let path = format!("/internal/v1/namespaces/team-a/sandboxes/{}/drain", two.name);
    let drain = json!({"podUid": "hands-1", "idleSeconds": 0});
    let answer = two.world.call("POST", &path, "operator", &drain).await;
    assert_eq!(answer.body["drained"], false, "{answer:?}");
}
