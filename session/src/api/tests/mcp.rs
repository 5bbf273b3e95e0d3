//! The tools of the sandboxes over MCP.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use longhand_protocol::harness::Tool;
use longhand_protocol::wire::toolsets::{BuiltinConfig, BuiltinTool, PermissionPolicy, WebOptions};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::hands::{Hands, eventually, hands};
use crate::testing::{Frames, World, meta};

/// A session whose agent has the toolset, of which `write` asks first and `grep` is off. `pod-1` owns it, unless it is given
/// another harness.
async fn session(world: &World, sandboxes: &[&str]) -> SessionId {
    let config = |name, enabled, permission_policy| BuiltinConfig {
        name,
        enabled,
        permission_policy,
        web: WebOptions::default(),
    };
    let Tool::AgentToolset { default_config, .. } = Tool::agent_toolset() else { panic!("the toolset is one") };
    let configs = vec![
        config(BuiltinTool::Write, true, PermissionPolicy::AlwaysAsk),
        config(BuiltinTool::Grep, false, PermissionPolicy::AlwaysAllow),
    ];
    let mut meta = meta("team-a", "one", "uid-one");
    meta.agent.tools = vec![Tool::AgentToolset { default_config, configs }];
    meta.sandboxes = sandboxes.iter().map(|name| (*name).to_owned()).collect();
    let id = meta.id.clone();
    world.cluster.add_session("team-a", "one", "uid-one");
    world.cluster.name_harness("team-a", "one", Some("pod-1"));
    world.store.create(meta).await.unwrap();
    world.claim(&id, "pod-1").await;
    id
}

/// The sandbox becomes ready as soon as it is wanted.
async fn with_hands(world: &World) -> Hands {
    let hands = hands(&world.signer, "hands").await;
    let (cluster, address) = (world.cluster.clone(), hands.address.clone());
    tokio::spawn(async move {
        // Ends with the test.
        let name = loop {
            match cluster.sandbox_name() {
                Some(name) => break name,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        cluster.sandbox_ready(&name, "hands", &address);
    });
    hands
}

/// The status, and what a JSON-RPC request is answered.
async fn rpc(world: &World, id: &SessionId, token: &str, body: &str) -> (u16, Value) {
    let (status, text) =
        posted(world, id, token, &[("accept", "application/json, text/event-stream")], body.to_owned()).await;
    let json = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).rfind(|data| !data.is_empty());
    (status, serde_json::from_str(json.unwrap_or(&text)).unwrap_or(Value::String(text)))
}

async fn posted(world: &World, id: &SessionId, token: &str, headers: &[(&str, &str)], body: String) -> (u16, String) {
    let authorization = format!("Bearer {token}");
    let own = [("authorization", authorization.as_str()), ("content-type", "application/json")];
    let path = format!("/harness/v1/sessions/{id}/mcp");
    world.text("POST", &path, &[&own, headers].concat(), Body::from(body)).await
}

fn bash(arguments: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "bash", "arguments": arguments}})
        .to_string()
}

/// What a call of `bash` by the owner is answered.
async fn streamed(world: &World, id: &SessionId, arguments: &Value) -> Frames {
    let request = Request::post(format!("/harness/v1/sessions/{id}/mcp"))
        .header("authorization", "Bearer pod-1")
        .header("accept", "application/json, text/event-stream");
    world.stream_of(request.body(Body::from(bash(arguments))).unwrap()).await
}

async fn call(world: &World, id: &SessionId, tool: &str, arguments: Value) -> Value {
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
        "params": {"name": tool, "arguments": arguments}});
    let (status, answer) = rpc(world, id, "pod-1", &body.to_string()).await;
    assert_eq!((status, &answer["id"]), (200, &json!(7)), "{answer}");
    answer
}

const LIST: &str = r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}"#;

