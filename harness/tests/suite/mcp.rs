//! The whole harness with an MCP server on loopback.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use longhand_harness::{Config, Endpoints, Exit, Harness};
use longhand_protocol::event::{ClientEvent, EventBody, SessionErrorType, StopReason, Verdict};
use longhand_protocol::{EventId, Record};
use longhand_session_log::SessionStore as _;
use longhand_session_log::memory::MemoryStore;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::mcp::{Fault, Mcp, tool};
use crate::support::model::{Model, Turn, listen};
use crate::support::{self, check_request, interrupt, kinds, last, log, send, text};

/// Nothing here takes longer, except on a machine that is very busy.
const LIMIT: Duration = Duration::from_secs(60);

static TOKEN_FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let file = std::env::temp_dir().join(format!("longhand-harness-mcp-test-{}", std::process::id()));
    std::fs::write(&file, "the-token\n").unwrap();
    file
});

struct World {
    store: MemoryStore,
    mcp: Arc<Mcp>,
    mcp_base: String,
}

/// One harness.
struct Brain {
    model: Arc<Model>,
    harness: JoinHandle<Exit>,
}

impl World {
    async fn new() -> Self {
        let (mcp, mcp_base) = Mcp::serve(listen).await;
        let more = [tool("ask", &json!({})), tool("off", &json!({}))];
        mcp.tools.lock().unwrap().extend(more);
        Self { store: support::store(), mcp, mcp_base }
    }

    async fn brain(&self, turns: impl IntoIterator<Item = Turn>) -> Brain {
        let (_, log_url) = support::service::serve_session(self.store.clone(), support::session_with_mcp()).await;
        let (model, model_base_url) = support::model::serve(turns).await;
        let endpoints = Endpoints {
            log_url,
            log_ca: None,
            token_file: TOKEN_FILE.clone(),
            model_base_url,
            mcp_base_url: Some(self.mcp_base.clone()),
        };
        let config = Config { session: support::session_id(), endpoints };
        let harness = Harness::new(&config).unwrap();
        let harness = tokio::spawn(async move { harness.run(&CancellationToken::new()).await });
        Brain { model, harness }
    }

    /// A harness that serves what is queued until it is done.
    async fn serve(&self, turns: impl IntoIterator<Item = Turn>) -> Arc<Model> {
        self.brain(turns).await.done().await
    }

    /// Waits until the log has events of this kind.
    async fn until(&self, kind: &str, times: usize) {
        use futures::StreamExt as _;
        let mut tail = self.store.tail(&support::session_id(), 0).await.unwrap();
        let mut left = times;
        while left > 0 {
            let record = within(tail.next()).await.unwrap().unwrap();
            left -= usize::from(record.event.body.kind() == kind);
        }
    }
}

impl Brain {
    async fn done(self) -> Arc<Model> {
        let exit = within(self.harness).await.unwrap();
        assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
        for body in self.model.bodies() {
            check_request(&body);
        }
        self.model
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap()
}

fn say(words: &str) -> Turn {
    Turn::Say(vec![json!({"type": "text", "text": words})], "end_turn")
}

fn call(number: u8, name: &str) -> Value {
    json!({"type": "tool_use", "id": format!("toolu_{number}"), "name": name, "input": {"message": "hello"}})
}

fn calls(names: &[&str]) -> Turn {
    Turn::Say((0..).zip(names).map(|(number, name)| call(number, name)).collect(), "tool_use")
}

fn offered(model: &Model, request: usize) -> Vec<String> {
    let body = &model.bodies()[request];
    let tools = body["tools"].as_array().unwrap();
    let names = tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("mcp__")).collect()
}

/// Texts of the results of calls, and whether they are errors.
fn results(records: &[Record]) -> Vec<(String, bool)> {
    let result = |record: &Record| match &record.event.body {
        EventBody::AgentMcpToolResult { content, is_error, .. } => {
            let text = content.as_ref()?.first()?["text"].as_str()?.to_owned();
            Some((text, is_error.unwrap_or_default()))
        }
        _ => None,
    };
    records.iter().filter_map(result).collect()
}

fn uses(records: &[Record]) -> Vec<EventId> {
    let is_use = |record: &&Record| record.event.body.kind() == "agent.mcp_tool_use";
    records.iter().filter(is_use).map(|record| record.event.id.clone()).collect()
}

