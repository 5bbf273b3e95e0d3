//! A message laid out as server-sent events with their delays. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    respond::{Block, Message, signature},
    script::{Chunk, Ending, StopReason},
};

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// How long to wait before it is sent.
    pub delay: Duration,
    /// Its type; empty for none.
    pub event: &'static str,
    /// Its data.
    pub data: Value,
    /// Whether it carries a token.
    pub token: bool,
}

/// What happens after the last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// The response ends.
    End,
    /// Nothing more comes, until the client goes.
    Hang,
    /// The connection breaks.
    Disconnect,
}

impl Frame {
    fn new(event: &'static str, data: Value) -> Self {
        Self { delay: Duration::ZERO, event, data, token: false }
    }

    /// The event as it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> String {
        match (self.event, &self.data) {
            ("", Value::String(text)) => format!("data: {text}\n\n"),
            ("", data) => format!("data: {data}\n\n"),
            (event, data) => format!("event: {event}\ndata: {data}\n\n"),
        }
    }
}

/// Lays a message out.
#[must_use]
pub fn frames(message: &Message) -> (Vec<Frame>, Tail) {
    let mut all = vec![Frame::new("message_start", json!({"type": "message_start", "message": message.envelope(1)}))];
    let last = message.blocks.len().saturating_sub(1);
    for (index, block) in message.blocks.iter().enumerate() {
        let cut = message.stop_reason == StopReason::MaxTokens && index == last;
        push_block(&mut all, message, index, block, cut);
    }
    // The wait for the first token lies before whatever shows first that there is an answer.
    if let Some(first) = all.get_mut(1) {
        first.delay = message.pace.first_token;
    }
    if let Some(first) = all.iter_mut().find(|frame| frame.token) {
        first.delay = Duration::ZERO;
    }
    if !message.blocks.is_empty() {
        all.insert(2, Frame::new("ping", json!({"type": "ping"})));
    }
    let (after_tokens, tail, error) = match &message.ending {
        Ending::Complete => {
            let delta = json!({"stop_reason": message.stop_reason, "stop_sequence": null});
            let usage = message.usage(message.output_tokens());
            let stop = json!({"type": "message_delta", "delta": delta, "usage": usage});
            all.push(Frame::new("message_delta", stop));
            all.push(Frame::new("message_stop", json!({"type": "message_stop"})));
            return (all, Tail::End);
        }
        Ending::Hang { after_tokens } => (*after_tokens, Tail::Hang, None),
        Ending::Disconnect { after_tokens } => (*after_tokens, Tail::Disconnect, None),
        Ending::Error(error) => {
            let data = json!({"type": "error", "error": {"type": error.kind, "message": error.message}});
            (error.after_tokens, Tail::End, Some(Frame::new("error", data)))
        }
    };
    let mut sent = 0;
    let cut = all.iter().position(|frame| {
        sent += u32::from(frame.token);
        sent > after_tokens
    });
    all.truncate(cut.unwrap_or(all.len()));
    all.extend(error);
    (all, tail)
}

fn push_block(all: &mut Vec<Frame>, message: &Message, index: usize, block: &Block, cut: bool) {
    let (start, deltas) = match block {
        Block::Thinking(text) => {
            let deltas = split(text, message.pace.chunk)
                .into_iter()
                .map(|part| json!({"type": "thinking_delta", "thinking": part}))
                .collect::<Vec<_>>();
            (json!({"type": "thinking", "thinking": "", "signature": ""}), deltas)
        }
        Block::Text(text) => {
            let deltas = split(text, message.pace.chunk)
                .into_iter()
                .map(|part| json!({"type": "text_delta", "text": part}))
                .collect::<Vec<_>>();
            (json!({"type": "text", "text": ""}), deltas)
        }
        Block::ToolUse { id, name, input } => {
            let input = input.to_string();
            let input = if cut { first_half(&input) } else { &input };
            let deltas = std::iter::once("")
                .chain(split(input, message.pace.chunk))
                .map(|part| json!({"type": "input_json_delta", "partial_json": part}))
                .collect::<Vec<_>>();
            (json!({"type": "tool_use", "id": id, "name": name, "input": {}}), deltas)
        }
    };
    let start = json!({"type": "content_block_start", "index": index, "content_block": start});
    all.push(Frame::new("content_block_start", start));
    for delta in deltas {
        let data = json!({"type": "content_block_delta", "index": index, "delta": delta});
        let delay = message.pace.per_token;
        all.push(Frame { delay, event: "content_block_delta", data, token: true });
    }
    if let Block::Thinking(text) = block {
        let delta = json!({"type": "signature_delta", "signature": signature(text)});
        let data = json!({"type": "content_block_delta", "index": index, "delta": delta});
        all.push(Frame::new("content_block_delta", data));
    }
    all.push(Frame::new("content_block_stop", json!({"type": "content_block_stop", "index": index})));
}

fn first_half(text: &str) -> &str {
    let middle = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..middle]
}

