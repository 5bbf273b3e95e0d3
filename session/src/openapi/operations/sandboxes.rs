//! Ways into sandboxes.

use longhand_protocol::wire::handoffs::{HandOff, SandboxHandoff};
use longhand_protocol::wire::ports::PortLink;
use schemars::generate::SchemaGenerator;
use schemars::{Schema, json_schema};
use serde_json::json;

use super::{Answer, Operation, Parameter, Takes, json_of, number, text};
use crate::api::wire::sandboxes::transfer::{ARCHIVE, FILE};

/// The same for a sandbox of a session and for any by its own name.
pub(super) fn sandboxes() -> Vec<Operation> {
    let of_session = of(
        [
            "/sessions/{session}/sandboxes/{sandbox}/files",
            "/sessions/{session}/sandboxes/{sandbox}/archive",
            "/sessions/{session}/sandboxes/{sandbox}/terminal",
            "/sessions/{session}/sandboxes/{sandbox}/ports/{port}",
        ],
        [
            "getSessionFile",
            "putSessionFile",
            "getSessionFolder",
            "putSessionFolder",
            "openSessionTerminal",
            "openSessionPort",
            "linkSessionPort",
        ],
    );
    let of_any = of(
        [
            "/sandboxes/{sandbox}/files",
            "/sandboxes/{sandbox}/archive",
            "/sandboxes/{sandbox}/terminal",
            "/sandboxes/{sandbox}/ports/{port}",
        ],
        ["getFile", "putFile", "getFolder", "putFolder", "openTerminal", "openPort", "linkPort"],
    );
    let handoff = Operation::new(
        "post",
        "/sessions/{session}/sandboxes/{sandbox}/handoff",
        "handOffSandbox",
        "Hand a sandbox to another session of the namespace",
        json_of::<SandboxHandoff>(),
    );
    of_session.into_iter().chain(of_any).chain([handoff.takes::<HandOff>()]).collect()
}

fn of(paths: [&'static str; 4], ids: [&'static str; 7]) -> Vec<Operation> {
    let [files, archive, terminal, port] = paths;
    let [get_file, put_file, get_folder, put_folder, open_terminal, open_port, link_port] = ids;
    let path = || text("path", "Where it is in the sandbox; relative paths start at the workspace");
    let mode =
        Parameter::new("mode", "Of the file, in octal digits", json!({ "type": "string", "pattern": "^[0-7]{1,3}$" }));
    let tty =
        Parameter::new("tty", "false: pipes in place of a terminal", json!({ "type": "boolean", "default": true }));
    vec![
        Operation::new("get", files, get_file, "Read a file of a sandbox", Answer::Text(FILE)).query([path()]),
        Operation::new("put", files, put_file, "Write a file of a sandbox in one step", Answer::Json(stored))
            .query([path(), mode])
            .takes_bytes(FILE),
        Operation::new("get", archive, get_folder, "Read a folder of a sandbox as tar", Answer::Text(ARCHIVE))
            .query([path()]),
        Operation::new("put", archive, put_folder, "Unpack a tar into a folder of a sandbox", Answer::Json(unpacked))
            .query([path()])
            .takes_bytes(ARCHIVE),
        Operation::new("get", terminal, open_terminal, "Open a shell in a sandbox", Answer::Upgrade("websocket"))
            .query([
                text("command", "What the shell runs; without it, it is interactive"),
                number("columns", "The width of the terminal", 1),
                number("rows", "Its height", 1),
                text("term", "What kind of terminal it is"),
                tty,
            ]),
        Operation::new("get", port, open_port, "Connect to a port of a sandbox's loopback", Answer::Upgrade("tcp")),
        Operation::new("post", port, link_port, "Make a link to a port over HTTP", json_of::<PortLink>()),
    ]
}

impl Operation {
    fn takes_bytes(mut self, kind: &'static str) -> Self {
        self.takes = Takes::Bytes(kind);
        self
    }
}

fn stored(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["bytes", "created"],
        "properties": { "bytes": { "type": "integer", "minimum": 0 }, "created": { "type": "boolean" } },
    })
}

fn unpacked(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["files", "bytes", "skipped"],
        "properties": {
            "files": { "type": "integer", "minimum": 0 },
            "bytes": { "type": "integer", "minimum": 0 },
            "skipped": { "type": "integer", "minimum": 0 },
        },
    })
}
