//! The events of a session: what the log holds, what clients send, and what is only streamed.

mod client;
mod content;
mod parts;
mod preview;
pub mod without_result;

pub use client::{ClientEvent, MOST_EVENTS};
pub use parts::{
    Capped, McpTool, ModelUsage, Permission, RetryStatus, Rubric, SessionError, SessionErrorType, Spent, StopReason,
    ToolEvent, Usage, Verdict,
};
pub use preview::{Delta, DeltaContent, Preview, PreviewEvent};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{EventId, OutcomeId, SessionId, ThreadId};
use crate::schema::DateTime;

/// An event as the public API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Given by whoever made the event; unique in the session.
    pub id: EventId,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
    /// When the event entered the log; null while it is queued.
    #[schemars(with = "Option<DateTime>")]
    pub processed_at: Option<Timestamp>,
}

/// An event that is not in the log yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NewEvent {
    /// Under this identifier a retried append finds itself.
    pub id: EventId,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

impl NewEvent {
    /// An event with a fresh identifier.
    #[must_use]
    pub fn new(body: EventBody) -> Self {
        Self { id: EventId::generate(), body }
    }
}

/// An event in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// 1 for the first event, without gaps.
    pub seq: u64,
    /// The epoch of the brain that appended it; 0 when the service did.
    pub epoch: u64,
    /// Hex SHA-256 of the stored bytes of the record before; empty for the first.
    pub prev_hash: String,
    /// The event; `processed_at` is set.
    pub event: Event,
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $variant:ident $name:literal $body:tt,)+) => {
        /// What an event says. Types that this build does not know pass through unchanged.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(tag = "type")]
        pub enum EventBody {
            $($(#[$doc])* #[serde(rename = $name)] $variant $body,)+
            /// A type that this build does not know.
            #[serde(untagged)]
            Other {
                /// Its type.
                #[serde(rename = "type")]
                kind: String,
                /// Its fields.
                #[serde(flatten)]
                fields: Map<String, Value>,
            },
        }

        impl EventBody {
            /// The value of `type` on the wire.
            #[must_use]
            pub fn kind(&self) -> &str {
                match self {
                    $(Self::$variant { .. } => $name,)+
                    Self::Other { kind, .. } => kind,
                }
            }
        }
    };
}

bodies! {
    /// A person or program speaks to the agent.
    UserMessage "user.message" {
        /// Content blocks: `text`, `image`, `document` or `redacted`.
        content: Vec<Value>,
    },
    /// Stop the turn that is running.
    UserInterrupt "user.interrupt" {
        /// The thread that shall stop; all without.
        #[serde(default)]
        session_thread_id: Option<ThreadId>,
    },
    /// A person says whether a tool may run.
    UserToolConfirmation "user.tool_confirmation" {
        /// The tool use that waits.
        tool_use_id: EventId,
        /// Whether it may run.
        result: Verdict,
        /// What the agent is told; only with `deny`.
        #[serde(default)]
        deny_message: Option<String>,
    },
    /// The result of a custom tool.
    UserCustomToolResult "user.custom_tool_result" {
        /// The `agent.custom_tool_use` that it answers.
        custom_tool_use_id: EventId,
        /// Content blocks.
        #[serde(default)]
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        #[serde(default)]
        is_error: Option<bool>,
    },
    /// The result of a tool that a worker of the customer ran, in a session whose environment is `self_hosted`.
    UserToolResult "user.tool_result" {
        /// The `agent.tool_use` that it answers.
        tool_use_id: EventId,
        /// Content blocks.
        #[serde(default)]
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        #[serde(default)]
        is_error: Option<bool>,
    },
    /// What the agent shall produce, and how it is graded.
    UserDefineOutcome "user.define_outcome" {
        /// The outcome.
        outcome_id: OutcomeId,
        /// What the agent shall produce.
        description: String,
        /// How it is graded.
        rubric: Rubric,
        /// The most cycles of grading and revision.
        #[serde(default)]
        max_iterations: Option<u32>,
    },
    /// What the system adds to the message or result before it.
    SystemMessage "system.message" {
        /// Content blocks of type `text`.
        content: Vec<Value>,
    },
    /// The agent speaks.
    AgentMessage "agent.message" {
        /// Content blocks of type `text`.
        content: Vec<Value>,
    },
    /// The agent thinks; what it thinks stays with the model.
    AgentThinking "agent.thinking" {},
    /// The conversation that the model is sent was made shorter; the log was not.
    AgentThreadContextCompacted "agent.thread_context_compacted" {},
    /// The agent wants a tool of its sandbox to run.
    AgentToolUse "agent.tool_use" {
        /// The tool.
        name: String,
        /// The tool's input.
        input: Value,
        /// Whether it may run.
        evaluated_permission: Permission,
        /// The sandbox that it goes to; null for the first of the session.
        #[serde(default, rename = "x_sandbox", skip_serializing_if = "Option::is_none")]
        sandbox: Option<String>,
    },
    /// What the tool answered.
    AgentToolResult "agent.tool_result" {
        /// The `agent.tool_use` that it answers.
        tool_use_id: EventId,
        /// Content blocks.
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        is_error: Option<bool>,
    },
    /// The agent wants a tool that the client runs.
    AgentCustomToolUse "agent.custom_tool_use" {
        /// The tool.
        name: String,
        /// The tool's input.
        input: Value,
    },
    /// The agent wants a tool of an MCP server, which the brain calls itself.
    AgentMcpToolUse "agent.mcp_tool_use" {
        /// Which of the agent's servers.
        mcp_server_name: String,
        /// The tool, as the server calls it.
        name: String,
        /// The tool's input.
        input: Value,
        /// Whether it may run.
        evaluated_permission: Permission,
    },
    /// What the tool of an MCP server answered.
    AgentMcpToolResult "agent.mcp_tool_result" {
        /// The `agent.mcp_tool_use` that it answers.
        mcp_tool_use_id: EventId,
        /// Content blocks.
        content: Option<Vec<Value>>,
        /// Whether the tool failed.
        is_error: Option<bool>,
    },
    /// A turn began.
    SessionStatusRunning "session.status_running" {},
    /// A turn ended, or waits for the client.
    SessionStatusIdle "session.status_idle" {
        /// Why.
        stop_reason: StopReason,
    },
    /// The turn goes on later or elsewhere.
    SessionStatusRescheduled "session.status_rescheduled" {},
    /// The session has ended for good.
    SessionStatusTerminated "session.status_terminated" {},
    /// A client changed the session; only what it changed is there.
    SessionUpdated "session.updated" {
        /// The agent, in full, in the shape of the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<Value>,
        /// All pairs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        metadata: Option<Map<String, Value>>,
        /// A name for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        title: Option<String>,
    },
    /// Something went wrong.
    SessionError "session.error" {
        /// What, and what happens now.
        error: SessionError,
    },
    /// Tokens so far.
    SessionUsage "session.usage" {
        /// Since the session began.
        usage: Spent,
    },
    /// The model is being called.
    SpanModelRequestStart "span.model_request_start" {},
    /// The model has answered, or failed to.
    SpanModelRequestEnd "span.model_request_end" {
        /// The start that it closes.
        model_request_start_id: EventId,
        /// Whether the request failed.
        is_error: bool,
        /// Tokens of this request.
        model_usage: ModelUsage,
    },
    /// Private: the model's answer as it came, with signatures, which a resumed brain sends back.
    ModelResponse "x.model_response" {
        /// Content blocks, unchanged.
        content: Vec<Value>,
        /// As the model API gave it.
        stop_reason: Option<String>,
        /// The model that gave it; its thinking is for no other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        /// For each `tool_use` block in order: the event that stands for it.
        #[serde(default)]
        tool_events: Vec<ToolEvent>,
        /// Calls have no event because the session had made as many as it may.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        limited: bool,
    },
    /// Private: what a brain knows of the log so far, so that the next one need not read what came before.
    ContextCheckpoint "x.context.checkpoint" {
        /// How the state is written; a brain ignores what it does not know.
        version: u32,
        /// The state, which only the harness that wrote it reads.
        state: Value,
    },
    /// Older tool results are not sent to the model any more.
    ContextResultsCleared "x.context.results_cleared" {
        /// How many of the newest results are still sent.
        kept: u32,
    },
    /// The model's context window is smaller than what was sent.
    ContextOverflow "x.context.overflow" {
        /// What was sent, in tokens, as far as it is known.
        tokens: u64,
    },
    /// The model has failed; until the end of the turn this one is asked.
    ModelFallback "x.model.fallback" {
        /// The name that the model API knows.
        model: String,
        /// Which of the agent's models: 0 for the first, 1 for the first fallback.
        position: u32,
    },
    /// Private: the tools that an MCP server offers. The last one of a server counts, until the agent names another URL.
    McpCatalog "x.mcp.catalog" {
        /// Which of the agent's servers.
        mcp_server_name: String,
        /// Where it was asked.
        url: String,
        /// Its tools, as far as a model can be offered them, sorted by name.
        tools: Vec<McpTool>,
        /// Why they are not known, if they are not. The next message of a client asks the server again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
    /// Private: calls of MCP servers are about to be sent. One that has no result afterwards has an unknown outcome.
    ToolStarted "x.tool.started" {
        /// Their `agent.mcp_tool_use` events.
        tool_use_ids: Vec<EventId>,
    },
    /// A harness claimed the session.
    SessionWoken "x.session.woken" {
        /// The epoch of the claim.
        epoch: u64,
        /// The pod's name.
        harness: String,
    },
    /// The turn ends at a limit of the session, which was read when it was claimed.
    SessionLimitReached "x.session.limit_reached" {
        /// What the session might use.
        limits: crate::harness::Limits,
        /// What it might spend.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        budget: Option<crate::wire::Money>,
    },
    /// A limit that the session had reached was raised: it goes on.
    SessionLimitRaised "x.session.limit_raised" {},
    /// The log comes near to its limit; it says so once.
    SessionNearLimit "x.session.near_limit" {
        /// What is limited.
        what: Capped,
        /// How many there were.
        used: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A sandbox is being made, because a tool call needs it.
    SandboxProvisioning "x.sandbox.provisioning" {
        /// Its name in the session.
        sandbox: String,
        /// The tool call.
        tool_use_id: EventId,
    },
    /// The sandbox takes calls.
    SandboxReady "x.sandbox.ready" {
        /// Its name in the session.
        sandbox: String,
        /// UID of its pod.
        pod_uid: String,
    },
    /// The sandbox was idle and is gone.
    SandboxReclaimed "x.sandbox.reclaimed" {
        /// Its name in the session.
        sandbox: String,
        /// UID of its pod.
        pod_uid: String,
    },
    /// The sandbox was handed to another session: its workspace is there now, and the next tool call gets an empty one.
    SandboxHandedOff "x.sandbox.handed_off" {
        /// Its name in the session.
        sandbox: String,
        /// The session that has it now.
        to_session: SessionId,
        /// Its name there.
        to_sandbox: String,
    },
    /// The sandbox comes from another session: it has the workspace that it had there, and none of the processes.
    SandboxReceived "x.sandbox.received" {
        /// Its name in the session.
        sandbox: String,
        /// The session that it was handed over by.
        from_session: SessionId,
        /// Its name there.
        from_sandbox: String,
    },
    /// The sandbox died under a tool call.
    SandboxLost "x.sandbox.lost" {
        /// Its name in the session.
        sandbox: String,
        /// Why, as far as it is known.
        cause: String,
    },
    /// A credential was placed into requests of a sandbox or of the harness, neither of which ever saw its value.
    CredentialUsed "x.credential.used" {
        /// `<vault>/<credential>`.
        credential: String,
        /// The sandbox's name in the session; empty for the harness.
        sandbox: String,
        /// The host that was called.
        host: String,
        /// The port.
        port: u16,
        /// The method.
        method: String,
        /// SHA-256 of the path without its query, in hexadecimal.
        #[serde(default)]
        path_sha256: Option<String>,
        /// How many requests this stands for.
        count: u64,
        /// When the first of them was made.
        #[schemars(with = "DateTime")]
        at: Timestamp,
    },
    /// Requests of a sandbox or of the harness were refused by the credential proxy.
    CredentialDenied "x.credential.denied" {
        /// `<vault>/<credential>`; null if the requests were for none.
        #[serde(default)]
        credential: Option<String>,
        /// The sandbox's name in the session; empty for the harness.
        sandbox: String,
        /// The host that was asked for.
        host: String,
        /// The port.
        port: u16,
        /// The method; `CONNECT` for a tunnel.
        method: String,
        /// SHA-256 of the path without its query, in hexadecimal; null for a tunnel.
        #[serde(default)]
        path_sha256: Option<String>,
        /// The rule that refused them.
        reason: String,
        /// How many requests this stands for.
        count: u64,
        /// When the first of them was made.
        #[schemars(with = "DateTime")]
        at: Timestamp,
    },
    /// An OAuth access token was refreshed, and is in the vault.
    CredentialRefreshed "x.credential.refreshed" {
        /// `<vault>/<credential>`.
        credential: String,
        /// Whether there is another refresh token too.
        rotated: bool,
        /// When the access token expires, if that is known.
        #[serde(default)]
        #[schemars(with = "Option<DateTime>")]
        expires_at: Option<Timestamp>,
    },
    /// The sandbox died under a tool call, which is run again as its policy says.
    ToolRetried "x.tool.retried" {
        /// The tool call.
        tool_use_id: EventId,
        /// Why.
        cause: String,
    },
    /// A tool call began and nobody knows how it ended: it waits for a `user.tool_confirmation`, whether it is run again.
    ToolOutcomeAsked "x.tool.outcome_asked" {
        /// The tool call.
        tool_use_id: EventId,
        /// Why.
        cause: String,
    },
    /// A tool call began and nobody knows how it ended.
    ToolOutcomeUnknown "x.tool.outcome_unknown" {
        /// The tool call.
        tool_use_id: EventId,
        /// Why.
        cause: String,
    },
}

impl EventBody {
    /// Whether strict clients must be spared this type unless they ask for it.
    #[must_use]
    pub fn is_extension(&self) -> bool {
        self.kind().starts_with("x.")
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::{Event, EventBody};

    #[rstest]
    #[case(json!({"id": "sevt_1", "type": "user.message", "content": [{"type": "text", "text": "hi"}], "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "session.status_running", "processed_at": "2026-01-02T03:04:05Z"}))]
    #[case(json!({"id": "sevt_1", "type": "session.status_idle", "stop_reason": {"type": "end_turn"}, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "agent.tool_result", "tool_use_id": "sevt_2", "content": null, "is_error": null, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "user.interrupt", "session_thread_id": null, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "user.tool_confirmation", "tool_use_id": "sevt_2", "result": "deny", "deny_message": null, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "user.define_outcome", "outcome_id": "outc_1", "description": "d", "rubric": {"type": "text", "content": "r"}, "max_iterations": null, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "session.updated", "title": "t", "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "session.usage", "processed_at": null, "usage": {
        "active_seconds": null, "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 4},
        "cache_read_input_tokens": 3, "input_tokens": 1, "list_cost": null, "output_tokens": 2}}))]
    #[case(json!({"id": "sevt_1", "type": "agent.mcp_tool_use", "mcp_server_name": "s", "name": "t", "input": {}, "evaluated_permission": "ask", "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "agent.mcp_tool_result", "mcp_tool_use_id": "sevt_2", "content": [], "is_error": true, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "session.error", "error": {"type": "mcp_connection_failed_error", "mcp_server_name": "s", "message": "m", "retry_status": {"type": "exhausted"}}, "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "x.mcp.catalog", "mcp_server_name": "s", "url": "https://s.test/mcp", "tools": [{"name": "t", "description": "d", "input_schema": {"type": "object"}, "repeatable": true}], "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "x.tool.started", "tool_use_ids": ["sevt_2"], "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "x.credential.denied", "credential": null, "sandbox": "main", "host": "h.test", "port": 443, "method": "CONNECT", "path_sha256": null, "reason": "r", "count": 2, "at": "2026-01-02T03:04:05Z", "processed_at": null}))]
    #[case(json!({"id": "sevt_1", "type": "session.of_tomorrow", "field": {"a": [1]}, "processed_at": null}))]
    fn an_event_survives_a_round_trip(#[case] wire: serde_json::Value) {
        let event: Event = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(event.body.kind(), wire["type"]);
        assert_eq!(serde_json::to_value(&event).unwrap(), wire);
    }

    #[test]
    fn an_unknown_type_is_kept() {
        let body: EventBody = serde_json::from_value(json!({"type": "x.new", "a": 1})).unwrap();
        assert!(matches!(&body, EventBody::Other { kind, fields } if kind == "x.new" && fields["a"] == 1));
        assert!(body.is_extension());
    }
}
