//! Sandboxes that go from one session to another.

use longhand_crds::SandboxStatus;
use longhand_crds::sandbox::{DesiredState, SessionRef};
use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent, Permission};
use longhand_protocol::harness::{AgentSnapshot, HANDOFF};
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use super::tests::{execute, made, result, said};
use crate::auth::Access;
use crate::resources::Resources as _;
use crate::resources::plan::sandbox_name;
use crate::testing::hands::{Hands, eventually, hands};
use crate::testing::{Answer, World};

const ALICE: &str = "system:serviceaccount:team-a:alice";
const CLAIM: &str = "claim-1";

/// A session with a sandbox in which nothing runs, and one without.
pub(super) struct Two {
    pub(super) world: World,
    from: SessionId,
    pub(super) to: SessionId,
    epoch: u64,
    pub(super) hands: Hands,
    pub(super) name: String,
    pub(super) name_there: String,
}

fn kept(pod: &str, address: &str) -> SandboxStatus {
    let status = json!({
        "podUID": pod, "address": address, "workspaceClaim": CLAIM,
        "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    });
    serde_json::from_value(status).unwrap()
}

impl Two {
    pub(super) async fn new() -> Self {
        Self::of(false, false).await
    }

    /// The first one's workspace is in no volume.
    pub(super) async fn in_no_volume() -> Self {
        let two = Self::of(false, false).await;
        two.world.cluster.sandbox_ready(&two.name, "hands-1", &two.hands.address);
        two
    }

    /// Whether the agents of either have the tool.
    async fn of(gives: bool, takes: bool) -> Self {
        let world = World::new();
        let (from, to) = (world.session("one", "pod-1").await, world.session("two", "pod-2").await);
        for session in [gives.then_some(&from), takes.then_some(&to)].into_iter().flatten() {
            let agent = world.store.state(session).await.unwrap().meta.agent;
            let agent = AgentSnapshot { handoff: Some(Permission::Allow), ..agent };
            let told = NewEvent::new(EventBody::SessionUpdated { agent: None, metadata: None, title: None });
            world.store.change_agent(session, agent, told).await.unwrap();
        }
        let epoch = world.claim(&from, "pod-1").await;
        let call = world.tool_use(&from, epoch, "bash", json!({"command": "echo first"})).await;
        let first = execute(&world, &from, epoch, &call);
        let (hands, name) = (hands(&world.signer, "hands-1").await, made(&world).await);
        world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
        result(first).await.unwrap();
        world.cluster.sandbox_status(&name, kept("hands-1", &hands.address));
        let name_there = sandbox_name("two", "uid-two", "default");
        let two = Self { world, from, to, epoch, hands, name, name_there };
        two.rights().iter().for_each(|access| two.world.cluster.allow(ALICE, *access, "team-a"));
        two
    }

    /// Both sessions and both sandboxes.
    fn rights(&self) -> [Access<'_>; 4] {
        let handoff = |name| Access::InSandbox { part: "handoff", verb: "create", name };
        let update = |name| Access::Object("agentsessions", "update", name);
        [update("one"), handoff(&self.name), update("two"), handoff(&self.name_there)]
    }

    pub(super) async fn hand_over(&self) -> Answer {
        let path = format!("/v1/sessions/{}/sandboxes/default/handoff", self.from);
        self.world.call("POST", &path, "alice", &json!({"to_session": self.to})).await
    }

    pub(super) async fn sandbox(&self, name: &str) -> Option<longhand_crds::Sandbox> {
        self.world.cluster.sandbox("team-a", name).await.unwrap()
    }

    pub(super) async fn uid(&self) -> String {
        self.sandbox(&self.name).await.unwrap().metadata.uid.unwrap()
    }

    /// As the operator does.
    pub(super) async fn settle(&self) -> Value {
        self.settle_at(&self.world).await
    }

    /// The same at another replica.
    pub(super) async fn settle_at(&self, world: &World) -> Value {
        let path = format!("/internal/v1/namespaces/team-a/sandboxes/{}/handoff", self.name);
        let answer = world.call("POST", &path, "operator", &json!({"uid": self.uid().await})).await;
        assert!(answer.status.is_success(), "{answer:?}");
        answer.body
    }

    /// What a replica has done that dies then.
    pub(super) async fn decide(&self) {
        let sandbox = self.sandbox(&self.name).await.unwrap();
        let to = SessionRef { name: "two".into(), uid: "uid-two".into(), sandbox: "default".into() };
        self.world.cluster.hand_off_sandbox(&sandbox, &to).await.unwrap();
    }

    /// How often each log says so.
    pub(super) async fn said(&self) -> (usize, usize) {
        let count = |kinds: &[String], wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
        let (from, to) = (self.world.kinds(&self.from).await, self.world.kinds(&self.to).await);
        (count(&from, "x.sandbox.handed_off"), count(&to, "x.sandbox.received"))
    }

    pub(super) async fn is_untouched(&self) {
        let source = self.sandbox(&self.name).await.unwrap();
        assert_eq!((source.spec.handoff_to, source.spec.desired_state), (None, DesiredState::Running));
        assert_eq!(self.said().await, (0, 0));
        let call = self.world.tool_use(&self.from, self.epoch, "bash", json!({"command": "echo here"})).await;
        let (text, _) = said(&result(execute(&self.world, &self.from, self.epoch, &call)).await.unwrap());
        assert!(text.contains("here"), "{text}");
    }
}

pub(super) fn refused(answer: &Answer, status: u16, part: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.message().contains(part), "{answer:?}");
}

#[tokio::test]
async fn a_sandbox_goes_to_another_session_and_both_logs_say_so_once() {
    let two = Two::new().await;
    let answer = two.hand_over().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["from"], json!({"session": two.from, "sandbox": "default"}));
    assert_eq!(answer.body["to"], json!({"session": two.to, "sandbox": "default"}));
    let there = two.sandbox(&two.name_there).await.unwrap();
    let comes_from = there.spec.workspace_from.clone().unwrap();
    assert_eq!((comes_from.sandbox, comes_from.uid), (two.name.clone(), two.uid().await));
    assert_eq!((comes_from.claim.as_deref(), there.spec.desired_state), (Some(CLAIM), DesiredState::Suspended));
    assert_eq!(there.spec.session_ref.unwrap().uid, "uid-two");

    // The operator asks for the same, and a client that has not heard the answer.
    assert_eq!(two.settle().await, json!({"state": "settled", "name": two.name_there, "uid": there.metadata.uid}));
    assert_eq!(two.hand_over().await.status, 200);
    assert_eq!(two.said().await, (1, 1));

    // A call of the session that has none any more waits until it is gone, and gets a new one.
    let call = two.world.tool_use(&two.from, two.epoch, "bash", json!({"command": "echo fresh"})).await;
    let waiting = execute(&two.world, &two.from, two.epoch, &call);
    let old = two.uid().await;
    two.world.cluster.remove_sandbox(&two.name);
    assert_eq!(two.hand_over().await.status, 200, "what is done is not done again");
    eventually(async || two.sandbox(&two.name).await.is_some_and(|new| new.metadata.uid != Some(old.clone()))).await;
    let again = hands(&two.world.signer, "hands-2").await;
    two.world.cluster.sandbox_ready(&two.name, "hands-2", &again.address);
    assert!(said(&result(waiting).await.unwrap()).0.contains("fresh"));
    two.world.cluster.sandbox_status(&two.name, kept("hands-2", &again.address));
    refused(&two.hand_over().await, 409, "has a sandbox `default` already");
}

