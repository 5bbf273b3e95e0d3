//! Tool calls that another API named are sent to the Messages API under identifiers that it takes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

/// The longest name of a tool.
const MAX_NAME: usize = 128;
/// The longest identifier.
const MAX_ID: usize = 256;

/// The body with every identifier of a tool call taken by the API, and used once. Most bodies are so already. What a call is
/// renamed to follows from the calls before it, so that a longer conversation begins with the same bytes.
pub(super) fn identifiers(body: &Value) -> Cow<'_, Value> {
    let mut seen = HashSet::new();
    let calls = body["messages"].as_array().into_iter().flatten().filter_map(|message| message["content"].as_array());
    let mut calls = calls.flatten().filter(|block| block["type"] == "tool_use");
    let fits = |call: &Value| {
        let text = |name: &str| call[name].as_str().unwrap_or_default();
        is_plain(text("id"), MAX_ID) && is_plain(text("name"), MAX_NAME)
    };
    if calls.all(|call| fits(call) && seen.insert(call["id"].as_str())) {
        return Cow::Borrowed(body);
    }
    Cow::Owned(renamed(body.clone()))
}

fn is_plain(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(is_plain_byte)
}

const fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// The name of a tool as APIs take it; a model may have called one that does not exist.
pub(super) fn name(name: &Value) -> String {
    let name = name.as_str().unwrap_or_default();
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' };
    let name: String = name.chars().take(MAX_NAME).map(plain).collect();
    if name.is_empty() { "_".to_owned() } else { name }
}

fn renamed(mut body: Value) -> Value {
    let mut seen: HashSet<String> = HashSet::new();
    let mut calls = 0_usize;
    // Results follow the answer that they are for.
    let mut renamed: HashMap<String, String> = HashMap::new();
    for message in body["messages"].as_array_mut().into_iter().flatten() {
        if message["role"] == "assistant" {
            renamed.clear();
        }
        for block in message["content"].as_array_mut().into_iter().flatten() {
            if block["type"] == "tool_use" {
                calls += 1;
                let id = block["id"].as_str().unwrap_or_default().to_owned();
                if !is_plain(&id, MAX_ID) || !seen.insert(id.clone()) {
                    let mut new = format!("call_{calls}");
                    while !seen.insert(new.clone()) {
                        new.push('_');
                    }
                    block["id"] = json!(new);
                    renamed.insert(id, new);
                }
                block["name"] = json!(name(&block["name"]));
            } else if let Some(new) = block["tool_use_id"].as_str().and_then(|id| renamed.get(id)) {
                block["tool_use_id"] = json!(new);
            }
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::{Value, json};

    use super::identifiers;

    fn call(id: &str, name: &str) -> Value {
        json!({"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": name, "input": {}}]})
    }

    fn result(id: &str) -> Value {
        json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": id}]})
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let body = json!({"messages": [call("toolu_1", "bash"), result("toolu_1"), call("toolu_2", "bash"), result("toolu_2")]});
        assert!(matches!(identifiers(&body), Cow::Borrowed(_)));
    }

    #[test]
    fn identifiers_of_another_api_are_replaced_in_calls_and_results() {
        let messages = [
            call("functions.bash:0", "ba sh"),
            result("functions.bash:0"),
            call("dup", "bash"),
            result("dup"),
            call("dup", ""),
            result("dup"),
            call("call_3", "bash"),
            result("call_3"),
        ];
        let body = json!({ "messages": messages });
        let expected = json!({"messages": [
            call("call_1", "ba_sh"), result("call_1"), call("dup", "bash"), result("dup"), call("call_3", "_"), result("call_3"),
            call("call_4", "bash"), result("call_4"),
        ]});
        assert_eq!(*identifiers(&body), expected);
        let shorter = json!({ "messages": messages[..4] });
        assert_eq!(
            identifiers(&shorter)["messages"].as_array().unwrap()[..],
            expected["messages"].as_array().unwrap()[..4]
        );
    }
}
