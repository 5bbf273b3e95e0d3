//! `Idempotency-Key`: the same request of the same caller is carried out once within 24 h, whichever replica it reaches.
//!
//! A request with a key is taken up before it is carried out (see [`longhand_session_log::requests`]); its handler names
//! what it makes by the [`Seed`]. A success is kept and given again, as it was. A refusal has made nothing and is forgotten;
//! a failure may have, so that the next attempt goes on with the same seed.

use std::convert::Infallible;

use axum::body::Body as HttpBody;
use axum::extract::{FromRequest as _, FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use longhand_protocol::EventId;
use longhand_session_log::requests::{Answer, Begun};
use sha2::{Digest as _, Sha256};

use crate::api::error::{ApiError, Result, SHOULD_RETRY};
use crate::api::extract::{Body, Caller};
use crate::app::App;
use crate::auth::Identity;
use crate::metrics;

const HEADER: &str = "idempotency-key";
const LONGEST_KEY: usize = 256;
/// Says that an answer is that of an earlier request.
const REPLAYED: &str = "idempotent-replayed";
/// A larger answer is not kept: the request is carried out again, which finds what it has made.
const LARGEST_ANSWER: usize = 64 * 1024;

/// What a request with a key names things by that it makes: the same each time it is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed(String);

impl Seed {
    /// Hex digits for one of the things that the request makes.
    #[must_use]
    pub fn of(&self, what: &str) -> String {
        let digest = self.digest(what);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The identifier of one of the events that the request sends.
    #[must_use]
    pub fn event(&self, index: usize) -> EventId {
        EventId::from_digest(&self.digest(&format!("event/{index}")))
    }

    fn digest(&self, what: &str) -> [u8; 32] {
        Sha256::digest(format!("{}/{what}", self.0)).into()
    }
}

#[cfg(test)]
impl Seed {
    pub(super) fn fixture(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The seed of a request, if it has a key.
#[derive(Clone, Debug)]
pub struct MaybeSeed(pub Option<Seed>);

impl FromRequestParts<App> for MaybeSeed {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get().cloned()))
    }
}

/// Carries a request with a key out unless it was.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Result<Response> {
    let Some(key) = key(request.method(), request.headers())? else { return Ok(next.run(request).await) };
    let identity = match request.extensions().get::<Caller>() {
        Some(Caller(identity)) => identity.clone(),
        None => return Err(ApiError::internal("a request reached its handler without its caller")),
    };
    app.limits.remembered(&identity)?;
    let (parts, body) = request.into_parts();
    let Body(body) = Body::from_request(Request::from_parts(parts.clone(), body), &app).await?;
    let (name, digest) = (name(&identity, &key), digest(&key, &parts, &body));
    let begun = app.requests.begin(&name, &digest, Timestamp::now()).await;
    let (seed, first) = match begun? {
        Begun::Go { seed, first } => (seed, first),
        Begun::Answered(answer) => {
            metrics::repeated("answered");
            return Ok(replayed(answer));
        }
        Begun::Other => {
            metrics::repeated("refused");
            return Err(ApiError::conflict(
                "the `Idempotency-Key` was used for another request within the last 24 h: use a new one",
            ));
        }
    };
    if !first {
        metrics::repeated("again");
    }
    // Nobody else has a part of the body, which may hold secret values and is cleared by its handler.
    let mut request = Request::from_parts(parts, HttpBody::from(body));
    request.extensions_mut().insert(Seed(seed.clone()));
    let response = next.run(request).await;
    settle(&app, &name, &seed, first, response).await
}

/// Keeps the answer, or forgets the request.
async fn settle(app: &App, name: &str, seed: &str, first: bool, response: Response) -> Result<Response> {
    let status = response.status();
    if !status.is_success() {
        if first
            && status.is_client_error()
            && let Err(error) = app.requests.forget(name, seed).await
        {
            tracing::warn!(%error, "a refused request keeps its Idempotency-Key for now");
        }
        return Ok(repeatable(response));
    }
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await;
    let bytes = bytes.map_err(|error| ApiError::internal(format!("the answer was broken off: {error}")).of_change())?;
    let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= LARGEST_ANSWER);
    if let Some(text) = text {
        let answer = Answer { status: status.as_u16(), body: text.to_owned() };
        match app.requests.answer(name, seed, answer.clone()).await {
            Ok(kept) if kept != answer => return Ok(replayed(kept)),
            Ok(_) => {}
            // It is carried out again, if it is repeated, and finds what it has made.
            Err(error) => tracing::warn!(%error, "the answer to a request with an Idempotency-Key was not kept"),
        }
    }
    Ok(Response::from_parts(parts, HttpBody::from(bytes)))
}

