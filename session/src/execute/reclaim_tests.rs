//! Sandboxes that are suspended, woken, and replaced when they have ended.

use std::time::Duration;

use longhand_crds::SandboxStatus;
use longhand_crds::sandbox::DesiredState;
use longhand_protocol::SessionId;
use serde_json::json;

use super::Limits;
use super::tests::{execute, made, result, running, said};
use crate::resources::Resources as _;
use crate::testing::hands::{Hands, eventually, hands};
use crate::testing::{SOON, World, limits};

fn status(reason: &str, finished: bool) -> SandboxStatus {
    let condition = |kind: &str, truth: &str| {
        json!({"type": kind, "status": truth, "reason": reason, "message": "so it is",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let finished = finished.then(|| condition("Finished", "True"));
    let all: Vec<_> = finished.into_iter().chain([condition("Ready", "False")]).collect();
    SandboxStatus { conditions: serde_json::from_value(json!(all)).unwrap(), ..SandboxStatus::default() }
}

async fn call(world: &World, id: &SessionId, epoch: u64, command: &str) -> longhand_protocol::EventId {
    world.tool_use(id, epoch, "bash", json!({"command": command})).await
}

#[tokio::test]
async fn an_idle_sandbox_is_suspended_and_the_next_call_wakes_it() {
    let (world, id, epoch, _, hands_one, name, first) = running().await;
    hands_one.go();
    result(first).await.unwrap();
    let path = format!("/internal/v1/namespaces/team-a/sandboxes/{name}/drain");
    let drain = json!({"podUid": "hands-1", "idleSeconds": 0, "suspend": true});
    assert_eq!(world.call("POST", &path, "operator", &drain).await.body["drained"], true);
    assert_eq!(world.cluster.desired_state(&name), DesiredState::Suspended);

    // Its pod looks ready until the operator has removed it, and gets no call.
    let next = call(&world, &id, epoch, "echo next").await;
    let next = execute(&world, &id, epoch, &next);
    eventually(async || world.cluster.desired_state(&name) == DesiredState::Running).await;
    let again = hands(&world.signer, "hands-2").await;
    world.cluster.sandbox_ready(&name, "hands-2", &again.address);
    assert!(said(&result(next).await.unwrap()).0.contains("next"));
    assert_eq!(world.cluster.state_counts().1.len(), 1, "it is the same sandbox");
}

#[tokio::test]
async fn a_sandbox_that_has_changed_since_it_was_read_is_not_suspended() {
    let (world, _, _, _, hands_one, name, first) = running().await;
    hands_one.go();
    result(first).await.unwrap();
    // It was suspended and woken in the meantime, by replicas that were faster.
    world.cluster.read_stale(&name);
    world.cluster.sandbox_ready(&name, "hands-2", &hands_one.address);
    let path = format!("/internal/v1/namespaces/team-a/sandboxes/{name}/drain");
    let drain = json!({"podUid": "hands-1", "idleSeconds": 0, "suspend": true});
    let answer = world.call("POST", &path, "operator", &drain).await;
    assert!(!answer.status.is_success(), "{answer:?}");
    assert_eq!(world.cluster.desired_state(&name), DesiredState::Running);
}

#[tokio::test]
async fn a_sandbox_that_ends_while_a_call_waits_is_the_calls_error_and_the_next_call_gets_another() {
    let world = World::with(limits(Duration::from_secs(600), SOON));
    let (id, epoch, first) = world.session_with_call("one", "bash", Hands::until_go()).await;
    let waiting = execute(&world, &id, epoch, &first);
    let name = made(&world).await;
    world.cluster.sandbox_status(&name, status("ProvisioningDeadlineExceeded", true));
    let (text, is_error) = said(&result(waiting).await.unwrap());
    assert!(is_error && text.contains("not run") && text.contains("ProvisioningDeadlineExceeded: so it is"), "{text}");

    let next = call(&world, &id, epoch, "echo next").await;
    let next = execute(&world, &id, epoch, &next);
    eventually(async || world.cluster.state_counts().1.len() == 2).await;
    let fresh = hands(&world.signer, "hands-2").await;
    world.cluster.sandbox_ready(&name, "hands-2", &fresh.address);
    assert!(said(&result(next).await.unwrap()).0.contains("next"));
}

#[tokio::test]
async fn a_sandbox_that_may_not_be_made_is_an_error_with_the_words_of_the_api_server() {
    let world = World::new();
    world.cluster.refuse_sandboxes("sandboxes.longhand.dev is forbidden: exceeded quota: few");
    let (id, epoch, first) = world.session_with_call("one", "bash", json!({"command": "ls"})).await;
    let (text, is_error) = said(&result(execute(&world, &id, epoch, &first)).await.unwrap());
    assert!(is_error && text.contains("not run") && text.contains("exceeded quota: few"), "{text}");
}

#[tokio::test]
async fn a_namespace_that_is_full_is_an_error_until_a_sandbox_has_ended() {
    let world = World::with(Limits { namespace_sandboxes: 1, ..limits(Duration::from_secs(600), SOON) });
    let (first, epoch, call_of_first) = world.session_with_call("one", "bash", json!({"command": "echo first"})).await;
    let running = execute(&world, &first, epoch, &call_of_first);
    let name = made(&world).await;

    let (second, epoch_of_second, refused) =
        world.session_with_call("two", "bash", json!({"command": "echo second"})).await;
    let (text, is_error) = said(&result(execute(&world, &second, epoch_of_second, &refused)).await.unwrap());
    assert!(is_error && text.contains("not run") && text.contains("namespace team-a has 1 sandboxes"), "{text}");
    assert_eq!(world.cluster.state_counts().1.len(), 1);

    let hands_one = hands(&world.signer, "hands-1").await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands_one.address);
    assert!(said(&result(running).await.unwrap()).0.contains("first"));
    world.cluster.sandbox_status(&name, status("LifetimeExceeded", true));
    let next = call(&world, &second, epoch_of_second, "echo third").await;
    let _waiting = execute(&world, &second, epoch_of_second, &next);
    eventually(async || world.cluster.state_counts().1.len() == 2).await;
}

#[tokio::test]
async fn a_template_says_whether_what_runs_in_the_background_keeps_a_sandbox_awake() {
    let (world, id, epoch, _, hands_one, name, first) = running().await;
    hands_one.go();
    result(first).await.unwrap();
    let left = json!({"command": "sleep 60", "run_in_background": true});
    let left = world.tool_use(&id, epoch, "bash", left).await;
    assert!(!said(&result(execute(&world, &id, epoch, &left)).await.unwrap()).1);
    let path = format!("/internal/v1/namespaces/team-a/sandboxes/{name}/drain");
    let mut drain = json!({"podUid": "hands-1", "idleSeconds": 0, "backgroundCounts": true});
    assert_eq!(world.call("POST", &path, "operator", &drain).await.body["drained"], false);
    drain["backgroundCounts"] = json!(false);
    assert_eq!(world.call("POST", &path, "operator", &drain).await.body["drained"], true);
}

#[tokio::test]
async fn a_workspace_that_was_kept_and_is_lost_is_the_error_of_one_call() {
    let (world, id, epoch, _, hands_one, name, first) = running().await;
    hands_one.go();
    result(first).await.unwrap();
    // The node that had it is gone, and with it the sandbox, while nobody waited.
    world.cluster.sandbox_status(&name, status("WorkspaceLost", true));
    let told = call(&world, &id, epoch, "cat file").await;
    let (text, is_error) = said(&result(execute(&world, &id, epoch, &told)).await.unwrap());
    assert!(is_error && text.contains("WorkspaceLost: so it is") && text.contains("empty workspace"), "{text}");

    let next = call(&world, &id, epoch, "echo next").await;
    let next = execute(&world, &id, epoch, &next);
    eventually(async || world.cluster.state_counts().1.len() == 2).await;
    let fresh = hands(&world.signer, "hands-2").await;
    world.cluster.sandbox_ready(&name, "hands-2", &fresh.address);
    assert!(said(&result(next).await.unwrap()).0.contains("next"));
}

fn resting(incarnation: i64) -> SandboxStatus {
    let miss = json!({"time": "2026-01-01T00:00:00Z", "inARow": incarnation,
        "message": "it was not ready within 30 s; its workspace is kept, and the next call tries again: no node"});
    SandboxStatus {
        incarnation,
        last_miss: serde_json::from_value(miss).unwrap(),
        ..status("ProvisioningDeadlineExceeded", false)
    }
}

#[tokio::test]
async fn a_sandbox_that_is_not_ready_in_time_and_keeps_its_workspace_is_asked_for_again_by_the_next_call() {
    let world = World::with(limits(Duration::from_secs(600), SOON));
    let (id, epoch, first) = world.session_with_call("one", "bash", Hands::until_go()).await;
    let waiting = execute(&world, &id, epoch, &first);
    let name = made(&world).await;
    world.cluster.sandbox_status(&name, resting(1));
    let (text, is_error) = said(&result(waiting).await.unwrap());
    assert!(is_error && text.contains("not run") && text.contains("its workspace is kept"), "{text}");
    assert_eq!(world.cluster.retried(&name), None, "a call that has waited does not try again by itself");

    // Whoever comes later asks for it, and is told once more if there is no room still.
    let next = call(&world, &id, epoch, "echo next").await;
    let next = execute(&world, &id, epoch, &next);
    eventually(async || world.cluster.retried(&name).as_deref() == Some("1")).await;
    world.cluster.sandbox_status(&name, resting(2));
    let (text, is_error) = said(&result(next).await.unwrap());
    assert!(is_error && text.contains("no node"), "{text}");

    let last = call(&world, &id, epoch, "echo last").await;
    let last = execute(&world, &id, epoch, &last);
    eventually(async || world.cluster.retried(&name).as_deref() == Some("2")).await;
    let hands = hands(&world.signer, "hands-1").await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    assert!(said(&result(last).await.unwrap()).0.contains("last"));
    assert_eq!(world.cluster.state_counts().1.len(), 1, "it is the same sandbox");
}

#[tokio::test]
async fn a_pod_that_was_taken_a_moment_ago_is_not_asked_whether_it_is_idle() {
    let (world, _, _, _, hands_one, name, first) = running().await;
    hands_one.go();
    result(first).await.unwrap();
    // It has been there for years, and nobody answers at this address: it would be an error to ask.
    let taken = SandboxStatus {
        pod_uid: Some("hands-1".into()),
        address: Some("127.0.0.1:9".into()),
        ready_at: serde_json::from_value(json!(jiff::Timestamp::now().to_string())).unwrap(),
        ..SandboxStatus::default()
    };
    world.cluster.sandbox_status(&name, taken);
    let path = format!("/internal/v1/namespaces/team-a/sandboxes/{name}/drain");
    let drain = json!({"podUid": "hands-1", "idleSeconds": 3600, "suspend": true});
    let answer = world.call("POST", &path, "operator", &drain).await;
    assert_eq!(answer.body["drained"], false, "{answer:?}");
    assert_eq!(world.cluster.desired_state(&name), DesiredState::Running);
}

#[tokio::test]
async fn a_sandbox_that_was_drained_and_that_nobody_removes_is_replaced_all_the_same() {
    for kept in [false, true] {
        let (world, id, epoch, _, hands_one, name, first) = running().await;
        hands_one.go();
        result(first).await.unwrap();
        if kept {
            let sandbox = world.cluster.sandbox("team-a", &name).await.unwrap().unwrap();
            let claim = Some("workspace".into());
            let status = SandboxStatus { workspace_claim: claim, ..sandbox.status.unwrap() };
            world.cluster.sandbox_status(&name, status);
        }
        // The operator is gone after this, or finds that its template has another idea of idle.
        let path = format!("/internal/v1/namespaces/team-a/sandboxes/{name}/drain");
        let drain = json!({"podUid": "hands-1", "idleSeconds": 0});
        assert_eq!(world.call("POST", &path, "operator", &drain).await.body["drained"], true);

        let next = call(&world, &id, epoch, "echo next").await;
        let next = execute(&world, &id, epoch, &next);
        if kept {
            eventually(async || world.cluster.desired_state(&name) == DesiredState::Suspended).await;
            // It is not woken before its pod goes.
            let gone = SandboxStatus { incarnation: 1, ..SandboxStatus::default() };
            world.cluster.sandbox_status(&name, gone);
            eventually(async || world.cluster.desired_state(&name) == DesiredState::Running).await;
        } else {
            eventually(async || world.cluster.state_counts().1.len() == 2).await;
        }
        let fresh = hands(&world.signer, "hands-2").await;
        world.cluster.sandbox_ready(&name, "hands-2", &fresh.address);
        assert!(said(&result(next).await.unwrap()).0.contains("next"));
    }
}
