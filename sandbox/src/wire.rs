//! What goes over the wire between the session service and `sandboxd`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The port that `sandboxd` listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 8090;

/// The largest request body that `sandboxd` reads.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024 * 1024;

/// The mode of a file, in octal digits, in the answer to `GET /v1/files`.
pub const MODE_HEADER: &str = "x-longhand-mode";

/// What a file system needs for a workspace at the most, in bytes, in the answer to `GET /v1/workspace`.
pub const WORKSPACE_BYTES_HEADER: &str = "x-longhand-workspace-bytes";

/// What a connection is upgraded to that leads to a port of the sandbox: bytes as they are.
pub const TUNNEL_PROTOCOL: &str = "tcp";

/// The WebSocket subprotocol of `GET /v1/terminal`.
pub const TERMINAL_PROTOCOL: &str = "v5.channel.k8s.io";

const MAX_CALL_ID: usize = 256;

/// The key of one tool call: the id of the tool-use event. It makes a call at most once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallId(String);

/// A call id that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("a call_id is 1 to {MAX_CALL_ID} printable ASCII characters without spaces; this one has {length} bytes")]
pub struct InvalidCallId {
    length: usize,
}

impl CallId {
    /// Checks that `id` can be a call id.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidCallId> {
        let id = id.into();
        let fits = (1..=MAX_CALL_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self(id)) } else { Err(InvalidCallId { length: id.len() }) }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CallId {
    type Error = InvalidCallId;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        Self::new(id)
    }
}

impl From<CallId> for String {
    fn from(id: CallId) -> Self {
        id.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Body of `POST /v1/execute`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecuteRequest {
    /// The key of the call; the same key never runs twice in one sandbox.
    pub call_id: CallId,
    /// The tool.
    pub name: String,
    /// The tool's input, as the model wrote it.
    #[serde(default)]
    pub input: Value,
    /// Only join a call that this `sandboxd` already knows; never start one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attach_only: bool,
}

/// Answer of `POST /v1/execute`: what the model reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolOutput {
    /// The text of the result.
    pub content: String,
    /// Whether the tool failed.
    pub is_error: bool,
    /// Whether something was left out of `content`, which then says so.
    pub truncated: bool,
}

impl ToolOutput {
    /// A whole, successful result.
    #[must_use]
    pub fn ok(content: impl Into<String>) -> Self {
        Self { content: content.into(), is_error: false, truncated: false }
    }

    /// A failed call.
    #[must_use]
    pub fn error(content: impl Into<String>) -> Self {
        Self { content: content.into(), is_error: true, truncated: false }
    }
}

/// Body of `POST /v1/cancel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// The call to interrupt.
    pub call_id: CallId,
}

/// Answer of `POST /v1/cancel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelResponse {
    /// Whether the call was running; its result then says that it was interrupted.
    pub cancelled: bool,
}

/// Answer of `GET /v1/activity`. Times are measured on a clock that is never set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Calls that run now.
    pub running_calls: usize,
    /// Terminals that are open.
    #[serde(default)]
    pub terminals: usize,
    /// Files and archives that are being sent or received.
    #[serde(default)]
    pub transfers: usize,
    /// Connections to ports that are open.
    #[serde(default)]
    pub tunnels: usize,
    /// Commands whose call has been answered and of which a process still runs.
    #[serde(default)]
    pub background: usize,
    /// Whole seconds since the last call, terminal, transfer or connection to a port ended, or since the start if there was none; 0 while there is
    /// one. What runs in the background does not count.
    pub idle_seconds: u64,
    /// Whether new calls are refused, which they are until the sandbox is resumed.
    pub draining: bool,
}

/// Body of `POST /v1/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRequest {
    /// Drain only if the sandbox has been idle for this long.
    pub idle_seconds: u64,
    /// Whether what commands have left running in the background keeps the sandbox from being idle.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub background_counts: bool,
}

/// Answer of `POST /v1/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainResponse {
    /// Whether the sandbox is drained: no call runs, and none will.
    pub drained: bool,
    /// What the decision was based on.
    #[serde(flatten)]
    pub activity: Activity,
}

/// Answer of `PUT /v1/files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The size of the file.
    pub bytes: u64,
    /// Whether there was none before.
    pub created: bool,
}

/// Answer of `PUT /v1/archive` and `PUT /v1/workspace`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Files and links that were put in place.
    pub files: u64,
    /// The size of all files.
    pub bytes: u64,
    /// Entries that are no files, directories or links, such as devices.
    pub skipped: u64,
}

/// Body of `PUT /v1/egress`: the proxy of the sandbox's session.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressBinding {
    /// `IP:port` of the proxy.
    pub proxy: String,
    /// What the proxy knows this sandbox by. Programs in the sandbox do not see it.
    pub token: String,
    /// Variables that processes find in their environment from now on: placeholders of credentials.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
}

impl fmt::Debug for EgressBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressBinding").field("proxy", &self.proxy).finish_non_exhaustive()
    }
}

/// Answer of `PUT /v1/egress` and `DELETE /v1/egress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressBound {
    /// Whether there is a way out now.
    pub bound: bool,
}

