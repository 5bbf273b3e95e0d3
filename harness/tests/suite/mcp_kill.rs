//! A brain that calls MCP servers and is killed after any effect: each call has one result, none is sent twice that may do
//! harm, and none is called a failure that was never sent.

use std::collections::HashMap;

use longhand_harness::core::mcp::{Answer, Call, Discovery, Outcome};
use longhand_harness::core::{Effect, Input, Next, State, Transcript, step};
use longhand_harness::model::Reply;
use longhand_protocol::EventId;
use longhand_protocol::event::{ClientEvent, EventBody, McpTool, StopReason, Usage, Verdict};
use longhand_session_log::memory::MemoryStore;
use longhand_session_log::store::SessionStore as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{
    changed, check_request, claim, finish_open, interrupt, log, newest_checkpoint, now, send, session_id,
    session_with_mcp, store, text,
};

/// What the model says in its first answers.
#[derive(Clone, Debug)]
struct Script {
    answers: Vec<Vec<&'static str>>,
    /// The client stops the turn when so many calls have been sent.
    interrupt_at: Option<u32>,
}

fn scripts() -> impl Strategy<Value = Script> {
    let name = prop::sample::select(vec!["mcp__fake__echo", "mcp__fake__look", "mcp__fake__ask", "bash", "ask"]);
    let answers = prop::collection::vec(prop::collection::vec(name, 1..5), 1..4);
    (answers, prop::option::of(1..6_u32)).prop_map(|(answers, interrupt_at)| Script { answers, interrupt_at })
}

/// The world around a brain. What runs at a server when its brain is killed is lost with it.
struct World {
    store: MemoryStore,
    epoch: u64,
    script: Script,
    running: Vec<Call>,
    sent: HashMap<EventId, u32>,
    interrupted: bool,
}

fn answers(log: &Transcript) -> usize {
    use longhand_harness::core::transcript::Item;
    log.items().iter().filter(|item| matches!(item, Item::Answer(_))).count()
}

impl World {
    fn model(&self, log: &Transcript) -> Reply {
        let number = answers(log);
        let call = |(index, name): (usize, &&str)| json!({"type": "tool_use", "id": format!("toolu_{number}_{index}"), "name": name, "input": {}});
        let (content, stop): (Vec<Value>, _) = match self.script.answers.get(number) {
            Some(names) => (names.iter().enumerate().map(call).collect(), "tool_use"),
            None => (vec![json!({"type": "text", "text": "done"})], "end_turn"),
        };
        Reply { content, stop_reason: Some(stop.to_owned()), usage: Usage::default(), incomplete: vec![] }
    }

    fn interrupts(&mut self) -> bool {
        let sent: u32 = self.sent.values().sum();
        let now = !self.interrupted && self.script.interrupt_at.is_some_and(|at| sent >= at);
        if now {
            self.interrupted = true;
            send(&self.store, [interrupt()]);
        }
        now
    }

    fn ended(&mut self, wanted: impl Fn(&EventId) -> bool) -> Vec<Outcome> {
        let (ended, running) = std::mem::take(&mut self.running).into_iter().partition(|call| wanted(&call.event));
        self.running = running;
        let answer = |call: Call| Outcome {
            call: call.event,
            answer: Answer::Result { content: vec![json!({"type": "text", "text": call.tool})], is_error: false },
        };
        Vec::into_iter(ended).map(answer).collect()
    }

    fn perform(&mut self, log: &Transcript, effect: Effect) -> Input {
        let (store, id, epoch) = (self.store.clone(), session_id(), self.epoch);
        match effect {
            Effect::Restore => newest_checkpoint(&store),
            Effect::Read { after } => {
                let slice = now(store.read(&id, after, 5)).unwrap();
                Input::Records { records: slice.records, head: slice.head }
            }
            Effect::Look => Input::Inbox(now(store.inbox(&id)).unwrap()),
            Effect::Append { expected_head, events } => changed(now(store.append(&id, epoch, expected_head, events))),
            Effect::Promote { expected_head, inbox, then } => {
                changed(now(store.promote(&id, epoch, expected_head, &inbox, then)))
            }
            Effect::Idle { expected_head, wake_revision, events } => {
                match changed(now(store.idle(&id, epoch, expected_head, wake_revision, events))) {
                    Input::Records { records, .. } => Input::Released { records },
                    other => other,
                }
            }
            Effect::CallModel { body, .. } => {
                check_request(&body);
                Input::Model(Ok(self.model(log)))
            }
            Effect::Execute { calls } | Effect::Stop { calls } => {
                finish_open(&store, &calls, "ran");
                Input::Executed { abandoned: vec![] }
            }
            Effect::Rest(_) => Input::Rested,
            Effect::Discover { servers } => {
                let tool = |name: &str, repeatable| McpTool {
                    name: name.to_owned(),
                    description: String::new(),
                    input_schema: json!({"type": "object"}),
                    repeatable,
                };
                let tools = vec![tool("ask", false), tool("echo", false), tool("look", true)];
                let found = servers.into_iter().map(|server| Discovery { server, tools: Ok(tools.clone()) });
                Input::Discovered(found.collect())
            }
            Effect::SendMcp { calls } => {
                for call in &calls {
                    *self.sent.entry(call.event.clone()).or_default() += 1;
                }
                self.running.extend(calls);
                Input::Called { outcomes: vec![], cancelled: vec![] }
            }
            Effect::AwaitMcp => {
                assert!(!self.running.is_empty(), "nothing is waited for");
                if self.interrupts() {
                    return Input::Interrupted(now(store.inbox(&id)).unwrap());
                }
                let first = self.running[0].event.clone();
                Input::Called { outcomes: self.ended(|call| *call == first), cancelled: vec![] }
            }
            Effect::CancelMcp { calls } => {
                self.ended(|call| calls.contains(call));
                Input::Called { outcomes: vec![], cancelled: calls }
            }
        }
    }