fn split(text: &str, chunk: Chunk) -> Vec<&str> {
    match chunk {
        Chunk::Word => text.split_inclusive(char::is_whitespace).collect(),
        Chunk::Chars(size) => {
            let size = usize::try_from(size.get()).unwrap_or(usize::MAX);
            let mut parts = Vec::new();
            let mut rest = text;
            while !rest.is_empty() {
                let end = rest.char_indices().nth(size).map_or(rest.len(), |(at, _)| at);
                let (part, tail) = rest.split_at(end);
                parts.push(part);
                rest = tail;
            }
            parts
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use rstest::rstest;

    use super::*;
    use crate::model::script::{Pace, StreamError};

    fn message(blocks: Vec<Block>) -> Message {
        Message {
            id: "msg_1".into(),
            model: "m".into(),
            blocks,
            stop_reason: StopReason::EndTurn,
            input_tokens: 5,
            pace: Pace {
                first_token: Duration::from_millis(100),
                per_token: Duration::from_millis(10),
                chunk: Chunk::Word,
            },
            ending: Ending::Complete,
        }
    }

    fn names(frames: &[Frame]) -> Vec<&str> {
        frames.iter().map(|frame| frame.event).collect()
    }

    #[test]
    fn a_text_is_streamed_word_by_word() {
        let (frames, tail) = frames(&message(vec![Block::Text("a b c".into())]));
        assert_eq!(tail, Tail::End);
        assert_eq!(
            names(&frames),
            [
                "message_start",
                "content_block_start",
                "ping",
                "content_block_delta",
                "content_block_delta",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop"
            ]
        );
        let delays: Vec<_> = frames.iter().map(|frame| frame.delay.as_millis()).collect();
        assert_eq!(delays, [0, 100, 0, 0, 10, 10, 0, 0, 0]);
        assert_eq!(frames[7].data["usage"]["output_tokens"], 2);
        assert_eq!(frames[7].data["delta"]["stop_reason"], "end_turn");
    }

    #[test]
    fn deltas_add_up_to_the_block() {
        let input = json!({"command": "echo 'hello wörld'"});
        let blocks = vec![
            Block::Thinking("hm hm".into()),
            Block::Text("schön  war\nes".into()),
            Block::ToolUse { id: "toolu_1".into(), name: "bash".into(), input: input.clone() },
        ];
        for chunk in [Chunk::Word, Chunk::Chars(NonZeroU32::MIN), Chunk::Chars(NonZeroU32::MAX)] {
            let mut message = message(blocks.clone());
            message.pace.chunk = chunk;
            let (frames, _) = frames(&message);
            let joined = |field: &str| -> String {
                frames.iter().filter_map(|frame| frame.data["delta"][field].as_str()).collect()
            };
            assert_eq!(joined("thinking"), "hm hm");
            assert_eq!(joined("signature"), signature("hm hm"));
            assert_eq!(joined("text"), "schön  war\nes");
            assert_eq!(serde_json::from_str::<Value>(&joined("partial_json")).unwrap(), input);
        }
    }

    #[test]
    fn at_max_tokens_the_last_input_is_cut() {
        let mut message =
            message(vec![Block::ToolUse { id: "t".into(), name: "bash".into(), input: json!({"command": "ls"}) }]);
        message.stop_reason = StopReason::MaxTokens;
        let (frames, _) = frames(&message);
        let input: String = frames.iter().filter_map(|frame| frame.data["delta"]["partial_json"].as_str()).collect();
        assert!(!input.is_empty() && serde_json::from_str::<Value>(&input).is_err(), "{input}");
    }

    #[rstest]
    #[case::hang(Ending::Hang { after_tokens: 2 }, Tail::Hang, "content_block_delta", 2)]
    #[case::at_once(Ending::Hang { after_tokens: 0 }, Tail::Hang, "ping", 0)]
    #[case::disconnect(Ending::Disconnect { after_tokens: 1 }, Tail::Disconnect, "content_block_delta", 1)]
    #[case::beyond(Ending::Disconnect { after_tokens: 9 }, Tail::Disconnect, "content_block_stop", 3)]
    #[case::error(Ending::Error(StreamError { after_tokens: 1, kind: "overloaded_error".into(), message: "m".into() }), Tail::End, "error", 1)]
    fn endings(#[case] ending: Ending, #[case] tail: Tail, #[case] last: &str, #[case] tokens: usize) {
        let mut message = message(vec![Block::Text("a b c".into())]);
        message.ending = ending;
        let (frames, actual) = frames(&message);
        assert_eq!(actual, tail);
        assert_eq!(frames.last().unwrap().event, last);
        assert_eq!(frames.iter().filter(|frame| frame.token).count(), tokens);
    }

    #[test]
    fn an_empty_message_is_a_start_and_a_stop() {
        let (frames, _) = frames(&message(Vec::new()));
        assert_eq!(names(&frames), ["message_start", "message_delta", "message_stop"]);
    }
}
