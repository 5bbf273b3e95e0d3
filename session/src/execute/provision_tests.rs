//! Sandboxes that are made before a tool call needs them.

use longhand_crds::sandbox::DesiredState;
use longhand_protocol::SessionId;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::tests::{execute, made, result, said};
use crate::resources::Resources as _;
use crate::testing::hands::{eventually, hands};
use crate::testing::{Answer, SOON, World};

async fn claimed() -> (World, SessionId, u64) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    (world, id, epoch)
}

fn ask(world: &World, id: &SessionId, body: Value) -> JoinHandle<Answer> {
    let (world, path) = (world.replica(), format!("/harness/v1/sessions/{id}/provision"));
    tokio::spawn(async move {
        loop {
            // A request is held open for a moment only.
            match world.call("POST", &path, "pod-1", &body).await {
                again if again.status.is_server_error() => {}
                answer => return answer,
            }
        }
    })
}

async fn answer(asked: JoinHandle<Answer>) -> (u16, Value) {
    let answer = timeout(SOON, asked).await.expect("an answer in time").unwrap();
    (answer.status.as_u16(), answer.body)
}

#[tokio::test]
async fn a_sandbox_is_ready_before_the_first_call() {
    let (world, id, epoch) = claimed().await;
    let wants = || ask(&world, &id, json!({ "epoch": epoch }));
    let asked = [wants(), wants()];
    let name = made(&world).await;
    let hands = hands(&world.signer, "hands-1").await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    let ready = (200, json!({"sandbox": "default", "ready": true}));
    for asked in asked {
        assert_eq!(answer(asked).await, ready);
    }
    assert_eq!(answer(wants()).await, ready, "and it is the same one");
    assert_eq!(world.kinds(&id).await, ["x.session.woken", "x.sandbox.ready"]);
    assert_eq!(world.cluster.state_counts().1, [format!("Sandbox {name}")]);
    let call = world.tool_use(&id, epoch, "bash", json!({"command": "echo greetings"})).await;
    assert!(said(&result(execute(&world, &id, epoch, &call)).await.unwrap()).0.contains("greetings"));
    assert_eq!(world.kinds(&id).await[2..], ["agent.tool_use", "agent.tool_result"], "nothing had to be made");
}

#[tokio::test]
async fn a_sandbox_that_sleeps_is_woken() {
    let (world, id, epoch) = claimed().await;
    let asked = ask(&world, &id, json!({ "epoch": epoch }));
    let name = made(&world).await;
    let hands = hands(&world.signer, "hands-1").await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    answer(asked).await;
    let sandbox = world.cluster.sandbox("team-a", &name).await.unwrap().unwrap();
    world.cluster.suspend_sandbox(&sandbox).await.unwrap();
    let asked = ask(&world, &id, json!({ "epoch": epoch, "sandbox": "default" }));
    eventually(async || world.cluster.desired_state(&name) == DesiredState::Running).await;
    world.cluster.sandbox_ready(&name, "hands-2", &hands.address);
    assert_eq!(answer(asked).await.1["ready"], true);
}

#[tokio::test]
async fn who_cannot_have_one_is_told_why() {
    let (world, id, epoch) = claimed().await;
    let (status, body) = answer(ask(&world, &id, json!({"epoch": epoch, "sandbox": "nowhere"}))).await;
    assert!(status == 400 && body.to_string().contains("no sandbox `nowhere`; it has: default"), "{body}");
    let (status, body) = answer(ask(&world, &id, json!({"epoch": epoch - 1}))).await;
    assert_eq!(status, 412, "{body}");
    world.cluster.refuse_sandboxes("exceeded quota");
    let (status, body) = answer(ask(&world, &id, json!({ "epoch": epoch }))).await;
    assert_eq!((status, &body["ready"]), (200, &json!(false)));
    assert!(body["reason"].as_str().unwrap().contains("exceeded quota"), "{body}");
    assert_eq!(world.kinds(&id).await, ["x.session.woken"]);
}
