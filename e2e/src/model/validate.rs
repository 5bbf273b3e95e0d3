//! The checks of a request that the real Messages API makes, so that a client's mistakes show in tests and not in production.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::respond::signature;

/// Why a request is refused with `invalid_request_error`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct Invalid {
    at: String,
    problem: String,
}

impl Invalid {
    pub(super) fn new(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { at: at.into(), problem: problem.into() }
    }
}

const REQUEST_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "system",
    "tools",
    "tool_choice",
    "stream",
    "stop_sequences",
    "temperature",
    "top_p",
    "top_k",
    "thinking",
    "metadata",
    "service_tier",
    "container",
    "context_management",
    "mcp_servers",
    "cache_control",
    "output_config",
    "inference_geo",
    "speed",
];

const MAX_CACHE_BREAKPOINTS: usize = 4;

/// Blocks that are accepted without a look inside: the API made them, and the client sends them back.
const OPAQUE_BLOCKS: &[&str] = &[
    "redacted_thinking",
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "compaction",
    "container_upload",
    "image",
    "document",
    "search_result",
];

/// Checks a whole request.
///
/// # Errors
/// [`Invalid`] names the first field that is wrong, by path.
pub fn validate(body: &Value) -> Result<(), Invalid> {
    let body = body.as_object().ok_or_else(|| Invalid::new("body", "Input should be a JSON object"))?;
    known_fields("", body, REQUEST_FIELDS)?;
    match body.get("model") {
        Some(Value::String(model)) if !model.is_empty() => {}
        Some(_) => return Err(Invalid::new("model", "Input should be a non-empty string")),
        None => return Err(Invalid::new("model", "Field required")),
    }
    match body.get("max_tokens") {
        Some(value) if value.as_u64().is_some_and(|tokens| tokens > 0) => {}
        Some(_) => return Err(Invalid::new("max_tokens", "Input should be a positive integer")),
        None => return Err(Invalid::new("max_tokens", "Field required")),
    }
    if body.get("stream").is_some_and(|stream| !stream.is_boolean()) {
        return Err(Invalid::new("stream", "Input should be a valid boolean"));
    }
    match body.get("system") {
        None | Some(Value::String(_)) => {}
        Some(Value::Array(blocks)) => {
            for (index, block) in blocks.iter().enumerate() {
                text_block(&format!("system.{index}"), block)?;
            }
        }
        Some(_) => return Err(Invalid::new("system", "Input should be a string or a list of text blocks")),
    }
    tools(body.get("tools"))?;
    let messages = match body.get("messages") {
        Some(Value::Array(messages)) => messages,
        Some(_) => return Err(Invalid::new("messages", "Input should be a list")),
        None => return Err(Invalid::new("messages", "Field required")),
    };
    self::messages(messages)?;
    let breakpoints = count_cache_control(&Value::Object(body.clone()));
    if breakpoints > MAX_CACHE_BREAKPOINTS {
        return Err(Invalid::new(
            "cache_control",
            format!(
                "A maximum of {MAX_CACHE_BREAKPOINTS} blocks with cache_control may be provided. Found {breakpoints}."
            ),
        ));
    }
    Ok(())
}

fn known_fields(at: &str, object: &Map<String, Value>, known: &[&str]) -> Result<(), Invalid> {
    match object.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) if at.is_empty() => Err(Invalid::new(name, "Extra inputs are not permitted")),
        Some(name) => Err(Invalid::new(format!("{at}.{name}"), "Extra inputs are not permitted")),
    }
}

fn tools(tools: Option<&Value>) -> Result<(), Invalid> {
    let tools = match tools {
        None => return Ok(()),
        Some(Value::Array(tools)) => tools,
        Some(_) => return Err(Invalid::new("tools", "Input should be a list")),
    };
    let mut names = HashSet::new();
    for (index, tool) in tools.iter().enumerate() {
        let at = format!("tools.{index}");
        let name = required_str(&at, tool, "name")?;
        if !is_tool_name(name) {
            return Err(Invalid::new(format!("{at}.name"), "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'"));
        }
        if !names.insert(name) {
            return Err(Invalid::new("tools", "Tool names must be unique."));
        }
        let custom = matches!(tool.get("type").and_then(Value::as_str), None | Some("custom"));
        if custom && tool.pointer("/input_schema/type").and_then(Value::as_str) != Some("object") {
            return Err(Invalid::new(format!("{at}.input_schema.type"), "Input should be 'object'"));
        }
    }
    Ok(())
}

