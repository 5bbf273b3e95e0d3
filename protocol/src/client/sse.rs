//! The stream of a session's events, which goes on by itself after a broken connection.

use std::time::Duration;

use bytes::Bytes;
use eventsource_stream::{Event as Frame, Eventsource as _};
use futures::stream::{self, BoxStream, StreamExt as _};
use http::header;
use reqwest::Response;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::time::Instant;

use super::transport::{Call, api_error, transport_error};
use super::wire::{EventQuery, WireClient};
use super::{Backoff, Error, Result};
use crate::event::{Event, Preview};
use crate::id::SessionId;
use crate::wire::Order;

/// The server sends a comment every 15 s; a connection that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(45);
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// How a stream begins and what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Begin after this sequence number; without, with what happens from now on.
    pub after_seq: Option<u64>,
    /// Only these types; empty for all but `x.*`.
    pub types: Vec<String>,
    /// Whether messages are shown while they are being written.
    pub previews: bool,
    /// How long the server may be away before the stream ends with an error.
    pub patience: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { after_seq: None, types: Vec::new(), previews: false, patience: Duration::from_secs(120) }
    }
}

/// What a stream yields.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamItem {
    /// An event of the log.
    Event {
        /// Its sequence number.
        seq: Option<u64>,
        /// The event.
        event: Box<Event>,
    },
    /// A piece of a message that is being written; not repeated after a broken connection.
    Preview(Preview),
}

/// Events as they happen. Ends after its first error.
pub type EventStream = BoxStream<'static, Result<StreamItem>>;

type Frames = BoxStream<'static, Result<Frame>>;

struct State {
    client: WireClient,
    session: SessionId,
    options: StreamOptions,
    position: Option<u64>,
    frames: Option<Frames>,
    backoff: Backoff,
    away_since: Option<Instant>,
}

fn fresh_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

pub(super) fn stream(client: WireClient, session: SessionId, options: StreamOptions) -> EventStream {
    let position = options.after_seq;
    let state = State { client, session, options, position, frames: None, backoff: fresh_backoff(), away_since: None };
    stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(item) => Some((Ok(item), Some(state))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl State {
    async fn next(&mut self) -> Result<StreamItem> {
        loop {
            match self.try_next().await {
                Ok(Some(item)) => {
                    self.backoff = fresh_backoff();
                    self.away_since = None;
                    return Ok(item);
                }
                Ok(None) => {}
                Err(error) if error.is_retryable() => self.rest(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits before the next connection, or gives up with `error`.
    async fn rest(&mut self, error: Error) -> Result<()> {
        self.frames = None;
        let away_since = *self.away_since.get_or_insert_with(Instant::now);
        if away_since.elapsed() > self.options.patience {
            return Err(error);
        }
        let wait = error.retry_after().unwrap_or_else(|| self.backoff.step());
        tracing::debug!(session = %self.session, %error, ?wait, "the event stream broke; connecting again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// One frame; `None` for one that carries nothing, or at the end of a connection.
    async fn try_next(&mut self) -> Result<Option<StreamItem>> {
        let frames = match &mut self.frames {
            Some(frames) => frames,
            None => {
                let frames = self.connect().await?;
                self.frames.insert(frames)
            }
        };
        let Some(frame) = frames.next().await else {
            self.frames = None;
            // A server that shuts down ends its streams; do not come back faster than a new one can start.
            tokio::time::sleep(self.backoff.step()).await;
            return Ok(None);
        };
        let frame = frame?;
        // How soon to come back after the end that follows; this client has its own pace.
        if frame.event == "ping" {
            return Ok(None);
        }
        let item = decode(&frame)?;
        if let StreamItem::Event { seq: Some(seq), .. } = item {
            // Seen before the connection broke.
            if self.position.is_some_and(|position| seq <= position) {
                return Ok(None);
            }
            self.position = Some(seq);
        }
        Ok(Some(item))
    }

    async fn connect(&mut self) -> Result<Frames> {
        if self.position.is_none() {
            self.position = Some(newest(&self.client, &self.session).await?);
        }
        let path = self.client.path(&[self.session.as_str(), "events", "stream"]);
        let mut call = Call::get(&path).maybe_query("after_seq", self.position);
        for kind in &self.options.types {
            call = call.query("types[]", kind);
        }
        if self.options.previews {
            call = call.query("event_deltas[]", "agent.message");
        }
        let mut request = self.client.transport.request(&call).await?.header(header::ACCEPT, "text/event-stream");
        if let Some(position) = self.position {
            request = request.header("last-event-id", position);
        }
        let response = tokio::time::timeout(ANSWER_DEADLINE, request.send())
            .await
            .map_err(|_| Error::Timeout { call: call.name(), after: ANSWER_DEADLINE })?
            .map_err(|error| transport_error(error, &call))?;
        if !response.status().is_success() {
            return Err(api_error(response, &call).await);
        }
        Ok(frames(response, call.name()))
    }
}

/// The newest event now, so that a connection that breaks before its first event loses none.
async fn newest(client: &WireClient, session: &SessionId) -> Result<u64> {
    let query = EventQuery { order: Order::Desc, limit: Some(100), include_seq: true, ..EventQuery::default() };
    let page = client.list_events(session, &query).await?;
    Ok(page.data.iter().find_map(|event| event.seq).unwrap_or(0))
}

fn frames(response: Response, call: String) -> Frames {
    let name = call.clone();
    let chunks = stream::unfold(Some((response, call)), |state| async move {
        let (mut response, call) = state?;
        let chunk = match tokio::time::timeout(SILENCE, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk?),
            Ok(Err(source)) => Err(Error::Broken { call: call.clone(), source }),
            Err(_) => Err(Error::Timeout { call: call.clone(), after: SILENCE }),
        };
        let rest = chunk.is_ok().then_some((response, call));
        Some((chunk, rest))
    });
    let chunks: BoxStream<'static, Result<Bytes>> = chunks.boxed();
    chunks
        .eventsource()
        .map(move |frame| {
            frame.map_err(|error| match error {
                eventsource_stream::EventStreamError::Transport(error) => error,
                other => Error::Decode { call: name.clone(), reason: other.to_string() },
            })
        })
        .boxed()
}

fn decode(frame: &Frame) -> Result<StreamItem> {
    let failed =
        |error: serde_json::Error| Error::Decode { call: "the event stream".to_owned(), reason: error.to_string() };
    let value: Value = serde_json::from_str(&frame.data).map_err(failed)?;
    // A frame without an `id` inherits that of the one before, so only the type tells a preview from an event.
    match value["type"].as_str() {
        Some("event_start" | "event_delta") => Preview::deserialize(value).map(StreamItem::Preview),
        _ => Event::deserialize(value)
            .map(|event| StreamItem::Event { seq: frame.id.parse().ok(), event: Box::new(event) }),
    }
    .map_err(failed)
}
