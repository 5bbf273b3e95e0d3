//! The Anthropic Messages API, streamed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eventsource_stream::{EventStreamError, Eventsource as _};
use futures::{Stream, StreamExt as _, stream};
use longhand_protocol::client::{self, TokenSource, retry_after};
use reqwest::header::HeaderValue;
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::Value;

use super::accumulate::{Accumulator, Progress};
use super::{Failure, Reply, TextDelta};

/// The longest silence; the API sends a `ping` now and then while it thinks.
const SILENCE: Duration = Duration::from_secs(120);
/// The longest answer, however busy its stream.
const LONGEST: Duration = Duration::from_secs(3_600);
/// A frame that is larger than this is not one; the parser holds all of it in memory.
const MAX_FRAME: usize = 8 * 1024 * 1024;
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
        let (http, mut url) = client::Server::new(base).connect()?;
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
    tokio::time::timeout(LONGEST, read(response, accumulator, show)).await.unwrap_or_else(|_| Err(endless()))
}

async fn read(
    response: Response,
    accumulator: &mut Accumulator,
    show: &mut impl FnMut(TextDelta),
) -> Result<Reply, Failure> {
    let since_frame = AtomicUsize::new(0);
    let mut frames = std::pin::pin!(chunks(response, &since_frame).eventsource());
    loop {
        let Some(frame) = frames.next().await else {
            return Err(Failure::transport("The model API ended its answer in the middle."));
        };
        since_frame.store(0, Ordering::Relaxed);
        let frame = frame.map_err(|error| match error {
            EventStreamError::Transport(failure) => failure,
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

/// The bytes of an answer; `since_frame` counts those that have come since the last whole frame.
fn chunks(response: Response, since_frame: &AtomicUsize) -> impl Stream<Item = Result<impl AsRef<[u8]>, Failure>> {
    stream::try_unfold(response, move |mut response| async move {
        let chunk = tokio::time::timeout(SILENCE, response.chunk()).await.map_err(|_| silent())?;
        let chunk = chunk.map_err(|error| {
            Failure::transport(format!("The connection to the model API broke: {}", causes(&error)))
        })?;
        let Some(chunk) = chunk else { return Ok(None) };
        if since_frame.fetch_add(chunk.len(), Ordering::Relaxed) > MAX_FRAME {
            return Err(Failure::protocol(format!(
                "The model API sent more than {MAX_FRAME} bytes without the end of an event."
            )));
        }
        Ok(Some((chunk, response)))
    })
}

fn endless() -> Failure {
    Failure::protocol(format!("The model API did not end its answer within {} seconds.", LONGEST.as_secs()))
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

#[cfg(test)]
mod tests {
    use futures::{Stream, StreamExt as _, stream};
    use reqwest::{Body, Response};

    use super::{Accumulator, Duration, LONGEST, MAX_FRAME, SILENCE, receive};
    use crate::model::{Failure, Reply};

    const END: &str = "data: {\"type\":\"message_stop\"}\n\n";

    async fn answer(chunks: impl Stream<Item = String> + Send + 'static) -> Result<Reply, Failure> {
        let body = Body::wrap_stream(chunks.map(Ok::<_, std::io::Error>));
        let response = Response::from(axum::http::Response::new(body));
        receive(response, &mut Accumulator::default(), &mut |_| {}).await
    }

    /// This text again and again.
    fn every(pause: Duration, text: &'static str) -> impl Stream<Item = String> {
        stream::repeat(text).then(move |text| async move {
            tokio::time::sleep(pause).await;
            text.to_owned()
        })
    }

    #[tokio::test]
    async fn an_event_without_end_does_not_take_all_memory() {
        let error = answer(stream::repeat("x".repeat(1024 * 1024))).await.unwrap_err();
        assert!(!error.retryable && error.message.contains(&MAX_FRAME.to_string()), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_comment_breaks_the_silence() {
        let comments = every(SILENCE * 2 / 3, ": still there\n\n").take(4);
        answer(comments.chain(stream::once(async { END.to_owned() }))).await.unwrap();
        let error = answer(every(SILENCE * 2, END)).await.unwrap_err();
        assert!(error.retryable && error.message.contains("silent"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_end_is_given_up() {
        let error = answer(every(SILENCE / 2, "data: {\"type\":\"ping\"}\n\n")).await.unwrap_err();
        assert!(!error.retryable && error.message.contains(&LONGEST.as_secs().to_string()), "{error}");
    }

    #[tokio::test]
    async fn line_ends_may_be_cut_anywhere() {
        let text = END.replace('\n', "\r\n");
        for cut in 1..text.len() {
            let (left, right) = text.split_at(cut);
            answer(stream::iter([left.to_owned(), right.to_owned()])).await.unwrap();
        }
    }
}