fn is_tool_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn messages(messages: &[Value]) -> Result<(), Invalid> {
    let Some(last) = messages.len().checked_sub(1) else {
        return Err(Invalid::new("messages", "at least one message is required"));
    };
    let mut tool_use_ids = HashSet::new();
    let mut open: Vec<&str> = Vec::new();
    let mut previous_role = None;
    for (index, message) in messages.iter().enumerate() {
        let at = format!("messages.{index}");
        let object = message.as_object().ok_or_else(|| Invalid::new(&at, "Input should be an object"))?;
        known_fields(&at, object, &["role", "content"])?;
        let role = required_str(&at, message, "role")?;
        let is_user = match role {
            "user" => true,
            "assistant" => false,
            _ => return Err(Invalid::new(format!("{at}.role"), "Input should be 'user' or 'assistant'")),
        };
        if index == 0 && !is_user {
            return Err(Invalid::new(&at, "the first message must use the \"user\" role"));
        }
        let may_be_empty = index == last && !is_user;
        let blocks = match object.get("content") {
            Some(Value::String(text)) if text.is_empty() && !may_be_empty => {
                return Err(Invalid::new(&at, "all messages must have non-empty content"));
            }
            Some(Value::String(_)) => &[][..],
            Some(Value::Array(blocks)) if blocks.is_empty() && !may_be_empty => {
                return Err(Invalid::new(&at, "all messages must have non-empty content"));
            }
            Some(Value::Array(blocks)) => blocks,
            Some(_) => {
                return Err(Invalid::new(format!("{at}.content"), "Input should be a string or a list of blocks"));
            }
            None => return Err(Invalid::new(format!("{at}.content"), "Field required")),
        };
        // Messages in a row of one role are one turn to the real API, but results must be in the message next to the uses.
        if is_user {
            let continues = previous_role == Some(true);
            tool_results(&at, index, blocks, if continues { &[] } else { &open })?;
            open.clear();
        } else {
            unanswered(index, &open)?;
            open = tool_uses(&at, blocks, &mut tool_use_ids)?;
        }
        for (number, block) in blocks.iter().enumerate() {
            content_block(&format!("{at}.content.{number}"), block, is_user)?;
        }
        previous_role = Some(is_user);
    }
    unanswered(messages.len(), &open)
}

fn unanswered(next: usize, open: &[&str]) -> Result<(), Invalid> {
    if open.is_empty() {
        return Ok(());
    }
    Err(Invalid::new(
        format!("messages.{}", next.saturating_sub(1)),
        format!(
            "`tool_use` ids were found without `tool_result` blocks immediately after: {}. Each `tool_use` block must have a \
             corresponding `tool_result` block in the next message.",
            open.join(", ")
        ),
    ))
}

fn tool_uses<'a>(at: &str, blocks: &'a [Value], seen: &mut HashSet<&'a str>) -> Result<Vec<&'a str>, Invalid> {
    let mut open = Vec::new();
    for (number, block) in blocks.iter().enumerate().filter(|(_, block)| kind(block) == Some("tool_use")) {
        let id = required_str(&format!("{at}.content.{number}.tool_use"), block, "id")?;
        if !seen.insert(id) {
            return Err(Invalid::new(format!("{at}.content.{number}"), "`tool_use` ids must be unique"));
        }
        open.push(id);
    }
    Ok(open)
}

fn tool_results(at: &str, index: usize, blocks: &[Value], open: &[&str]) -> Result<(), Invalid> {
    let mut answered = HashSet::new();
    let mut other_seen = false;
    for (number, block) in blocks.iter().enumerate() {
        if kind(block) != Some("tool_result") {
            other_seen = true;
            continue;
        }
        let id = required_str(&format!("{at}.content.{number}.tool_result"), block, "tool_use_id")?;
        if !open.contains(&id) {
            return Err(Invalid::new(
                format!("{at}.content.{number}"),
                format!(
                    "unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each `tool_result` block must have a \
                     corresponding `tool_use` block in the previous message."
                ),
            ));
        }
        if other_seen {
            return Err(Invalid::new(
                format!("{at}.content.{number}"),
                "`tool_result` blocks must come before all other content of the message",
            ));
        }
        if !answered.insert(id) {
            return Err(Invalid::new(
                format!("{at}.content.{number}"),
                format!("each tool_use must have a single result. Found multiple `tool_result` blocks with id: {id}"),
            ));
        }
    }
    let missing: Vec<&str> = open.iter().filter(|id| !answered.contains(*id)).copied().collect();
    unanswered(index, &missing)
}