#[rstest]
#[case::the_session_that_gives(0, "may not update agentsessions.longhand.dev")]
#[case::its_sandbox(1, "may not create sandboxes/handoff.longhand.dev")]
#[case::the_session_that_gets(2, "may not update agentsessions.longhand.dev")]
#[case::what_becomes_its_sandbox(3, "may not create sandboxes/handoff.longhand.dev")]
#[tokio::test]
async fn rights_on_all_of_both_are_needed(#[case] missing: usize, #[case] part: &str) {
    let two = Two::new().await;
    two.world.cluster.forbid_everything();
    two.world.cluster.allow(ALICE, Access::GetSession, "team-a");
    for (index, access) in two.rights().into_iter().enumerate() {
        if index != missing {
            two.world.cluster.allow(ALICE, access, "team-a");
        }
    }
    refused(&two.hand_over().await, 403, part);
    two.is_untouched().await;
}

#[tokio::test]
async fn nothing_goes_to_another_namespace_or_to_nobody() {
    let two = Two::new().await;
    let path = format!("/v1/sessions/{}/sandboxes/default/handoff", two.from);
    let elsewhere = crate::testing::meta("team-b", "three", "uid-three");
    let id = elsewhere.id.clone();
    two.world.store.create(elsewhere).await.unwrap();
    refused(&two.world.call("POST", &path, "alice", &json!({"to_session": id})).await, 403, "team-b");
    let wrong = json!({"to_session": two.to, "to_sandbox": "other"});
    refused(&two.world.call("POST", &path, "alice", &wrong).await, 404, "has no sandbox `other`");
    refused(&two.world.call("POST", &path, "alice", &json!({"to_session": two.from})).await, 400, "to itself");
    two.is_untouched().await;
}