fn names(answer: &Value) -> Vec<&str> {
    answer["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_client_introduces_itself_and_lists_what_needs_no_leave() {
    let world = World::new();
    let id = session(&world, &["default", "other"]).await;
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    let (status, answer) = rpc(&world, &id, "pod-1", &hello.to_string()).await;
    assert_eq!((status, &answer["result"]["serverInfo"]["name"]), (200, &json!("longhand")), "{answer}");
    assert_eq!(answer["result"]["protocolVersion"], "2025-06-18");
    let hello = r#"{"jsonrpc": "2.0", "method": "notifications/initialized"}"#;
    assert_eq!(rpc(&world, &id, "pod-1", hello).await.0, 202);
    let (_, answer) = rpc(&world, &id, "pod-1", LIST).await;
    assert_eq!(names(&answer), ["bash", "edit", "glob", "read", "execute"]);
    let tools = &answer["result"]["tools"];
    assert_eq!(tools[0]["inputSchema"]["properties"]["command"]["type"], "string");
    assert_eq!(tools[4]["inputSchema"]["properties"]["sandbox"]["enum"], json!(["default", "other"]));
    assert_eq!(world.kinds(&id).await, ["x.session.woken"]);
}

#[tokio::test]
async fn a_session_without_a_sandbox_has_no_tools() {
    let world = World::new();
    let id = session(&world, &[]).await;
    let (_, answer) = rpc(&world, &id, "pod-1", LIST).await;
    assert!(names(&answer).is_empty(), "{answer}");
    let answer = call(&world, &id, "bash", json!({"command": "true"})).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    assert_eq!(world.kinds(&id).await, ["x.session.woken"]);
}

#[rstest]
#[case("bash", json!({"command": "echo $((6 * 7))"}))]
#[case("execute", json!({"tool": "bash", "input": {"command": "echo $((6 * 7))"}, "sandbox": "default"}))]
#[case("execute", json!({"tool": "bash", "input": {"command": "echo $((6 * 7))"}}))]
#[tokio::test]
async fn a_call_is_on_record_before_it_runs_and_so_is_its_result(#[case] tool: &str, #[case] arguments: Value) {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let _hands = with_hands(&world).await;
    let answer = call(&world, &id, tool, arguments).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!((text.trim(), &answer["result"]["isError"]), ("42", &json!(false)));
    let records = world.store.read(&id, 0, usize::MAX).await.unwrap().records;
    let find = |kind: &str| records.iter().find(|record| record.event.body.kind() == kind).unwrap();
    let (intent, result) = (find("agent.tool_use"), find("agent.tool_result"));
    assert_eq!(intent.epoch, world.store.state(&id).await.unwrap().epoch);
    let result = serde_json::to_value(&result.event).unwrap();
    assert_eq!(result["tool_use_id"], json!(intent.event.id));
}

/// Nothing between client and service may take a long call's connection for a dead one.
#[tokio::test]
async fn a_stream_has_a_heartbeat_until_the_call_has_ended() {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let hands = with_hands(&world).await;
    let mut answer = streamed(&world, &id, &Hands::until_go()).await;
    for _ in 0..3 {
        assert_eq!(answer.chunk().await.as_deref(), Some(":\n\n"));
    }
    hands.begun().await;
    hands.go();
    let mut text = String::new();
    while let Some(chunk) = answer.chunk().await {
        text += &chunk;
    }
    let message = text.trim_start_matches(":\n\n").strip_prefix("event: message\ndata: ").unwrap();
    let message: Value = serde_json::from_str(message).unwrap();
    assert_eq!((&message["id"], message["result"]["content"][0]["text"].as_str()), (&json!(7), Some("gone\n")));
}

#[rstest]
#[case(&[], 200)]
#[case(&[("accept", "application/json")], 200)]
#[case(&[("accept", "*/*"), ("mcp-protocol-version", "2025-03-26")], 200)]
#[case(&[("mcp-protocol-version", "2025-11-25")], 200)]
#[case(&[("mcp-protocol-version", "2024-11-05")], 400)]
#[case(&[("origin", "https://elsewhere.example")], 403)]
#[tokio::test]
async fn who_takes_no_stream_gets_json(#[case] headers: &[(&str, &str)], #[case] expected: u16) {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let _hands = with_hands(&world).await;
    let (status, text) = posted(&world, &id, "pod-1", headers, bash(&json!({"command": "true"}))).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, answer["result"]["isError"] == false), (expected, expected == 200), "{answer}");
    assert_eq!(world.kinds(&id).await.contains(&"agent.tool_use".to_owned()), expected == 200);
}

/// The call is on record by then, and nobody else would see to it that it runs.
#[tokio::test]
async fn a_call_whose_client_has_hung_up_runs_all_the_same() {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    drop(streamed(&world, &id, &json!({"command": "echo run >> runs"})).await);
    let hands = with_hands(&world).await;
    eventually(async || world.kinds(&id).await.contains(&"agent.tool_result".to_owned())).await;
    assert_eq!(hands.runs(), 1);
}

/// Also by another replica, after the first has died in the middle.
#[tokio::test]
async fn a_call_that_names_itself_runs_once() {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let hands = with_hands(&world).await;
    let body = |name: &str| {
        json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "bash",
        "arguments": {"command": "echo run >> runs"}, "_meta": {"longhand.dev/tool-use-id": name}}})
        .to_string()
    };
    for replica in [&world, &world.replica(), &world] {
        let (_, answer) = rpc(replica, &id, "pod-1", &body("sevt_1")).await;
        assert_eq!(answer["result"]["isError"], false, "{answer}");
    }
    // Also when the harness was killed and has claimed again.
    world.claim(&id, "pod-1").await;
    let (_, answer) = rpc(&world, &id, "pod-1", &body("sevt_1")).await;
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    assert_eq!(hands.runs(), 1);
    rpc(&world, &id, "pod-1", &body("sevt_2")).await;
    assert_eq!(hands.runs(), 2);
    let (_, answer) = rpc(&world, &id, "pod-1", &body("toolu_1")).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("longhand.dev/tool-use-id"), "{answer}");
    let kinds = world.kinds(&id).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "agent.tool_use").count(), 2);
}

