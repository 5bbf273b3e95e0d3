//! The tools of a session's sandboxes as an MCP server, for harnesses that know no other way to call a tool.
//!
//! Every request stands for itself: there are no MCP sessions, so that any replica answers any of them. A `tools/call`
//! becomes an `agent.tool_use` of the epoch that the calling pod owns, and then runs as every other call does: its result
//! is in the log also when nobody waits for it any more. A repeated `tools/call` is another call, unless it says by an
//! identifier of its own that it is the same ([`TOOL_USE_ID`]).

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use longhand_process::mcp::{self, About, Call, Fault, Received};
use longhand_protocol::event::{EventBody, NewEvent, Permission};
use longhand_protocol::harness::{SandboxTool, Tool as AgentTool};
use longhand_protocol::sandbox_tools::take_sandbox;
use longhand_protocol::{EventId, Record};
use longhand_session_log::StoreError;
use longhand_session_log::store::SessionMeta;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;

use super::access;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf, shortened, whole};
use crate::app::App;
use crate::execute::ExecuteError;

const ABOUT: About = About {
    name: "longhand",
    version: env!("CARGO_PKG_VERSION"),
    instructions: Some("Tools that run in the sandboxes of this session. A sandbox is made when it is first used."),
};
/// The tool that says which sandbox another tool is for.
const EXECUTE: &str = "execute";
/// In `_meta` of a `tools/call`: the identifier that its `agent.tool_use` shall have. The same identifier is the same call.
const TOOL_USE_ID: &str = "longhand.dev/tool-use-id";
/// The most bytes of a request.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// The log may grow under an append so many times in a row.
const APPENDS: u32 = 64;
/// A call that is in the log is asked for again for so long while what it needs is away.
const PATIENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// `POST mcp`: one message of JSON-RPC. A call is answered by an event stream if the client takes one: a call may last longer
/// than anybody waits for a connection on which nothing happens.
pub async fn serve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    request: Request,
) -> Result<Response> {
    let state = access::owned(&app, &identity, path.session()?).await?;
    let heartbeat = app.waits.heartbeat;
    let hands = Hands { app, meta: state.meta, epoch: state.epoch };
    let (head, body) = request.into_parts();
    let body = whole(body, MAX_BODY).await?;
    let (call, reply) = match mcp::receive(&head.headers, &body, ABOUT, || hands.listed()) {
        Received::Answered(response) => return Ok(response.into_response()),
        Received::Call(call, reply) => (call, reply),
    };
    // A task of its own: what is on record also runs when the client has hung up.
    let running = tokio::spawn(async move { hands.call(call).await }.in_current_span());
    let result = async move {
        running.await.unwrap_or_else(|error| Err(Fault::internal(format!("the call has ended early: {error}"), None)))
    };
    if !mcp::takes_stream(&head.headers) {
        return Ok(reply.json(result.await).into_response());
    }
    let answer = async move { Ok::<_, Infallible>(Frame::default().event("message").data(reply.text(result.await))) };
    Ok(Sse::new(stream::once(answer)).keep_alive(KeepAlive::new().interval(heartbeat)).into_response())
}

/// The sandboxes of a session, as the brain of one epoch uses them.
struct Hands {
    app: App,
    meta: SessionMeta,
    epoch: u64,
}

/// What a caller wants to run.
struct Wanted {
    id: EventId,
    tool: String,
    input: Value,
    sandbox: Option<String>,
}

impl Hands {
    /// The tools of the agent toolset that run without asking; none without a sandbox.
    fn tools(&self) -> Vec<SandboxTool> {
        if self.meta.sandboxes.is_empty() { Vec::new() } else { self.permitted(Permission::Allow) }
    }

    /// What `tools/list` says.
    fn listed(&self) -> Value {
        let tools = self.tools();
        let execute = (!tools.is_empty()).then(|| execute(&tools, &self.meta.sandboxes));
        let tools = tools
            .into_iter()
            .map(|tool| definition(tool.name(), tool.description(), &tool.input_schema_among(&self.meta.sandboxes)));
        tools.chain(execute).collect()
    }

    async fn call(&self, call: Call) -> std::result::Result<Value, Fault> {
        let Call { name, arguments, mut meta } = call;
        let id = match meta.remove(TOOL_USE_ID) {
            None => EventId::generate(),
            Some(id) => serde_json::from_value(id)
                .map_err(|error| Fault::invalid_params(&format!("`_meta.{TOOL_USE_ID}`: {error}")))?,
        };
        match self.wanted(id, &name, arguments) {
            Ok(wanted) => self.run(wanted).await.map(answer),
            Err(reason) => Ok(mcp::text_result(&reason, true)),
        }
    }

    fn permitted(&self, permission: Permission) -> Vec<SandboxTool> {
        let tools = self.meta.agent.tools.iter().flat_map(AgentTool::sandbox_tools);
        tools.filter(|(_, policy)| policy.permission() == permission).map(|(tool, _)| tool).collect()
    }

    /// What is called, or what the model is told why it is not.
    fn wanted(&self, id: EventId, name: &str, arguments: Map<String, Value>) -> std::result::Result<Wanted, String> {
        let wanted = if name == EXECUTE {
            execute_arguments(id, arguments)?
        } else {
            let mut input = Value::Object(arguments);
            let sandbox = take_sandbox(&mut input, &self.meta.sandboxes);
            Wanted { id, tool: name.to_owned(), input, sandbox }
        };
        let named = |tools: Vec<SandboxTool>| tools.iter().any(|tool| tool.name() == wanted.tool);
        if let Some(sandbox) = &wanted.sandbox
            && !self.meta.sandboxes.contains(sandbox)
        {
            let all = self.meta.sandboxes.join(", ");
            return Err(format!("The session has no sandbox `{}`; it has: {all}.", shortened(sandbox)));
        }
        if named(self.tools()) {
            Ok(wanted)
        } else if named(self.permitted(Permission::Ask)) {
            Err(format!(
                "The tool {} was not run: a person must confirm each of its calls, and nobody can be asked over MCP.",
                wanted.tool
            ))
        } else {
            Err(format!("There is no tool `{}`.", shortened(&wanted.tool)))
        }
    }

