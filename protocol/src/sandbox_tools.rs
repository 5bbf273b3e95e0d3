//! What a model is told of the tools of a sandbox: the same whoever offers them.

use serde_json::{Value, json};

use crate::harness::SandboxTool;

/// The field of a tool's input by which the model chooses among the sandboxes of a session that has several.
pub const SANDBOX: &str = "sandbox";
/// A longer name than any sandbox has is cut: it is only repeated to who gave it.
const LONGEST_NAME: usize = 64;

/// Takes out of a tool's input which of these sandboxes it is for; nothing where there is no choice, or none was made. What
/// is no name, or that of no sandbox, is given as it is: whoever runs the call says that there is no such sandbox.
pub fn take_sandbox(input: &mut Value, sandboxes: &[String]) -> Option<String> {
    if sandboxes.len() < 2 {
        return None;
    }
    let name = match input.as_object_mut()?.remove(SANDBOX)? {
        Value::Null => return None,
        Value::String(name) => name,
        other => other.to_string(),
    };
    Some(shortened(&name))
}

/// A name of a sandbox as it may be shown.
#[must_use]
pub fn shortened(name: &str) -> String {
    name.chars().take(LONGEST_NAME).collect()
}

impl SandboxTool {
    /// What the tool does, for the model.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Bash => {
                "Runs a command in a bash shell inside the sandbox and returns what it printed and its exit code. The shell \
             keeps its working directory and variables from call to call; `restart` starts a new one. Calls that \
             need no input from a terminal work best. Long output is cut: redirect it to a file and read parts of it."
            }
            Self::Read => {
                "Reads a text file of the sandbox and returns its lines with their numbers. Give `view_range` to read a part \
             of a large file."
            }
            Self::Write => {
                "Writes a text file in the sandbox; directories are made as needed and a file that exists is replaced."
            }
            Self::Edit => {
                "Replaces a string in a file of the sandbox. `old_string` must occur in it exactly once, with the same white \
             space, unless `replace_all` is true."
            }
            Self::Glob => {
                "Finds files of the sandbox whose path matches a pattern such as `**/*.rs`, the most recently changed first."
            }
            Self::Grep => {
                "Finds lines that match a regular expression in files of the sandbox, and returns them with file and line \
             number. Files that version control ignores are left out."
            }
        }
    }

    /// The JSON schema of the tool's input where there are these sandboxes: with more than one the model may choose.
    #[must_use]
    pub fn input_schema_among(self, sandboxes: &[String]) -> Value {
        let mut schema = self.input_schema();
        if let [first, _, ..] = sandboxes {
            schema["properties"][SANDBOX] = json!({"type": "string", "enum": sandboxes, "description":
                format!("The sandbox to use. Each has its own files and processes; `{first}` unless given.")});
        }
        schema
    }

    /// The JSON schema of the tool's input.
    #[must_use]
    pub fn input_schema(self) -> Value {
        let (properties, required): (Value, &[&str]) = match self {
            Self::Bash => (
                json!({
                    "command": {"type": "string", "description": "The command to run."},
                    "restart": {"type": "boolean", "description": "Start a new shell; `command` is not needed then."},
                    "timeout_ms": {"type": "integer", "minimum": 1,
                        "description": "End the command after so many milliseconds; 120000 unless given."},
                }),
                &[],
            ),
            Self::Read => (
                json!({
                    "file_path": {"type": "string", "description": "The file, absolute or relative to the workspace."},
                    "view_range": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                        "description": "First and last line, counted from 1; -1 as the last means the end of the file."},
                }),
                &["file_path"],
            ),
            Self::Write => (
                json!({
                    "file_path": {"type": "string", "description": "The file, absolute or relative to the workspace."},
                    "content": {"type": "string", "description": "The whole content of the file."},
                }),
                &["file_path", "content"],
            ),
            Self::Edit => (
                json!({
                    "file_path": {"type": "string", "description": "The file, absolute or relative to the workspace."},
                    "old_string": {"type": "string", "description": "What to replace."},
                    "new_string": {"type": "string", "description": "What to put in its place."},
                    "replace_all": {"type": "boolean", "description": "Replace every occurrence."},
                }),
                &["file_path", "old_string", "new_string"],
            ),
            Self::Glob => (
                json!({
                    "pattern": {"type": "string", "description": "The pattern."},
                    "path": {"type": "string", "description": "The directory to search; the workspace unless given."},
                }),
                &["pattern"],
            ),
            Self::Grep => (
                json!({
                    "pattern": {"type": "string", "description": "The regular expression."},
                    "path": {"type": "string", "description": "The file or directory to search; the workspace unless given."},
                }),
                &["pattern"],
            ),
        };
        json!({"type": "object", "properties": properties, "required": required})
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::take_sandbox;
    use crate::harness::SandboxTool;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_where_there_is_a_choice_the_model_is_told_of_it() {
        for tool in SandboxTool::ALL {
            assert_eq!(tool.input_schema_among(&names(&["main"])), tool.input_schema());
            let mut schema = tool.input_schema_among(&names(&["main", "build"]));
            assert_eq!(schema["properties"]["sandbox"]["enum"], json!(["main", "build"]));
            schema["properties"].as_object_mut().unwrap().remove("sandbox");
            assert_eq!(schema, tool.input_schema());
        }
    }

    #[rstest]
    #[case(json!({"a": 1}), None)]
    #[case(json!({"a": 1, "sandbox": "build"}), Some("build"))]
    #[case(json!({"a": 1, "sandbox": null}), None)]
    #[case(json!({"a": 1, "sandbox": 7}), Some("7"))]
    #[case(json!({"a": 1, "sandbox": "x".repeat(1_000)}), Some("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"))]
    fn the_choice_is_no_part_of_the_input(#[case] given: Value, #[case] chosen: Option<&str>) {
        let mut input = given.clone();
        assert_eq!(take_sandbox(&mut input, &names(&["main", "build"])).as_deref(), chosen);
        assert_eq!(input, json!({"a": 1}));
        let mut input = given.clone();
        assert_eq!((take_sandbox(&mut input, &names(&["main"])), input), (None, given));
    }

    #[test]
    fn what_is_no_object_chooses_nothing() {
        assert_eq!(take_sandbox(&mut json!("sandbox"), &names(&["main", "build"])), None);
    }
}