#[tokio::test]
async fn parallel_calls_all_run() {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let hands = with_hands(&world).await;
    let calls = (0..8).map(|number| call(&world, &id, "bash", json!({"command": format!("touch ran-{number}")})));
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer["result"]["isError"], false, "{answer}");
    }
    assert!((0..8).all(|number| hands.file(&format!("ran-{number}")).exists()));
    let kinds = world.kinds(&id).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "agent.tool_use").count(), 8);
}

#[rstest]
#[case("write", json!({"file_path": "a", "content": "b"}), "a person must confirm")]
#[case("execute", json!({"tool": "write", "input": {}}), "a person must confirm")]
#[case("grep", json!({"pattern": "a"}), "no tool `grep`")]
#[case("nonesuch", json!({}), "no tool `nonesuch`")]
#[case("execute", json!({"tool": "execute", "input": {}}), "no tool `execute`")]
#[case("execute", json!({"input": {}}), "`tool`")]
#[case("execute", json!({"tool": "bash"}), "`input`")]
#[case("execute", json!({"tool": "bash", "input": {}, "sandbox": "elsewhere"}), "no sandbox `elsewhere`")]
#[case("execute", json!({"tool": "bash", "input": {}, "sandbox": 1}), "`sandbox`")]
#[tokio::test]
async fn what_does_not_run_is_no_intent(#[case] tool: &str, #[case] arguments: Value, #[case] reason: &str) {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let answer = call(&world, &id, tool, arguments).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert!(text.contains(reason) && answer["result"]["isError"] == true, "{answer}");
    assert_eq!(world.kinds(&id).await, ["x.session.woken"]);
}

#[rstest]
#[case("stranger", 401)]
#[case("alice", 403)]
#[case("pod-2", 403)]
#[case("pod-elsewhere", 403)]
#[tokio::test]
async fn only_the_owner_is_served(#[case] token: &str, #[case] expected: u16) {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    assert_eq!(rpc(&world, &id, token, LIST).await.0, expected);
}

#[tokio::test]
async fn who_is_fenced_off_runs_nothing() {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    assert_eq!(rpc(&world, &id, "pod-1", LIST).await.0, 200);
    // What this replica remembers of the last claim is of no use to the old owner.
    world.claim(&id, "pod-2").await;
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "bash", "arguments": {"command": "true"}}});
    let (status, answer) = rpc(&world, &id, "pod-1", &body.to_string()).await;
    assert_eq!((status, &answer["error"]["details"]), (412, &json!({"conflict": "fenced", "epoch": 2})), "{answer}");
    assert!(!world.kinds(&id).await.contains(&"agent.tool_use".to_owned()));
}

#[rstest]
#[case::not_json("{")]
#[case::no_call("[]")]
#[case::no_method(r#"{"jsonrpc": "2.0", "id": 1}"#)]
#[case::unknown_method(r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/destroy"}"#)]
#[case::no_name(r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}"#)]
#[case::arguments(
    r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "bash", "arguments": [1]}}"#
)]
#[case::surrogate(r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "bash", "arguments": {"command": "\ud800"}}}"#)]
#[case::too_large(&format!(r#"{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {{"name": "bash", "arguments": {{"command": "{}"}}}}}}"#, "a".repeat(5_000_000)))]
#[tokio::test]
async fn nonsense_is_refused_and_runs_nothing(#[case] body: &str) {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let (status, answer) = rpc(&world, &id, "pod-1", body).await;
    assert!((400..500).contains(&status) || answer["error"].is_object(), "{status} {answer}");
    assert_eq!(world.kinds(&id).await, ["x.session.woken"]);
    assert_eq!(rpc(&world, &id, "pod-1", LIST).await.0, 200);
}

#[rstest]
#[case("GET")]
#[case("DELETE")]
#[tokio::test]
async fn there_are_no_sessions_of_mcp(#[case] method: &str) {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let (status, _) = world
        .text(
            method,
            &format!("/harness/v1/sessions/{id}/mcp"),
            &[("authorization", "Bearer pod-1"), ("accept", "text/event-stream")],
            Body::empty(),
        )
        .await;
    assert_eq!(status, 405);
}

/// What a harness keeps for itself may be anything, but not of any size.
#[rstest]
#[case(1_000, 200)]
#[case(600_000, 400)]
#[tokio::test]
async fn a_harness_keeps_notes(#[case] size: usize, #[case] expected: u16) {
    let world = World::new();
    let id = session(&world, &["default"]).await;
    let note = json!({"id": EventId::generate(), "type": "x.harness.transcript", "lines": "a".repeat(size)});
    let append = json!({"epoch": 1, "expected_head": 1, "events": [note]});
    let answer = world.call("POST", &format!("/harness/v1/sessions/{id}/append"), "pod-1", &append).await;
    assert_eq!(answer.status, expected, "{}", answer.message());
}