    fn live(&mut self, kill: &mut impl FnMut(&Effect) -> bool) -> bool {
        self.epoch = claim(&self.store);
        self.running.clear();
        let (mut state, mut next) = step(State::claimed(session_with_mcp(), Transcript::default()), Input::Claimed);
        for _ in 0..1_000 {
            let effect = match next {
                Next::Done => return true,
                Next::Fail { reason } => panic!("{reason}"),
                Next::Do(effect) => effect,
            };
            let input = self.perform(state.transcript(), effect.clone());
            if kill(&effect) {
                return false;
            }
            (state, next) = step(state, input);
        }
        panic!("the brain does not come to an end: {:?}", crate::support::kinds(&log(&self.store)))
    }

    fn answer(&self, call: EventId) -> ClientEvent {
        let body = log(&self.store).into_iter().find(|record| record.event.id == call).unwrap().event.body;
        match body {
            EventBody::AgentCustomToolUse { .. } => {
                ClientEvent::UserCustomToolResult { custom_tool_use_id: call, content: None, is_error: None }
            }
            _ => ClientEvent::UserToolConfirmation { tool_use_id: call, result: Verdict::Allow, deny_message: None },
        }
    }

    fn run(script: Script, mut kill: impl FnMut(&Effect) -> bool) -> Self {
        let mut world =
            Self { store: store(), epoch: 0, script, running: vec![], sent: HashMap::new(), interrupted: false };
        send(&world.store, [text("start")]);
        for _ in 0..50 {
            while !world.live(&mut kill) {}
            let idle = log(&world.store).into_iter().rev().find_map(|record| match record.event.body {
                EventBody::SessionStatusIdle { stop_reason } => Some(stop_reason),
                _ => None,
            });
            match idle {
                Some(StopReason::RequiresAction { event_ids }) => {
                    let answers: Vec<ClientEvent> = event_ids.into_iter().map(|call| world.answer(call)).collect();
                    send(&world.store, answers);
                }
                Some(StopReason::EndTurn) => return world,
                other => panic!("{other:?}"),
            }
        }
        panic!("the session does not come to an end")
    }

    /// The name of each call, how often it was sent, and what its only result is.
    fn check(&self, killed: bool) -> Vec<(String, u32, &'static str)> {
        let records = log(&self.store);
        let calls = records.iter().filter_map(|record| match &record.event.body {
            EventBody::AgentMcpToolUse { name, .. } => Some((record.event.id.clone(), name.clone())),
            _ => None,
        });
        let outcome = |(id, name): (EventId, String)| {
            let results: Vec<bool> = records
                .iter()
                .filter_map(|record| match &record.event.body {
                    EventBody::AgentMcpToolResult { mcp_tool_use_id, is_error, .. } if *mcp_tool_use_id == id => {
                        Some(is_error.unwrap_or_default())
                    }
                    _ => None,
                })
                .collect();
            assert_eq!(results.len(), 1, "{name} has {} results", results.len());
            let unknown = records.iter().any(
                |record| matches!(&record.event.body, EventBody::ToolOutcomeUnknown { tool_use_id, .. } if *tool_use_id == id),
            );
            let sent = self.sent.get(&id).copied().unwrap_or(0);
            let most = if name == "look" && killed { 3 } else { 1 };
            assert!(sent <= most, "{name} was sent {sent} times");
            let outcome = match (results[0], unknown) {
                (false, false) => "ok",
                (true, true) => "unknown",
                (true, false) => "not run",
                (false, true) => panic!("{name} has a result and an unknown outcome"),
            };
            assert!(outcome != "ok" || sent > 0, "{name} has a result from nowhere");
            assert!(outcome != "not run" || sent == 0, "{name} was sent and is said not to have been run");
            (name, sent, outcome)
        };
        calls.map(outcome).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn without_a_kill_every_call_is_sent_once(answers in scripts()) {
        let script = Script { interrupt_at: None, ..answers };
        let expected = script.answers.iter().flatten().filter(|name| name.starts_with("mcp__")).count();
        let outcomes = World::run(script, |_| false).check(false);
        prop_assert_eq!(outcomes.len(), expected);
        prop_assert!(outcomes.iter().all(|(_, sent, outcome)| *sent == 1 && *outcome == "ok"), "{outcomes:?}");
    }

    #[test]
    fn a_kill_at_any_moment_leaves_nothing_open(script in scripts(), moments in prop::collection::btree_set(0..120_u32, 0..12)) {
        let mut moment = 0;
        World::run(script, |_| {
            moment += 1;
            moments.contains(&moment)
        })
        .check(true);
    }

    #[test]
    fn a_kill_before_a_call_is_sent_changes_nothing(answers in scripts()) {
        let script = Script { interrupt_at: None, ..answers };
        let mut killed = 0;
        let world = World::run(script, |effect| {
            let intent = matches!(effect, Effect::Append { events, .. }
                if events.iter().any(|event| matches!(event.body, EventBody::ModelResponse { .. } | EventBody::McpCatalog { .. })));
            killed += u32::from(intent);
            intent
        });
        let outcomes = world.check(false);
        prop_assert!(killed > 0);
        prop_assert!(outcomes.iter().all(|(_, sent, outcome)| *sent == 1 && *outcome == "ok"), "{outcomes:?}");
    }
}
