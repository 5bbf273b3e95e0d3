//! The decision: which rule answers a request, and with what. Pure, but for the identifiers that the caller makes.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    request::{Request, tokens},
    script::{Ending, HttpError, MessageTemplate, Pace, Script, StopReason, Then, When},
};

/// A script and how often each of its rules has answered.
#[derive(Debug)]
pub struct Player {
    script: Script,
    used: Vec<u32>,
}

/// What a request gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The index of the rule that matched, if one did.
    pub rule: Option<usize>,
    /// The reply.
    pub reply: Reply,
}

/// A reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// An HTTP error, after a delay.
    Error {
        /// What is sent.
        error: HttpError,
        /// How long the client waits for it.
        delay: std::time::Duration,
    },
    /// An assistant message.
    Message(Box<Message>),
}

/// An assistant message, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its identifier, `msg_...`.
    pub id: String,
    /// The model that the request named.
    pub model: String,
    /// Its content.
    pub blocks: Vec<Block>,
    /// Why it ends.
    pub stop_reason: StopReason,
    /// Tokens of the request.
    pub input_tokens: u64,
    /// How fast it is sent.
    pub pace: Pace,
    /// How the stream ends.
    pub ending: Ending,
}

/// A content block.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A thinking block; its signature follows from its text.
    Thinking(String),
    /// A text block.
    Text(String),
    /// A tool use.
    ToolUse {
        /// Its identifier, `toolu_...`.
        id: String,
        /// The tool's name.
        name: String,
        /// The tool's input.
        input: Value,
    },
}

impl Player {
    /// A player at the beginning of a script.
    #[must_use]
    pub fn new(script: Script) -> Self {
        Self { used: vec![0; script.rules.len()], script }
    }

    /// Answers a request and counts the rule that did. `new_id` makes an identifier with a prefix that was never used before.
    pub fn respond(&mut self, request: &Request, mut new_id: impl FnMut(&str) -> String) -> Answer {
        let found = self
            .script
            .rules
            .iter()
            .zip(&mut self.used)
            .enumerate()
            .find(|(_, (rule, used))| matches(&rule.when, **used, request));
        let Some((index, (rule, used))) = found else {
            let text = Block::Text(format!("You said: {}", request.last_user));
            let message = Message {
                id: new_id("msg_"),
                model: request.model.clone(),
                blocks: vec![text],
                stop_reason: StopReason::EndTurn,
                input_tokens: request.input_tokens,
                pace: Pace::default(),
                ending: Ending::Complete,
            };
            return Answer { rule: None, reply: Reply::Message(Box::new(message)) };
        };
        *used = used.saturating_add(1);
        let reply = match &rule.then {
            Then::Error { error, delay } => Reply::Error { error: error.clone(), delay: *delay },
            Then::Message(template) => Reply::Message(Box::new(fill(template, request, new_id))),
        };
        Answer { rule: Some(index), reply }
    }
}

fn matches(when: &When, used: u32, request: &Request) -> bool {
    let When { user_contains, turn, tool_result_contains, times } = when;
    user_contains.as_ref().is_none_or(|text| request.last_user.contains(text))
        && turn.is_none_or(|turn| request.turn == turn)
        && tool_result_contains
            .as_ref()
            .is_none_or(|text| request.tool_results.iter().any(|result| result.contains(text)))
        && times.is_none_or(|times| used < times.get())
}

fn fill(template: &MessageTemplate, request: &Request, mut new_id: impl FnMut(&str) -> String) -> Message {
    let values = request.values();
    let thinking = template.thinking.iter().map(|text| Block::Thinking(text.render(values)));
    let text = template.text.iter().map(|text| Block::Text(text.render(values)));
    let mut blocks: Vec<Block> = thinking.chain(text).collect();
    for tool in &template.tool_uses {
        blocks.push(Block::ToolUse { id: new_id("toolu_"), name: tool.name.clone(), input: tool.input.render(values) });
    }
    Message {
        id: new_id("msg_"),
        model: request.model.clone(),
        blocks,
        stop_reason: template.stop_reason,
        input_tokens: request.input_tokens,
        pace: template.pace,
        ending: template.ending.clone(),
    }
}