/// Answer of `GET /v1/fence`: whether a network policy keeps the sandbox in, as its canaries show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    /// What they have shown.
    pub state: FenceState,
    /// Names of the targets that were tried.
    pub tried: Vec<String>,
    /// Names of those that answered.
    pub reached: Vec<String>,
}

/// What canaries have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceState {
    /// No target answers.
    Fenced,
    /// Some target answers.
    Open,
    /// Nothing yet, or there are no targets.
    Unknown,
}

/// The query of `GET /v1/terminal`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalOptions {
    /// What the shell runs; without it, the shell is interactive.
    pub command: Option<String>,
    /// The width of the terminal.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
    /// What kind of terminal it is.
    pub term: String,
    /// Whether there is a terminal at all. Without one the command has pipes: its errors come apart from its output, nothing is
    /// translated, and the end of its input is one.
    #[serde(default = "yes")]
    pub tty: bool,
}

fn yes() -> bool {
    true
}

impl Default for TerminalOptions {
    fn default() -> Self {
        Self { command: None, columns: 80, rows: 24, term: "xterm-256color".to_owned(), tty: true }
    }
}

/// Why `sandboxd` refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the body is not what the endpoint takes.
    InvalidRequest,
    /// 401: the token is missing or wrong.
    Unauthorized,
    /// 404: no such path.
    NotFound,
    /// 404: `attach_only` named a call that this process does not know.
    UnknownCall,
    /// 404: there is no such file or folder.
    NoSuchFile,
    /// 405: the path has another method.
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    RequestTimeout,
    /// 409: the id is taken by a call with another name or input.
    CallMismatch,
    /// 409: the sandbox is being reclaimed; the call was not started.
    Draining,
    /// 409: the sandbox would have to be drained first, or never have been used.
    WrongState,
    /// 410: the call has finished, but its result is no longer kept.
    ResultEvicted,
    /// 410: the call was running when `sandboxd` was restarted; it is not run again.
    OutcomeUnknown,
    /// 413: the body is too large.
    TooLarge,
    /// 422: the file or folder cannot be sent or stored.
    FileRefused,
    /// 507: no space is left.
    StorageFull,
    /// 426: the request is not one for a WebSocket in [`TERMINAL_PROTOCOL`], or for [`TUNNEL_PROTOCOL`] where a port is asked for.
    UpgradeRequired,
    /// 403: this port may not be reached.
    PortRefused,
    /// 502: nothing listens on the port.
    NothingListens,
    /// 500: the terminal could not be opened.
    NoTerminal,
    /// 429: too many calls run, or too many transfers or terminals are open; this one was not started.
    TooManyCalls,
    /// 502: the proxy of the session cannot be reached, or is none; the binding is as it was.
    EgressUnavailable,
    /// 500: a fault of `sandboxd`.
    Failed,
    /// 503: the process is ending; the call was not started.
    Terminating,
    /// A code that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was wrong.
    pub error: ErrorDetail,
}

/// What was wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::{Activity, CallId, DrainRequest, DrainResponse, ErrorCode, ExecuteRequest};

    #[rstest]
    #[case("sevt_01", true)]
    #[case("", false)]
    #[case("two words", false)]
    #[case("line\nbreak", false)]
    #[case("ü", false)]
    #[case(&"x".repeat(256), true)]
    #[case(&"x".repeat(257), false)]
    fn call_ids_are_checked(#[case] id: &str, #[case] valid: bool) {
        assert_eq!(CallId::new(id).is_ok(), valid);
        assert_eq!(serde_json::from_value::<CallId>(json!(id)).is_ok(), valid);
    }

    #[test]
    fn the_envelope_is_as_documented() {
        let request: ExecuteRequest =
            serde_json::from_value(json!({"call_id": "c", "name": "bash", "input": {"command": "ls"}})).unwrap();
        assert!(!request.attach_only);
        assert_eq!(
            serde_json::to_value(&request).unwrap(),
            json!({"call_id": "c", "name": "bash", "input": {"command": "ls"}})
        );
        let activity = Activity {
            running_calls: 0,
            terminals: 1,
            transfers: 2,
            tunnels: 4,
            background: 3,
            idle_seconds: 7,
            draining: true,
        };
        let whole = json!({"drained": true, "running_calls": 0, "terminals": 1, "transfers": 2, "tunnels": 4, "background": 3, "idle_seconds": 7, "draining": true});
        assert_eq!(serde_json::to_value(DrainResponse { drained: true, activity }).unwrap(), whole);
        let older = json!({"running_calls": 0, "idle_seconds": 7, "draining": true});
        assert_eq!(serde_json::from_value::<Activity>(older).unwrap().background, 0);
        let drain: DrainRequest = serde_json::from_value(json!({"idle_seconds": 3})).unwrap();
        assert_eq!(drain, DrainRequest { idle_seconds: 3, background_counts: false });
    }

    #[test]
    fn a_newer_error_code_is_still_readable() {
        assert_eq!(serde_json::from_value::<ErrorCode>(json!("from_the_future")).unwrap(), ErrorCode::Unknown);
    }
}
