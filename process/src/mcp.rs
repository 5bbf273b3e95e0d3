//! A server of tools over MCP, without its HTTP: streamable HTTP where each request stands for itself.
//!
//! There are no sessions and no streams from the server: one message a `POST`, and a client's `GET` and `DELETE` are 405.
//! [`receive`] answers everything but a `tools/call`, which its caller runs.

use http::header::{ACCEPT, CONTENT_TYPE, ORIGIN};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The versions of the protocol in which what is said here is the same, the newest first.
pub const VERSIONS: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

const VERSION_HEADER: &str = "mcp-protocol-version";
const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL_ERROR: i64 = -32603;
/// The first of those that JSON-RPC leaves to servers.
const SERVER_ERROR: i64 = -32000;
/// An answer repeats its request's identifier as it is, and so it is refused beyond so many bytes.
const MAX_ID: usize = 256;
/// The most characters of a message that may repeat what a client sent.
const MAX_ECHO: usize = 200;

/// What a server says of itself.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// Its own version.
    pub version: &'static str,
    /// What a model is told of its tools.
    pub instructions: Option<&'static str>,
}

/// What becomes of a `POST`.
#[derive(Debug)]
pub enum Received {
    /// It is answered.
    Answered(Response<String>),
    /// A tool is to be run.
    Call(Call, Reply),
}

/// The parameters of a `tools/call`.
#[derive(Debug, Deserialize)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// Its input.
    #[serde(default, deserialize_with = "object")]
    pub arguments: Map<String, Value>,
    /// What the client says of the call.
    #[serde(default, rename = "_meta", deserialize_with = "object")]
    pub meta: Map<String, Value>,
}

/// An error of JSON-RPC. Whoever reads of it may be a model.
#[derive(Debug)]
pub struct Fault {
    code: i64,
    message: String,
    data: Option<Value>,
}

impl Fault {
    /// The parameters are wrong. The message may repeat what was sent: it is cut.
    #[must_use]
    pub fn invalid_params(message: &str) -> Self {
        Self::new(INVALID_PARAMS, message.chars().take(MAX_ECHO).collect())
    }

    /// The request could not be served.
    #[must_use]
    pub fn internal(message: impl Into<String>, data: Option<Value>) -> Self {
        Self { data, ..Self::new(INTERNAL_ERROR, message.into()) }
    }

    /// The server would not serve the request.
    #[must_use]
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(SERVER_ERROR, message.into())
    }

    fn new(code: i64, message: String) -> Self {
        Self { code, message, data: None }
    }
}

/// To whom a request is answered.
#[derive(Debug)]
pub struct Reply(Value);

impl Reply {
    /// The JSON of the answer, in one line.
    #[must_use]
    pub fn text(&self, result: Result<Value, Fault>) -> String {
        match result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": self.0, "result": result}),
            Err(Fault { code, message, data: None }) => {
                json!({"jsonrpc": "2.0", "id": self.0, "error": {"code": code, "message": message}})
            }
            Err(Fault { code, message, data: Some(data) }) => {
                json!({"jsonrpc": "2.0", "id": self.0, "error": {"code": code, "message": message, "data": data}})
            }
        }
        .to_string()
    }

    /// The answer, as JSON.
    #[must_use]
    pub fn json(&self, result: Result<Value, Fault>) -> Response<String> {
        self.with(StatusCode::OK, result)
    }

    fn with(&self, status: StatusCode, result: Result<Value, Fault>) -> Response<String> {
        let mut response = Response::new(self.text(result));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// The result of a `tools/call`, of blocks of content.
#[must_use]
pub fn result(content: &[Value], is_error: bool) -> Value {
    json!({"content": content, "isError": is_error})
}

/// The same, of a text.
#[must_use]
pub fn text_result(text: &str, is_error: bool) -> Value {
    result(&[json!({"type": "text", "text": text})], is_error)
}

/// Whether the client takes an event stream for an answer.
#[must_use]
pub fn takes_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        range.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}

/// Takes the message of a `POST`. `tools` gives what is listed: an array of objects with `name` and `inputSchema`.
pub fn receive(headers: &HeaderMap, body: &[u8], about: About, tools: impl FnOnce() -> Value) -> Received {
    let nobody = Reply(Value::Null);
    let refuse = |reply: &Reply, status, code, message: &str| {
        Received::Answered(reply.with(status, Err(Fault::new(code, message.to_owned()))))
    };
    let malformed = |reply: &Reply, message| refuse(reply, StatusCode::BAD_REQUEST, INVALID_REQUEST, message);
    // Else a page could call by way of a name that leads here. No page has business here.
    if headers.contains_key(ORIGIN) {
        return refuse(&nobody, StatusCode::FORBIDDEN, INVALID_REQUEST, "a browser's page may not call this server");
    }
    let Ok(message) = serde_json::from_slice::<Value>(body) else {
        return refuse(&nobody, StatusCode::BAD_REQUEST, PARSE_ERROR, "the body is not JSON");
    };
    let Value::Object(mut message) = message else {
        return malformed(&nobody, "the body is not one message of JSON-RPC");
    };
    let reply = match message.remove("id") {
        None => None,
        Some(id) if is_id(&id) => Some(Reply(id)),
        Some(_) => return malformed(&nobody, "`id` is neither a number nor a short string"),
    };
    let to = reply.as_ref().unwrap_or(&nobody);
    if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return malformed(to, "this is no message of JSON-RPC 2.0");
    }
    let method = match message.remove("method") {
        Some(Value::String(method)) => method,
        // Nothing was asked of the client, but an answer is no error.
        None if message.contains_key("result") || message.contains_key("error") => return accepted(),
        _ => return malformed(to, "the message has no method"),
    };
    // The first message may say what the server does not know; the answer says what it knows.
    if method != "initialize" && !knows_version(headers) {
        return malformed(to, &format!("the header {VERSION_HEADER} must be one of {}", VERSIONS.join(", ")));
    }
    let Some(reply) = reply else { return accepted() };
    let params = message.remove("params").unwrap_or_default();
    let result = match method.as_str() {
        "initialize" => Ok(initialize(&params, about)),
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({"tools": tools()})),
        "tools/call" => match serde_json::from_value(params) {
            Ok(call) => return Received::Call(call, reply),
            Err(error) => Err(Fault::invalid_params(&error.to_string())),
        },
        other => {
            let other: String = other.chars().take(64).collect();
            Err(Fault::new(METHOD_NOT_FOUND, format!("there is no method {other:?}")))
        }
    };
    Received::Answered(reply.json(result))
}

fn initialize(params: &Value, about: About) -> Value {
    let asked = params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
    let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(VERSIONS[0]);
    let mut hello = json!({
        "protocolVersion": version,
        "capabilities": {"tools": {}},
        "serverInfo": {"name": about.name, "version": about.version},
    });
    if let Some(instructions) = about.instructions {
        hello["instructions"] = instructions.into();
    }
    hello
}

fn accepted() -> Received {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::ACCEPTED;
    Received::Answered(response)
}

fn is_id(id: &Value) -> bool {
    id.is_number() || id.as_str().is_some_and(|id| id.len() <= MAX_ID)
}

/// Without the header it is the oldest version.
fn knows_version(headers: &HeaderMap) -> bool {
    headers.get(VERSION_HEADER).is_none_or(|value| VERSIONS.iter().any(|version| value == version))
}

/// An object, of which null is as good as an empty one.
fn object<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Map<String, Value>, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests;
