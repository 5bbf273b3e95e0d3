//! The tools over MCP: streamable HTTP without sessions, one message a request, each answered by one JSON object.
//!
//! A call whose `_meta` holds [`CALL_ID`] is one of the journal like any other: it runs at most once, a repeated request gets
//! the first one's result, and `/v1/cancel` interrupts it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::calls::Calls;
use super::error::ApiError;
use super::routes::Body;
use crate::wire::{CallId, ExecuteRequest};

/// The key of a call in the `_meta` of its request.
const CALL_ID: &str = "longhand.dev/call-id";
/// The versions of the protocol in which what is said here is the same, the newest first.
const VERSIONS: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const REFUSED: i64 = -32000;

#[derive(Deserialize)]
pub(super) struct Message {
    jsonrpc: String,
    id: Option<Value>,
    /// An answer has none; nothing was asked of the client, so none is expected.
    method: Option<String>,
    #[serde(default)]
    params: Value,
}

#[derive(Deserialize)]
struct Call {
    name: String,
    #[serde(default)]
    arguments: Value,
    #[serde(default, rename = "_meta")]
    meta: Value,
}

/// `POST /mcp`
pub(super) async fn message(State(calls): State<Arc<Calls>>, Body(message): Body<Message>) -> Response {
    let Message { jsonrpc, id, method, params } = message;
    // Notifications and answers need no answer.
    let (Some(id), Some(method)) = (id, method) else { return StatusCode::ACCEPTED.into_response() };
    let result = if jsonrpc == "2.0" && (id.is_string() || id.is_number()) {
        answer(&calls, &method, params).await
    } else {
        Err(Fault { code: INVALID_REQUEST, message: "this is no request of JSON-RPC 2.0".to_owned() })
    };
    Json(match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(Fault { code, message }) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
        }
    })
    .into_response()
}

struct Fault {
    code: i64,
    message: String,
}

impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Self {
        Self { code: REFUSED, message: error.to_string() }
    }
}

async fn answer(calls: &Arc<Calls>, method: &str, params: Value) -> Result<Value, Fault> {
    match method {
        "initialize" => {
            let asked = params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
            let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(VERSIONS[0]);
            Ok(json!({
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "sandboxd", "version": env!("CARGO_PKG_VERSION")},
            }))
        }
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({"tools": crate::tools::schema::tools()})),
        "tools/call" => call(calls, params).await,
        other => {
            let other: String = other.chars().take(64).collect();
            Err(Fault { code: METHOD_NOT_FOUND, message: format!("there is no method {other:?}") })
        }
    }
}

async fn call(calls: &Arc<Calls>, params: Value) -> Result<Value, Fault> {
    let wrong = |message: String| Fault { code: INVALID_PARAMS, message };
    let Call { name, arguments, meta } = serde_json::from_value(params).map_err(|error| wrong(error.to_string()))?;
    let id = match meta.get(CALL_ID) {
        None => format!("mcp-{:032x}", rand::random::<u128>()),
        Some(Value::String(id)) => id.clone(),
        Some(_) => return Err(wrong(format!("{CALL_ID} is not a string"))),
    };
    let call_id = CallId::new(id).map_err(|error| wrong(error.to_string()))?;
    let input = if arguments.is_null() { json!({}) } else { arguments };
    let output = calls.execute(ExecuteRequest { call_id, name, input, attach_only: false }).await?;
    Ok(json!({"content": [{"type": "text", "text": output.content}], "isError": output.is_error}))
}
