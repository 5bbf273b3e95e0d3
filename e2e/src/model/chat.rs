//! Chat completions: the same script, asked and answered as OpenAI-compatible servers have it. Streaming only. Pure.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{request::Request, respond::Message, script::StopReason, stream::Frame, validate::Invalid};

const REQUEST_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "stream",
    "stream_options",
    "stop",
    "temperature",
    "top_p",
    "seed",
    "reasoning_effort",
];

/// Reads and checks a request's body.
///
/// # Errors
/// [`Invalid`] says what a real server would refuse.
pub fn parse(bytes: &[u8]) -> Result<Request, Invalid> {
    let body: Value = serde_json::from_slice(bytes)
        .map_err(|error| Invalid::new("body", format!("The request body is not valid JSON: {error}")))?;
    let fields = body.as_object().ok_or_else(|| Invalid::new("body", "Input should be a JSON object"))?;
    if let Some(unknown) = fields.keys().find(|name| !REQUEST_FIELDS.contains(&name.as_str())) {
        return Err(Invalid::new(unknown, "Unrecognized request argument"));
    }
    let model = text_at(&body, "model", "model")?;
    if body["stream"] != true {
        return Err(Invalid::new("stream", "This scripted model streams chat completions only"));
    }
    let mut names = HashSet::new();
    for (index, tool) in body["tools"].as_array().into_iter().flatten().enumerate() {
        let at = format!("tools.{index}.function");
        let name = text_at(&tool["function"], "name", &at)?;
        if tool["type"] != "function" || !tool["function"]["parameters"].is_object() || !names.insert(name) {
            return Err(Invalid::new(at, "Should be a function of a name of its own, with a schema as parameters"));
        }
    }
    let messages = body["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| Invalid::new("messages", "Input should be a list that is not empty"))?;
    let mut facts = Request::begin(model, true, messages.len(), bytes.len());
    let mut open: Vec<&str> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let at = format!("messages.{index}");
        take(&mut facts, &mut open, message, &at)?;
    }
    if open.is_empty() { Ok(facts) } else { Err(unanswered("messages", &open)) }
}

fn take<'a>(facts: &mut Request, open: &mut Vec<&'a str>, message: &'a Value, at: &str) -> Result<(), Invalid> {
    let role = text_at(message, "role", at)?;
    if role == "tool" {
        let id = text_at(message, "tool_call_id", at)?;
        let call = open.iter().position(|call| *call == id);
        let call = call.ok_or_else(|| Invalid::new(at, format!("No call before it has the tool_call_id {id}")))?;
        open.remove(call);
        let content = text_at(message, "content", at)?;
        content.clone_into(&mut facts.last_tool_result);
        facts.tool_results.push(content.to_owned());
        return Ok(());
    }
    if !open.is_empty() {
        return Err(unanswered(at, open));
    }
    let content = content(&message["content"], &format!("{at}.content"))?;
    match role {
        "system" => {}
        "user" => {
            if let Some(text) = content {
                facts.last_user = text;
                facts.turn = 0;
            }
        }
        "assistant" => {
            let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
            if content.is_none() && calls.is_empty() {
                return Err(Invalid::new(at, "An assistant message needs content or tool_calls"));
            }
            for call in calls {
                let arguments = text_at(&call["function"], "arguments", at)?;
                let valid = serde_json::from_str::<Value>(arguments).is_ok_and(|input| input.is_object());
                if call["type"] != "function" || text_at(&call["function"], "name", at)?.is_empty() || !valid {
                    return Err(Invalid::new(at, "A tool call needs a name, and arguments that are JSON in a string"));
                }
                open.push(text_at(call, "id", at)?);
            }
            facts.turn += 1;
            facts.tool_results.clear();
        }
        other => return Err(Invalid::new(at, format!("There is no role {other}"))),
    }
    Ok(())
}

fn unanswered(at: &str, open: &[&str]) -> Invalid {
    Invalid::new(at, format!("These tool_call_ids have no message of the role tool: {}", open.join(", ")))
}

fn text_at<'a>(value: &'a Value, name: &str, at: &str) -> Result<&'a str, Invalid> {
    let text = value[name].as_str().filter(|text| !text.is_empty());
    text.ok_or_else(|| Invalid::new(at, format!("`{name}` should be a string that is not empty")))
}

/// The text of a message's content, if it has any.
fn content(content: &Value, at: &str) -> Result<Option<String>, Invalid> {
    let parts = match content {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(text.clone())),
        Value::Array(parts) => parts,
        _ => return Err(Invalid::new(at, "Input should be a string or a list of parts")),
    };
    let mut texts = Vec::new();
    for part in parts {
        match part["type"].as_str() {
            Some("text") => texts.push(text_at(part, "text", at)?),
            Some("image_url") => drop(text_at(&part["image_url"], "url", at)?),
            _ => return Err(Invalid::new(at, "A part should be of the type text or image_url")),
        }
    }
    Ok((!texts.is_empty()).then(|| texts.join("\n")))
}

/// The events of a message of the Messages API as chunks, each token after the same delay.
#[must_use]
pub fn chunks(message: &Message, frames: Vec<Frame>) -> Vec<Frame> {
    let mut calls = 0_usize;
    let mut waited = Duration::ZERO;
    let mut all = Vec::new();
    for frame in frames {
        waited += frame.delay;
        for data in chunk(message, &frame, &mut calls) {
            // An event without a name is data alone.
            all.push(Frame { delay: std::mem::take(&mut waited), event: "", data, token: frame.token });
        }
    }
    all
}