    /// Puts the call on record and sees it through.
    async fn run(&self, wanted: Wanted) -> std::result::Result<Record, Fault> {
        let call = self.intend(wanted).await?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.app.executor.execute(&self.meta.id, self.epoch, &call).await {
                Ok(record) => return Ok(record),
                Err(ExecuteError::NotConfirmed(_)) => {
                    // Nobody can be asked over MCP.
                    let reported = self.app.executor.report(&self.meta.id, self.epoch, &call).await;
                    return reported.map_err(|error| without_result(&call, &error));
                }
                Err(error) if is_passing(&error) && Instant::now() < until && !self.app.stop.is_cancelled() => {
                    sleep(ASK_AGAIN).await;
                }
                Err(error) => return Err(without_result(&call, &error)),
            }
        }
    }

    async fn intend(&self, wanted: Wanted) -> std::result::Result<EventId, Fault> {
        let Wanted { id, tool, input, sandbox } = wanted;
        let body = EventBody::AgentToolUse { name: tool, input, evaluated_permission: Permission::Allow, sandbox };
        let event = NewEvent { id, body };
        let mut head = self.app.store.state(&self.meta.id).await.map_err(refused)?.head;
        for _ in 0..APPENDS {
            match self.app.store.append(&self.meta.id, self.epoch, head, vec![event.clone()]).await {
                // Or an earlier epoch has said it already, and its call is joined.
                Ok(_) | Err(StoreError::Duplicate(_)) => return Ok(event.id),
                Err(StoreError::HeadMoved { head: moved }) => head = moved,
                Err(error) => return Err(refused(error)),
            }
        }
        Err(Fault::internal("the log grows too fast: call again", None))
    }
}

fn definition(name: &str, description: &str, schema: &Value) -> Value {
    json!({"name": name, "description": description, "inputSchema": schema})
}

fn execute(tools: &[SandboxTool], sandboxes: &[String]) -> Value {
    let names: Vec<&str> = tools.iter().map(|tool| tool.name()).collect();
    let schema = json!({"type": "object", "required": ["tool", "input"], "properties": {
        "tool": {"type": "string", "enum": names, "description": "The tool to run."},
        "input": {"type": "object", "description": "The tool's input."},
        "sandbox": {"type": "string", "enum": sandboxes, "description": "The sandbox to run it in; the first one unless given."},
    }});
    definition(EXECUTE, "Runs a tool in the sandbox that is named.", &schema)
}

fn execute_arguments(id: EventId, mut arguments: Map<String, Value>) -> std::result::Result<Wanted, String> {
    let Some(Value::String(tool)) = arguments.remove("tool") else {
        return Err("`tool` must be the name of a tool.".to_owned());
    };
    let sandbox = match arguments.remove("sandbox") {
        None | Some(Value::Null) => None,
        Some(Value::String(sandbox)) => Some(sandbox),
        Some(_) => return Err("`sandbox` must be the name of a sandbox.".to_owned()),
    };
    match arguments.remove("input") {
        Some(input @ Value::Object(_)) => Ok(Wanted { id, tool, input, sandbox }),
        _ => Err("`input` must be an object.".to_owned()),
    }
}

/// What the log says of the call, in the words of MCP.
fn answer(record: Record) -> Value {
    let (content, is_error) = match record.event.body {
        EventBody::AgentToolResult { content, is_error, .. } | EventBody::UserToolResult { content, is_error, .. } => {
            (content.unwrap_or_default(), is_error.unwrap_or(false))
        }
        other => return mcp::text_result(&format!("The call has ended with {}.", other.kind()), true),
    };
    mcp::result(&content.iter().map(block).collect::<Vec<_>>(), is_error)
}

fn block(block: &Value) -> Value {
    let source = &block["source"];
    match (block["type"].as_str(), source["data"].as_str(), source["media_type"].as_str()) {
        (Some("text"), _, _) => json!({"type": "text", "text": block["text"].as_str().unwrap_or_default()}),
        (Some("image"), Some(data), Some(media)) => json!({"type": "image", "data": data, "mimeType": media}),
        _ => json!({"type": "text", "text": block.to_string()}),
    }
}

fn without_result(call: &EventId, error: &ExecuteError) -> Fault {
    let message = format!("the call {call} is on record and has no result yet: {error}");
    Fault::internal(message, Some(json!({ "tool_use_id": call })))
}

/// Whether asking again may help.
fn is_passing(error: &ExecuteError) -> bool {
    match error {
        ExecuteError::Store(error) => matches!(**error, StoreError::Unavailable(_)),
        ExecuteError::Resources(_) | ExecuteError::Work(_) | ExecuteError::Busy | ExecuteError::Failed(_) => true,
        ExecuteError::NotACall(_)
        | ExecuteError::NotConfirmed(_)
        | ExecuteError::NoSession { .. }
        | ExecuteError::Stopping => false,
    }
}

fn refused(error: StoreError) -> Fault {
    Fault::internal(ApiError::from(error).to_string(), None)
}
