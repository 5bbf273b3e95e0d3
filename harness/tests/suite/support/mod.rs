//! What the tests of the harness share: a session in memory, and checks of what a model is sent.

pub(crate) mod brain;
pub(crate) mod mcp;
pub(crate) mod model;
pub(crate) mod raw;
pub(crate) mod service;

use std::time::Duration;

use futures::FutureExt as _;
use longhand_harness::core::{Input, Moved, checkpoint};
use longhand_protocol::event::{ClientEvent, EventBody, NewEvent};
use longhand_protocol::harness::{AgentSnapshot, HarnessSession, Limits, McpServer, Model, Tool};
use longhand_protocol::wire::toolsets::{
    BuiltinConfig, BuiltinTool, McpConfig, PermissionPolicy, ToolsetConfig, WebOptions,
};
use longhand_protocol::{EventId, Record, SessionId};
use longhand_session_log::caps::Caps;
use longhand_session_log::memory::MemoryStore;
use longhand_session_log::store::{
    Appended, CallState, Claimant, FinishFrom, Query, SessionMeta, SessionStore as _, StoreError, Takeover,
};
use serde_json::{Value, json};

pub(crate) fn session_id() -> SessionId {
    "sesn_test".parse().unwrap()
}

pub(crate) fn agent() -> AgentSnapshot {
    AgentSnapshot {
        name: "agent".to_owned(),
        version: 1,
        model: Model {
            id: "model-1".to_owned(),
            max_tokens: 100,
            api_version: "2023-06-01".to_owned(),
            ..Model::default()
        },
        system: Some("Be brief.".to_owned()),
        tools: vec![
            Tool::Custom {
                name: "ask".to_owned(),
                description: "Asks.".to_owned(),
                input_schema: json!({"type": "object"}),
            },
            toolset(),
        ],
        ..AgentSnapshot::default()
    }
}

/// The built-in tools, of which `edit` asks first.
fn toolset() -> Tool {
    let asks = BuiltinConfig {
        name: BuiltinTool::Edit,
        enabled: true,
        permission_policy: PermissionPolicy::AlwaysAsk,
        web: WebOptions::default(),
    };
    match Tool::agent_toolset() {
        Tool::AgentToolset { default_config, .. } => Tool::AgentToolset { default_config, configs: vec![asks] },
        other => other,
    }
}

pub(crate) fn session() -> HarnessSession {
    HarnessSession {
        id: session_id(),
        agent: agent(),
        sandboxes: vec!["main".to_owned()],
        harness_idle_seconds: 0,
        limits: Limits::default(),
        budget: None,
    }
}

/// A session whose agent has the tools of an MCP server too, of which `ask` asks first and `off` is off.
pub(crate) fn session_with_mcp() -> HarnessSession {
    let mut session = session();
    let url = "https://fake.test/mcp".to_owned();
    session.agent.mcp_servers.push(McpServer::Url { name: "fake".to_owned(), url });
    let policy = |permission_policy| ToolsetConfig { enabled: true, permission_policy };
    let config =
        |name: &str, enabled, permission_policy| McpConfig { name: name.to_owned(), enabled, permission_policy };
    session.agent.tools.push(Tool::McpToolset {
        mcp_server_name: "fake".to_owned(),
        default_config: policy(PermissionPolicy::AlwaysAllow),
        configs: vec![
            config("ask", true, PermissionPolicy::AlwaysAsk),
            config("off", false, PermissionPolicy::AlwaysAllow),
        ],
    });
    session
}

/// A store that holds the session of [`session`].
pub(crate) fn store() -> MemoryStore {
    store_with(Caps::default())
}

/// The same; its log is bounded.
pub(crate) fn store_with(caps: Caps) -> MemoryStore {
    let store = MemoryStore::bounded(longhand_session_log::DEFAULT_INBOX_LIMIT, caps);
    now(store.create(meta())).unwrap();
    store
}

pub(crate) fn meta() -> SessionMeta {
    SessionMeta {
        id: session_id(),
        namespace: "ns".to_owned(),
        name: "name".to_owned(),
        uid: "uid".to_owned(),
        agent: agent(),
        sandboxes: vec!["main".to_owned()],
        harness_idle_seconds: 0,
        delivered_inputs: 0,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        thread_id: None,
        parent: None,
        retention: longhand_session_log::store::Retention::default(),
    }
}

/// A store in memory answers at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

