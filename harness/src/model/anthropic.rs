//! The Anthropic Messages API, streamed.

use std::time::Duration;

use eventsource_stream::{EventStreamError, Eventsource as _};
use futures::StreamExt as _;
use longhand_protocol::client::{self, TokenSource, retry_after};
use reqwest::header::HeaderValue;
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::Value;

use super::accumulate::{Accumulator, Progress};
use super::{Failure, Reply, TextDelta};

/// The longest silence; the API sends a `ping` now and then while it thinks.
const SILENCE: Duration = Duration::from_secs(120);
/// What of an error's body is read.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// A client of a Messages API.
#[derive(Clone, Debug)]
pub struct Messages {
    http: Client,
    url: Url,
    token: TokenSource,
}

impl Messages {
    /// A client of the API under `base`, to which `token` is sent as the key.
    ///
    /// # Errors
    /// When `base` is not an `http` or `https` URL.
    pub fn new(base: &str, token: TokenSource) -> client::Result<Self> {
        let (http, mut url) = client::http(base)?;
        url.path_segments_mut()
            .map_err(|()| client::Error::BaseUrl { url: base.to_owned() })?
            .pop_if_empty()
            .extend(["v1", "messages"]);
        Ok(Self { http, url, token })
    }

    /// Sends a request and gives the whole answer; `show` sees its text as it comes.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn call(
        &self,
        api_version: &str,
        body: &Value,
        mut show: impl FnMut(TextDelta),
    ) -> Result<Reply, Failure> {
        let response = self.send(api_version, body).await?;
        let mut accumulator = Accumulator::default();
        receive(response, &mut accumulator, &mut show)
            .await
            .map_err(|failure| Failure { usage: accumulator.usage(), ..failure })
    }

    async fn send(&self, api_version: &str, body: &Value) -> Result<Response, Failure> {
        let token = self.token.get().await.map_err(|error| Failure::transport(error.to_string()))?;
        let mut key = HeaderValue::from_str(&token)
            .map_err(|_| Failure::protocol("The session token has characters that a header may not have."))?;
        key.set_sensitive(true);
        let request = self
            .http
            .post(self.url.clone())
            .header("x-api-key", key)
            .header("anthropic-version", api_version)
            .header("accept", "text/event-stream")
            .json(body);
        let response = tokio::time::timeout(SILENCE, request.send())
            .await
            .map_err(|_| silent())?
            .map_err(|error| Failure::transport(format!("The model API cannot be reached: {}", causes(&error))))?;
        if response.status() == StatusCode::OK { Ok(response) } else { Err(refusal(response).await) }
    }
}

async fn receive(
    response: Response,
    accumulator: &mut Accumulator,
    show: &mut impl FnMut(TextDelta),
) -> Result<Reply, Failure> {
    let mut frames = std::pin::pin!(response.bytes_stream().eventsource());
    loop {
        let frame = tokio::time::timeout(SILENCE, frames.next()).await.map_err(|_| silent())?;
        let Some(frame) = frame else {
            return Err(Failure::transport("The model API ended its answer in the middle."));
        };
        let frame = frame.map_err(|error| match error {
            EventStreamError::Transport(error) => {
                Failure::transport(format!("The connection to the model API broke: {}", causes(&error)))
            }
            other => Failure::transport(format!("The model API's stream cannot be read: {other}")),
        })?;
        let data: Value = serde_json::from_str(&frame.data)
            .map_err(|error| Failure::transport(format!("The model API's stream cannot be read: {error}")))?;
        match accumulator.feed(&data)? {
            Progress::Quiet => {}
            Progress::Text(delta) => show(delta),
            Progress::Done(reply) => return Ok(reply),
        }
    }
}

fn silent() -> Failure {
    Failure::transport(format!("The model API was silent for {} seconds.", SILENCE.as_secs()))
}

/// The error and what is behind it, which says more than the error alone.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn refusal(mut response: Response) -> Failure {
    let status = response.status();
    let wait = retry_after(response.headers());
    let mut body = Vec::new();
    while body.len() < MAX_ERROR_BODY {
        match tokio::time::timeout(Duration::from_secs(5), response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            _ => break,
        }
    }
    Failure::status(status, &body, wait)
}
