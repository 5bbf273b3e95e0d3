//! A request of the Messages API as a chat completions server takes it.
//!
//! The same body gives the same bytes, and a longer conversation begins with the same messages, so that a server's prefix
//! cache is hit.

use serde_json::{Map, Value, json};

use crate::model::portable;

/// What takes the place of a result that has no text; some chat templates fail on an empty one.
const NO_OUTPUT: &str = "(no output)";
/// There is no `is_error` in this API.
const ERROR: &str = "Error: ";

/// The body of `POST /v1/chat/completions`. What this API has no words for is left out: thinking, cache markers, and blocks
/// of a server's own tools.
#[must_use]
pub fn translate(body: &Value) -> Value {
    let mut chat = json!({ "model": body["model"], "stream": true, "stream_options": {"include_usage": true} });
    // Servers know it by this name; `max_completion_tokens` is newer than many of them.
    if let Some(tokens) = body["max_tokens"].as_u64() {
        chat["max_tokens"] = json!(tokens);
    }
    if let Some(effort) = body["output_config"]["effort"].as_str() {
        chat["reasoning_effort"] = json!(if effort == "max" { "xhigh" } else { effort });
    }
    let mut messages = Vec::new();
    let system = texts(&body["system"]).join("\n\n");
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    for message in body["messages"].as_array().into_iter().flatten() {
        let blocks = message["content"].as_array().map(Vec::as_slice).unwrap_or_default();
        if message["role"] == "assistant" { messages.extend(assistant(blocks)) } else { user(blocks, &mut messages) }
    }
    chat["messages"] = Value::Array(messages);
    let tools: Vec<Value> = body["tools"].as_array().into_iter().flatten().filter_map(tool).collect();
    if !tools.is_empty() {
        chat["tools"] = Value::Array(tools);
    }
    chat
}

fn texts(blocks: &Value) -> Vec<&str> {
    blocks.as_array().into_iter().flatten().filter_map(text).collect()
}

fn text(block: &Value) -> Option<&str> {
    block["text"].as_str().filter(|text| block["type"] == "text" && !text.is_empty())
}

fn tool(tool: &Value) -> Option<Value> {
    let mut function = Map::new();
    function.insert("name".to_owned(), tool["name"].clone());
    if tool["description"].is_string() {
        function.insert("description".to_owned(), tool["description"].clone());
    }
    // A tool without a schema is one of the server's own.
    function.insert("parameters".to_owned(), tool.get("input_schema")?.clone());
    Some(json!({"type": "function", "function": function}))
}

fn assistant(blocks: &[Value]) -> Option<Value> {
    let text: String = blocks.iter().filter_map(text).collect();
    let calls: Vec<Value> = blocks.iter().filter(|block| block["type"] == "tool_use").map(call).collect();
    if text.is_empty() && calls.is_empty() {
        return None;
    }
    let mut message = json!({"role": "assistant", "content": (!text.is_empty()).then_some(text)});
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    Some(message)
}

fn call(block: &Value) -> Value {
    let function = json!({"name": portable::name(&block["name"]), "arguments": block["input"].to_string()});
    json!({"id": block["id"], "type": "function", "function": function})
}