/// The signature of a thinking block. It follows from the text, so that a client that changes either is found out.
#[must_use]
pub fn signature(thinking: &str) -> String {
    let digest = Sha256::digest(thinking.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Message {
    /// The message as JSON, as the API answers without streaming.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let last = self.blocks.len().saturating_sub(1);
        let content: Vec<Value> = self
            .blocks
            .iter()
            .enumerate()
            .map(|(index, block)| match block {
                Block::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": signature(text)}),
                Block::Text(text) => json!({"type": "text", "text": text}),
                Block::ToolUse { id, name, input } => {
                    let cut = self.stop_reason == StopReason::MaxTokens && index == last;
                    let input = if cut { json!({}) } else { input.clone() };
                    json!({"type": "tool_use", "id": id, "name": name, "input": input})
                }
            })
            .collect();
        let mut message = self.envelope(self.output_tokens());
        message["content"] = Value::Array(content);
        message["stop_reason"] = json!(self.stop_reason);
        message
    }

    /// The message without its content, as `message_start` sends it.
    #[must_use]
    pub fn envelope(&self, output_tokens: u64) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": self.usage(output_tokens),
        })
    }

    /// The usage with a number of output tokens.
    #[must_use]
    pub fn usage(&self, output_tokens: u64) -> Value {
        json!({
            "input_tokens": self.input_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
        })
    }

    /// The tokens of the whole content, by estimate.
    #[must_use]
    pub fn output_tokens(&self) -> u64 {
        let bytes: usize = self
            .blocks
            .iter()
            .map(|block| match block {
                Block::Thinking(text) | Block::Text(text) => text.len(),
                Block::ToolUse { name, input, .. } => name.len() + input.to_string().len(),
            })
            .sum();
        tokens(bytes).max(1)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn request() -> Request {
        Request {
            model: "m".into(),
            stream: true,
            last_user: "what is the weather".into(),
            turn: 1,
            tool_results: vec!["rain".into(), "sun".into()],
            last_tool_result: "sun".into(),
            message_count: 3,
            input_tokens: 7,
        }
    }

    fn player(yaml: &str) -> Player {
        Player::new(Script::parse(yaml).unwrap())
    }

    fn ids() -> impl FnMut(&str) -> String {
        let mut next = 0;
        move |prefix| {
            next += 1;
            format!("{prefix}{next}")
        }
    }

    #[rstest]
    #[case::user("{user_contains: weather}", true)]
    #[case::other_user("{user_contains: Weather}", false)]
    #[case::turn("{turn: 1}", true)]
    #[case::other_turn("{turn: 0}", false)]
    #[case::any_result("{tool_result_contains: rain}", true)]
    #[case::other_result("{tool_result_contains: snow}", false)]
    #[case::all("{user_contains: weather, turn: 1, tool_result_contains: sun}", true)]
    #[case::all_but_one("{user_contains: weather, turn: 1, tool_result_contains: snow}", false)]
    #[case::none("{}", true)]
    fn conditions(#[case] when: &str, #[case] expected: bool) {
        let mut player = player(&format!("rules: [{{when: {when}, then: {{text: yes}}}}]"));
        assert_eq!(player.respond(&request(), ids()).rule.is_some(), expected);
    }

    #[test]
    fn the_first_rule_wins_until_its_times_are_used_up() {
        let mut player = player(
            "rules:\n- when: {times: 2}\n  then: {error: {status: 529, type: overloaded_error, message: m}}\n- then: {text: a}",
        );
        let rules: Vec<_> = (0..4).map(|_| player.respond(&request(), ids()).rule).collect();
        assert_eq!(rules, [Some(0), Some(0), Some(1), Some(1)]);
    }

    #[test]
    fn without_a_rule_it_echoes() {
        let Reply::Message(message) = player("").respond(&request(), ids()).reply else { panic!("a message") };
        assert_eq!(message.blocks, [Block::Text("You said: what is the weather".into())]);
        assert_eq!(message.to_json()["stop_reason"], "end_turn");
    }

    #[test]
    fn a_message_is_filled_in() {
        let yaml = "rules: [{then: {thinking: hm, text: 'so {{last_tool_result}}', tool_uses: [{name: bash, input: {command: \
                    'echo {{message_count}}'}}, {name: read}]}}]";
        let Reply::Message(message) = player(yaml).respond(&request(), ids()).reply else { panic!("a message") };
        let json = message.to_json();
        assert_eq!(
            json["content"],
            json!([
                {"type": "thinking", "thinking": "hm", "signature": signature("hm")},
                {"type": "text", "text": "so sun"},
                {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "echo 3"}},
                {"type": "tool_use", "id": "toolu_2", "name": "read", "input": {}},
            ])
        );
        assert_eq!(json["stop_reason"], "tool_use");
        assert_eq!(json["usage"]["input_tokens"], 7);
    }
}
