//! What the proxy answers itself to a program in a sandbox. No text here ever comes from a secret, a body or a header's
//! value.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::ext::ReasonPhrase;

use super::context::Answer;

/// The header that names the rule which refused a request.
pub const DENIED: HeaderName = HeaderName::from_static("x-longhand-denied");
/// A status line that is longer than this is cut: some programs show nothing else.
const MAX_REASON: usize = 200;

/// An answer in plain text that names the rule, also in its reason phrase, which is all that many programs show of the
/// answer to a CONNECT.
#[must_use]
pub fn answer(status: StatusCode, rule: &'static str, message: &str) -> Answer {
    let text = format!("egress proxy: {message} ({rule})\n");
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let reason: Vec<u8> = message.bytes().filter(|byte| (b' '..=b'~').contains(byte)).take(MAX_REASON).collect();
    if let Ok(reason) = ReasonPhrase::try_from(reason) {
        response.extensions_mut().insert(reason);
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(DENIED, HeaderValue::from_static(rule));
    response
}