fn content_block(at: &str, block: &Value, is_user: bool) -> Result<(), Invalid> {
    let object = block.as_object().ok_or_else(|| Invalid::new(at, "Input should be an object"))?;
    let kind = kind(block).ok_or_else(|| Invalid::new(format!("{at}.type"), "Field required"))?;
    let wrong_role = |kind: &str| Invalid::new(at, format!("`{kind}` blocks are not allowed in messages of this role"));
    match kind {
        "text" => text_block(at, block),
        "tool_use" if is_user => Err(wrong_role(kind)),
        "tool_use" => {
            known_fields(at, object, &["type", "id", "name", "input", "cache_control", "caller"])?;
            if !is_tool_name(required_str(at, block, "name")?) {
                return Err(Invalid::new(format!("{at}.name"), "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'"));
            }
            match object.get("input") {
                Some(Value::Object(_)) => Ok(()),
                Some(_) => Err(Invalid::new(format!("{at}.input"), "Input should be an object")),
                None => Err(Invalid::new(format!("{at}.input"), "Field required")),
            }
        }
        "tool_result" if !is_user => Err(wrong_role(kind)),
        "tool_result" => tool_result(at, object),
        "thinking" if is_user => Err(wrong_role(kind)),
        "thinking" => {
            known_fields(at, object, &["type", "thinking", "signature"])?;
            let thinking = required_str(at, block, "thinking")?;
            if required_str(at, block, "signature")? != signature(thinking) {
                return Err(Invalid::new(at, "Invalid `signature` in `thinking` block"));
            }
            Ok(())
        }
        other if OPAQUE_BLOCKS.contains(&other) => Ok(()),
        other => Err(Invalid::new(
            at,
            format!("Input tag '{other}' found using 'type' does not match any of the expected tags"),
        )),
    }
}

fn tool_result(at: &str, object: &Map<String, Value>) -> Result<(), Invalid> {
    known_fields(at, object, &["type", "tool_use_id", "content", "is_error", "cache_control"])?;
    if object.get("is_error").is_some_and(|value| !value.is_boolean()) {
        return Err(Invalid::new(format!("{at}.is_error"), "Input should be a valid boolean"));
    }
    match object.get("content") {
        None | Some(Value::String(_)) => Ok(()),
        Some(Value::Array(blocks)) => blocks.iter().enumerate().try_for_each(|(number, block)| match kind(block) {
            Some("text") => text_block(&format!("{at}.content.{number}"), block),
            Some("image" | "document" | "search_result" | "tool_reference") => Ok(()),
            _ => Err(Invalid::new(
                format!("{at}.content.{number}"),
                "Input should be a text, image, document or search result",
            )),
        }),
        Some(_) => Err(Invalid::new(format!("{at}.content"), "Input should be a string or a list of blocks")),
    }
}

fn text_block(at: &str, block: &Value) -> Result<(), Invalid> {
    let object = block.as_object().ok_or_else(|| Invalid::new(at, "Input should be an object"))?;
    if kind(block) != Some("text") {
        return Err(Invalid::new(format!("{at}.type"), "Input should be 'text'"));
    }
    known_fields(at, object, &["type", "text", "cache_control", "citations"])?;
    if required_str(at, block, "text")?.is_empty() {
        return Err(Invalid::new(at, "text content blocks must be non-empty"));
    }
    Ok(())
}

fn required_str<'a>(at: &str, value: &'a Value, field: &str) -> Result<&'a str, Invalid> {
    match value.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Invalid::new(format!("{at}.{field}"), "Input should be a valid string")),
        None => Err(Invalid::new(format!("{at}.{field}"), "Field required")),
    }
}

pub(super) fn kind(block: &Value) -> Option<&str> {
    block.get("type").and_then(Value::as_str)
}

