//! The tools of a session's sandboxes as an MCP server, for harnesses that know no other way to call a tool.
//!
//! Every request stands for itself: there are no MCP sessions, so that any replica answers any of them. A `tools/call`
//! becomes an `agent.tool_use` of the epoch that the calling pod owns, and then runs as every other call does: its result
//! is in the log also when nobody waits for it any more. A repeated `tools/call` is another call, unless it says by an
//! identifier of its own that it is the same ([`TOOL_USE_ID`]).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use longhand_protocol::event::{EventBody, NewEvent, Permission};
use longhand_protocol::harness::{SandboxTool, Tool as AgentTool};
use longhand_protocol::{EventId, Record};
use longhand_session_log::StoreError;
use longhand_session_log::store::SessionMeta;
use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, Implementation, JsonObject,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::access;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf};
use crate::app::App;
use crate::execute::ExecuteError;

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

/// `POST mcp`: one JSON-RPC request, answered by an event stream.
pub async fn serve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    request: Request,
) -> Result<Response> {
    let state = access::owned(&app, &identity, path.session()?).await?;
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_max_request_body_bytes(MAX_BODY)
        // The service has many names, and a browser has no token of a pod.
        .disable_allowed_hosts()
        .enforce_origin_validation()
        .with_cancellation_token(app.stop.child_token());
    let hands = Hands { app, meta: Arc::new(state.meta), epoch: state.epoch };
    let service =
        StreamableHttpService::new(move || Ok(hands.clone()), Arc::new(NeverSessionManager::default()), config);
    Ok(service.handle(request).await.map(Body::new))
}

/// The sandboxes of a session, as the brain of one epoch uses them.
#[derive(Clone)]
struct Hands {
    app: App,
    meta: Arc<SessionMeta>,
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

    fn permitted(&self, permission: Permission) -> Vec<SandboxTool> {
        let tools = self.meta.agent.tools.iter().flat_map(AgentTool::sandbox_tools);
        tools.filter(|(_, policy)| policy.permission() == permission).map(|(tool, _)| tool).collect()
    }

    /// What is called, or what the model is told why it is not.
    fn wanted(&self, id: EventId, name: &str, arguments: JsonObject) -> std::result::Result<Wanted, String> {
        let wanted = if name == EXECUTE {
            execute_arguments(id, arguments)?
        } else {
            Wanted { id, tool: name.to_owned(), input: Value::Object(arguments), sandbox: None }
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
    async fn run(&self, wanted: Wanted) -> std::result::Result<Record, ErrorData> {
        let call = self.intend(wanted).await?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.app.executor.execute(&self.meta.id, self.epoch, &call).await {
                Ok(record) => return Ok(record),
                Err(error) if is_passing(&error) && Instant::now() < until => sleep(ASK_AGAIN).await,
                Err(error) => {
                    let message = format!("the call {call} is on record and has no result yet: {error}");
                    return Err(ErrorData::internal_error(message, Some(json!({ "tool_use_id": call }))));
                }
            }
        }
    }

    async fn intend(&self, wanted: Wanted) -> std::result::Result<EventId, ErrorData> {
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
        Err(ErrorData::internal_error("the log grows too fast: call again", None))
    }
}

impl ServerHandler for Hands {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("longhand", env!("CARGO_PKG_VERSION")))
            .with_instructions(
                "Tools that run in the sandboxes of this session. A sandbox is made when it is first used.",
            )
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> std::result::Result<ListToolsResult, ErrorData> {
        let tools = self.tools();
        let execute = (!tools.is_empty()).then(|| execute(&tools, &self.meta.sandboxes));
        let tools = tools.into_iter().map(|tool| definition(tool.name(), tool.description(), tool.input_schema()));
        Ok(ListToolsResult::with_all_items(tools.chain(execute).collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> std::result::Result<CallToolResponse, ErrorData> {
        let id = match context.meta.get(TOOL_USE_ID) {
            None => EventId::generate(),
            Some(id) => serde_json::from_value(id.clone())
                .map_err(|error| ErrorData::invalid_params(format!("`_meta.{TOOL_USE_ID}`: {error}"), None))?,
        };
        let result = match self.wanted(id, &request.name, request.arguments.unwrap_or_default()) {
            Ok(wanted) => answer(self.run(wanted).await?),
            Err(reason) => CallToolResult::error(vec![ContentBlock::text(reason)]),
        };
        Ok(result.into())
    }
}

fn definition(name: &'static str, description: &'static str, schema: Value) -> Tool {
    let schema = match schema {
        Value::Object(schema) => schema,
        _ => JsonObject::new(),
    };
    Tool::new(name, description, schema)
}

fn execute(tools: &[SandboxTool], sandboxes: &[String]) -> Tool {
    let names: Vec<&str> = tools.iter().map(|tool| tool.name()).collect();
    let schema = json!({"type": "object", "required": ["tool", "input"], "properties": {
        "tool": {"type": "string", "enum": names, "description": "The tool to run."},
        "input": {"type": "object", "description": "The tool's input."},
        "sandbox": {"type": "string", "enum": sandboxes, "description": "The sandbox to run it in; the first one unless given."},
    }});
    definition(EXECUTE, "Runs a tool in the sandbox that is named.", schema)
}

fn execute_arguments(id: EventId, mut arguments: JsonObject) -> std::result::Result<Wanted, String> {
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
fn answer(record: Record) -> CallToolResult {
    let (content, is_error) = match record.event.body {
        EventBody::AgentToolResult { content, is_error, .. } | EventBody::UserToolResult { content, is_error, .. } => {
            (content.unwrap_or_default(), is_error.unwrap_or(false))
        }
        other => (vec![json!({"type": "text", "text": format!("The call has ended with {}.", other.kind())})], true),
    };
    let content = content.iter().map(block).collect();
    if is_error { CallToolResult::error(content) } else { CallToolResult::success(content) }
}

fn block(block: &Value) -> ContentBlock {
    let source = &block["source"];
    match (block["type"].as_str(), source["data"].as_str(), source["media_type"].as_str()) {
        (Some("text"), _, _) => ContentBlock::text(block["text"].as_str().unwrap_or_default()),
        (Some("image"), Some(data), Some(media)) => ContentBlock::image(data, media),
        _ => ContentBlock::text(block.to_string()),
    }
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

fn refused(error: StoreError) -> ErrorData {
    ErrorData::internal_error(ApiError::from(error).to_string(), None)
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
