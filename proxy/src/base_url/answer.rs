//! What of an answer is passed on, and what is taken out of it.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;

use crate::{
    body::Relayed,
    error::Refusal,
    headers::{framing_conflict, is_encoded, prepare_response},
    intercept::{
        bodies::{Scrubbed, scrub_headers},
        scrub::Values,
    },
    upstream::IDLE_TIMEOUT,
};

/// The body of an answer: the upstream's, or the proxy's own.
pub type AnswerBody = Either<Scrubbed<Relayed<Incoming>>, Full<Bytes>>;

/// What is passed on of a host's answer to a request of this method, in which these values must not come back.
pub(super) fn answer(
    host: &str,
    method: &Method,
    response: Response<Incoming>,
    values: Values,
) -> Result<Response<AnswerBody>, Refusal> {
    let bad = |what| Err(Refusal::BadAnswer { host: host.to_owned(), what });
    let status = response.status();
    if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
        return Err(Refusal::Redirect { host: host.to_owned(), status: status.as_u16() });
    }
    if status.is_informational() {
        return bad("a switch of protocols that was not asked for");
    }
    if framing_conflict(response.headers()) {
        return bad("two lengths for one body");
    }
    let has_body = method != Method::HEAD && status != StatusCode::NOT_MODIFIED;
    if !values.is_empty() && has_body && is_encoded(response.headers()) {
        return bad("a compressed body, although it was asked not to: it cannot be looked into");
    }
    let (mut head, body) = response.into_parts();
    prepare_response(&mut head.headers);
    scrub_headers(&mut head.headers, &values);
    let mut answer = Response::new(Either::Left(Scrubbed::new(Relayed::new(body, IDLE_TIMEOUT), values)));
    *answer.status_mut() = status;
    *answer.headers_mut() = head.headers;
    Ok(answer)
}