/// Results come first, each in a message of its own, and their images after all of them: a result is text.
fn user(blocks: &[Value], messages: &mut Vec<Value>) {
    let (results, said): (Vec<&Value>, Vec<&Value>) = blocks.iter().partition(|block| block["type"] == "tool_result");
    let mut parts = Vec::new();
    for result in results {
        let content = result["content"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut lines = Vec::new();
        for block in content {
            match part(block) {
                Part::Text(text) => lines.push(text),
                Part::Image(image) => {
                    lines.push("[an image, which follows the results]".to_owned());
                    parts.push(image);
                }
            }
        }
        let text = result["content"].as_str().map_or_else(|| lines.join("\n"), ToOwned::to_owned);
        let text = if text.is_empty() { NO_OUTPUT.to_owned() } else { text };
        let prefix = if result["is_error"] == true { ERROR } else { "" };
        messages
            .push(json!({"role": "tool", "tool_call_id": result["tool_use_id"], "content": format!("{prefix}{text}")}));
    }
    for block in said {
        parts.push(match part(block) {
            Part::Text(text) => json!({"type": "text", "text": text}),
            Part::Image(image) => image,
        });
    }
    if parts.iter().all(|part| part["type"] == "text") {
        // Any server takes one string, and not all take a list.
        let text = parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n\n");
        if !text.is_empty() {
            messages.push(json!({"role": "user", "content": text}));
        }
    } else {
        messages.push(json!({"role": "user", "content": parts}));
    }
}

/// What a block of a message becomes.
enum Part {
    Text(String),
    Image(Value),
}

fn part(block: &Value) -> Part {
    let source = &block["source"];
    let field = |name: &str| source[name].as_str();
    let image = |url: String| Part::Image(json!({"type": "image_url", "image_url": {"url": url}}));
    match (block["type"].as_str().unwrap_or("block"), field("type")) {
        ("text", _) => Part::Text(block["text"].as_str().unwrap_or_default().to_owned()),
        ("image", Some("base64")) => {
            let (kind, data) = (field("media_type").unwrap_or("image/png"), field("data").unwrap_or_default());
            image(format!("data:{kind};base64,{data}"))
        }
        ("image", Some("url")) => image(field("url").unwrap_or_default().to_owned()),
        ("document", Some("text")) => Part::Text(field("data").unwrap_or_default().to_owned()),
        (kind, _) => Part::Text(format!("[a {kind}, which this model cannot be shown]")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::translate;

    fn messages(messages: &Value) -> Value {
        translate(&json!({"model": "m", "messages": messages}))["messages"].clone()
    }

    #[test]
    fn a_whole_request() {
        let marker = json!({"type": "ephemeral"});
        let body = json!({
            "model": "m", "max_tokens": 9, "stream": true,
            "output_config": {"effort": "max"},
            "system": [{"type": "text", "text": "Be brief.", "cache_control": marker}],
            "tools": [
                {"name": "bash", "description": "Runs.", "input_schema": {"type": "object"}, "cache_control": marker},
                {"type": "web_search_20250305", "name": "web_search"},
            ],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": marker}]}],
        });
        let expected = json!({
            "model": "m", "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 9, "reasoning_effort": "xhigh",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
            "tools": [{"type": "function", "function": {"name": "bash", "description": "Runs.", "parameters": {"type": "object"}}}],
        });
        assert_eq!(translate(&body), expected);
    }

    #[rstest]
    #[case::thinking_is_never_sent(
        json!([{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        json!([{"role": "assistant", "content": "ab"}]))]
    #[case::only_thinking(json!([{"type": "thinking", "thinking": "hm"}, {"type": "compaction", "content": "x"}]), json!([]))]
    #[case::calls(
        json!([{"type": "text", "text": "a"}, {"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls"}}]),
        json!([{"role": "assistant", "content": "a", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{\"command\":\"ls\"}"}}]}]))]
    #[case::only_calls(
        json!([{"type": "tool_use", "id": "c1", "name": "bash", "input": {}}]),
        json!([{"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}]}]))]
    #[case::a_name_that_servers_refuse(
        json!([{"type": "tool_use", "id": "c1", "name": "ba sh<|x|>", "input": {}}]),
        json!([{"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "ba_sh__x__", "arguments": "{}"}}]}]))]
    fn what_the_model_said(#[case] content: Value, #[case] expected: Value) {
        assert_eq!(messages(&json!([{"role": "assistant", "content": content}])), expected);
    }

    #[rstest]
    #[case::texts(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), json!([{"role": "user", "content": "a\n\nb"}]))]
    #[case::images(
        json!([{"type": "text", "text": "a"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AA=="}},
            {"type": "image", "source": {"type": "url", "url": "https://i.test/x"}}]),
        json!([{"role": "user", "content": [{"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AA=="}},
            {"type": "image_url", "image_url": {"url": "https://i.test/x"}}]}]))]
    #[case::documents(
        json!([{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}}]),
        json!([{"role": "user", "content": "d\n\n[a document, which this model cannot be shown]"}]))]
    #[case::results_come_first(
        json!([{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "out"}]},
            {"type": "tool_result", "tool_use_id": "c2", "is_error": true},
            {"type": "tool_result", "tool_use_id": "c3", "is_error": true, "content": [{"type": "text", "text": "no such file"}]},
            {"type": "text", "text": "go on"}]),
        json!([{"role": "tool", "tool_call_id": "c1", "content": "out"},
            {"role": "tool", "tool_call_id": "c2", "content": "Error: (no output)"},
            {"role": "tool", "tool_call_id": "c3", "content": "Error: no such file"},
            {"role": "user", "content": "go on"}]))]
    #[case::an_image_as_a_result(
        json!([{"type": "tool_result", "tool_use_id": "c1", "content": [
            {"type": "text", "text": "a chart"}, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]}]),
        json!([{"role": "tool", "tool_call_id": "c1", "content": "a chart\n[an image, which follows the results]"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]))]
    fn what_the_client_and_the_tools_said(#[case] content: Value, #[case] expected: Value) {
        assert_eq!(messages(&json!([{"role": "user", "content": content}])), expected);
    }
}
