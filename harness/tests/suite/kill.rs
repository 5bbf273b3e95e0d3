//! A brain that is killed after any effect is replaced by one that goes on from the log as if nothing had happened.

use std::collections::HashMap;

use longhand_harness::core::transcript::Item;
use longhand_harness::core::{Effect, Input, Moved, Next, State, Transcript, step};
use longhand_harness::model::{Failure, Reply};
use longhand_protocol::EventId;
use longhand_protocol::event::{ClientEvent, EventBody, NewEvent, Permission, Usage, Verdict};
use longhand_session_log::memory::MemoryStore;
use longhand_session_log::store::{CallState, FinishFrom, SessionStore as _, StoreError};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{check_request, claim, interrupt, log, now, send, session, session_id, store, text};

/// What the model says after so many answers.
#[derive(Clone, Debug)]
enum Turn {
    Say,
    Think,
    Tools(u8),
    Custom,
    Asks,
    Mixed,
    CutOff,
    Pause,
    Refuse,
    FailTwice,
    FailForGood,
}

/// What a client does after so many answers.
#[derive(Clone, Debug)]
enum Client {
    Message,
    Interrupt,
    InterruptDuringCall,
    InterruptDuringTools,
    MessageDuringTools,
    MessageAtIdle,
}

#[derive(Clone, Debug)]
struct Script {
    turns: Vec<Turn>,
    client: Vec<(usize, Client)>,
}

fn scripts() -> impl Strategy<Value = Script> {
    let turn = prop_oneof![
        2 => Just(Turn::Say),
        1 => Just(Turn::Think),
        3 => (1..4_u8).prop_map(Turn::Tools),
        1 => Just(Turn::Custom),
        1 => Just(Turn::Asks),
        1 => Just(Turn::Mixed),
        1 => Just(Turn::CutOff),
        1 => Just(Turn::Pause),
        1 => Just(Turn::Refuse),
        1 => Just(Turn::FailTwice),
        1 => Just(Turn::FailForGood),
    ];
    let client = prop_oneof![
        2 => Just(Client::Message),
        1 => Just(Client::Interrupt),
        1 => Just(Client::InterruptDuringCall),
        1 => Just(Client::InterruptDuringTools),
        1 => Just(Client::MessageDuringTools),
        1 => Just(Client::MessageAtIdle),
    ];
    (prop::collection::vec(turn, 1..6), prop::collection::vec((0..6_usize, client), 0..4))
        .prop_map(|(turns, client)| Script { turns, client })
}

/// The world around a brain: the store, the model, the tools and the client.
struct World {
    store: MemoryStore,
    epoch: u64,
    script: Script,
    fired: Vec<bool>,
    runs: HashMap<EventId, u32>,
    requests: Vec<Vec<(String, Value)>>,
    /// Every change is asked for twice, as if the first answer had been lost.
    twice: bool,
    /// Only the first half of parallel tool calls ends before the brain is killed, once.
    half: bool,
}

fn answers(log: &Transcript) -> usize {
    log.items().iter().filter(|item| matches!(item, Item::Answer(_))).count()
}

impl World {
    fn new(script: Script) -> Self {
        let store = store();
        send(&store, [text("start")]);
        let fired = vec![false; script.client.len()];
        Self { store, epoch: 0, script, fired, runs: HashMap::new(), requests: vec![], twice: false, half: false }
    }

    /// What the client does at this point and has not done yet.
    fn client(&mut self, log: &Transcript, wanted: fn(&Client) -> bool) -> Vec<ClientEvent> {
        let mut events = Vec::new();
        for (fired, (at, client)) in self.fired.iter_mut().zip(&self.script.client) {
            if !*fired && *at == answers(log) && wanted(client) {
                *fired = true;
                events.push(match client {
                    Client::Interrupt | Client::InterruptDuringCall | Client::InterruptDuringTools => interrupt(),
                    _ => text(&format!("more after {at}")),
                });
            }
        }
        events
    }

    fn say(&mut self, log: &Transcript, wanted: fn(&Client) -> bool) -> bool {
        let events = self.client(log, wanted);
        let said = !events.is_empty();
        if said {
            send(&self.store, events);
        }
        said
    }

