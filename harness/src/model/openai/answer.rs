//! The stream of a chat completion, put together in the shape of the Messages API.
//!
//! Servers differ in what they leave out, and one that is tolerated here is named where it is.

use std::collections::HashSet;

use longhand_protocol::EventId;
use longhand_protocol::event::Usage;
use serde_json::{Value, json};

use crate::model::accumulate::read_input;
use crate::model::json;
use crate::model::stream::{Frames, Progress, Size};
use crate::model::{Failure, Reply, TextDelta};

/// Longer arguments are not read to find out whether they are complete.
const MAX_WHOLE_ARGUMENTS: usize = 64 * 1024;

/// A completion that is on its way.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    text: String,
    reasoning: String,
    calls: Vec<Call>,
    finish_reason: Option<String>,
    refused: bool,
    usage: Usage,
    size: Size,
}

#[derive(Clone, Debug, Default)]
struct Call {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

impl Frames for Answer {
    fn event(&mut self, data: &str) -> Result<Progress, Failure> {
        if data.trim() == "[DONE]" {
            return self.finish().map(Progress::Done);
        }
        let frame = json::parse(data).map_err(|error| Failure::unreadable(&error))?;
        self.feed(&frame)
    }

    /// Not every server says `[DONE]`.
    fn end(&mut self) -> Result<Reply, Failure> {
        match self.finish_reason {
            Some(_) => self.finish(),
            None => Err(Failure::transport("The model API ended its answer in the middle.")),
        }
    }

    fn usage(&self) -> Usage {
        self.usage
    }
}

impl Answer {
    fn feed(&mut self, frame: &Value) -> Result<Progress, Failure> {
        match &frame["error"] {
            Value::Null if frame["object"] == "error" => return Err(Failure::chat(frame)),
            Value::Null => {}
            error => return Err(Failure::chat(error)),
        }
        self.count(&frame["usage"]);
        // One answer is asked for; the last frames of some servers have none, only the usage.
        let choices = frame["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(choice) = choices.iter().find(|choice| choice["index"].as_u64().unwrap_or(0) == 0) else {
            return Ok(Progress::Quiet);
        };
        if let Some(reason) = choice["finish_reason"].as_str().filter(|reason| !reason.is_empty()) {
            self.finish_reason = Some(reason.to_owned());
        }
        let delta = &choice["delta"];
        for name in ["reasoning_content", "reasoning"] {
            if let Some(more) = delta[name].as_str().filter(|more| !more.is_empty()) {
                self.size.grow(more.len())?;
                self.reasoning.push_str(more);
                break;
            }
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            self.call(call)?;
        }
        let mut text = words(&delta["content"]);
        if let Some(refusal) = delta["refusal"].as_str().filter(|refusal| !refusal.is_empty()) {
            self.refused = true;
            text.push_str(refusal);
        }
        if text.is_empty() {
            return Ok(Progress::Quiet);
        }
        self.size.grow(text.len())?;
        self.text.push_str(&text);
        Ok(Progress::Text(TextDelta { index: 0, text }))
    }

    /// Usage is cumulative, and `prompt_tokens` has those of a cache in it.
    fn count(&mut self, usage: &Value) {
        if let Some(prompt) = usage["prompt_tokens"].as_u64() {
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0).min(prompt);
            (self.usage.input_tokens, self.usage.cache_read_input_tokens) = (prompt - cached, cached);
        }
        if let Some(tokens) = usage["completion_tokens"].as_u64() {
            self.usage.output_tokens = tokens;
        }
    }

    fn call(&mut self, delta: &Value) -> Result<(), Failure> {
        let index = delta["index"].as_u64();
        let field = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (id, name) = (field(&delta["id"]), field(&delta["function"]["name"]));
        // Some servers send the arguments as an object, in one piece.
        let arguments = match &delta["function"]["arguments"] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            whole => whole.to_string(),
        };
        self.size.grow(id.len() + name.len() + arguments.len())?;
        let at = self.calls.iter().rposition(|call| index.is_none() || call.index == index);
        let call = match at.filter(|at| self.calls.get(*at).is_some_and(|call| call.goes_on(index, &id, &name))) {
            Some(at) => self.calls.get_mut(at),
            None => {
                self.size.block()?;
                self.calls.push(Call { index, ..Call::default() });
                self.calls.last_mut()
            }
        };
        if let Some(call) = call {
            if call.id.is_empty() {
                call.id = id;
            }
            if call.name.is_empty() {
                call.name = name;
            }
            call.arguments.push_str(&arguments);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Reply, Failure> {
        let stop_reason = self.stop_reason()?;
        let mut content = Vec::new();
        if !self.reasoning.is_empty() {
            // Without a signature: no model is ever sent it.
            content.push(json!({"type": "thinking", "thinking": std::mem::take(&mut self.reasoning)}));
        }
        if !self.text.is_empty() {
            content.push(json!({"type": "text", "text": std::mem::take(&mut self.text)}));
        }
        let cut_off = stop_reason == "max_tokens";
        let mut incomplete = Vec::new();
        let mut ids = HashSet::new();
        let last = self.calls.len().saturating_sub(1);
        for (position, mut call) in std::mem::take(&mut self.calls).into_iter().enumerate() {
            // A call needs an identifier for its result, and one that no other call of the answer has.
            if call.id.is_empty() || !ids.insert(call.id.clone()) {
                call.id = format!("call_{}", EventId::generate());
            }
            let nothing = call.arguments.trim().is_empty();
            let input = if nothing { Some(serde_json::Map::new()) } else { read_input(&call.arguments) };
            if input.is_none() || call.name.is_empty() || (nothing && cut_off && position == last) {
                incomplete.push(call.id.clone());
            }
            let name = if call.name.is_empty() { "unnamed" } else { &call.name };
            content.push(json!({"type": "tool_use", "id": call.id, "name": name, "input": input.unwrap_or_default()}));
        }
        Ok(Reply { content, stop_reason: Some(stop_reason), usage: self.usage, incomplete })
    }

    /// In the words of the Messages API.
    fn stop_reason(&mut self) -> Result<String, Failure> {
        let calls = !self.calls.is_empty();
        let reason = self.finish_reason.take();
        let reason = match reason.as_deref() {
            Some("stop" | "end_turn" | "eos") if self.refused => "refusal",
            // Some servers say `stop` after calls, or nothing.
            Some("stop" | "end_turn" | "eos" | "tool_calls" | "function_call") | None if calls => "tool_use",
            Some("stop" | "end_turn" | "eos" | "tool_calls" | "function_call") => "end_turn",
            Some("length") => "max_tokens",
            Some("content_filter") => "refusal",
            Some(other) => other,
            None => return Err(Failure::transport("The model API ended its answer without saying why.")),
        };
        Ok(reason.chars().take(100).collect())
    }
}

impl Call {
    /// Whether what has come belongs to this call. Calls are told apart by their index; some servers give every call the same
    /// one, or none.
    fn goes_on(&self, index: Option<u64>, id: &str, name: &str) -> bool {
        if !id.is_empty() && !self.id.is_empty() {
            return id == self.id;
        }
        if name.is_empty() || self.name.is_empty() {
            return true;
        }
        // A name again, without an identifier: the same call's, unless that is complete.
        index.is_some() && name == self.name && !self.is_complete()
    }

    fn is_complete(&self) -> bool {
        self.arguments.len() <= MAX_WHOLE_ARGUMENTS && serde_json::from_str::<Value>(&self.arguments).is_ok()
    }
}

/// The text of a delta: a string, or parts of type `text`.
fn words(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
