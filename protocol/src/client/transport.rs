//! One HTTP exchange: URL, token, deadline, and a typed answer or error.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::{Client, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use zeroize::Zeroizing;

use super::{ApiError, Error, Result, Server, TokenSource};
use crate::error::{ErrorBody, ErrorEnvelope, ErrorType};
use crate::harness::Conflict;
use crate::trace;

/// For calls that are answered at once.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);
/// A page of a log may be large; more than this is not an answer of ours.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// A server, and who speaks to it.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    http: Client,
    base: Url,
    token: TokenSource,
}

/// What is asked for.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) path: &'a [&'a str],
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) deadline: Duration,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, path: &'a [&'a str]) -> Self {
        Self { method, path, query: Vec::new(), deadline: DEADLINE }
    }

    pub(super) fn get(path: &'a [&'a str]) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn post(path: &'a [&'a str]) -> Self {
        Self::new(Method::POST, path)
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Display) -> Self {
        self.query.push((name, format!("{value}")));
        self
    }

    pub(super) fn maybe_query(self, name: &'static str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    pub(super) const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub(super) fn name(&self) -> String {
        format!("{} /{}", self.method, self.path.join("/"))
    }
}

impl Transport {
    pub(super) fn new(server: impl Into<Server>, token: TokenSource) -> Result<Self> {
        let (http, base) = server.into().connect()?;
        Ok(Self { http, base, token })
    }

    fn url(&self, call: &Call<'_>) -> Result<Url> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| Error::BaseUrl { url: self.base.to_string() })?
            .pop_if_empty()
            .extend(call.path);
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        Ok(url)
    }

    /// A request with its token; the caller sets body, deadline and further headers.
    pub(super) async fn request(&self, call: &Call<'_>) -> Result<RequestBuilder> {
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {}", self.token.get().await?)).map_err(|_| Error::MalformedToken)?;
        bearer.set_sensitive(true);
        let request = self.http.request(call.method.clone(), self.url(call)?).header(header::AUTHORIZATION, bearer);
        Ok(match trace::current() {
            Some(parent) => request.header(trace::HEADER, parent.to_string()),
            None => request,
        })
    }

    pub(super) async fn send<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T> {
        let request = self.request(&call).await?;
        let body = exchange(request, &call).await?;
        decode(&body, &call)
    }

    pub(super) async fn send_json<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
        body: &(impl Serialize + Sync),
    ) -> Result<T> {
        let request = self.request(&call).await?.json(body);
        let body = exchange(request, &call).await?;
        decode(&body, &call)
    }

    /// Sends a body with secret values, whose copy here is cleared; it has `length` bytes at the most.
    pub(super) async fn send_secret<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
        body: &(impl Serialize + Sync),
        length: usize,
    ) -> Result<T> {
        // Space for all of it, so that no copy is left behind by growing.
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        serde_json::to_writer(&mut *bytes, body)
            .map_err(|error| Error::Encode { call: call.name(), reason: error.to_string() })?;
        let request = self.request(&call).await?.header(header::CONTENT_TYPE, "application/json");
        let body = exchange(request.body(Bytes::from_owner(bytes)), &call).await?;
        decode(&body, &call)
    }

    /// Sends `body` and ignores what a successful answer says.
    pub(super) async fn post_only(&self, call: Call<'_>, body: &(impl Serialize + Sync)) -> Result<()> {
        let request = self.request(&call).await?.json(body);
        exchange(request, &call).await.map(|_| ())
    }
}

/// Sends the request and reads the whole answer, within the deadline.
pub(super) async fn exchange(request: RequestBuilder, call: &Call<'_>) -> Result<Vec<u8>> {
    let whole = async {
        let response = request.send().await.map_err(|error| transport_error(error, call))?;
        if response.status().is_success() {
            read_body(response, call).await
        } else {
            Err(api_error(response, call).await)
        }
    };
    tokio::time::timeout(call.deadline, whole)
        .await
        .unwrap_or_else(|_| Err(Error::Timeout { call: call.name(), after: call.deadline }))
}

async fn read_body(mut response: Response, call: &Call<'_>) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport_error(error, call))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(Error::Decode { call: call.name(), reason: format!("it is larger than {MAX_BODY} bytes") });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A body as it comes; each part within `patience` after the one before.
pub(super) fn parts(response: Response, call: String, patience: Duration) -> BoxStream<'static, Result<Bytes>> {
    let parts = stream::unfold(Some((response, call)), move |state| async move {
        let (mut response, call) = state?;
        let part = match tokio::time::timeout(patience, response.chunk()).await {
            Ok(Ok(part)) => Ok(part?),
            Ok(Err(source)) => Err(Error::Broken { call: call.clone(), source }),
            Err(_) => Err(Error::Timeout { call: call.clone(), after: patience }),
        };
        let rest = part.is_ok().then_some((response, call));
        Some((part, rest))
    });
    parts.boxed()
}

pub(super) fn decode<T: DeserializeOwned>(body: &[u8], call: &Call<'_>) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| Error::Decode { call: call.name(), reason: error.to_string() })
}

pub(super) fn transport_error(source: reqwest::Error, call: &Call<'_>) -> Error {
    let call = call.name();
    if source.is_connect() { Error::Connect { call, source } } else { Error::Broken { call, source } }
}

/// The error that an answer stands for; one that is not in our format still keeps its status.
pub(super) async fn api_error(response: Response, call: &Call<'_>) -> Error {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let header_id = response.headers().get("request-id").and_then(|id| id.to_str().ok()).map(ToOwned::to_owned);
    let body = read_body(response, call).await.unwrap_or_default();
    let (body, request_id) = match serde_json::from_slice::<ErrorEnvelope>(&body) {
        Ok(envelope) => (envelope.error, envelope.request_id.or(header_id)),
        Err(_) => {
            let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            (ErrorBody { kind: ErrorType::ApiError, message: text, details: None }, header_id)
        }
    };
    if matches!(status, StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED)
        && let Some(conflict) = body.details.as_ref().and_then(conflict)
    {
        return Error::Conflict(conflict);
    }
    Error::Api(Box::new(ApiError { call: call.name(), status, body, request_id, retry_after }))
}

/// `retry-after-ms`, or `retry-after` in seconds or as the time when to come again.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    retry_after_at(headers, Timestamp::now())
}

fn retry_after_at(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim());
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    if let Some(seconds) = number("retry-after-ms").map(|ms| ms / 1_000.0).or_else(|| number("retry-after")) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let then = rfc2822::DateTimeParser::new().parse_timestamp(text("retry-after")?).ok()?;
    Some(Duration::try_from(then.duration_since(now)).unwrap_or_default())
}

fn conflict(details: &serde_json::Value) -> Option<Conflict> {
    Conflict::deserialize(details).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;
    use rstest::rstest;

    use super::retry_after_at;

    #[rstest]
    #[case(&[], None)]
    #[case(&[("retry-after", "2")], Some(Duration::from_secs(2)))]
    #[case(&[("retry-after", "2"), ("retry-after-ms", "150")], Some(Duration::from_millis(150)))]
    #[case(&[("retry-after", "-1")], None)]
    #[case(&[("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT")], Some(Duration::from_secs(30)))]
    #[case(&[("retry-after", "Wed, 21 Oct 2026 07:27:00 GMT")], Some(Duration::ZERO))]
    #[case(&[("retry-after", "soon")], None)]
    fn a_wait_is_read(#[case] headers: &[(&'static str, &'static str)], #[case] expected: Option<Duration>) {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let now = "2026-10-21T07:28:00Z".parse().unwrap();
        assert_eq!(retry_after_at(&headers, now), expected);
    }
}
