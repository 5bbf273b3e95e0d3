//! A brain that is killed after any effect is replaced by one that goes on from the log as if nothing had happened.

mod script;

use std::collections::HashMap;

use longhand_harness::core::{Effect, Input, Next, State, Transcript, checkpoint, has_interrupt, step};
use longhand_harness::model::{Failure, Reply};
use longhand_protocol::EventId;
use longhand_protocol::event::{ClientEvent, EventBody, NewEvent, Permission, SessionErrorType, Usage, Verdict};
use longhand_session_log::memory::MemoryStore;
use longhand_session_log::store::{CallState, FinishFrom, SessionStore as _};
use proptest::prelude::*;
use serde_json::{Value, json};

use self::script::{Client, Moment, Script, scripts};
use crate::support::{
    changed, check_request, claim, finish_open, interrupt, log, newest_checkpoint, now, send, session_id, store, text,
};

/// What a model is sent, with roles.
type Blocks = Vec<(String, Value)>;

/// The world around a brain: the store, the model, the tools and the client.
struct World {
    store: MemoryStore,
    epoch: u64,
    script: Script,
    fired: Vec<bool>,
    runs: HashMap<EventId, u32>,
    /// With how often the conversation was made shorter before each, and the model.
    requests: Vec<((usize, String), Blocks)>,
    /// Every change is asked for twice, as if the first answer had been lost.
    twice: bool,
    /// Only the first half of parallel tool calls ends before the brain is killed, once.
    half: bool,
}

/// How often the log has an event of this type; what a transcript holds may have been made shorter.
fn count(store: &MemoryStore, kind: &str) -> usize {
    log(store).iter().filter(|record| record.event.body.kind() == kind).count()
}

fn answers(store: &MemoryStore) -> usize {
    count(store, "x.model_response")
}

impl World {
    fn new(script: Script) -> Self {
        let store = store();
        send(&store, [text("start")]);
        let fired = vec![false; script.client.len()];
        Self { store, epoch: 0, script, fired, runs: HashMap::new(), requests: vec![], twice: false, half: false }
    }

    /// What the client does at this point and has not done yet.
    fn client(&mut self, wanted: fn(&Client) -> bool) -> Vec<ClientEvent> {
        let mut events = Vec::new();
        let answers = answers(&self.store);
        for (fired, (at, client)) in self.fired.iter_mut().zip(&self.script.client) {
            if !*fired && *at == answers && wanted(client) {
                *fired = true;
                events.push(match client {
                    Client::Interrupt | Client::InterruptDuringCall | Client::InterruptDuringTools => interrupt(),
                    _ => text(&format!("more after {at}")),
                });
            }
        }
        events
    }

    fn say(&mut self, wanted: fn(&Client) -> bool) -> bool {
        let events = self.client(wanted);
        let said = !events.is_empty();
        if said {
            send(&self.store, events);
        }
        said
    }

    fn summary(&self) -> Result<Reply, Failure> {
        let failed = log(&self.store).iter().filter(|record| matches!(&record.event.body, EventBody::SessionError { error } if error.kind == SessionErrorType::CompactionLimitReachedError)).count();
        let usage = Usage { input_tokens: 3, output_tokens: 1, ..Usage::default() };
        let text = format!("summary {}", count(&self.store, "agent.thread_context_compacted"));
        match failed < self.script.no_summaries {
            true if failed == 1 => Err(Failure::protocol("prompt is too long")),
            true => Ok(Reply { stop_reason: Some("end_turn".to_owned()), usage, ..Reply::default() }),
            false => Ok(Reply {
                content: vec![json!({"type": "text", "text": text})],
                stop_reason: Some("end_turn".to_owned()),
                usage,
                ..Reply::default()
            }),
        }
    }