/// Counts breakpoints where the API reads them, and not in what a tool was given.
fn count_cache_control(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(count_cache_control).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| match name.as_str() {
                "cache_control" => usize::from(!value.is_null()),
                "input" | "input_schema" => 0,
                _ => count_cache_control(value),
            })
            .sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn request(messages: &Value) -> Value {
        json!({"model": "m", "max_tokens": 10, "messages": messages})
    }

    fn tool_use(id: &str) -> Value {
        json!({"type": "tool_use", "id": id, "name": "bash", "input": {"command": "ls"}})
    }

    fn result(id: &str) -> Value {
        json!({"type": "tool_result", "tool_use_id": id, "content": "ok"})
    }

    #[rstest]
    #[case::text(json!([{"role": "user", "content": "hi"}]))]
    #[case::row_of_one_role(json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]))]
    #[case::results_then_text(json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "ok"}, tool_use("a"), tool_use("b")]},
        {"role": "user", "content": [result("b"), result("a"), {"type": "text", "text": "and"}]},
    ]))]
    #[case::thinking(json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": signature("hm")}]},
        {"role": "user", "content": "go on"},
    ]))]
    fn what_the_api_takes_is_taken(#[case] messages: Value) {
        assert_eq!(validate(&request(&messages)), Ok(()));
    }

    #[rstest]
    #[case::none(json!([]), "at least one message")]
    #[case::first(json!([{"role": "assistant", "content": "hi"}]), "messages.0: the first message must use")]
    #[case::role(json!([{"role": "system", "content": "hi"}]), "messages.0.role")]
    #[case::empty(json!([{"role": "user", "content": []}]), "non-empty content")]
    #[case::empty_text(json!([{"role": "user", "content": [{"type": "text", "text": ""}]}]), "text content blocks must be non-empty")]
    #[case::extra(json!([{"role": "user", "content": "a", "id": "x"}]), "messages.0.id: Extra inputs")]
    #[case::unknown_block(json!([{"role": "user", "content": [{"type": "txt"}]}]), "Input tag 'txt'")]
    #[case::no_result(json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [tool_use("a")]}, {"role": "user", "content": "so?"},
    ]), "without `tool_result` blocks immediately after: a")]
    #[case::no_result_at_the_end(json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [tool_use("a")]},
    ]), "messages.1: `tool_use` ids were found without")]
    #[case::one_of_two(json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [tool_use("a"), tool_use("b")]},
        {"role": "user", "content": [result("a")]},
    ]), "immediately after: b.")]
    #[case::one_message_later(json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [tool_use("a"), tool_use("b")]},
        {"role": "user", "content": [result("a")]}, {"role": "user", "content": [result("b")]},
    ]), "immediately after: b.")]
    #[case::assistant_between(json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [tool_use("a")]},
        {"role": "assistant", "content": "hm"}, {"role": "user", "content": [result("a")]},
    ]), "immediately after: a")]
    #[case::orphan(json!([{"role": "user", "content": [result("a")]}]), "unexpected `tool_use_id` found")]
    #[case::twice(json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [tool_use("a")]},
        {"role": "user", "content": [result("a"), result("a")]},
    ]), "single result")]
    #[case::text_first(json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [tool_use("a")]},
        {"role": "user", "content": [{"type": "text", "text": "so"}, result("a")]},
    ]), "must come before all other content")]
    #[case::same_id(json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [tool_use("a")]},
        {"role": "user", "content": [result("a")]}, {"role": "assistant", "content": [tool_use("a")]},
        {"role": "user", "content": [result("a")]},
    ]), "ids must be unique")]
    #[case::signature(json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "changed", "signature": signature("hm")}]},
    ]), "Invalid `signature`")]
    #[case::input(json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "bash", "input": "{}"}]},
        {"role": "user", "content": [result("a")]},
    ]), "messages.1.content.0.input: Input should be an object")]
    fn what_the_api_refuses_is_refused(#[case] messages: Value, #[case] expected: &str) {
        let error = validate(&request(&messages)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[rstest]
    #[case("/model", Value::Null, "model: Input should be")]
    #[case("/max_tokens", json!(0), "max_tokens: Input should be a positive")]
    #[case("/max_tokens", json!("9"), "max_tokens: Input should be a positive")]
    #[case("/stream", json!("yes"), "stream: ")]
    #[case("/foo", json!(1), "foo: Extra inputs")]
    #[case("/system", json!(1), "system: ")]
    #[case("/tools", json!([{"name": "a b", "input_schema": {"type": "object"}}]), "tools.0.name")]
    #[case("/tools", json!([{"name": "a"}]), "tools.0.input_schema.type")]
    #[case("/tools", json!([{"name": "a", "input_schema": {"type": "object"}}, {"name": "a", "input_schema": {"type": "object"}}]), "unique")]
    fn fields_are_checked(#[case] field: &str, #[case] value: Value, #[case] expected: &str) {
        let mut body = request(&json!([{"role": "user", "content": "hi"}]));
        body[&field[1..]] = value;
        let error = validate(&body).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn five_cache_breakpoints_are_too_many() {
        let block = json!({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}});
        let four = request(&json!([{"role": "user", "content": [block, block, block, block]}]));
        assert_eq!(validate(&four), Ok(()));
        let five = request(&json!([{"role": "user", "content": [block, block, block, block, block]}]));
        assert!(validate(&five).unwrap_err().to_string().contains("Found 5"));
    }
}
