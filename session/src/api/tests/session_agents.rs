//! The agent of a session: with changes for it alone, and changed while it rests.

use jiff::SignedDuration;
use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent, StopReason};
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::{Answer, World, say};

async fn post(world: &World, path: &str, body: Value) -> Answer {
    world.call("POST", path, "alice", &body).await
}

fn with_overrides(overrides: &Value) -> Value {
    let mut agent = json!({"type": "agent_with_overrides", "id": "helper"});
    agent.as_object_mut().unwrap().extend(overrides.as_object().unwrap().clone());
    json!({"agent": agent, "environment_id": "tools"})
}

#[tokio::test]
async fn a_session_has_its_agent_with_changes_of_its_own() {
    let world = World::new();
    let custom = json!({"type": "custom", "name": "ask", "description": "d", "input_schema": {"type": "object"}});
    let overrides = json!({"model": {"id": "other", "effort": "low"}, "system": "be brief", "tools": [custom]});
    let made = post(&world, "/v1/sessions", with_overrides(&overrides)).await;
    assert_eq!(made.status, 200, "{made:?}");
    let agent = &made.body["agent"];
    assert_eq!(
        (&agent["name"], &agent["version"], &agent["system"]),
        (&json!("helper"), &json!(1), &json!("be brief"))
    );
    assert_eq!(agent["model"], json!({"id": "other", "effort": {"type": "low"}, "speed": null, "inference_geo": null}));
    assert_eq!(agent["tools"], json!([custom]));
    let plain = world.call("GET", "/v1/agents/helper", "alice", &Value::Null).await.body;
    assert_eq!((&plain["version"], &plain["model"]["id"]), (&json!(1), &json!("m")), "the agent is as it was");

    let id: SessionId = made.body["id"].as_str().unwrap().parse().unwrap();
    let kept = world.store.state(&id).await.unwrap().meta.agent;
    assert_eq!((kept.model.id.as_str(), kept.model.max_tokens), ("other", 8_192), "and the rest is inherited");
    let of_version = with_overrides(&json!({"version": 1, "tools": null}));
    assert_eq!(post(&world, "/v1/sessions", of_version).await.body["agent"]["tools"], json!([]));
}

#[rstest]
#[case(json!({"tools": [{"type": "mcp_toolset", "mcp_server_name": "s"}]}), 400, "no server `s`")]
#[case(json!({"system": "x".repeat(100_001)}), 400, "`system`")]
#[case(json!({"model": "m", "version": 7}), 404, "version 7")]
#[case(json!({"max_tokens": 1}), 400, "`max_tokens`")]
#[tokio::test]
async fn changes_that_cannot_be_make_no_session(#[case] overrides: Value, #[case] status: u16, #[case] part: &str) {
    let world = World::new();
    let answer = post(&world, "/v1/sessions", with_overrides(&overrides)).await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.message().contains(part), "{}", answer.message());
    assert_eq!(world.cluster.state_counts().1, Vec::<String>::new());
}

#[tokio::test]
async fn what_kubectl_asks_for_is_checked_when_the_log_is_made() {
    let world = World::new();
    let internal = async |name: &str, overrides: Value| {
        world.cluster.add_session("team-a", name, &format!("uid-{name}"));
        world.cluster.change_session("team-a", name, |session| {
            session.spec.agent_ref.overrides = serde_json::from_value(overrides).unwrap();
        });
        let path = format!("/internal/v1/namespaces/team-a/sessions/{name}");
        world.call("PUT", &path, "operator", &json!({"uid": format!("uid-{name}")})).await
    };
    let good = internal("good", json!({"system": "be brief"})).await;
    assert_eq!(good.status, 200, "{good:?}");
    let bad = internal("bad", json!({"tools": [{"type": "mcp_toolset", "mcpServerName": "s"}]})).await;
    assert_eq!(bad.status, 409, "{bad:?}");
    assert!(
        bad.message().contains("agentRef.overrides") && bad.message().contains("no server `s`"),
        "{}",
        bad.message()
    );
}

#[tokio::test]
async fn a_session_that_rests_gets_other_tools() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let path = format!("/v1/sessions/{id}");
    let tools = json!([{"type": "agent_toolset_20260401", "configs": [{"name": "bash", "enabled": false}]}]);
    let changed = post(&world, &path, json!({"agent": {"tools": tools}, "title": "new"})).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(changed.body["agent"]["tools"][0]["configs"][0]["enabled"], json!(false));
    let again =
        post(&world, &path, json!({"agent": {"tools": changed.body["agent"]["tools"], "mcp_servers": []}})).await;
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(world.kinds(&id).await, ["session.updated", "session.updated"], "the agent, the title, and no more");
    let events = world.call("GET", &format!("{path}/events"), "alice", &Value::Null).await.body;
    assert_eq!(events["data"][0]["agent"], changed.body["agent"]);
    assert_eq!((&events["data"][1]["title"], &events["data"][1]["agent"]), (&json!("new"), &Value::Null));

    let claim = world.call("POST", &format!("/harness/v1/sessions/{id}/claim"), "pod-1", &json!({})).await;
    assert_eq!(claim.body["session"]["agent"]["tools"], changed.body["agent"]["tools"], "its brain has them");
}

#[tokio::test]
async fn a_session_at_work_keeps_its_tools() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let path = format!("/v1/sessions/{id}");
    assert_eq!(post(&world, &format!("{path}/events"), json!({"events": [say("hi")]})).await.status, 200);
    let tools = json!({"agent": {"tools": [{"type": "agent_toolset_20260401"}]}});
    let refused = post(&world, &path, tools).await;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]["type"]), (409, &json!("invalid_request_error")));
    assert_eq!(refused.headers["x-should-retry"], "false");
    assert!(refused.message().contains("at work"), "{}", refused.message());
    assert_eq!(
        post(&world, &path, json!({"title": "new"})).await.status,
        200,
        "what does not concern its turn may change"
    );
    let wrong = post(&world, &path, json!({"agent": {"system": "s"}})).await;
    assert!(wrong.status == 400 && wrong.message().contains("`agent`"), "{}", wrong.message());
}

#[tokio::test]
async fn a_session_says_for_how_long_it_ran() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let path = format!("/v1/sessions/{id}");
    let shown = async || world.call("GET", &path, "alice", &Value::Null).await.body;
    let before = shown().await;
    assert_eq!((&before["stats"]["active_seconds"], &before["usage"]["active_seconds"]), (&json!(0.0), &json!(0.0)));
    let epoch = world.claim(&id, "pod-1").await;
    let running = NewEvent::new(EventBody::SessionStatusRunning {});
    let begun = world.store.append(&id, epoch, 1, vec![running]).await.unwrap().records.remove(0);
    assert!(shown().await["stats"]["active_seconds"].as_f64().unwrap() >= 0.0);
    let idle = NewEvent::new(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn });
    let ended = world.store.append(&id, epoch, 2, vec![idle]).await.unwrap().records.remove(0);
    let turn = ended.event.processed_at.unwrap().duration_since(begun.event.processed_at.unwrap());
    // Turns are added up in milliseconds.
    let turn = SignedDuration::from_millis(turn.as_millis().try_into().unwrap()).as_secs_f64();
    let after = shown().await;
    assert_eq!((&after["stats"]["active_seconds"], &after["usage"]["active_seconds"]), (&json!(turn), &json!(turn)));
    let threads = world.call("GET", &format!("{path}/threads"), "alice", &Value::Null).await.body;
    assert_eq!(threads["data"][0]["stats"]["active_seconds"], json!(turn));
}
