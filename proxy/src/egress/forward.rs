//! Plain HTTP to hosts without a credential: passed on hop by hop, with nothing of this hop in it.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Version, header, request::Parts};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use longhand_protocol::egress::{PLACEHOLDER_LENGTH, PLACEHOLDER_PREFIX};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{
    context::{Answer, SessionContext},
    head::origin_form,
    refusal::Refusal,
    target::Target,
};
use crate::{
    body::Relayed,
    headers::{framing_conflict, remove_hop_by_hop},
    upstream::IDLE_TIMEOUT,
};

/// How long a client may be silent in the middle of its request.
const REQUEST_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Forwards a request to a target that nothing is bound to.
///
/// # Errors
/// [`Refusal`] when the request holds a placeholder, and when the target does not answer.
pub async fn forward(request: Request<Incoming>, target: &Target, context: &SessionContext) -> Result<Answer, Refusal> {
    let host = || target.host.to_string();
    let (mut parts, body) = request.into_parts();
    if holds_placeholder(&parts) {
        return Err(Refusal::Placeholder { host: host() });
    }
    remove_hop_by_hop(&mut parts.headers);
    // The length is set again from the body that is sent.
    parts.headers.remove(header::CONTENT_LENGTH);
    let authority = target.authority();
    parts.headers.insert(
        header::HOST,
        HeaderValue::try_from(authority).map_err(|_| Refusal::Malformed("its host makes no header"))?,
    );
    parts.uri = origin_form(&parts.uri);
    parts.version = Version::HTTP_11;
    let outgoing = Request::from_parts(parts, Relayed::new(body, REQUEST_IDLE_TIMEOUT));

    let stream = context.dialer.connect(target).await?;
    let failed = |error: hyper::Error| Refusal::NoAnswer { host: host(), cause: error.to_string() };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to an upstream ended");
        }
    }));
    let late = |_| Err(Refusal::TimedOut { host: host(), waited: IDLE_TIMEOUT });
    let answered = timeout(IDLE_TIMEOUT, async { sender.send_request(outgoing).await.map_err(failed) });
    let response = answered.await.unwrap_or_else(late)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::BadAnswer { host: host(), what: "a switch of protocols that was not asked for" });
    }
    if framing_conflict(response.headers()) {
        return Err(Refusal::BadAnswer { host: host(), what: "two lengths for one body" });
    }
    let (mut head, body) = response.into_parts();
    remove_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    let body = Held { body: Relayed::new(body, IDLE_TIMEOUT), _connection: connection };
    Ok(Answer::from_parts(head, body.map_err(Box::<dyn Error + Send + Sync>::from).boxed_unsync()))
}

/// A body with the connection that it comes over.
struct Held {
    body: Relayed<Incoming>,
    _connection: AbortOnDropHandle<()>,
}

impl Body for Held {
    type Data = Bytes;
    type Error = <Relayed<Incoming> as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a head holds what looks like a placeholder: as it is, URL-encoded in the target, or in HTTP Basic.
fn holds_placeholder(parts: &Parts) -> bool {
    let decoded = percent_decoded(parts.uri.to_string().as_bytes());
    let basic = |value: &HeaderValue| {
        let (scheme, encoded) = value.as_bytes().split_at_checked(6)?;
        scheme.eq_ignore_ascii_case(b"basic ").then(|| STANDARD.decode(encoded.trim_ascii()).ok())?
    };
    has_placeholder(&decoded)
        || parts.headers.values().any(|value| {
            has_placeholder(value.as_bytes()) || basic(value).is_some_and(|decoded| has_placeholder(&decoded))
        })
}

fn has_placeholder(text: &[u8]) -> bool {
    let prefix = PLACEHOLDER_PREFIX.as_bytes();
    let in_placeholder = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    text.windows(prefix.len() + PLACEHOLDER_LENGTH)
        .any(|window| window.strip_prefix(prefix).is_some_and(|rest| rest.iter().all(in_placeholder)))
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        match (first, digit(tail.first()), digit(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = &tail[2..];
            }
            _ => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use longhand_protocol::egress::Seed;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http://a.example/P", None, true)]
    #[case("http://a.example/?key=P", None, true)]
    #[case("http://a.example/?key=%6C%68p_REST", None, true)]
    #[case("http://a.example/", Some("Bearer P"), true)]
    #[case("http://a.example/", Some("Basic B"), true)]
    #[case("http://a.example/", Some("basic  B"), true)]
    #[case("http://a.example/", Some("Basic ????"), false)]
    #[case("http://a.example/lhp_short", Some("Bearer lhp_"), false)]
    #[case("http://a.example/100%", None, false)]
    fn placeholders_are_seen(#[case] uri: &str, #[case] authorization: Option<&str>, #[case] expected: bool) {
        let placeholder = Seed::from([7; 32]).placeholder("vault", "name");
        let basic = STANDARD.encode(format!("user:{placeholder}"));
        let filled = |text: &str| {
            let text = text.replace("REST", &placeholder[4..]);
            if text.ends_with('P') {
                text.replace('P', &placeholder)
            } else {
                text.replacen(" B", &format!(" {basic}"), 1)
            }
        };
        let mut request = Request::builder().uri(filled(uri));
        if let Some(value) = authorization {
            let value =
                value.replace("Basic B", &format!("Basic {basic}")).replace("basic  B", &format!("basic  {basic}"));
            request = request.header("authorization", value.replace('P', &placeholder));
        }
        assert_eq!(holds_placeholder(&request.body(()).unwrap().into_parts().0), expected);
    }
}
