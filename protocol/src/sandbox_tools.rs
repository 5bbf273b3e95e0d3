//! What a model is told of the tools of a sandbox: the same whoever offers them.

use serde_json::{Value, json};

use crate::harness::SandboxTool;

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
