//! The whole harness against a session service and a model API on loopback.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::support;
use crate::support::model::{Model, Turn};
use crate::support::service::Service;
use crate::support::{check_request, interrupt, kinds, last, log, send, text};
use longhand_harness::{Config, Endpoints, Exit, Harness};
use longhand_protocol::event::{ClientEvent, Delta, DeltaContent, EventBody, Preview, StopReason, Verdict};
use longhand_protocol::harness::HarnessSession;
use longhand_session_log::SessionStore as _;
use longhand_session_log::caps::Caps;
use longhand_session_log::memory::MemoryStore;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, except on a machine that is very busy.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) store: MemoryStore,
    pub(crate) service: Arc<Service>,
    pub(crate) model: Arc<Model>,
    pub(crate) shutdown: CancellationToken,
    harness: JoinHandle<Exit>,
}

/// Written once: a file that is written again is empty for a moment.
static TOKEN_FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let file = std::env::temp_dir().join(format!("longhand-harness-test-{}", std::process::id()));
    std::fs::write(&file, "the-token\n").unwrap();
    file
});

impl World {
    pub(crate) async fn start(store: MemoryStore, turns: impl IntoIterator<Item = Turn>, idle_seconds: u64) -> Self {
        Self::start_with(store, turns, idle_seconds, |_| {}).await
    }

    async fn start_with(
        store: MemoryStore,
        turns: impl IntoIterator<Item = Turn>,
        idle_seconds: u64,
        prepare: impl FnOnce(&Service),
    ) -> Self {
        let session = HarnessSession { harness_idle_seconds: idle_seconds, ..support::session() };
        Self::start_session(store, turns, session, prepare).await
    }

    async fn start_session(
        store: MemoryStore,
        turns: impl IntoIterator<Item = Turn>,
        session: HarnessSession,
        prepare: impl FnOnce(&Service),
    ) -> Self {
        let (service, log_url) = support::service::serve_session(store.clone(), session).await;
        prepare(&service);
        let (model, model_base_url) = support::model::serve(turns).await;
        let token_file = TOKEN_FILE.clone();
        let session = support::session_id();
        let endpoints = Endpoints { log_url, log_ca: None, token_file, model_base_url, mcp_base_url: None };
        let config = Config { session, endpoints };
        let harness = Harness::new(&config).unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let harness = tokio::spawn(async move { harness.run(&token).await });
        Self { store, service, model, shutdown, harness }
    }

