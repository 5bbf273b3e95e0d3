//! The body of a model request, built from the transcript.
//!
//! The same log gives the same bytes, and a longer log gives a body that begins with the same messages, so that the
//! model API's cache is hit.

use longhand_protocol::harness::{AgentSnapshot, Model};
use serde_json::{Value, json};

use super::tools::ToolSet;
use super::transcript::{Answer, CallState, Item, Transcript};

/// The body of `POST /v1/messages` to this model, which is one of the agent's.
pub(super) fn build(agent: &AgentSnapshot, model: &Model, tools: &ToolSet, transcript: &Transcript) -> Value {
    let mut messages = messages(transcript.items(), &model.id);
    mark_last_user_block(&mut messages);
    let mut body = json!({
        "model": model.id,
        "max_tokens": model.max_tokens,
        "stream": true,
    });
    for (name, value) in model.parameters() {
        body[name] = value;
    }
    if let Some(system) = agent.system.as_deref().filter(|system| !system.is_empty()) {
        let mut block = json!({"type": "text", "text": system});
        mark(&mut block);
        body["system"] = json!([block]);
    }
    let mut definitions = tools.definitions();
    if let Some(last) = definitions.last_mut() {
        mark(last);
        body["tools"] = Value::Array(definitions);
    }
    body["messages"] = Value::Array(messages);
    body
}

fn mark(block: &mut Value) {
    if block.is_object() {
        block["cache_control"] = json!({"type": "ephemeral"});
    }
}

fn mark_last_user_block(messages: &mut [Value]) {
    let last = messages.iter_mut().rev().find(|message| message["role"] == "user");
    if let Some(block) = last.and_then(|message| message["content"].as_array_mut()).and_then(|blocks| blocks.last_mut())
    {
        mark(block);
    }
}

fn messages(items: &[Item], model: &str) -> Vec<Value> {
    let mut messages = Messages::default();
    for item in items {
        match item {
            Item::User(content) => messages.push("user", content.iter().cloned()),
            Item::Answer(answer) => {
                let own = answer.model.as_deref().is_none_or(|of| of == model);
                let taken = |block: &&Value| !is_empty_text(block) && (!is_thinking(block) || own && is_signed(block));
                messages.push("assistant", answer.content.iter().filter(taken).cloned());
                messages.push("user", results(answer));
            }
        }
    }
    messages.0.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

/// The model API takes no thinking but that which it has signed itself.
fn is_thinking(block: &Value) -> bool {
    matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))
}

fn is_signed(block: &Value) -> bool {
    block["type"] == "redacted_thinking" || block["signature"].as_str().is_some_and(|signature| !signature.is_empty())
}

/// The model API gives blocks without text and takes none.
fn is_empty_text(block: &Value) -> bool {
    block["type"] == "text" && block["text"].as_str().is_none_or(str::is_empty)
}

/// Results in the order of the calls, whatever the order in which they came.
fn results(answer: &Answer) -> impl Iterator<Item = Value> + '_ {
    answer.calls.iter().map(|call| {
        let (content, is_error) = match &call.state {
            CallState::Answered { content, is_error } => (content.as_slice(), *is_error),
            CallState::Open { .. } | CallState::Stopped { .. } => (&[][..], true),
        };
        let mut result = json!({"type": "tool_result", "tool_use_id": call.model_id});
        if !content.is_empty() {
            result["content"] = Value::Array(content.to_vec());
        }
        if is_error {
            result["is_error"] = json!(true);
        }
        result
    })
}

/// Messages whose roles alternate.
#[derive(Default)]
struct Messages(Vec<(&'static str, Vec<Value>)>);

impl Messages {
    fn push(&mut self, role: &'static str, blocks: impl Iterator<Item = Value>) {
        let mut blocks = blocks.peekable();
        if blocks.peek().is_none() {
            return;
        }
        match self.0.last_mut() {
            Some((last, content)) if *last == role => content.extend(blocks),
            _ => self.0.push((role, blocks.collect())),
        }
    }
}