    fn model(&self, log: &Transcript) -> Result<Reply, Failure> {
        let number = answers(log);
        let call = |index: u8, name: &str| json!({"type": "tool_use", "id": format!("toolu_{number}_{index}"), "name": name, "input": {"n": index}});
        let said = json!({"type": "text", "text": format!("answer {number}")});
        let thought = json!({"type": "thinking", "thinking": "hm", "signature": "s"});
        let (content, stop) = match self.script.turns.get(number).unwrap_or(&Turn::Say) {
            Turn::Say => (vec![said], "end_turn"),
            Turn::Think => (vec![thought, said], "stop_sequence"),
            Turn::Tools(count) => {
                (std::iter::once(said).chain((0..*count).map(|n| call(n, "bash"))).collect(), "tool_use")
            }
            Turn::Custom => (vec![call(0, "ask")], "tool_use"),
            Turn::Asks => (vec![call(0, "edit"), call(1, "bash"), call(2, "edit")], "tool_use"),
            Turn::Mixed => (vec![call(0, "ask"), call(1, "bash"), call(2, "nonesuch"), call(3, "edit")], "tool_use"),
            Turn::CutOff => (vec![said, call(0, "bash"), call(1, "bash")], "max_tokens"),
            Turn::Pause => (vec![said], "pause_turn"),
            Turn::Refuse => (vec![], "refusal"),
            Turn::FailTwice if log.failures() < 2 => return Err(Failure::transport("away")),
            Turn::FailTwice => (vec![said], "end_turn"),
            Turn::FailForGood => return Err(Failure::protocol("nonsense")),
        };
        let incomplete = if stop == "max_tokens" { vec![format!("toolu_{number}_1")] } else { vec![] };
        let usage = Usage { input_tokens: 1, output_tokens: 2, ..Usage::default() };
        Ok(Reply { content, stop_reason: Some(stop.to_owned()), usage, incomplete })
    }

    fn run_tools(&mut self, calls: &[EventId]) {
        calls.iter().for_each(|call| assert!(self.may_run(call), "{call} was not confirmed"));
        let count = if std::mem::take(&mut self.half) { calls.len() / 2 } else { calls.len() };
        for call in &calls[..count] {
            if now(self.store.call(&session_id(), call)).unwrap() == CallState::Open {
                *self.runs.entry(call.clone()).or_default() += 1;
                let result = crate::support::service::result(call, "ran");
                now(self.store.finish_call(&session_id(), call, &FinishFrom::Open, vec![result])).unwrap();
            }
        }
    }

    fn may_run(&self, wanted: &EventId) -> bool {
        let (mut asks, mut confirmed) = (false, false);
        for record in log(&self.store) {
            match &record.event.body {
                EventBody::AgentToolUse { evaluated_permission, .. } if record.event.id == *wanted => {
                    asks = *evaluated_permission == Permission::Ask;
                }
                EventBody::UserToolConfirmation { tool_use_id, .. } if tool_use_id == wanted => confirmed = true,
                _ => {}
            }
        }
        !asks || confirmed
    }

    /// What the service does with calls of which the log says that they were interrupted.
    fn stop_tools(&self, calls: &[EventId]) {
        for call in calls {
            if now(self.store.call(&session_id(), call)).unwrap() == CallState::Open {
                let result = crate::support::service::result(call, "stopped");
                now(self.store.finish_call(&session_id(), call, &FinishFrom::Open, vec![result])).unwrap();
            }
        }
    }

    fn changed(
        &self,
        change: impl Fn() -> longhand_session_log::store::Result<longhand_session_log::store::Appended>,
    ) -> Input {
        if self.twice {
            drop(change());
        }
        match change() {
            Ok(appended) => Input::Records { records: appended.records, head: appended.head },
            Err(StoreError::HeadMoved { .. }) => Input::Moved(Moved::Head),
            Err(StoreError::WakeMoved) => Input::Moved(Moved::Wake),
            Err(StoreError::NotQueued(_)) => Input::Moved(Moved::Queue),
            Err(error) => panic!("{error}"),
        }
    }