fn confirm(call: &EventId, result: Verdict) -> ClientEvent {
    ClientEvent::UserToolConfirmation { tool_use_id: call.clone(), result, deny_message: None }
}

#[tokio::test]
async fn a_turn_with_a_tool_of_a_server_is_written_down_in_order() {
    let world = World::new().await;
    send(&world.store, [text("go")]);
    let model = world.serve([calls(&["mcp__fake__echo"]), say("done")]).await;
    let records = log(&world.store);
    let expected = [
        "x.session.woken",
        "user.message",
        "session.status_running",
        "x.mcp.catalog",
        "span.model_request_start",
        "agent.mcp_tool_use",
        "x.model_response",
        "span.model_request_end",
        "x.tool.started",
        "agent.mcp_tool_result",
        "span.model_request_start",
        "agent.message",
        "x.model_response",
        "span.model_request_end",
        "session.usage",
        "session.status_idle",
    ];
    assert_eq!(kinds(&records), expected);
    let EventBody::AgentMcpToolUse { mcp_server_name, name, input, .. } = &records[5].event.body else { panic!() };
    assert_eq!((mcp_server_name.as_str(), name.as_str(), input), ("fake", "echo", &json!({"message": "hello"})));
    assert_eq!(results(&records), [("echo: hello".to_owned(), false)]);
    // What is switched off is not offered.
    assert_eq!(offered(&model, 0), ["mcp__fake__ask", "mcp__fake__echo", "mcp__fake__hang", "mcp__fake__look"]);
    let second = &model.bodies()[1]["messages"][2]["content"][0];
    assert_eq!((&second["tool_use_id"], &second["content"][0]["text"]), (&json!("toolu_0"), &json!("echo: hello")));
}

#[tokio::test]
async fn a_woken_harness_takes_the_tools_from_the_log() {
    let world = World::new().await;
    send(&world.store, [text("go")]);
    let first = world.serve([say("one")]).await;
    assert_eq!(world.mcp.count("tools/list"), 3, "two tools a page");
    world.mcp.fails("initialize", Fault::Status(500, ""));
    send(&world.store, [text("again")]);
    let second = world.serve([say("two")]).await;
    assert_eq!((world.mcp.count("initialize"), world.mcp.count("tools/list")), (1, 3), "no server was asked");
    assert_eq!(first.bodies()[0]["tools"], second.bodies()[0]["tools"], "the prefix is the same");
}

#[tokio::test]
async fn tools_that_are_others_by_now_are_on_record_before_the_next_request() {
    let world = World::new().await;
    send(&world.store, [text("go")]);
    world.serve([say("one")]).await;
    world.mcp.tools.lock().unwrap().push(tool("zoom", &json!({})));
    send(&world.store, [text("again")]);
    // The first call of a claim looks at the tools again.
    let model = world.serve([calls(&["mcp__fake__echo"]), say("two")]).await;
    assert!(!offered(&model, 0).contains(&"mcp__fake__zoom".to_owned()));
    assert!(offered(&model, 1).contains(&"mcp__fake__zoom".to_owned()));
    let catalogs = kinds(&log(&world.store)).iter().filter(|kind| **kind == "x.mcp.catalog").count();
    assert_eq!(catalogs, 2);
}

#[tokio::test]
async fn calls_of_a_sandbox_and_of_a_server_run_together() {
    let world = World::new().await;
    send(&world.store, [text("go")]);
    let names = ["bash", "mcp__fake__echo", "mcp__fake__nonesuch", "mcp__fake__look"];
    let model = world.serve([calls(&names), say("done")]).await;
    let answers = model.bodies()[1]["messages"][2]["content"].as_array().unwrap().clone();
    let texts: Vec<_> = answers.iter().map(|answer| answer["content"][0]["text"].as_str().unwrap()).collect();
    assert_eq!((texts[0], texts[1], texts[3]), ("done", "echo: hello", "look: hello"));
    assert!(texts[2].contains("no such tool"), "{texts:?}");
    let StopReason::EndTurn = stop(&world.store) else { panic!() };
}

fn stop(store: &MemoryStore) -> StopReason {
    let EventBody::SessionStatusIdle { stop_reason } = last(&log(store)).clone() else { panic!() };
    stop_reason
}

