//! The harness API: what a brain says to the session service.
//!
//! Every call names the session in its path, `/harness/v1/sessions/{id}/...`, and carries the projected token of the
//! harness's pod. Calls that change the log carry the epoch that [`ClaimResponse`] gave; an older epoch is answered with
//! 412 and [`Conflict::Fenced`], after which the harness exits at once.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::event::{NewEvent, Permission, Record};
use crate::id::{EventId, SessionId};
pub use crate::model::{FallbackModel, ModelApi, Thinking};
use crate::trace::TraceParent;
use crate::wire::Money;
pub use crate::wire::agents::{Effort, McpServer, Speed, Tool};

/// `POST claim`: take the session; from then on only the new epoch may append.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// The last sequence number that the harness has read, 0 for none: then the answer has [`ClaimResponse::since`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClaimResponse {
    /// The epoch that the claim raised the session to.
    pub epoch: u64,
    /// The sequence number of the last event: the `x.session.woken` of this claim, or one that has come since.
    pub head: u64,
    /// How long the claim is held without a `POST lease`, in seconds.
    pub lease_ttl_seconds: u64,
    /// What the harness needs to know of the session.
    pub session: HarnessSession,
    /// [`HarnessSession::offered_tools`], for harnesses that do not know the agent toolset themselves.
    #[serde(default)]
    pub tools: Vec<OfferedTool>,
    /// What a harness that named what it has read would ask for next; absent if that is more than one page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
}

/// What a harness has not read yet, as it was when the session was claimed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Since {
    /// The records after the last one that it has read. They end before [`ClaimResponse::head`] if others were appended in
    /// the same moment.
    pub records: Vec<Record>,
    /// What is queued.
    pub inbox: Inbox,
}

/// A tool as a model API takes it, and how a call of it is put on record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfferedTool {
    /// The name that the model uses.
    pub name: String,
    /// What the tool does.
    pub description: String,
    /// JSON schema of its input.
    pub input_schema: serde_json::Value,
    /// Of the `agent.tool_use` that a call becomes; null for a tool of the client, a call of which is an
    /// `agent.custom_tool_use`.
    pub evaluated_permission: Option<Permission>,
}

/// A session as its harness sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HarnessSession {
    /// The session.
    pub id: SessionId,
    /// The agent as it was when the session was made.
    pub agent: AgentSnapshot,
    /// Names of the sandboxes that a tool call may use; the first is the default, none means no agent toolset.
    pub sandboxes: Vec<String>,
    /// How long a harness without work waits for the next message before it goes, in seconds.
    pub harness_idle_seconds: u64,
    /// What it may use, as it was when the session was claimed.
    #[serde(default)]
    pub limits: Limits,
    /// What it may spend on the model at list prices; no limit if absent.
    #[serde(default)]
    pub budget: Option<Money>,
}

/// What a session may use in all; no limit where nothing is said. At a limit a turn ends with `budget_reached`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Turns, each from a message to `session.status_idle`.
    #[serde(default)]
    pub turns: Option<u64>,
    /// Tool calls.
    #[serde(default)]
    pub tool_calls: Option<u64>,
    /// Tokens that the model read and wrote, those of its cache too.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Seconds in which it ran.
    #[serde(default)]
    pub active_seconds: Option<u64>,
}

impl HarnessSession {
    /// The tools of the agent toolset, if there is a sandbox for them, and those of the client, sorted by name. Where there are
    /// several sandboxes, the former may name one in their input, which [`take_sandbox`](crate::sandbox_tools::take_sandbox)
    /// takes out of it.
    #[must_use]
    pub fn offered_tools(&self) -> Vec<OfferedTool> {
        let mut tools = Vec::new();
        for tool in &self.agent.tools {
            match tool {
                Tool::AgentToolset { .. } if !self.sandboxes.is_empty() => {
                    tools.extend(tool.sandbox_tools().into_iter().map(|(tool, policy)| OfferedTool {
                        name: tool.name().to_owned(),
                        description: tool.description().to_owned(),
                        input_schema: tool.input_schema_among(&self.sandboxes),
                        evaluated_permission: Some(policy.permission()),
                    }));
                }
                Tool::AgentToolset { .. } | Tool::McpToolset { .. } => {}
                Tool::Custom { name, description, input_schema } => tools.push(OfferedTool {
                    name: name.clone(),
                    description: description.clone(),
                    input_schema: input_schema.clone(),
                    evaluated_permission: None,
                }),
            }
        }
        tools.sort_by(|one, other| one.name.cmp(&other.name));
        tools
    }
}