    fn perform(&mut self, log: &Transcript, effect: Effect) -> Input {
        let (store, id, epoch) = (self.store.clone(), session_id(), self.epoch);
        match effect {
            Effect::Read { after } => {
                let slice = now(store.read(&id, after, 3)).unwrap();
                Input::Records { records: slice.records, head: slice.head }
            }
            Effect::Look => {
                self.say(log, |client| matches!(client, Client::Message | Client::Interrupt));
                Input::Inbox(now(store.inbox(&id)).unwrap())
            }
            Effect::Append { expected_head, events } => {
                self.changed(|| now(store.append(&id, epoch, expected_head, events.clone())))
            }
            Effect::Promote { expected_head, inbox, then } => {
                self.changed(|| now(store.promote(&id, epoch, expected_head, &inbox, then.clone())))
            }
            Effect::Idle { expected_head, wake_revision, events } => {
                self.say(log, |client| matches!(client, Client::MessageAtIdle));
                match self.changed(|| now(store.idle(&id, epoch, expected_head, wake_revision, events.clone()))) {
                    Input::Records { records, .. } => Input::Released { records },
                    other => other,
                }
            }
            Effect::CallModel { body, .. } => {
                self.requests.push(check_request(&body));
                // The proxy writes down what it did, so that the log has grown when the answer is to be appended.
                let used = EventBody::Other { kind: "x.credential.used".to_owned(), fields: serde_json::Map::new() };
                now(store.append_unfenced(&id, vec![NewEvent::new(used)])).unwrap();
                if self.say(log, |client| matches!(client, Client::InterruptDuringCall)) {
                    return Input::Interrupted(now(store.inbox(&id)).unwrap());
                }
                Input::Model(self.model(log))
            }
            Effect::Execute { calls } => {
                self.say(log, |client| matches!(client, Client::MessageDuringTools));
                if self.say(log, |client| matches!(client, Client::InterruptDuringTools)) {
                    return Input::Interrupted(now(store.inbox(&id)).unwrap());
                }
                self.run_tools(&calls);
                Input::Executed { abandoned: vec![] }
            }
            Effect::Stop { calls } => {
                self.stop_tools(&calls);
                Input::Executed { abandoned: vec![] }
            }
            Effect::Rest(_) => Input::Rested,
            // Its agent has no MCP servers; those of the tests of MCP have.
            Effect::Discover { .. } | Effect::SendMcp { .. } | Effect::AwaitMcp | Effect::CancelMcp { .. } => {
                panic!("there is no MCP server")
            }
        }
    }

    /// One claim: runs until nothing is left to do, or until `kill` says so. Gives whether it came to an end.
    fn live(&mut self, kill: &mut impl FnMut(&Effect, &Input) -> bool) -> bool {
        self.epoch = claim(&self.store);
        let (mut state, mut next) = step(State::claimed(session(), Transcript::default()), Input::Claimed);
        for _ in 0..2_000 {
            let effect = match next {
                Next::Done => return true,
                Next::Fail { reason } => panic!("{reason}"),
                Next::Do(effect) => effect,
            };
            let input = self.perform(state.transcript(), effect.clone());
            if kill(&effect, &input) {
                return false;
            }
            (state, next) = step(state, input);
        }
        panic!("the brain does not come to an end: {:?}", crate::support::kinds(&log(&self.store)))
    }

    /// What the client answers to a call: a result, or whether it may run, which every other one may.
    fn answer(&self, call: EventId) -> ClientEvent {
        let records = log(&self.store);
        let seq = records.iter().position(|record| record.event.id == call).unwrap();
        match &records[seq].event.body {
            EventBody::AgentCustomToolUse { .. } => ClientEvent::UserCustomToolResult {
                custom_tool_use_id: call,
                content: Some(vec![json!({"type": "text", "text": "yes"})]),
                is_error: None,
            },
            EventBody::AgentToolUse { input, evaluated_permission: Permission::Ask, .. } => {
                let result = if input["n"] == 0 { Verdict::Deny } else { Verdict::Allow };
                ClientEvent::UserToolConfirmation { tool_use_id: call, result, deny_message: None }
            }
            other => panic!("{} asks for nothing", other.kind()),
        }
    }