#[tokio::test]
async fn a_sandbox_in_use_stays() {
    let two = Two::new().await;
    let call = two.world.tool_use(&two.from, two.epoch, "bash", Hands::until_go()).await;
    let calling = execute(&two.world, &two.from, two.epoch, &call);
    eventually(async || two.hands.runs() == 1).await;
    refused(&two.hand_over().await, 409, "is in use");
    // One that is decided all the same waits for the call, which has its result.
    two.decide().await;
    assert_eq!(two.settle().await, json!({"state": "in_use"}));
    assert_eq!(two.said().await, (0, 0));
    two.hands.go();
    let (text, is_error) = said(&result(calling).await.unwrap());
    assert!(text.contains("gone") && !is_error, "{text}");
    assert_eq!(two.settle().await["state"], "settled");
    assert_eq!(two.said().await, (1, 1));
}

#[tokio::test]
async fn a_session_that_has_a_sandbox_of_the_name_keeps_it() {
    let two = Two::new().await;
    let resource = two.world.cluster.session("team-a", "two").await.unwrap().unwrap();
    let own = crate::resources::plan::sandbox(&resource, "default").unwrap();
    two.world.cluster.ensure_sandbox(own.clone()).await.unwrap();
    refused(&two.hand_over().await, 409, "has a sandbox `default` already");
    two.is_untouched().await;

    // It was made after the handoff was decided: that is taken back, and nothing has ended.
    two.decide().await;
    assert_eq!(two.settle().await["state"], "taken_back");
    two.is_untouched().await;
}

#[tokio::test]
async fn a_replica_that_dies_after_it_has_decided_is_succeeded_by_the_operator() {
    let two = Two::new().await;
    two.decide().await;
    assert!(two.sandbox(&two.name_there).await.is_none());
    for _ in 0..2 {
        assert_eq!(two.settle().await["state"], "settled");
    }
    assert_eq!(two.said().await, (1, 1));
    assert_eq!(two.sandbox(&two.name_there).await.unwrap().spec.workspace_from.unwrap().claim.unwrap(), CLAIM);
}

#[tokio::test]
async fn a_handoff_to_a_session_that_goes_is_taken_back_and_what_was_drained_is_suspended() {
    let two = Two::new().await;
    assert_eq!(two.hand_over().await.status, 200);
    two.world.cluster.remove_session("team-a", "two");
    two.world.cluster.remove_sandbox(&two.name_there);
    assert_eq!(two.settle().await["state"], "taken_back");
    let source = two.sandbox(&two.name).await.unwrap();
    assert_eq!((source.spec.handoff_to, source.spec.desired_state), (None, DesiredState::Suspended));
}

/// What the model reads, and whether it is an error.
async fn by_the_model(two: &Two, input: Value) -> (String, bool) {
    let call = two.world.tool_use(&two.from, two.epoch, HANDOFF, input).await;
    said(&result(execute(&two.world, &two.from, two.epoch, &call)).await.unwrap())
}

#[tokio::test]
async fn a_model_hands_over_where_both_agents_take_part() {
    let two = Two::of(true, true).await;
    assert!(by_the_model(&two, json!({"session": two.to, "to_sandbox": "other"})).await.0.contains("it has: default"));
    assert!(by_the_model(&two, json!({"session": two.to, "more": 1})).await.1);
    let (text, is_error) = by_the_model(&two, json!({"session": two.to, "sandbox": "default"})).await;
    assert!(!is_error && text.contains("begins with an empty workspace"), "{text}");
    assert_eq!(two.said().await, (1, 1));
    assert_eq!(two.settle().await["state"], "settled");
}

#[tokio::test]
async fn a_model_learns_nothing_of_sessions_whose_agents_take_no_part() {
    let two = Two::of(true, false).await;
    let (text, is_error) = by_the_model(&two, json!({"session": two.to})).await;
    assert!(is_error && text.contains("There is no session"), "{text}");
    let (unknown, _) = by_the_model(&two, json!({"session": "sesn_nobody"})).await;
    assert_eq!(unknown.replace("sesn_nobody", two.to.as_str()), text, "it cannot tell which sessions there are");
    two.is_untouched().await;
}

#[tokio::test]
async fn a_model_whose_agent_says_nothing_has_no_such_tool() {
    let two = Two::of(false, true).await;
    let (text, is_error) = by_the_model(&two, json!({"session": two.to})).await;
    assert!(is_error && text.contains("there is no tool"), "{text}");
    two.is_untouched().await;
}
