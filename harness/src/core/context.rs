//! How much of the conversation the model is sent: when it is made shorter, and how. Pure.
//!
//! How long a request will be is estimated: what the model counted for the last one and its answer, and a token for every
//! four bytes of what came since; four bytes a token for all of it where nothing was counted yet. Above the agent's limit
//! older tool results are cleared where that makes room for a while, else the model writes a summary of what came before.
//! Both go in steps and are in the log, so that in between every request begins with the one before it.

use longhand_protocol::event::Usage;
use longhand_protocol::harness::{Compaction, ContextPolicy};
use serde::{Deserialize, Serialize};

use super::conversation::{Answer, CallState, Item, Stop, length, weight};
use super::transcript::Transcript;

const BYTES_PER_TOKEN: u64 = 4;
/// A result is cleared only if that saves more than the note in its place.
const WORTH_CLEARING: u64 = 600;
/// How often a summary is asked for without an answer in between, each time of half as much, before the turn is given up.
pub(super) const MAX_COMPACTIONS: u32 = 3;

/// How long the conversation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gauge {
    /// What the model counted for the last request and its answer, in tokens; 0 if it has not counted.
    counted: u64,
    /// What came since, in bytes.
    since: u64,
    /// A context window is not larger than this, in tokens, as far as that was found out.
    ceiling: Option<u64>,
}

impl Gauge {
    pub(super) fn add(&mut self, bytes: u64) {
        self.since = self.since.saturating_add(bytes);
    }

    /// The model has counted all of it, up to and with its answer.
    pub(super) fn count(&mut self, usage: Usage) {
        let Usage { input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens } = usage;
        let parts = [input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens];
        let total = parts.into_iter().fold(0, u64::saturating_add);
        if total > 0 {
            (self.counted, self.since) = (total, 0);
        }
    }

    pub(super) fn subtract(&mut self, bytes: u64) {
        if self.counted > 0 {
            // What was counted is more than nothing, which would say that it was not.
            self.counted = self.counted.saturating_sub(bytes / BYTES_PER_TOKEN).max(1);
        } else {
            self.since = self.since.saturating_sub(bytes);
        }
    }

    /// Another conversation has taken its place.
    pub(super) fn restart(&mut self, bytes: u64) {
        (self.counted, self.since) = (0, bytes);
    }

    /// So many tokens were too many.
    pub(super) fn overflow(&mut self, tokens: u64) {
        let less = tokens / 5 * 4;
        self.ceiling = Some(self.ceiling.map_or(less, |ceiling| ceiling.min(less)));
    }

    /// Another model may have another window.
    pub(super) fn forget_ceiling(&mut self) {
        self.ceiling = None;
    }

    /// In tokens; `overhead` are bytes of every request that are not of the conversation.
    pub(super) fn estimate(&self, overhead: u64) -> u64 {
        let uncounted = if self.counted == 0 { overhead } else { 0 };
        self.counted.saturating_add(self.since.saturating_add(uncounted) / BYTES_PER_TOKEN)
    }
}

/// What is done before the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trim {
    /// Nothing.
    Nothing,
    /// Older tool results are not sent any more.
    Clear {
        /// How many are.
        kept: u32,
    },
    /// The model is asked for a summary.
    Compact,
    /// It is too long for the model, and cannot be made shorter.
    Exhausted,
}

/// What is done before the next request; `overhead` are the bytes of instructions and tools.
pub(super) fn plan(policy: &ContextPolicy, log: &Transcript, overhead: u64) -> Trim {
    let gauge = log.gauge();
    let budget = gauge.ceiling.map_or(policy.max_tokens, |ceiling| ceiling.min(policy.max_tokens));
    let estimate = gauge.estimate(overhead);
    let cut_off = is_cut_off(log.items());
    if estimate <= budget && !cut_off {
        return Trim::Nothing;
    }
    let kept = policy.keep_tool_results;
    let saved = clearable(log.items(), kept).map(|(_, bytes)| bytes).fold(0, u64::saturating_add) / BYTES_PER_TOKEN;
    // A step that saves little is soon followed by the next, and each costs the model's cache.
    if saved > 0 && !cut_off && estimate.saturating_sub(saved) <= budget / 4 * 3 {
        return Trim::Clear { kept };
    }
    let compactable = policy.compaction == Compaction::Summary && split(log.items()).0 > 0;
    // The agent's limit is a wish, and a model that takes more is asked all the same; what it refuses is not sent again.
    let refused = cut_off || gauge.ceiling.is_some_and(|ceiling| estimate > ceiling);
    match (compactable, refused) {
        (true, _) if log.compactions() >= MAX_COMPACTIONS => Trim::Exhausted,
        (true, _) => Trim::Compact,
        (false, _) if saved > 0 && !cut_off => Trim::Clear { kept },
        (false, true) => Trim::Exhausted,
        (false, false) => Trim::Nothing,
    }
}

/// The model's window was full before its answer was complete, and no result follows that it could go on from.
fn is_cut_off(items: &[Item]) -> bool {
    matches!(items.last(), Some(Item::Answer(Answer { stop: Stop::ContextWindowExceeded, calls, .. })) if calls.is_empty())
}

/// How many items a summary stands for: all but what clients have said since the model spoke; none where that is all.
pub(super) fn split(items: &[Item]) -> (usize, &[Item]) {
    let spoken = items.iter().rposition(|item| matches!(item, Item::Answer(_))).map_or(0, |last| last + 1);
    (spoken, items.get(spoken..).unwrap_or_default())
}

/// Results that may be cleared, but for the newest `kept` and those that the model has not seen, with what that saves: the
/// positions of the answer and of its call, and bytes.
pub(super) fn clearable(items: &[Item], kept: u32) -> impl Iterator<Item = ((usize, usize), u64)> {
    let last = items.iter().rposition(|item| matches!(item, Item::Answer(_)));
    let calls = items.iter().enumerate().rev().filter_map(|(at, item)| match item {
        Item::Answer(answer) => Some(answer.calls.iter().enumerate().rev().map(move |(call, found)| (at, call, found))),
        Item::Summary(_) | Item::User(_) => None,
    });
    let answered = calls.flatten().filter(|(_, _, call)| call.seq > 0);
    answered.skip(usize::try_from(kept).unwrap_or(usize::MAX)).filter_map(move |(at, position, call)| {
        match &call.state {
            CallState::Answered { content, .. } if call.cleared.is_none() && Some(at) != last => {
                let bytes = weight(content);
                (bytes > WORTH_CLEARING).then_some(((at, position), bytes))
            }
            _ => None,
        }
    })
}

/// From which item on a summary is asked for, so that the request is not longer than `tokens`; no item counts for more than
/// `item_cap` bytes.
pub(super) fn tail(items: &[Item], tokens: u64, item_cap: u64) -> usize {
    let mut left = tokens.saturating_mul(BYTES_PER_TOKEN);
    let fits = items.iter().rev().take_while(|item| {
        let bytes = item.weight().min(item_cap);
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    });
    items.len().saturating_sub(fits.count().max(1))
}

/// The bytes of a text.
pub(super) fn text_weight(text: Option<&str>) -> u64 {
    text.map_or(0, |text| length(text.len()))
}