fn chunk(message: &Message, frame: &Frame, calls: &mut usize) -> Vec<Value> {
    let base = |choices: Value| json!({"id": message.id, "object": "chat.completion.chunk", "model": message.model, "choices": choices});
    let delta = |delta: Value| vec![base(json!([{"index": 0, "delta": delta, "finish_reason": null}]))];
    let (block, change) = (&frame.data["content_block"], &frame.data["delta"]);
    match frame.event {
        "message_start" => delta(json!({"role": "assistant", "content": ""})),
        "content_block_start" if block["type"] == "tool_use" => {
            let function = json!({"name": block["name"], "arguments": ""});
            *calls += 1;
            delta(
                json!({"tool_calls": [{"index": *calls - 1, "id": block["id"], "type": "function", "function": function}]}),
            )
        }
        "content_block_delta" => match change["type"].as_str() {
            Some("text_delta") => delta(json!({"content": change["text"]})),
            Some("thinking_delta") => delta(json!({"reasoning_content": change["thinking"]})),
            Some("input_json_delta") => delta(json!({"tool_calls": [
                {"index": calls.saturating_sub(1), "function": {"arguments": change["partial_json"]}},
            ]})),
            _ => Vec::new(),
        },
        "message_delta" => {
            let reason = match message.stop_reason {
                StopReason::EndTurn | StopReason::StopSequence | StopReason::PauseTurn => "stop",
                StopReason::ToolUse => "tool_calls",
                StopReason::MaxTokens | StopReason::ModelContextWindowExceeded => "length",
                StopReason::Refusal => "content_filter",
            };
            let (read, written) = (message.input_tokens, message.output_tokens());
            let mut usage = base(json!([]));
            usage["usage"] =
                json!({"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written});
            vec![base(json!([{"index": 0, "delta": {}, "finish_reason": reason}])), usage]
        }
        "message_stop" => vec![json!("[DONE]")],
        "error" => vec![json!({ "error": frame.data["error"] })],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{chunks, parse};
    use crate::model::respond::{Player, Reply};
    use crate::model::script::Script;
    use crate::model::stream::frames;

    fn call(id: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "bash", "arguments": "{}"}})
    }

    fn body(messages: &Value) -> Vec<u8> {
        json!({"model": "m", "stream": true, "messages": messages}).to_string().into_bytes()
    }

    fn user() -> Value {
        json!({"role": "user", "content": "go"})
    }

    #[test]
    fn a_request_says_what_the_script_needs() {
        let messages = json!([
            {"role": "system", "content": "s"}, user(),
            {"role": "assistant", "content": null, "tool_calls": [call("a"), call("b")]},
            {"role": "tool", "tool_call_id": "b", "content": "2"}, {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        ]);
        let request = parse(&body(&messages)).unwrap();
        assert_eq!((request.last_user.as_str(), request.turn), ("go", 1));
        assert_eq!((request.tool_results, request.message_count), (vec!["2".to_owned(), "1".to_owned()], 6));
    }

    #[rstest]
    #[case(json!([]), "not empty")]
    #[case(json!([{"role": "robot", "content": "a"}]), "no role robot")]
    #[case(json!([{"role": "assistant", "content": null}]), "needs content")]
    #[case(json!([{"role": "assistant", "tool_calls": [call("a")]}]), "no message of the role tool: a")]
    #[case(json!([{"role": "assistant", "tool_calls": [call("a")]}, user()]), "no message of the role tool: a")]
    #[case(json!([{"role": "tool", "tool_call_id": "a", "content": "1"}]), "tool_call_id a")]
    #[case(json!([{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "b", "arguments": "{"}}]}]), "JSON in a string")]
    #[case(json!([{"role": "user", "content": [{"type": "document"}]}]), "text or image_url")]
    fn what_a_server_would_refuse_is_refused(#[case] messages: Value, #[case] part: &str) {
        let invalid = parse(&body(&messages)).unwrap_err().to_string();
        assert!(invalid.contains(part), "{invalid}");
    }

    #[test]
    fn a_message_is_laid_out_in_chunks() {
        let yaml = "rules:\n  - then: {thinking: hm, text: hi, tool_uses: [{name: bash, input: {command: ls}}], stop_reason: tool_use}";
        let mut player = Player::new(Script::parse(yaml).unwrap());
        let request = parse(&body(&json!([user()]))).unwrap();
        let Reply::Message(message) = player.respond(&request, str::to_owned).reply else { unreachable!() };
        let sent = chunks(&message, frames(&message).0);
        let mut text = String::new();
        let (mut thought, mut arguments) = (String::new(), String::new());
        for frame in &sent {
            let delta = &frame.data["choices"][0]["delta"];
            text.push_str(delta["content"].as_str().unwrap_or_default());
            thought.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
            arguments.push_str(delta["tool_calls"][0]["function"]["arguments"].as_str().unwrap_or_default());
        }
        assert_eq!((text.as_str(), thought.as_str(), arguments.as_str()), ("hi", "hm", "{\"command\":\"ls\"}"));
        let reason = sent.iter().find_map(|frame| frame.data["choices"][0]["finish_reason"].as_str());
        assert_eq!(reason, Some("tool_calls"));
        assert_eq!(sent.last().unwrap().encode(), "data: [DONE]\n\n");
    }
}
