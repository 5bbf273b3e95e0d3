//! Plain HTTP to hosts without a credential: passed on hop by hop, with nothing of this hop in it.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Version, header, request::Parts};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
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
    intercept::{
        bodies::{Shown, Watched},
        placeholder::{find, is_hidden_in},
    },
    linger::Lingering,
    upstream::IDLE_TIMEOUT,
};

/// How long a client may be silent in the middle of its request.
const REQUEST_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Forwards a request to a target that nothing is bound to.
///
/// # Errors
/// [`Refusal`] when the request holds a placeholder, also in its body, and when the target does not answer.
pub async fn forward(
    request: Request<Lingering<Incoming>>,
    target: &Target,
    context: &SessionContext,
) -> Result<Answer, Refusal> {
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
    let shown = Shown::default();
    let outgoing = Request::from_parts(parts, Watched::new(Relayed::new(body, REQUEST_IDLE_TIMEOUT), shown.clone()));

    let stream = context.dialer.connect(target).await?;
    let failed = |error: hyper::Error| match shown.is_set() {
        true => Refusal::Placeholder { host: host() },
        false => Refusal::NoAnswer { host: host(), cause: error.to_string() },
    };
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

/// Whether a head holds what looks like a placeholder, also encoded.
fn holds_placeholder(parts: &Parts) -> bool {
    let seen = |text: &[u8]| !find(text).is_empty() || is_hidden_in(text);
    seen(parts.uri.to_string().as_bytes()) || parts.headers.values().any(|value| seen(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use longhand_protocol::egress::Seed;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http://a.example/PLACEHOLDER", "", true)]
    #[case("http://a.example/?key=PLACEHOLDER", "", true)]
    #[case("http://a.example/?key=%6C%68p_TAIL", "", true)]
    #[case("http://a.example/", "Bearer PLACEHOLDER", true)]
    #[case("http://a.example/", "Basic BASIC", true)]
    #[case("http://a.example/", "basic  BASIC", true)]
    #[case("http://a.example/", "Basic ????", false)]
    #[case("http://a.example/lhp_short", "Bearer lhp_", false)]
    #[case("http://a.example/100%", "", false)]
    fn placeholders_are_seen(#[case] uri: &str, #[case] authorization: &str, #[case] expected: bool) {
        let placeholder = Seed::from([7; 32]).placeholder("vault", "name");
        let basic = STANDARD.encode(format!("user:{placeholder}"));
        let fill = |text: &str| {
            text.replace("PLACEHOLDER", &placeholder).replace("TAIL", &placeholder[4..]).replace("BASIC", &basic)
        };
        let request = Request::builder().uri(fill(uri)).header("authorization", fill(authorization));
        assert_eq!(holds_placeholder(&request.body(()).unwrap().into_parts().0), expected);
    }
}
