//! What the tools take, for clients that ask.

use serde_json::{Value, json};

/// The tools with their descriptions and input schemas, in the form of `tools/list` of MCP.
pub(crate) fn tools() -> Value {
    json!([
        tool(
            "bash",
            "Runs a command in a shell. The working directory and the exported variables stay for the next command. Output \
             over 100 KiB is cut in the middle and kept in a file. A command ends after 120 s unless told otherwise.",
            &json!({
                "command": {"type": "string", "description": "What to run."},
                "restart": {"type": "boolean", "description": "Go back to the first directory and environment."},
                "timeout_ms": {"type": "integer", "minimum": 1, "maximum": 600_000},
                "run_in_background": {"type": "boolean", "description": "Answer at once; look after it with process."},
            }),
            &[],
        ),
        tool(
            "process",
            "Shows the commands in the background, or one of them with the end of its log, or ends it.",
            &json!({
                "id": {"type": "integer", "minimum": 1, "description": "Which job; all of them without."},
                "kill": {"type": "boolean"},
            }),
            &[],
        ),
        tool(
            "read",
            "Reads a text file, at most 256 KiB of it.",
            &json!({
                "file_path": {"type": "string"},
                "view_range": {
                    "type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                    "description": "First and last line, from 1; -1 is the end.",
                },
            }),
            &["file_path"],
        ),
        tool(
            "write",
            "Writes a file, and makes the directories on the way.",
            &json!({"file_path": {"type": "string"}, "content": {"type": "string"}}),
            &["file_path", "content"],
        ),
        tool(
            "edit",
            "Replaces the one place in a file where old_string is, or all of them.",
            &json!({
                "file_path": {"type": "string"},
                "old_string": {"type": "string"},
                "new_string": {"type": "string"},
                "replace_all": {"type": "boolean"},
            }),
            &["file_path", "old_string", "new_string"],
        ),
        tool(
            "glob",
            "Lists files whose path matches a pattern, the newest first, at most 200.",
            &json!({"pattern": {"type": "string"}, "path": {"type": "string", "description": "Where to look."}}),
            &["pattern"],
        ),
        tool(
            "grep",
            "Lists lines that match a regular expression, at most 100 KiB of them, as they are but for their line ends (LF or CRLF).",
            &json!({"pattern": {"type": "string"}, "path": {"type": "string", "description": "Where to look."}}),
            &["pattern"],
        ),
    ])
}

fn tool(name: &str, description: &str, properties: &Value, required: &[&str]) -> Value {
    json!({
        "name": name,
        "description": description,
        "inputSchema": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::tools;
    use crate::tools::input::Tool;

    /// Each schema and its parser know the same fields.
    #[test]
    fn schemas_are_what_is_parsed() {
        let tools = tools();
        assert_eq!(tools.as_array().unwrap().len(), 7);
        for tool in tools.as_array().unwrap() {
            let name = tool["name"].as_str().unwrap();
            let mut input = Map::new();
            for (field, schema) in tool["inputSchema"]["properties"].as_object().unwrap() {
                let value = match schema["type"].as_str().unwrap() {
                    "string" => json!("x"),
                    "boolean" => json!(false),
                    "integer" => json!(1),
                    "array" => json!([1, -1]),
                    other => panic!("{other}"),
                };
                input.insert(field.clone(), value);
            }
            Tool::parse(name, Value::Object(input.clone())).unwrap();
            for field in tool["inputSchema"]["required"].as_array().unwrap() {
                let mut less = input.clone();
                less.remove(field.as_str().unwrap()).unwrap();
                assert!(Tool::parse(name, Value::Object(less)).is_err(), "{name} {field}");
            }
            input.insert("unknown".to_owned(), Value::Null);
            assert!(Tool::parse(name, Value::Object(input)).is_err(), "{name}");
        }
    }
}
