//! What the script needs to know of a request.

use serde_json::Value;

use super::{
    template::Values,
    validate::{Invalid, kind, validate},
};

/// A valid request, as the script sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The model that was asked for; the reply names it.
    pub model: String,
    /// Whether the reply is streamed.
    pub stream: bool,
    /// The text of the last user message that has text.
    pub last_user: String,
    /// The number of assistant messages since then.
    pub turn: usize,
    /// The texts of the tool results in the last message.
    pub tool_results: Vec<String>,
    /// The text of the last tool result of the whole request, empty if there is none.
    pub last_tool_result: String,
    /// The number of messages.
    pub message_count: usize,
    /// An estimate from the request's size.
    pub input_tokens: u64,
}

const BYTES_PER_TOKEN: usize = 4;

/// How many tokens a text of a size would be, by estimate.
#[must_use]
pub fn tokens(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u64::MAX)
}

impl Request {
    /// A request of so many messages and bytes of which no message was read yet.
    pub(super) fn begin(model: &str, stream: bool, messages: usize, bytes: usize) -> Self {
        Self {
            model: model.to_owned(),
            stream,
            last_user: String::new(),
            turn: 0,
            tool_results: Vec::new(),
            last_tool_result: String::new(),
            message_count: messages,
            input_tokens: tokens(bytes),
        }
    }

    /// Reads and checks a request's body.
    ///
    /// # Errors
    /// [`Invalid`] says what the real API would refuse.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let body: Value = serde_json::from_slice(bytes)
            .map_err(|error| Invalid::new("body", format!("The request body is not valid JSON: {error}")))?;
        validate(&body)?;
        let messages = body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let model = body.get("model").and_then(Value::as_str).unwrap_or_default();
        let stream = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
        let mut facts = Self::begin(model, stream, messages.len(), bytes.len());
        for message in messages {
            if message.get("role").and_then(Value::as_str) == Some("assistant") {
                facts.turn += 1;
                facts.tool_results.clear();
                continue;
            }
            let content = message.get("content").unwrap_or(&Value::Null);
            if let Some(text) = text_of(content) {
                facts.last_user = text;
                facts.turn = 0;
            }
            for block in content.as_array().into_iter().flatten().filter(|block| kind(block) == Some("tool_result")) {
                facts.last_tool_result = block.get("content").and_then(text_of).unwrap_or_default();
                facts.tool_results.push(facts.last_tool_result.clone());
            }
        }
        Ok(facts)
    }

    /// The values of placeholders.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        Values {
            last_user: &self.last_user,
            last_tool_result: &self.last_tool_result,
            message_count: self.message_count,
        }
    }
}

/// The text of a string or of the text blocks in a list, if there is any.
fn text_of(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks
                .iter()
                .filter(|block| kind(block) == Some("text"))
                .filter_map(|block| block.get("text").and_then(Value::as_str))
                .collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(messages: &Value) -> Request {
        let body = json!({"model": "m", "max_tokens": 10, "stream": true, "messages": messages});
        Request::parse(body.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn turns_are_counted_from_the_last_user_text() {
        let tool_use = json!({"type": "tool_use", "id": "a", "name": "bash", "input": {}});
        let result = json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "42"}]});
        let mut messages = vec![
            json!({"role": "user", "content": "one"}),
            json!({"role": "assistant", "content": "uno"}),
            json!({"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]}),
        ];
        let first = parse(&json!(messages));
        assert_eq!((first.last_user.as_str(), first.turn, first.tool_results.len()), ("two\nthree", 0, 0));

        messages.push(json!({"role": "assistant", "content": [tool_use]}));
        messages.push(json!({"role": "user", "content": [result]}));
        let second = parse(&json!(messages));
        assert_eq!((second.last_user.as_str(), second.turn), ("two\nthree", 1));
        assert_eq!(second.tool_results, ["42"]);
        assert_eq!((second.last_tool_result.as_str(), second.message_count), ("42", 5));

        messages.push(json!({"role": "assistant", "content": "done"}));
        messages.push(json!({"role": "user", "content": "thanks"}));
        let third = parse(&json!(messages));
        assert_eq!((third.last_user.as_str(), third.turn), ("thanks", 0));
        assert_eq!((third.tool_results.len(), third.last_tool_result.as_str()), (0, "42"));
    }

    #[test]
    fn a_body_that_is_not_json_is_refused() {
        assert!(Request::parse(b"{").unwrap_err().to_string().starts_with("body: The request body is not valid JSON"));
    }
}