pub(crate) fn claim(store: &MemoryStore) -> u64 {
    let claimant = Claimant { pod_uid: "pod".to_owned(), pod_name: "pod".to_owned() };
    now(store.claim(&session_id(), &claimant, Takeover::Always, Duration::from_secs(600))).unwrap().0
}

pub(crate) fn send(store: &MemoryStore, events: impl IntoIterator<Item = ClientEvent>) {
    let events = events.into_iter().map(NewEvent::from).collect();
    now(store.enqueue(&session_id(), events)).unwrap();
}

pub(crate) fn text(text: &str) -> ClientEvent {
    ClientEvent::UserMessage { content: vec![json!({"type": "text", "text": text})] }
}

pub(crate) fn interrupt() -> ClientEvent {
    ClientEvent::UserInterrupt { session_thread_id: None }
}

/// What a brain is told of a change of the log.
pub(crate) fn changed(change: Result<Appended, StoreError>) -> Input {
    match change {
        Ok(appended) => Input::Records { records: appended.records, head: appended.head },
        Err(StoreError::HeadMoved { .. }) => Input::Moved(Moved::Head),
        Err(StoreError::WakeMoved) => Input::Moved(Moved::Wake),
        Err(StoreError::NotQueued(_)) => Input::Moved(Moved::Queue),
        Err(error) => panic!("{error}"),
    }
}

/// What it is told when it asks for the newest checkpoint.
pub(crate) fn newest_checkpoint(store: &MemoryStore) -> Input {
    let wanted = Query { types: vec![checkpoint::KIND.to_owned()], ..Query::last(1) };
    let slice = now(store.slice(&session_id(), &wanted)).unwrap();
    Input::Checkpoint(slice.records.into_iter().next().map(Box::new))
}

/// Gives the calls that have no result one with this text.
pub(crate) fn finish_open(store: &MemoryStore, calls: &[EventId], text: &str) {
    for call in calls {
        if now(store.call(&session_id(), call)).unwrap() == CallState::Open {
            let result = service::result(call, text);
            now(store.finish_call(&session_id(), call, &FinishFrom::Open, vec![result])).unwrap();
        }
    }
}

pub(crate) fn log(store: &MemoryStore) -> Vec<Record> {
    let records = now(store.read(&session_id(), 0, usize::MAX)).unwrap().records;
    for (index, record) in records.iter().enumerate() {
        assert_eq!(record.seq, u64::try_from(index).unwrap() + 1);
    }
    records
}

pub(crate) fn kinds(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.event.body.kind()).collect()
}

pub(crate) fn last(records: &[Record]) -> &EventBody {
    &records.last().unwrap().event.body
}

/// Checks what the model API would refuse, and gives the blocks with their roles, without markers.
pub(crate) fn check_request(body: &Value) -> Vec<(String, Value)> {
    let mut markers = 0;
    let mut blocks = Vec::new();
    let mut unmark = |block: &Value| {
        let mut block = block.clone();
        markers += usize::from(block.as_object_mut().unwrap().remove("cache_control").is_some());
        block
    };
    body["system"].as_array().into_iter().flatten().for_each(|block| drop(unmark(block)));
    let tools: Vec<Value> = body["tools"].as_array().into_iter().flatten().map(&mut unmark).collect();
    assert!(tools.is_sorted_by_key(|tool| tool["name"].as_str().unwrap().to_owned()), "{tools:?}");
    let messages = body["messages"].as_array().unwrap();
    let mut open: Vec<Value> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let role = if index % 2 == 0 { "user" } else { "assistant" };
        assert_eq!(message["role"], role, "{messages:?}");
        let content = message["content"].as_array().unwrap();
        assert!(!content.is_empty(), "{messages:?}");
        if role == "user" {
            let results: Vec<Value> = content
                .iter()
                .take_while(|block| block["type"] == "tool_result")
                .map(|block| block["tool_use_id"].clone())
                .collect();
            assert_eq!(results, open, "{messages:?}");
            let total = content.iter().filter(|block| block["type"] == "tool_result").count();
            assert_eq!(total, results.len(), "results come first: {messages:?}");
            open.clear();
        } else {
            open.extend(content.iter().filter(|block| block["type"] == "tool_use").map(|block| block["id"].clone()));
        }
        for block in content {
            assert!(block["type"] != "text" || !block["text"].as_str().unwrap().is_empty(), "{messages:?}");
            blocks.push((role.to_owned(), unmark(block)));
        }
    }
    assert!(open.is_empty(), "calls without results: {messages:?}");
    assert!(markers <= 4, "{markers} markers");
    blocks
}