    pub(crate) async fn exit(self) -> (Exit, MemoryStore, Arc<Service>, Arc<Model>) {
        let exit = tokio::time::timeout(LIMIT, self.harness).await.unwrap().unwrap();
        (exit, self.store, self.service, self.model)
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap()
}

/// Waits until the log has an event of this kind.
pub(crate) async fn until(store: &MemoryStore, kind: &str, times: usize) {
    use futures::StreamExt as _;
    let wait = async {
        let mut tail = store.tail(&support::session_id(), 0).await.unwrap();
        let mut left = times;
        while left > 0 {
            let record = tail.next().await.unwrap().unwrap();
            left -= usize::from(record.event.body.kind() == kind);
        }
    };
    within(wait).await;
}

pub(crate) fn say(words: &str) -> Turn {
    Turn::Say(vec![json!({"type": "text", "text": words})], "end_turn")
}

fn call(id: &str, name: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": {"command": "ls"}})
}

fn shown(service: &Service) -> String {
    let previews = service.previews.lock().unwrap();
    assert!(matches!(previews.first(), Some(Preview::EventStart { .. })), "{previews:?}");
    previews
        .iter()
        .filter_map(|preview| match preview {
            Preview::EventDelta { delta: Delta::ContentDelta { content: DeltaContent::Text { text }, .. }, .. } => {
                Some(text.as_str())
            }
            Preview::EventStart { .. } => None,
        })
        .collect()
}

#[rstest::rstest]
#[case::in_a_row_of_tool_calls(Caps { events: 20, bytes: 0, warning_percent: 80 }, 20 + 7)]
#[case::before_the_first_request(Caps { events: 3, bytes: 0, warning_percent: 0 }, 6)]
#[case::by_its_bytes(Caps { events: 0, bytes: 3_000, warning_percent: 80 }, 40)]
#[tokio::test]
async fn a_session_whose_log_is_full_ends_its_turn_and_rests(#[case] caps: Caps, #[case] most: usize) {
    let store = support::store_with(caps);
    send(&store, [text("go on for ever")]);
    let turns = (0..50).map(|number| Turn::Say(vec![call(&format!("toolu_{number}"), "bash")], "tool_use"));
    let world = World::start(store, turns, 0).await;
    let (exit, store, service, model) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    let records = log(&store);
    let kinds = kinds(&records);
    assert!(kinds.len() <= most, "{kinds:?}");
    let end = ["session.error", "session.usage", "session.status_idle"];
    assert!(
        kinds.ends_with(&end) || kinds[kinds.len() - 4..] == [end[0], "x.session.near_limit", end[1], end[2]],
        "{kinds:?}"
    );
    let count = |kind: &str| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!((count("x.session.woken"), count("session.error")), (1, 1), "{kinds:?}");
    assert_eq!(count("agent.tool_use"), count("agent.tool_result"), "nothing is left open: {kinds:?}");
    assert_eq!(count("span.model_request_start"), model.bodies().len());
    assert_eq!(service.runs.lock().unwrap().len(), count("agent.tool_use"));
    let error = records.iter().find_map(|record| match &record.event.body {
        EventBody::SessionError { error } => Some(error.message.clone()),
        _ => None,
    });
    let error = error.unwrap();
    assert!(error.contains("has reached its limit of") && error.contains("fork it or start a new one"), "{error}");
    assert_eq!(support::now(store.state(&support::session_id())).unwrap().wake_revision, None);
}

const TOOL_TURN: [&str; 14] = [
    "x.session.woken",
    "user.message",
    "session.status_running",
    "span.model_request_start",
    "agent.message",
    "agent.tool_use",
    "x.model_response",
    "span.model_request_end",
    "agent.tool_result",
    "span.model_request_start",
    "agent.message",
    "x.model_response",
    "span.model_request_end",
    "session.usage",
];

fn tool_turn() -> Vec<Turn> {
    let first = vec![json!({"type": "text", "text": "Let me see."}), call("toolu_1", "bash")];
    vec![Turn::Say(first, "tool_use"), say("Für dich: fertig.")]
}

#[tokio::test]
async fn a_turn_with_a_tool_is_written_down_in_order() {
    let store = support::store();
    send(&store, [text("go")]);
    let world = World::start(store, tool_turn(), 0).await;
    let (exit, store, service, model) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    let records = log(&store);
    assert_eq!(kinds(&records), [&TOOL_TURN[..], &["session.status_idle"]].concat());
    let EventBody::SessionUsage { usage } = &records[13].event.body else { panic!() };
    assert_eq!((usage.tokens.input_tokens, usage.tokens.output_tokens), (20, 10));
    let messages: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.event.body {
            EventBody::AgentMessage { content } => Some((record.event.id.clone(), content[0]["text"].clone())),
            _ => None,
        })
        .collect();
    assert_eq!(shown(&service), "Let me see.Für dich: fertig.");
    let announced: Vec<_> = service
        .previews
        .lock()
        .unwrap()
        .iter()
        .filter_map(|preview| match preview {
            Preview::EventStart { event } => Some(event.id.clone()),
            Preview::EventDelta { .. } => None,
        })
        .collect();
    assert_eq!(announced, messages.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
    let asked = model.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    for (key, version, body) in &asked {
        assert_eq!((key.as_str(), version.as_str()), ("the-token", "2023-06-01"));
        check_request(body);
    }
    assert_eq!(asked[1].2["messages"][2]["content"][0]["tool_use_id"], "toolu_1");
    assert!(service.runs.lock().unwrap().values().all(|runs| *runs == 1));
}

#[tokio::test]
async fn answers_that_are_lost_on_the_way_change_nothing() {
    let store = support::store();
    send(&store, [text("go")]);
    let world =
        World::start_with(store, tool_turn(), 0, |service| service.faults.lock().unwrap().lose_answers = true).await;
    let (exit, store, service, _) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    assert_eq!(kinds(&log(&store)), [&TOOL_TURN[..], &["session.status_idle"]].concat());
    assert_eq!(service.runs.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_claim_that_was_given_up_is_not_a_lost_one() {
    let store = support::store();
    send(&store, [text("one")]);
    let world =
        World::start_with(store, [say("1")], 0, |service| service.faults.lock().unwrap().late_idle = true).await;
    let (exit, store, _, _) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    assert!(matches!(last(&log(&store)), EventBody::SessionStatusIdle { .. }), "{:?}", kinds(&log(&store)));
}

#[tokio::test]
async fn a_message_that_comes_at_the_moment_of_idling_is_answered() {
    let store = support::store();
    send(&store, [text("one")]);
    let world = World::start_with(store, [say("1"), say("2")], 0, |service| {
        service.faults.lock().unwrap().before_idle = vec![text("two")];
    })
    .await;
    let (_, store, _, model) = world.exit().await;
    assert_eq!(model.bodies().len(), 2);
    let records = log(&store);
    assert_eq!(kinds(&records).iter().filter(|kind| **kind == "session.status_idle").count(), 1);
    assert!(matches!(last(&records), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
}

#[tokio::test]
async fn the_next_message_wakes_the_same_process_which_sends_the_whole_conversation() {
    let store = support::store();
    send(&store, [text("one")]);
    let world = World::start(store, [say("1"), say("2")], 30).await;
    until(&world.store, "session.status_idle", 1).await;
    send(&world.store, [text("two")]);
    until(&world.store, "session.status_idle", 2).await;
    world.shutdown.cancel();
    let (exit, store, _, model) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    let bodies = model.bodies();
    let (first, second) = (check_request(&bodies[0]), check_request(&bodies[1]));
    assert_eq!(second[..first.len()], first[..]);
    assert_eq!(second.len(), 3);
    assert_eq!(kinds(&log(&store)).iter().filter(|kind| **kind == "x.session.woken").count(), 2);
}

/// What is asked of the service on the way: each of these is a round trip before the first token. Waits for the inbox go
/// on beside it.
#[tokio::test]
async fn the_way_from_a_message_to_the_model_is_two_calls_long() {
    let store = support::store();
    send(&store, [text("one")]);
    let tool = Turn::Say(vec![call("toolu_1", "bash")], "tool_use");
    let world = World::start(store, [say("1"), say("2"), tool, say("3")], 30).await;
    let asked = |world: &World| {
        let asked = std::mem::take(&mut *world.service.asked.lock().unwrap());
        asked.into_iter().filter(|verb| verb != "inbox").collect::<Vec<_>>()
    };
    let turn = ["claim", "promote", "append", "idle"];
    until(&world.store, "session.status_idle", 1).await;
    assert_eq!(asked(&world), turn, "of a harness that knows nothing");
    send(&world.store, [text("two")]);
    until(&world.store, "session.status_idle", 2).await;
    assert_eq!(asked(&world), turn, "of one in its grace");
    send(&world.store, [text("three")]);
    until(&world.store, "session.status_idle", 3).await;
    let with_a_tool = ["claim", "promote", "append", "execute", "events", "append", "append", "idle"];
    assert_eq!(asked(&world), with_a_tool);
    world.shutdown.cancel();
    assert_eq!(world.exit().await.3.bodies().len(), 4);
}

#[tokio::test]
async fn an_interrupt_stops_the_stream() {
    let store = support::store();
    send(&store, [text("one")]);
    let world = World::start(store, [Turn::Hang("half an ans")], 0).await;
    within(world.model.hanging.notified()).await;
    send(&world.store, [interrupt()]);
    let (_, store, _, _) = world.exit().await;
    let records = log(&store);
    let tail = [
        "span.model_request_start",
        "user.interrupt",
        "span.model_request_end",
        "session.usage",
        "session.status_idle",
    ];
    assert_eq!(kinds(&records)[3..], tail);
    assert!(matches!(last(&records), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
}

#[tokio::test]
async fn an_interrupt_ends_a_tool_call_before_the_turn_and_the_model_is_told() {
    let store = support::store();
    send(&store, [text("one")]);
    let turns = [Turn::Say(vec![call("toolu_1", "bash")], "tool_use"), say("2")];
    let world = World::start_with(store, turns, 30, |service| service.faults.lock().unwrap().hang_tools = true).await;
    within(world.service.executing.notified()).await;
    send(&world.store, [interrupt()]);
    until(&world.store, "session.status_idle", 1).await;
    let records = log(&world.store);
    assert_eq!(
        kinds(&records)[7..],
        ["user.interrupt", "agent.tool_result", "session.usage", "session.status_idle"],
        "{:?}",
        kinds(&records)
    );
    assert!(matches!(last(&records), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
    send(&world.store, [text("two")]);
    until(&world.store, "session.status_idle", 2).await;
    world.shutdown.cancel();
    let (_, _, _, model) = world.exit().await;
    let body = model.bodies().pop().unwrap();
    check_request(&body);
    let result = &body["messages"][2]["content"][0];
    assert_eq!(result["tool_use_id"], "toolu_1");
    assert_eq!(result["content"][0]["text"], "half of it");
}

#[tokio::test]
async fn a_call_that_asks_runs_when_the_client_has_said_so() {
    let store = support::store();
    send(&store, [text("one")]);
    let turns = [Turn::Say(vec![call("toolu_1", "edit")], "tool_use"), say("2")];
    let world = World::start(store, turns, 30).await;
    until(&world.store, "session.status_idle", 1).await;
    let records = log(&world.store);
    let EventBody::SessionStatusIdle { stop_reason: StopReason::RequiresAction { event_ids } } = last(&records) else {
        panic!("{:?}", kinds(&records))
    };
    let [asked] = event_ids.as_slice() else { panic!("{event_ids:?}") };
    assert!(world.service.runs.lock().unwrap().is_empty());
    let yes =
        ClientEvent::UserToolConfirmation { tool_use_id: asked.clone(), result: Verdict::Allow, deny_message: None };
    send(&world.store, [yes]);
    until(&world.store, "session.status_idle", 2).await;
    world.shutdown.cancel();
    let (_, store, service, _) = world.exit().await;
    let since = [
        "x.session.woken",
        "user.tool_confirmation",
        "session.status_running",
        "agent.tool_result",
        "span.model_request_start",
        "agent.message",
    ];
    let records = log(&store);
    let at = kinds(&records).iter().position(|kind| *kind == "user.tool_confirmation").unwrap() - 1;
    assert_eq!(kinds(&records)[at..at + since.len()], since);
    assert_eq!(*service.runs.lock().unwrap(), [(asked.to_string(), 1)].into());
}

#[tokio::test]
async fn a_later_epoch_ends_the_process_at_once() {
    let store = support::store();
    send(&store, [text("one")]);
    let world = World::start(store, [Turn::Hang("half")], 0).await;
    within(world.model.hanging.notified()).await;
    let before = log(&world.store).len();
    let epoch = support::claim(&world.store);
    let (exit, store, _, _) = world.exit().await;
    assert_eq!(exit, Exit::Fenced { epoch });
    assert_eq!(log(&store).len(), before + 1);
}

#[tokio::test]
async fn a_claim_that_ran_out_is_made_again() {
    let store = support::store();
    send(&store, [text("one")]);
    let world = World::start(store, [Turn::Hang("half"), say("whole")], 0).await;
    within(world.model.hanging.notified()).await;
    world.service.store.expire_claim(&support::session_id());
    let (exit, store, _, _) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    let records = log(&store);
    assert_eq!(kinds(&records).iter().filter(|kind| **kind == "x.session.woken").count(), 2);
    assert_eq!(kinds(&records).iter().filter(|kind| **kind == "agent.message").count(), 1);
}

#[tokio::test]
async fn a_broken_answer_is_asked_for_again() {
    let store = support::store();
    send(&store, [text("one")]);
    let world = World::start(store, [Turn::Break("half"), Turn::Refuse(529), say("whole")], 0).await;
    let (_, store, _, model) = world.exit().await;
    let failed = ["span.model_request_start", "span.model_request_end", "session.error", "session.status_rescheduled"];
    let expected = [
        &["x.session.woken", "user.message", "session.status_running"][..],
        &failed,
        &["session.status_running"],
        &failed,
        &["session.status_running", "span.model_request_start", "agent.message", "x.model_response"],
        &["span.model_request_end", "session.usage", "session.status_idle"],
    ]
    .concat();
    assert_eq!(kinds(&log(&store)), expected);
    let bodies = model.bodies();
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn a_refused_request_is_not_repeated_and_says_why() {
    let store = support::store();
    send(&store, [text("one")]);
    let world = World::start(store, [Turn::Refuse(401)], 0).await;
    let (_, store, _, model) = world.exit().await;
    assert_eq!(model.bodies().len(), 1);
    let records = log(&store);
    let EventBody::SessionError { error } = &records[5].event.body else { panic!("{:?}", kinds(&records)) };
    assert!(error.message.contains("refused by the script"), "{}", error.message);
    assert!(matches!(last(&records), EventBody::SessionStatusIdle { stop_reason: StopReason::RetriesExhausted }));
}

#[tokio::test]
async fn a_stop_during_a_tool_call_leaves_the_work_for_the_next_brain() {
    let store = support::store();
    send(&store, [text("go")]);
    let world =
        World::start_with(store, tool_turn(), 0, |service| service.faults.lock().unwrap().hang_tools = true).await;
    within(world.service.executing.notified()).await;
    world.shutdown.cancel();
    let (exit, store, service, _) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    assert!(service.runs.lock().unwrap().is_empty());
    let next = World::start(store, [say("done")], 0).await;
    let (_, store, service, model) = next.exit().await;
    assert_eq!(service.runs.lock().unwrap().len(), 1);
    check_request(&model.bodies()[0]);
    assert!(matches!(last(&log(&store)), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
}

#[tokio::test]
async fn a_stop_during_an_answer_waits_for_it_and_keeps_it() {
    let store = support::store();
    send(&store, [text("go")]);
    let answer = vec![json!({"type": "text", "text": "done"})];
    let world = World::start(store, [Turn::Wait(answer, "end_turn")], 0).await;
    within(world.model.hanging.notified()).await;
    world.shutdown.cancel();
    world.model.go_on.notify_one();
    let (exit, store, _, _) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    let committed = ["agent.message", "x.model_response", "span.model_request_end"];
    assert_eq!(kinds(&log(&store))[4..], committed);
    let next = World::start(store, [], 0).await;
    let (_, store, _, model) = next.exit().await;
    assert!(model.bodies().is_empty(), "the answer is not asked for again");
    assert!(matches!(last(&log(&store)), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
}

#[tokio::test]
async fn a_pod_that_is_not_wanted_goes() {
    let store = MemoryStore::default();
    let world = World::start(store, [], 0).await;
    let (exit, _, _, model) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(reason) if reason.contains("gone")), "{exit:?}");
    assert!(model.bodies().is_empty());
}
