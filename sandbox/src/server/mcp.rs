//! The tools over MCP: streamable HTTP without sessions, one message a request, each answered by one JSON object.
//!
//! A call whose `_meta` holds [`CALL_ID`] is one of the journal like any other: it runs at most once, a repeated request gets
//! the first one's result, and `/v1/cancel` interrupts it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use longhand_process::mcp::{self, About, Call, Fault, Received};
use serde_json::Value;

use super::calls::Calls;
use super::error::ApiError;
use super::routes::whole;
use crate::wire::{CallId, ExecuteRequest};

/// The key of a call in the `_meta` of its request.
const CALL_ID: &str = "longhand.dev/call-id";
const ABOUT: About = About { name: "sandboxd", version: env!("CARGO_PKG_VERSION"), instructions: None };

impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Self {
        Self::refused(error.to_string())
    }
}

/// `POST /mcp`
pub(super) async fn message(State(calls): State<Arc<Calls>>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let body = whole(body).await?;
    Ok(match mcp::receive(&head.headers, &body, ABOUT, crate::tools::schema::tools) {
        Received::Answered(response) => response.into_response(),
        Received::Call(asked, reply) => reply.json(call(&calls, asked).await).into_response(),
    })
}

async fn call(calls: &Arc<Calls>, call: Call) -> Result<Value, Fault> {
    let Call { name, arguments, mut meta } = call;
    let id = match meta.remove(CALL_ID) {
        None => format!("mcp-{:032x}", rand::random::<u128>()),
        Some(Value::String(id)) => id,
        Some(_) => return Err(Fault::invalid_params(&format!("{CALL_ID} is not a string"))),
    };
    let call_id = CallId::new(id).map_err(|error| Fault::invalid_params(&error.to_string()))?;
    let input = Value::Object(arguments);
    let output = calls.execute(ExecuteRequest { call_id, name, input, attach_only: false }).await?;
    Ok(mcp::text_result(&output.content, output.is_error))
}