    /// Gives the calls that have no result.
    fn run_tools(&mut self, calls: &[EventId]) -> Vec<EventId> {
        calls.iter().for_each(|call| assert!(self.may_run(call), "{call} was not confirmed"));
        let count = if std::mem::take(&mut self.half) { calls.len() / 2 } else { calls.len() };
        let mut without = Vec::new();
        for call in &calls[..count] {
            if self.is_lost(call) {
                let body = EventBody::ToolOutcomeAsked { tool_use_id: call.clone(), cause: "lost".to_owned() };
                now(self.store.append_unfenced(&session_id(), vec![NewEvent::new(body)])).unwrap();
                without.push(call.clone());
            } else if now(self.store.call(&session_id(), call)).unwrap() == CallState::Open {
                *self.runs.entry(call.clone()).or_default() += 1;
                let long = log(&self.store).iter().any(|record| {
                    record.event.id == *call
                        && matches!(&record.event.body, EventBody::AgentToolUse { name, .. } if name == "read")
                });
                let result = crate::support::service::result(call, &"ran ".repeat(if long { 600 } else { 1 }));
                now(self.store.finish_call(&session_id(), call, &FinishFrom::Open, vec![result])).unwrap();
            }
        }
        without
    }

    /// Whether it is not known how a call ended, and nobody was asked about it: the first `write` of each answer is such a one.
    fn is_lost(&self, wanted: &EventId) -> bool {
        let about = |body: &EventBody| match body {
            EventBody::ToolOutcomeAsked { tool_use_id, .. } => tool_use_id == wanted,
            _ => false,
        };
        let records = log(&self.store);
        !records.iter().any(|record| about(&record.event.body))
            && records.iter().any(|record| {
                record.event.id == *wanted
                    && matches!(&record.event.body, EventBody::AgentToolUse { name, input, .. } if name == "write" && input["n"] == 0)
            })
    }

    fn may_run(&self, wanted: &EventId) -> bool {
        let (mut asks, mut confirmed) = (false, false);
        for record in log(&self.store) {
            match &record.event.body {
                EventBody::AgentToolUse { evaluated_permission, .. } if record.event.id == *wanted => {
                    asks = *evaluated_permission == Permission::Ask;
                }
                EventBody::ToolOutcomeAsked { tool_use_id, .. } if tool_use_id == wanted => {
                    (asks, confirmed) = (true, false);
                }
                EventBody::UserToolConfirmation { tool_use_id, .. } if tool_use_id == wanted => confirmed = true,
                _ => {}
            }
        }
        !asks || confirmed
    }

    fn changed(
        &self,
        change: impl Fn() -> longhand_session_log::store::Result<longhand_session_log::store::Appended>,
    ) -> Input {
        if self.twice {
            drop(change());
        }
        changed(change())
    }