/// Whatever a request with a key has made when it failed, it is found when the request is repeated.
fn repeatable(mut response: Response) -> Response {
    if response.status().is_server_error() {
        response.headers_mut().remove(SHOULD_RETRY);
    }
    response
}

fn replayed(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = (status, [json], answer.body).into_response();
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// The key of a request that changes something.
fn key(method: &Method, headers: &HeaderMap) -> Result<Option<String>> {
    let Some(key) = headers.get(HEADER).filter(|_| method == Method::POST) else { return Ok(None) };
    match key.to_str() {
        Ok(key) if (1..=LONGEST_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::bad_request(format!("`Idempotency-Key` is not 1 to {LONGEST_KEY} characters of ASCII"))),
    }
}

/// Under which the request is remembered: the key is its caller's.
fn name(identity: &Identity, key: &str) -> String {
    hash(&[identity.username.as_bytes(), key.as_bytes()])
}

/// Of all that the request says. It covers the key, so that nobody can try what a body may have said who does not know it.
fn digest(key: &str, parts: &Parts, body: &[u8]) -> String {
    let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    hash(&[key.as_bytes(), path.as_bytes(), body])
}

fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use http::{HeaderMap, Method};
    use rstest::rstest;

    use super::{ApiError, SHOULD_RETRY, Seed, digest, key, name, repeatable};
    use crate::auth::Identity;

    fn identity(username: &str) -> Identity {
        Identity { username: username.to_owned(), ..Identity::default() }
    }

    #[rstest]
    #[case(Method::POST, Some("k"), Some(Some("k")))]
    #[case(Method::POST, None, Some(None))]
    #[case(Method::GET, Some("k"), Some(None))]
    #[case(Method::DELETE, Some(""), Some(None))]
    #[case(Method::POST, Some(""), None)]
    #[case(Method::POST, Some("ä"), None)]
    fn a_key_is_short_ascii(#[case] method: Method, #[case] sent: Option<&str>, #[case] taken: Option<Option<&str>>) {
        let headers = |sent: Option<&str>| -> HeaderMap {
            sent.iter().map(|sent| ("idempotency-key".parse().unwrap(), sent.parse().unwrap())).collect()
        };
        assert!(key(&Method::POST, &headers(Some(&"k".repeat(257)))).is_err());
        assert!(key(&Method::POST, &headers(Some(&"k".repeat(256)))).is_ok());
        let headers = headers(sent);
        assert_eq!(key(&method, &headers).ok(), taken.map(|taken| taken.map(ToOwned::to_owned)));
    }

    #[test]
    fn a_request_is_its_callers_and_all_that_it_says() {
        assert_eq!(name(&identity("a"), "k"), name(&identity("a"), "k"));
        assert_ne!(name(&identity("a"), "k"), name(&identity("b"), "k"));
        assert_ne!(name(&identity("ab"), "c"), name(&identity("a"), "bc"));
        let parts = |uri: &str| http::Request::get(uri).body(()).unwrap().into_parts().0;
        let one = digest("k", &parts("/v1/agents"), b"{}");
        assert_eq!(one, digest("k", &parts("/v1/agents"), b"{}"));
        for other in [
            digest("l", &parts("/v1/agents"), b"{}"),
            digest("k", &parts("/v1/vaults"), b"{}"),
            digest("k", &parts("/v1/agents?a=b"), b"{}"),
            digest("k", &parts("/v1/agents"), b"{ }"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_failure_may_be_repeated_with_the_key_and_a_refusal_may_not() {
        let failed = ApiError::unavailable("away").of_change().into_response();
        assert_eq!(failed.headers()[SHOULD_RETRY], "false");
        assert!(!repeatable(failed).headers().contains_key(SHOULD_RETRY));
        let refused = ApiError::conflict("no").into_response();
        assert_eq!(repeatable(refused).headers()[SHOULD_RETRY], "false");
    }

    #[test]
    fn a_seed_gives_each_thing_its_own_name() {
        let (one, two) = (Seed("1".to_owned()), Seed("2".to_owned()));
        assert_eq!((one.of("agent"), one.event(0)), (one.of("agent"), one.event(0)));
        assert_ne!(one.of("agent"), one.of("vault"));
        assert_ne!(one.event(0), one.event(1));
        assert_ne!(one.event(0), two.event(0));
    }
}