/// An agent as a session keeps it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentSnapshot {
    /// The agent's identifier in the wire API.
    #[serde(default)]
    pub id: String,
    /// The agent's name for people.
    pub name: String,
    /// Which of its versions.
    pub version: u64,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
    /// The model to call.
    pub model: Model,
    /// The system prompt.
    #[serde(default)]
    pub system: Option<String>,
    /// The tools that the model is offered.
    #[serde(default)]
    pub tools: Vec<Tool>,
    /// Servers that toolsets may name.
    #[serde(default)]
    pub mcp_servers: Vec<McpServer>,
    /// How much of the conversation the model is sent.
    #[serde(default)]
    pub context: ContextPolicy,
    /// Whether the model may hand sandboxes to other sessions by the tool [`HANDOFF`], which it is offered then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handoff: Option<Permission>,
    /// What becomes of a call whose sandbox was lost, by the name of its tool; [`OutcomePolicy::Report`] if it is not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub on_unknown_outcome: BTreeMap<String, OutcomePolicy>,
}

/// How much of the conversation the model is sent. The log keeps all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextPolicy {
    /// The most tokens of a request; above that it is made shorter.
    pub max_tokens: u64,
    /// How many of the newest tool results are kept when older ones are cleared.
    pub keep_tool_results: u32,
    /// What is done where clearing results is not enough.
    pub compaction: Compaction,
    /// When the model is offered the tool `recall`.
    pub recall: Recall,
}

impl Default for ContextPolicy {
    fn default() -> Self {
        Self { max_tokens: 150_000, keep_tool_results: 5, compaction: Compaction::Summary, recall: Recall::WhenTrimmed }
    }
}

/// What is done with a conversation that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compaction {
    /// The model writes a summary, which takes its place.
    Summary,
    /// Nothing: the turn ends with `compaction_limit_reached_error`.
    Off,
}

/// When the model is offered the tool `recall`, which looks things up in the session's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recall {
    /// Once something was left out of what it is sent.
    WhenTrimmed,
    /// From the beginning.
    Always,
    /// Never.
    Never,
}

/// What becomes of a tool call whose sandbox was lost, so that nobody knows whether it took effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomePolicy {
    /// The model is told so.
    #[default]
    Report,
    /// It is run again in a fresh sandbox, twice at most: for tools whose repetition does no harm.
    Retry,
    /// The client is asked, as for a confirmation: it is run again, or the model is told.
    Ask,
}

/// A model and how it is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The name that the model API knows.
    pub id: String,
    /// The most tokens that one answer may have.
    pub max_tokens: u32,
    /// The value of the `anthropic-version` header.
    pub api_version: String,
    /// How hard it works.
    #[serde(default)]
    pub effort: Option<Effort>,
    /// How fast it answers.
    #[serde(default)]
    pub speed: Option<Speed>,
    /// Where it is run.
    #[serde(default)]
    pub inference_geo: Option<String>,
    /// What its tokens cost, if that is known.
    #[serde(default)]
    pub prices: Option<Prices>,
    /// Which API is spoken to it.
    #[serde(default)]
    pub api: ModelApi,
    /// Its route of the credential proxy, if it has one of its own; see [`crate::model::FALLBACK_ROUTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// How long it thinks.
    #[serde(default)]
    pub thinking: Option<Thinking>,
    /// What the API does to a context that grows, `context_management.edits`.
    #[serde(default)]
    pub context_edits: Vec<Value>,
    /// Further values of the `anthropic-beta` header.
    #[serde(default)]
    pub betas: Vec<String>,
    /// What is asked when it fails, in order.
    #[serde(default)]
    pub fallbacks: Vec<FallbackModel>,
}

/// List prices of a million tokens each, as decimal numbers in the smallest unit of the currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// Read by the model.
    pub input: String,
    /// Written by the model.
    pub output: String,
    /// Read from a cache.
    pub cache_read: String,
    /// Written to a cache.
    pub cache_write: String,
    /// The code of the currency.
    pub currency: String,
}

/// The tool by which the model looks things up in its session's log. The session service answers it.
pub const RECALL: &str = "recall";

/// The tool by which the model hands a sandbox of its session to another session. The session service carries it out.
pub const HANDOFF: &str = "handoff";

/// The tools of the agent toolset that a sandbox has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxTool {
    /// Runs a command.
    Bash,
    /// Replaces a string in a file.
    Edit,
    /// Finds files by name.
    Glob,
    /// Finds lines by pattern.
    Grep,
    /// Reads a file.
    Read,
    /// Writes a file.
    Write,
}

impl SandboxTool {
    /// Every tool of the set, sorted by name.
    pub const ALL: [Self; 6] = [Self::Bash, Self::Edit, Self::Glob, Self::Grep, Self::Read, Self::Write];

    /// The name that the model uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Edit => "edit",
            Self::Glob => "glob",
            Self::Grep => "grep",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// `POST /harness/v1/parked`: a harness pod that belongs to no session waits for one of its agent.
///
/// The session that it is offered is claimed like any other. Several pods may be offered the same: the claim is refused to
/// all but one, with 409, and the others ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParkRequest {
    /// How long the call is held open, in seconds (at most 30).
    pub wait_seconds: u64,
}

