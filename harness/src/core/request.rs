//! The body of a model request, built from the transcript.
//!
//! The same log gives the same bytes, and a longer log gives a body that begins with the same messages, so that the
//! model API's cache is hit.

use longhand_protocol::harness::{AgentSnapshot, Model, RECALL, Recall};
use serde_json::{Value, json};

use super::context::text_weight;
use super::conversation::json_weight;
use super::tools::ToolSet;
use super::transcript::{Answer, Call, CallState, Item, Transcript};

/// The body of `POST /v1/messages` to this model, which is one of the agent's.
pub(super) fn build(agent: &AgentSnapshot, model: &Model, tools: &ToolSet, transcript: &Transcript) -> Value {
    let recalls = agent.context.recall != Recall::Never;
    let mut messages = Messages::to(&model.id);
    transcript.items().iter().for_each(|item| messages.take(item, recalls));
    frame(agent, model, tools, messages)
}

/// Bytes of every request that are not of the conversation.
pub(super) fn overhead(agent: &AgentSnapshot, tools: &ToolSet) -> u64 {
    let definitions = tools.definitions().iter().map(json_weight).fold(0, u64::saturating_add);
    definitions.saturating_add(text_weight(agent.system.as_deref()))
}

/// A request with these messages.
pub(super) fn frame(agent: &AgentSnapshot, model: &Model, tools: &ToolSet, messages: Messages<'_>) -> Value {
    let mut messages = messages.into_json();
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

fn summary_note(text: &str, recalls: bool) -> String {
    let how =
        if recalls { format!(" The tool `{RECALL}` looks up anything in the full record.") } else { String::new() };
    format!(
        "The conversation up to here was left out to save context. This summary of it stands in its place.{how}\n\n\
         <summary>\n{text}\n</summary>"
    )
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

/// What stands in the place of a result that is not sent any more.
fn cleared_note(call: &Call, bytes: u64, recalls: bool) -> Vec<Value> {
    let what = format!("This result, of about {bytes} bytes, was left out to save context.");
    let how = format!(
        " The tool `{RECALL}` gives it: {{\"after\": {}, \"before\": {}}}.",
        call.seq.saturating_sub(1),
        call.seq.saturating_add(1)
    );
    let note = if recalls { format!("{what}{how}") } else { what };
    vec![json!({"type": "text", "text": note})]
}

/// Results in the order of the calls, whatever the order in which they came.
fn results(answer: &Answer, recalls: bool) -> impl Iterator<Item = Value> + '_ {
    answer.calls.iter().map(move |call| {
        let (content, is_error) = match (&call.state, call.cleared) {
            (CallState::Answered { is_error, .. }, Some(bytes)) => (cleared_note(call, bytes, recalls), *is_error),
            (CallState::Answered { content, is_error }, None) => (content.clone(), *is_error),
            (CallState::Open { .. } | CallState::Stopped { .. }, _) => (Vec::new(), true),
        };
        let mut result = json!({"type": "tool_result", "tool_use_id": call.model_id});
        if !content.is_empty() {
            result["content"] = Value::Array(content);
        }
        if is_error {
            result["is_error"] = json!(true);
        }
        result
    })
}

/// Messages whose roles alternate.
pub(super) struct Messages<'a> {
    /// The model that they are for.
    model: &'a str,
    parts: Vec<(&'static str, Vec<Value>)>,
}

impl<'a> Messages<'a> {
    /// None yet, for this model.
    pub(super) const fn to(model: &'a str) -> Self {
        Self { model, parts: Vec::new() }
    }

    /// Takes the next part of the conversation; `recalls` says that the model may be told of `recall`.
    pub(super) fn take(&mut self, item: &Item, recalls: bool) {
        match item {
            Item::Summary(text) => {
                self.push("user", std::iter::once(json!({"type": "text", "text": summary_note(text, recalls)})));
            }
            Item::User(content) => self.push("user", content.iter().cloned()),
            Item::Answer(answer) => {
                let own = answer.model.as_deref().is_none_or(|of| of == self.model);
                let taken = |block: &&Value| !is_empty_text(block) && (!is_thinking(block) || own && is_signed(block));
                self.push("assistant", answer.content.iter().filter(taken).cloned());
                self.push("user", results(answer, recalls));
            }
        }
    }

    /// Takes a text of the user's.
    pub(super) fn say(&mut self, text: &str) {
        self.push("user", std::iter::once(json!({"type": "text", "text": text})));
    }

    fn into_json(self) -> Vec<Value> {
        self.parts.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
    }

    fn push(&mut self, role: &'static str, blocks: impl Iterator<Item = Value>) {
        let mut blocks = blocks.peekable();
        if blocks.peek().is_none() {
            return;
        }
        match self.parts.last_mut() {
            Some((last, content)) if *last == role => content.extend(blocks),
            _ => self.parts.push((role, blocks.collect())),
        }
    }
}