    /// Lives until everything that a client wants is done: custom tools are answered and messages as well.
    fn run(mut self, mut kill: impl FnMut(&Effect, &Input) -> bool) -> Outcome {
        for _ in 0..200 {
            while !self.live(&mut kill) {}
            let waiting = log(&self.store).into_iter().rev().find_map(|record| match record.event.body {
                EventBody::SessionStatusIdle { stop_reason } => Some(stop_reason),
                _ => None,
            });
            match waiting {
                Some(longhand_protocol::event::StopReason::RequiresAction { event_ids }) => {
                    let answers: Vec<ClientEvent> = event_ids.into_iter().map(|call| self.answer(call)).collect();
                    send(&self.store, answers);
                }
                _ => return self.outcome(),
            }
        }
        panic!("the session does not come to an end")
    }

    fn outcome(self) -> Outcome {
        let records = log(&self.store);
        let inbox = now(self.store.inbox(&session_id())).unwrap();
        assert_eq!((inbox.items.len(), inbox.wake_revision), (0, None), "work is left");
        assert!(self.runs.values().all(|runs| *runs == 1), "{:?}", self.runs);
        for pair in self.requests.windows(2) {
            assert!(pair[1].starts_with(&pair[0]), "the prefix changed: {pair:?}");
        }
        let mut open = None;
        for record in &records {
            match &record.event.body {
                EventBody::SpanModelRequestStart {} => assert_eq!(open.replace(record.event.id.clone()), None),
                EventBody::SpanModelRequestEnd { model_request_start_id, .. } => {
                    assert_eq!(open.take().as_ref(), Some(model_request_start_id));
                }
                _ => {}
            }
        }
        assert_eq!(open, None, "a request is open");
        let mut names = HashMap::new();
        for (index, record) in
            records.iter().filter(|record| record.event.body.kind().ends_with("tool_use")).enumerate()
        {
            names.insert(record.event.id.to_string(), format!("call {index}"));
        }
        // Claims and requests that died with their brain are the only traces of a kill.
        let said = records
            .iter()
            .filter(|record| {
                !matches!(
                    record.event.body.kind(),
                    "x.session.woken" | "x.credential.used" | "span.model_request_start"
                )
            })
            .filter(|record| !matches!(record.event.body, EventBody::SpanModelRequestEnd { is_error: true, .. }))
            .map(|record| {
                let mut body = serde_json::to_value(&record.event.body).unwrap();
                body.as_object_mut().unwrap().remove("model_request_start_id");
                names.iter().fold(body.to_string(), |text, (id, name)| text.replace(id, name))
            })
            .collect();
        Outcome { said, requests: self.requests.into_iter().last().unwrap_or_default() }
    }
}

/// What a session came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    said: Vec<String>,
    requests: Vec<(String, Value)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_kill_after_every_effect_changes_nothing(script in scripts()) {
        let calm = World::new(script.clone()).run(|_, _| false);
        // A brain dies as soon as it has changed anything; one that changes nothing would never get further.
        let killed = World::new(script).run(|effect, input| {
            !matches!(effect, Effect::Read { .. } | Effect::Look | Effect::CallModel { .. } | Effect::Rest(_))
                && !starts_request(effect)
                && !matches!(input, Input::Moved(_))
        });
        prop_assert_eq!(calm, killed);
    }

    #[test]
    fn a_kill_at_any_moment_changes_nothing(script in scripts(), moments in prop::collection::btree_set(0..120_u32, 0..12), half: bool) {
        let calm = World::new(script.clone()).run(|_, _| false);
        let mut world = World::new(script);
        world.half = half && !moments.is_empty();
        let mut moment = 0;
        let half = world.half;
        let mut halved = false;
        let killed = world.run(move |effect, _| {
            moment += 1;
            let half_done = half && !halved && matches!(effect, Effect::Execute { .. });
            halved |= half_done;
            half_done || moments.contains(&moment)
        });
        prop_assert_eq!(calm, killed);
    }

    #[test]
    fn an_answer_that_is_lost_changes_nothing(script in scripts()) {
        let calm = World::new(script.clone()).run(|_, _| false);
        let mut world = World::new(script);
        world.twice = true;
        prop_assert_eq!(calm, world.run(|_, _| false));
    }
}

/// A brain that dies whenever it has begun a request never gets an answer.
fn starts_request(effect: &Effect) -> bool {
    matches!(effect, Effect::Append { events, .. }
        if events.iter().any(|event| matches!(event.body, EventBody::SpanModelRequestStart {})))
}
