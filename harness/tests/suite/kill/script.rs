//! What happens in a session: what models answer and what clients do, at random.

use longhand_harness::model::{Failure, Reply};
use longhand_protocol::event::Usage;
use longhand_protocol::harness::{FallbackModel, HarnessSession, Prices, Recall};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::length;
use crate::support::session;

/// What the model says after so many answers.
#[derive(Clone, Debug)]
pub(super) enum Turn {
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
    /// Its window is full before the answer is complete.
    Overflow,
    /// It takes less than it is sent, once.
    TooLong,
    /// A call whose result is long.
    Read,
    /// It looks something up in the log, if it may.
    Recall,
    /// Of the models before this one none answers.
    Fallback(u8),
    /// Nobody knows how its call ended; the client says whether it is run again.
    Lost,
}

/// What a client does after so many answers.
#[derive(Clone, Debug)]
pub(super) enum Client {
    Message,
    Interrupt,
    InterruptDuringCall,
    InterruptDuringTools,
    MessageDuringTools,
    MessageAtIdle,
}

#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) turns: Vec<Turn>,
    /// Whether the model says how many tokens it has read.
    pub(super) counts: bool,
    /// How often a request for a summary fails before there is one.
    pub(super) no_summaries: usize,
    /// The most tokens of a request, which is much with results that are long.
    pub(super) max_tokens: u64,
    /// How many tool calls there may be.
    pub(super) tool_calls: Option<u64>,
    /// A checkpoint is due after so many records.
    pub(super) interval: u64,
    pub(super) client: Vec<(usize, Client)>,
    /// How many models there are beside the first.
    pub(super) fallbacks: u8,
    pub(super) recall: Recall,
}

/// All of these, at random.
pub(super) fn scripts() -> impl Strategy<Value = Script> {
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
        1 => Just(Turn::Overflow),
        1 => Just(Turn::TooLong),
        3 => Just(Turn::Read),
        2 => Just(Turn::Recall),
        2 => (1..4_u8).prop_map(Turn::Fallback),
        1 => Just(Turn::Lost),
    ];
    let client = prop_oneof![
        2 => Just(Client::Message),
        1 => Just(Client::Interrupt),
        1 => Just(Client::InterruptDuringCall),
        1 => Just(Client::InterruptDuringTools),
        1 => Just(Client::MessageDuringTools),
        1 => Just(Client::MessageAtIdle),
    ];
    let tokens = prop_oneof![Just(100_000_u64), Just(2_000), Just(900)];
    let limits = (tokens, prop::option::of(1..6_u64), 1..40_u64, any::<bool>());
    let recall = prop_oneof![Just(Recall::WhenTrimmed), Just(Recall::Always), Just(Recall::Never)];
    let rest = (0..4_usize, 0..3_u8, recall);
    (prop::collection::vec(turn, 1..6), prop::collection::vec((0..6_usize, client), 0..4), limits, rest).prop_map(
        |(turns, client, (max_tokens, tool_calls, interval, counts), (no_summaries, fallbacks, recall))| Script {
            turns,
            counts,
            no_summaries,
            max_tokens,
            tool_calls,
            interval,
            client,
            fallbacks,
            recall,
        },
    )
}

/// When a model is asked.
pub(super) struct Moment<'a> {
    /// How many answers there were.
    pub(super) answers: usize,
    /// How many tries in a row have failed.
    pub(super) failures: u32,
    /// It was too much for a model once.
    pub(super) overflowed: bool,
    /// Who is asked.
    pub(super) model: &'a str,
}

impl Moment<'_> {
    /// 0 is the first model.
    fn position(&self) -> u8 {
        self.model.strip_prefix("fallback-").map_or(0, |position| position.parse().unwrap())
    }
}

impl Script {
    /// The session that it happens in. A token of each model costs ten times what one of the model before costs.
    pub(super) fn session(&self) -> HarnessSession {
        let mut session = session();
        let agent = &mut session.agent;
        agent.context.max_tokens = self.max_tokens;
        agent.context.keep_tool_results = 1;
        agent.context.recall = self.recall;
        let prices = |position: u8| {
            let price = || format!("{}", 10_u64.pow(u32::from(position) + 6));
            let [input, output, cache_read, cache_write] = std::array::from_fn(|_| price());
            Some(Prices { input, output, cache_read, cache_write, currency: "USD".to_owned() })
        };
        agent.model.prices = prices(0);
        let fallback = |position| FallbackModel {
            id: format!("fallback-{position}"),
            prices: prices(position),
            ..FallbackModel::default()
        };
        agent.model.fallbacks = (1..=self.fallbacks).map(fallback).collect();
        session.limits.tool_calls = self.tool_calls;
        session
    }

    /// The answer of a model to these blocks, or why there is none.
    pub(super) fn reply(&self, moment: &Moment<'_>, blocks: &[(String, Value)]) -> Result<Reply, Failure> {
        let number = moment.answers;
        let call = |index: u8, name: &str| json!({"type": "tool_use", "id": format!("toolu_{number}_{index}"), "name": name, "input": {"n": index}});
        let said = json!({"type": "text", "text": format!("answer {number}")});
        let thought = json!({"type": "thinking", "thinking": "hm", "signature": "s"});
        let (content, stop) = match self.turns.get(number).unwrap_or(&Turn::Say) {
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
            Turn::FailTwice if moment.failures < 2 => return Err(Failure::transport("away")),
            Turn::FailTwice => (vec![said], "end_turn"),
            Turn::FailForGood => return Err(Failure::protocol("nonsense")),
            Turn::Overflow => (vec![said], "model_context_window_exceeded"),
            Turn::TooLong if !moment.overflowed => {
                return Err(Failure::protocol("prompt is too long: 9 > 8"));
            }
            Turn::TooLong => (vec![said], "end_turn"),
            Turn::Recall => (vec![said, call(0, "recall"), call(1, "bash")], "tool_use"),
            Turn::Fallback(position) if (1..=self.fallbacks).contains(position) && moment.position() < *position => {
                return Err(Failure::protocol("nonsense"));
            }
            Turn::Fallback(_) => (vec![thought, said, call(0, "bash")], "tool_use"),
            Turn::Lost => (vec![call(0, "write"), call(1, "bash"), call(2, "write")], "tool_use"),
            Turn::Read => (vec![said, call(0, "read"), call(1, "bash")], "tool_use"),
        };
        let incomplete = if stop == "max_tokens" { vec![format!("toolu_{number}_1")] } else { vec![] };
        let words = blocks.iter().map(|(_, block)| block.to_string().matches("ran ").count()).sum::<usize>();
        let input_tokens = length(words + 40 * blocks.len());
        let usage =
            if self.counts { Usage { input_tokens, output_tokens: 2, ..Usage::default() } } else { Usage::default() };
        Ok(Reply { content, stop_reason: Some(stop.to_owned()), usage, incomplete })
    }
}