    fn perform(&mut self, log: &Transcript, effect: Effect) -> Input {
        let (store, id, epoch) = (self.store.clone(), session_id(), self.epoch);
        match effect {
            Effect::Restore => newest_checkpoint(&store),
            Effect::Read { after } => {
                let slice = now(store.read(&id, after, 3)).unwrap();
                Input::Records { records: slice.records, head: slice.head }
            }
            Effect::Look => {
                self.say(|client| matches!(client, Client::Message | Client::Interrupt));
                Input::Inbox(now(store.inbox(&id)).unwrap())
            }
            Effect::Append { expected_head, events } => {
                self.changed(|| now(store.append(&id, epoch, expected_head, events.clone())))
            }
            Effect::Promote { expected_head, inbox, then } => {
                self.changed(|| now(store.promote(&id, epoch, expected_head, &inbox, then.clone())))
            }
            Effect::Idle { expected_head, wake_revision, events } => {
                // What has come since the last look is taken up before the session rests.
                if !self.say(|client| matches!(client, Client::Message | Client::Interrupt)) {
                    self.say(|client| matches!(client, Client::MessageAtIdle));
                }
                match self.changed(|| now(store.idle(&id, epoch, expected_head, wake_revision, events.clone()))) {
                    Input::Records { records, .. } => Input::Released { records },
                    other => other,
                }
            }
            Effect::CallModel { body, message, .. } => {
                let blocks = check_request(&body);
                let model = body["model"].as_str().unwrap();
                if message.is_some() {
                    let made_shorter = count(&self.store, "agent.thread_context_compacted");
                    self.requests.push(((made_shorter, model.to_owned()), blocks.clone()));
                }
                // The proxy writes down what it did, so that the log has grown when the answer is to be appended.
                let used = EventBody::Other { kind: "x.credential.used".to_owned(), fields: serde_json::Map::new() };
                now(store.append_unfenced(&id, vec![NewEvent::new(used)])).unwrap();
                if self.say(|client| matches!(client, Client::InterruptDuringCall)) {
                    return Input::Interrupted(now(store.inbox(&id)).unwrap());
                }
                let moment = Moment {
                    answers: answers(&self.store),
                    failures: log.failures(),
                    overflowed: count(&self.store, "x.context.overflow") > 0,
                    model,
                };
                let reply = || self.script.reply(&moment, &blocks);
                Input::Model(if message.is_some() { reply() } else { self.summary() })
            }
            Effect::Execute { calls } => {
                // The inbox is watched meanwhile.
                self.say(|client| matches!(client, Client::Message | Client::Interrupt));
                let inbox = now(store.inbox(&id)).unwrap();
                if has_interrupt(&inbox) {
                    return Input::Interrupted(inbox);
                }
                self.say(|client| matches!(client, Client::MessageDuringTools));
                if self.say(|client| matches!(client, Client::InterruptDuringTools)) {
                    return Input::Interrupted(now(store.inbox(&id)).unwrap());
                }
                Input::Executed { abandoned: self.run_tools(&calls) }
            }
            Effect::Stop { calls } => {
                // As the service does with calls of which the log says that they were interrupted.
                finish_open(&store, &calls, "stopped");
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
        let state = State::claimed(self.script.session(), Transcript::default()).with_interval(self.script.interval);
        let (mut state, mut next) = step(state.with_head(length(log(&self.store).len())), Input::Claimed);
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
            self.check(state.transcript());
        }
        panic!("the brain does not come to an end: {:?}", crate::support::kinds(&log(&self.store)))
    }

    /// What a brain knows is what the whole log says, from wherever it was read.
    fn check(&self, known: &Transcript) {
        let mut whole = Transcript::default();
        let records = log(&self.store);
        records.iter().take_while(|record| record.seq <= known.head()).for_each(|record| whole.apply(record).unwrap());
        assert_eq!(whole, *known);
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
            EventBody::AgentToolUse { input, .. } => {
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
        let mut prefixes = HashMap::new();
        for (to, request) in &self.requests {
            if let Some(before) = prefixes.insert(to, request) {
                assert!(request.starts_with(before), "the prefix changed: {before:?} {request:?}");
            }
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
                    "x.session.woken" | "x.credential.used" | "span.model_request_start" | checkpoint::KIND
                )
            })
            .filter(|record| !matches!(record.event.body, EventBody::SpanModelRequestEnd { is_error: true, .. }))
            .map(|record| {
                let mut body = serde_json::to_value(&record.event.body).unwrap();
                body.as_object_mut().unwrap().remove("model_request_start_id");
                names.iter().fold(body.to_string(), |text, (id, name)| text.replace(id, name))
            })
            .collect();
        // Where the log keeps a result is another number where more brains have written to it.
        let unnumbered = |(role, mut block): (String, Value)| {
            let note = block["content"][0]["text"].as_str().filter(|text| text.contains("was left out")).is_some();
            if note {
                block["content"] = Value::Null;
            }
            (role, block)
        };
        let last = self.requests.into_iter().last().unwrap_or_default().1;
        Outcome { said, requests: last.into_iter().map(unnumbered).collect() }
    }
}

/// What a session came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    said: Vec<String>,
    requests: Blocks,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_kill_after_every_effect_changes_nothing(script in scripts()) {
        let calm = World::new(script.clone()).run(|_, _| false);
        // A brain dies as soon as it has changed anything; one that changes nothing would never get further.
        let killed = World::new(script).run(|effect, input| {
            !matches!(effect, Effect::Restore | Effect::Read { .. } | Effect::Look | Effect::CallModel { .. } | Effect::Rest(_))
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

fn length(records: usize) -> u64 {
    u64::try_from(records).unwrap()
}

/// A brain that dies whenever it has begun a request never gets an answer.
fn starts_request(effect: &Effect) -> bool {
    matches!(effect, Effect::Append { events, .. } | Effect::Promote { then: events, .. }
        if events.iter().any(|event| matches!(event.body, EventBody::SpanModelRequestStart {})))
}