/// The answer to a harness pod that waits for a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "offer", rename_all = "snake_case")]
pub enum Offer {
    /// Work is open in this session: claim it.
    Session {
        /// The session.
        session: SessionId,
    },
    /// There is none so far: ask again.
    Nothing,
    /// The pod gets no more sessions: end when those are served that it has.
    Retire,
}

/// The path segment under which the credential proxy serves an MCP server: 32 hexadecimal digits that no other server of
/// the agent has. It changes with the URL, so that a brain never reaches another server than the one that it means.
#[must_use]
pub fn mcp_route(name: &str, url: &str) -> String {
    let mut hash = Sha256::new();
    for part in [name, url] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// `POST lease`: the harness lives. 412 when another epoch has claimed the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The claim's epoch.
    pub epoch: u64,
}

/// `GET events`: a slice of the log, private events too. Every parameter may be left out:
///
/// | parameter | only records |
/// |---|---|
/// | `after`, `before` | with a sequence number above, below this |
/// | `around` or `around_id`, `radius` | up to `radius` (0 to 499, 10 without) on either side of this number or event, and that one |
/// | `types[]` | of these types; `agent.*` is a family, `*` every type that is not `x.*` |
/// | `created_at[gt]`, `[gte]`, `[lt]`, `[lte]` | that entered the log then |
///
/// `order` is `asc` or `desc`, `limit` is 1 to 1,000. `inbox=true` gives the inbox too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsPage {
    /// In the order that was asked for.
    pub records: Vec<Record>,
    /// The last sequence number of the log when the page was read.
    pub head: u64,
    /// Where to go on, if there may be more: the next `after`, or `before` if the newest come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// What is queued, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbox: Option<Inbox>,
}

/// `GET inbox?wait_seconds=&after_revision=`: what clients sent and no brain has taken up yet.
///
/// With `wait_seconds` the call waits that long (at most 30 s) for a wake key whose revision is above `after_revision`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inbox {
    /// The revision of the session's wake key, read at the same revision as the items; `None` when no work is open.
    pub wake_revision: Option<i64>,
    /// Oldest first.
    pub items: Vec<InboxItem>,
    /// What the open work belongs to, if it is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
}

/// A queued event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InboxItem {
    /// The event, whose identifier is also its key in the inbox; `processed_at` is null.
    pub event: crate::event::Event,
}

/// `POST append`: events of the brain, all or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppendRequest {
    /// The claim's epoch.
    pub epoch: u64,
    /// The last sequence number that the harness has read.
    pub expected_head: u64,
    /// At least one; an event whose identifier is already in the log is not appended again.
    pub events: Vec<NewEvent>,
}

/// The answer to `append`, `promote` and `idle`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppendResponse {
    /// What was appended, with sequence numbers.
    pub records: Vec<Record>,
    /// The last sequence number of the log after it.
    pub head: u64,
}

/// `POST promote`: queued events become part of the log, followed by events of the brain, in one transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The claim's epoch.
    pub epoch: u64,
    /// The last sequence number that the harness has read.
    pub expected_head: u64,
    /// Identifiers of queued events, in the order in which they shall be numbered.
    pub inbox: Vec<EventId>,
    /// Events of the brain that follow them, such as `session.status_running`.
    #[serde(default)]
    pub then: Vec<NewEvent>,
}

/// `POST idle`: the last events of a turn; gives the session up unless something came in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdleRequest {
    /// The claim's epoch.
    pub epoch: u64,
    /// The last sequence number that the harness has read.
    pub expected_head: u64,
    /// [`Inbox::wake_revision`] as it was at the last look at the inbox.
    pub wake_revision: i64,
    /// Ends with `session.status_idle`.
    pub events: Vec<NewEvent>,
}

/// `POST execute`: run a tool call that is in the log; answered when its result is in the log too.
///
/// May be repeated at will: a call runs at most once and every repetition gets the same result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecuteRequest {
    /// The claim's epoch.
    pub epoch: u64,
    /// The identifier of the `agent.tool_use` event.
    pub tool_use_id: EventId,
}

/// The answer to `execute`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecuteResponse {
    /// The `agent.tool_result` as it stands in the log.
    pub record: Record,
}

/// `POST deltas`: a preview of the message that is being written, for those who watch; never stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltasRequest {
    /// The claim's epoch.
    pub epoch: u64,
    /// In order.
    pub frames: Vec<crate::event::Preview>,
}

/// Why a change of the log was refused (`error.details` of 409 and 412).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "conflict", rename_all = "snake_case")]
pub enum Conflict {
    /// 412: a later epoch owns the session. Exit at once.
    Fenced {
        /// The session's epoch.
        epoch: u64,
    },
    /// 409: events were appended since; read on from the old head and retry.
    HeadMoved {
        /// The last sequence number of the log.
        head: u64,
    },
    /// 409: something came in since the last look at the inbox; look again.
    WakeMoved,
    /// 409: a queued event was taken up already; read on.
    NotQueued,
}
