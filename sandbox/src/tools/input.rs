//! What the model may ask for.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ToolError, fail};

/// A call that can be carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Bash(BashInput),
    Read(ReadInput),
    Write(WriteInput),
    Edit(EditInput),
    Glob(SearchInput),
    Grep(SearchInput),
    Process(ProcessInput),
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BashInput {
    pub(super) command: Option<String>,
    #[serde(default)]
    pub(super) restart: Option<bool>,
    pub(super) timeout_ms: Option<u64>,
    /// Answer at once and leave the command to the tool `process`.
    pub(super) run_in_background: Option<bool>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProcessInput {
    /// Which job; all of them without.
    pub(super) id: Option<u64>,
    pub(super) kill: Option<bool>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadInput {
    pub(super) file_path: String,
    /// First and last line, from 1; -1 is the end of the file.
    pub(super) view_range: Option<[i64; 2]>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteInput {
    pub(super) file_path: String,
    pub(super) content: String,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EditInput {
    pub(super) file_path: String,
    pub(super) old_string: String,
    pub(super) new_string: String,
    #[serde(default)]
    pub(super) replace_all: Option<bool>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchInput {
    pub(super) pattern: String,
    pub(super) path: Option<String>,
}

impl Tool {
    pub(super) fn parse(name: &str, input: Value) -> Result<Self, ToolError> {
        match name {
            "bash" => fields(name, input).map(Self::Bash),
            "read" => fields(name, input).map(Self::Read),
            "write" => fields(name, input).map(Self::Write),
            "edit" => fields(name, input).map(Self::Edit),
            "glob" => fields(name, input).map(Self::Glob),
            "grep" => fields(name, input).map(Self::Grep),
            "process" => fields(name, input).map(Self::Process),
            other => {
                let other: String = other.chars().take(64).collect();
                fail(format!(
                    "there is no tool {other:?} in this sandbox; it has bash, process, read, write, edit, glob and grep"
                ))
            }
        }
    }
}

fn fields<T: DeserializeOwned>(name: &str, input: Value) -> Result<T, ToolError> {
    // serde would also take an array, with the fields in order.
    if !input.is_object() {
        return fail(format!("the input of {name} must be a JSON object"));
    }
    serde_json::from_value(input).map_err(|error| ToolError(format!("the input of {name} is wrong: {error}")))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{BashInput, ProcessInput, ReadInput, SearchInput, Tool};

    #[test]
    fn the_documented_inputs_are_taken() {
        let bash = Tool::parse("bash", json!({"command": "ls", "timeout_ms": 5})).unwrap();
        assert_eq!(
            bash,
            Tool::Bash(BashInput { command: Some("ls".into()), timeout_ms: Some(5), ..BashInput::default() })
        );
        let read = Tool::parse("read", json!({"file_path": "a", "view_range": [1, -1]})).unwrap();
        assert_eq!(read, Tool::Read(ReadInput { file_path: "a".into(), view_range: Some([1, -1]) }));
        let grep = Tool::parse("grep", json!({"pattern": "x", "path": null})).unwrap();
        assert_eq!(grep, Tool::Grep(SearchInput { pattern: "x".into(), path: None }));
        assert!(Tool::parse("write", json!({"file_path": "a", "content": ""})).is_ok());
        assert!(Tool::parse("edit", json!({"file_path": "a", "old_string": "x", "new_string": ""})).is_ok());
        assert!(Tool::parse("bash", json!({"restart": true, "command": null})).is_ok());
        assert!(Tool::parse("bash", json!({"command": "ls", "run_in_background": true})).is_ok());
        let process = Tool::parse("process", json!({"id": 1, "kill": true})).unwrap();
        assert_eq!(process, Tool::Process(ProcessInput { id: Some(1), kill: Some(true) }));
        assert!(Tool::parse("process", json!({})).is_ok());
    }

    #[rstest]
    #[case("web_search", json!({}), "there is no tool \"web_search\"")]
    #[case("bash", json!(null), "the input of bash must be a JSON object")]
    #[case("bash", json!(["ls"]), "the input of bash must be a JSON object")]
    #[case("bash", json!({"command": 1}), "invalid type: integer `1`, expected a string")]
    #[case("bash", json!({"command": "ls", "timeout_ms": -1}), "invalid value: integer `-1`, expected u64")]
    #[case("read", json!({}), "missing field `file_path`")]
    #[case("read", json!({"file_path": "a", "view_range": [1]}), "invalid length 1")]
    #[case("write", json!({"file_path": "a"}), "missing field `content`")]
    #[case("edit", json!({"file_path": "a", "old_string": "", "new_str": ""}), "unknown field `new_str`, expected one of")]
    fn what_is_wrong_is_said(#[case] name: &str, #[case] input: Value, #[case] message: &str) {
        let error = Tool::parse(name, input).unwrap_err().0;
        assert!(error.contains(message), "{error}");
    }
}