#[tokio::test]
async fn a_call_that_asks_waits_for_the_client() {
    let world = World::new().await;
    send(&world.store, [text("go")]);
    world.serve([calls(&["mcp__fake__ask", "mcp__fake__ask"])]).await;
    let asking = uses(&log(&world.store));
    assert_eq!(stop(&world.store), StopReason::RequiresAction { event_ids: asking.clone() });
    assert_eq!(world.mcp.count("tools/call"), 0);
    send(&world.store, [confirm(&asking[0], Verdict::Deny)]);
    world.serve([]).await;
    assert_eq!(stop(&world.store), StopReason::RequiresAction { event_ids: vec![asking[1].clone()] });
    send(&world.store, [confirm(&asking[1], Verdict::Allow)]);
    world.serve([say("done")]).await;
    let results = results(&log(&world.store));
    assert!(results[0].0.contains("the user denied it") && results[0].1, "{results:?}");
    assert_eq!(results[1], ("ask: hello".to_owned(), false));
    assert_eq!(world.mcp.count("tools/call"), 1);
}

#[tokio::test]
async fn an_interrupt_ends_a_call_at_once() {
    let world = World::new().await;
    send(&world.store, [text("go")]);
    let brain = world.brain([calls(&["mcp__fake__echo", "mcp__fake__hang"])]).await;
    within(world.mcp.until("tools/call", 2)).await;
    world.until("agent.mcp_tool_result", 1).await;
    let begun = Instant::now();
    send(&world.store, [interrupt()]);
    world.until("agent.mcp_tool_result", 2).await;
    let took = begun.elapsed();
    brain.done().await;
    // The call itself would hang for as long as a call may.
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(world.mcp.count("notifications/cancelled"), 1);
    let records = log(&world.store);
    assert_eq!(results(&records)[0], ("echo: hello".to_owned(), false));
    assert!(results(&records)[1].0.contains("unknown") && results(&records)[1].1);
    assert_eq!(kinds(&records).iter().filter(|kind| **kind == "x.tool.outcome_unknown").count(), 1);
    assert_eq!(stop(&world.store), StopReason::EndTurn);
}

#[rstest::rstest]
#[case::away(Fault::Status(502, ""), SessionErrorType::McpConnectionFailedError)]
#[case::refused(Fault::Status(403, ""), SessionErrorType::McpAuthenticationFailedError)]
#[tokio::test]
async fn the_turn_goes_on_without_a_server_that_cannot_be_used(#[case] fault: Fault, #[case] kind: SessionErrorType) {
    let world = World::new().await;
    world.mcp.fails("initialize", fault);
    send(&world.store, [text("go")]);
    let model = world.serve([calls(&["bash"]), say("done")]).await;
    assert_eq!(offered(&model, 0), Vec::<String>::new());
    let errors = log(&world.store).into_iter().filter_map(|record| match record.event.body {
        EventBody::SessionError { error } => Some(error),
        _ => None,
    });
    let errors: Vec<_> = errors.collect();
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!((error.kind, error.mcp_server_name.as_deref()), (kind, Some("fake")));
    assert_eq!(stop(&world.store), StopReason::EndTurn);
    // The next message tries again.
    world.mcp.mends();
    send(&world.store, [text("again")]);
    let model = world.serve([say("done")]).await;
    assert_eq!(offered(&model, 0).len(), 4);
}

#[rstest::rstest]
#[case::unknown("mcp__fake__echo", 1, "unknown")]
#[case::harmless("mcp__fake__look", 2, "look: hello")]
#[tokio::test]
async fn a_call_whose_brain_is_killed_is_sent_again_only_if_that_does_no_harm(
    #[case] name: &str,
    #[case] sent: usize,
    #[case] expected: &str,
) {
    let world = World::new().await;
    world.mcp.fails("tools/call", Fault::Silent);
    send(&world.store, [text("go")]);
    let brain = world.brain([calls(&[name])]).await;
    within(world.mcp.until("tools/call", 1)).await;
    brain.harness.abort();
    world.mcp.mends();
    world.serve([say("done")]).await;
    assert_eq!(world.mcp.count("tools/call"), sent);
    let results = results(&log(&world.store));
    assert_eq!(results.len(), 1);
    assert!(results[0].0.contains(expected), "{results:?}");
    assert_eq!(stop(&world.store), StopReason::EndTurn);
}
