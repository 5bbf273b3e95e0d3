//! The stream of an answer, whatever its format: server-sent events within bounds of time and size.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eventsource_stream::{EventStreamError, Eventsource as _};
use futures::{Stream, StreamExt as _, stream};
use longhand_protocol::client::{self, TokenSource, retry_after};
use longhand_protocol::event::Usage;
use longhand_protocol::model::FALLBACK_ROUTES;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::{Failure, Reply, TextDelta};

/// The longest silence; the API sends a `ping` now and then while it thinks.
const SILENCE: Duration = Duration::from_secs(120);
/// The longest answer, however busy its stream.
const LONGEST: Duration = Duration::from_secs(3_600);
/// A frame that is larger than this is not one; the parser holds all of it in memory.
const MAX_FRAME: usize = 4 * 1024 * 1024;
/// An answer that is larger than this is not one; a harness holds it several times while it is put on record.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// An answer of more content blocks is not one.
pub const MAX_BLOCKS: usize = 1_024;
/// What of an error's body is read.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// What an event of the stream meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Nothing to show.
    Quiet,
    /// More text.
    Text(TextDelta),
    /// The answer is complete.
    Done(Reply),
}

/// An answer that is on its way, in the format of one API.
pub trait Frames {
    /// Takes in the data of one event.
    ///
    /// # Errors
    /// When the model API says that it failed, or what it says makes no sense.
    fn event(&mut self, data: &str) -> Result<Progress, Failure>;

    /// The stream has ended; gives the answer if nothing is missing.
    ///
    /// # Errors
    /// When something is missing.
    fn end(&mut self) -> Result<Reply, Failure>;

    /// Tokens so far, which are used even if the answer never ends.
    fn usage(&self) -> Usage;
}

/// How large an answer is so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    bytes: usize,
    blocks: usize,
}

impl Size {
    /// Counts bytes.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_BYTES {
            return Err(Failure::protocol(format!("The model's answer is larger than {MAX_BYTES} bytes.")));
        }
        Ok(())
    }

    /// Counts a content block.
    pub(super) fn block(&mut self) -> Result<(), Failure> {
        self.blocks += 1;
        if self.blocks > MAX_BLOCKS {
            return Err(Failure::protocol(format!("The model's answer has more than {MAX_BLOCKS} content blocks.")));
        }
        Ok(())
    }
}

/// Where model APIs are, and the token that is sent to them as the key.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    http: Client,
    base: Url,
    token: TokenSource,
}

impl Endpoint {
    /// The APIs under `base`.
    pub(super) fn new(base: &str, token: TokenSource) -> client::Result<Self> {
        let (http, base) = client::Server::new(base).connect()?;
        if base.cannot_be_a_base() {
            return Err(client::Error::BaseUrl { url: base.into() });
        }
        Ok(Self { http, base, token })
    }

    /// A request to this path under the base URL, or under that of a fallback's route, and the key as a header's value after
    /// `prefix`.
    pub(super) async fn request(
        &self,
        route: Option<&str>,
        path: &[&str],
        prefix: &str,
    ) -> Result<(RequestBuilder, HeaderValue), Failure> {
        let mut url = self.base.clone();
        if let Some(route) = route {
            url.set_path(&format!("{}{FALLBACK_ROUTES}/{route}", self.base.path().trim_end_matches('/')));
        }
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let token = self.token.get().await.map_err(|error| Failure::transport(error.to_string()))?;
        let mut key = HeaderValue::from_str(&format!("{prefix}{token}"))
            .map_err(|_| Failure::protocol("The session token has characters that a header may not have."))?;
        key.set_sensitive(true);
        Ok((self.http.post(url).header("accept", "text/event-stream"), key))
    }
}

/// Sends a request and gives the whole answer; `show` sees its text as it comes.
pub(super) async fn call(
    request: RequestBuilder,
    frames: &mut impl Frames,
    mut show: impl FnMut(TextDelta),
) -> Result<Reply, Failure> {
    let response = tokio::time::timeout(SILENCE, request.send())
        .await
        .map_err(|_| silent())?
        .map_err(|error| Failure::transport(format!("The model API cannot be reached: {}", causes(&error))))?;
    if response.status() != StatusCode::OK {
        return Err(refusal(response).await);
    }
    check_format(response.headers())?;
    receive(response, frames, &mut show).await.map_err(|failure| Failure { usage: frames.usage(), ..failure })
}

/// Nothing is unpacked, so that nothing can grow when it is.
fn check_format(headers: &HeaderMap) -> Result<(), Failure> {
    let value = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    if let Some(encoding) = value(CONTENT_ENCODING).filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        let encoding: String = encoding.chars().take(100).collect();
        return Err(Failure::protocol(format!(
            "The model API answered with `content-encoding: {encoding}`, for which it was not asked."
        )));
    }
    match value(CONTENT_TYPE) {
        Some(kind) if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") => {
            let kind: String = kind.chars().take(100).collect();
            Err(Failure::transport(format!(
                "The model API answered with `{kind}` and not with a stream of events: is this its base URL?"
            )))
        }
        _ => Ok(()),
    }
}

async fn receive(
    response: Response,
    frames: &mut impl Frames,
    show: &mut impl FnMut(TextDelta),
) -> Result<Reply, Failure> {
    tokio::time::timeout(LONGEST, read(response, frames, show)).await.unwrap_or_else(|_| Err(endless()))
}

async fn read(
    response: Response,
    frames: &mut impl Frames,
    show: &mut impl FnMut(TextDelta),
) -> Result<Reply, Failure> {
    let since_frame = AtomicUsize::new(0);
    let mut events = std::pin::pin!(chunks(response, &since_frame).eventsource());
    loop {
        let Some(event) = events.next().await else { return frames.end() };
        since_frame.store(0, Ordering::Relaxed);
        let event = event.map_err(|error| match error {
            EventStreamError::Transport(failure) => failure,
            other => Failure::unreadable(&other),
        })?;
        match frames.event(&event.data)? {
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
    let should_retry = response.headers().get("x-should-retry").map(|value| value == "true");
    let mut body = Vec::new();
    while body.len() < MAX_ERROR_BODY {
        match tokio::time::timeout(Duration::from_secs(5), response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            _ => break,
        }
    }
    let failure = Failure::status(status, &body, wait);
    Failure { retryable: should_retry.unwrap_or(failure.retryable), ..failure }
}

#[cfg(test)]
mod tests {
    use futures::{Stream, StreamExt as _, stream};
    use reqwest::{Body, Response};

    use rstest::rstest;

    use super::{Duration, LONGEST, MAX_FRAME, SILENCE, check_format, receive};
    use crate::model::accumulate::Accumulator;
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

    #[rstest]
    #[case(&[], None)]
    #[case(&[("content-type", "text/event-stream; charset=utf-8"), ("content-encoding", "identity")], None)]
    #[case(&[("content-type", "text/html")], Some(true))]
    #[case(&[("content-type", "application/json")], Some(true))]
    #[case(&[("content-type", "text/event-stream"), ("content-encoding", "gzip")], Some(false))]
    fn only_a_plain_stream_is_read(#[case] headers: &[(&'static str, &'static str)], #[case] retryable: Option<bool>) {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        assert_eq!(check_format(&headers).err().map(|failure| failure.retryable), retryable);
    }
}
