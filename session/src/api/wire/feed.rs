//! What one client of a stream is sent: the log without gap or repetition, and between its events the previews.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::Event as Frame;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use longhand_protocol::event::{Event, EventBody, Preview};
use longhand_protocol::{EventId, Record};
use longhand_session_log::StoreError;
use longhand_session_log::store::SessionMeta;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::time::Interval;

use super::event_query::TypeFilter;
use super::worker_access::may;
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::metrics::OpenStream;
use crate::previews::Frames;
use crate::streams::Slot;

/// In milliseconds.
const COME_BACK: std::ops::RangeInclusive<u64> = 250..=1_500;
/// So many messages are remembered as finished, for previews that come late.
const FINISHED: usize = 16;

/// Which previews a client may be shown: those of messages that it saw begin and that have not ended.
#[derive(Debug, Default)]
struct Shown {
    begun: HashSet<EventId>,
    finished: VecDeque<EventId>,
}

impl Shown {
    fn admits(&mut self, preview: &Preview) -> bool {
        match preview {
            Preview::EventStart { event } => {
                event.kind == "agent.message"
                    && !self.finished.contains(&event.id)
                    && self.begun.insert(event.id.clone())
            }
            Preview::EventDelta { event_id, .. } => self.begun.contains(event_id),
        }
    }

    fn recorded(&mut self, event: &Event) {
        match &event.body {
            EventBody::AgentMessage { .. } => {
                self.begun.remove(&event.id);
                self.finished.truncate(FINISHED - 1);
                self.finished.push_front(event.id.clone());
            }
            // A request that failed, or whose brain died, leaves messages that never come.
            EventBody::SpanModelRequestEnd { .. } | EventBody::SessionWoken { .. } => self.begun.clear(),
            _ => {}
        }
    }
}

pub(super) struct Feed {
    app: App,
    identity: Arc<Identity>,
    meta: SessionMeta,
    types: TypeFilter,
    tail: BoxStream<'static, Result<Record, StoreError>>,
    previews: Option<broadcast::Receiver<Frames>>,
    recheck: Interval,
    shown: Shown,
    pending: VecDeque<Frame>,
    over: bool,
    open: OpenStream,
    _slot: Slot,
}

impl Feed {
    #[expect(clippy::too_many_arguments, reason = "a stream is made of these, in one place")]
    pub(super) fn new(
        app: App,
        identity: Arc<Identity>,
        meta: SessionMeta,
        types: TypeFilter,
        tail: BoxStream<'static, Result<Record, StoreError>>,
        previews: Option<broadcast::Receiver<Frames>>,
        recheck: Interval,
        slot: Slot,
    ) -> Self {
        Self {
            app,
            identity,
            meta,
            types,
            tail,
            previews,
            recheck,
            shown: Shown::default(),
            pending: VecDeque::new(),
            over: false,
            open: OpenStream::begin(),
            _slot: slot,
        }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Frame, Infallible>> + Send + use<> {
        stream::unfold(self, |mut feed| async move {
            let frame = feed.next().await?;
            Some((Ok(frame), feed))
        })
    }

    async fn next(&mut self) -> Option<Frame> {
        let stop = self.app.stop.clone();
        loop {
            if let Some(frame) = self.pending.pop_front() {
                return Some(frame);
            }
            if self.over {
                return None;
            }
            // Previews first: they are older than the event that ends them.
            tokio::select! {
                biased;
                () = stop.cancelled() => self.pause("shutdown"),
                frames = next_previews(&mut self.previews) => match frames {
                    Ok(frames) => self.preview(&frames),
                    Err(_) => self.pause("lagging"),
                },
                record = self.tail.next() => self.record(record),
                _ = self.recheck.tick() => {
                    let permitted = may(&self.app, &self.identity, Access::ReadEvents, &self.meta);
                    // An API server that is away takes nothing from who was let in.
                    if !permitted.await.unwrap_or(true) {
                        self.end("revoked");
                    }
                }
            }
        }
    }

    /// Ends a stream that its client shall ask for again, elsewhere or later; not all of them in the same moment. The
    /// name is one that clients pass over.
    fn pause(&mut self, cause: &'static str) {
        let wait = rand::Rng::random_range(&mut rand::rng(), COME_BACK);
        let frame = Frame::default().event("ping").retry(Duration::from_millis(wait)).data(r#"{"type":"ping"}"#);
        self.pending.push_back(frame);
        self.end(cause);
    }

    fn end(&mut self, cause: &'static str) {
        self.open.end = cause;
        self.over = true;
    }

    fn preview(&mut self, frames: &Frames) {
        for preview in frames.iter() {
            if self.shown.admits(preview) {
                self.push(None, preview);
            }
        }
    }

    fn record(&mut self, record: Option<Result<Record, StoreError>>) {
        match record {
            Some(Ok(record)) => {
                self.shown.recorded(&record.event);
                if self.types.admits(&record.event.body) {
                    self.push(Some(record.seq), &record.event);
                }
            }
            Some(Err(StoreError::NotFound(_))) => {
                let body = EventBody::Other { kind: "session.deleted".to_owned(), fields: serde_json::Map::new() };
                let deleted = Event { id: EventId::generate(), body, processed_at: Some(jiff::Timestamp::now()) };
                self.push(None, &deleted);
                self.end("deleted");
            }
            Some(Err(error)) => {
                tracing::warn!(session = %self.meta.id, %error, "a stream ended; its client resumes where it was");
                self.pause("store");
            }
            None => self.pause("store"),
        }
    }

    /// Clients of all ages know frames by the name `message` only.
    fn push(&mut self, seq: Option<u64>, data: &impl Serialize) {
        let frame = Frame::default().event("message");
        let frame = match seq {
            Some(seq) => frame.id(seq.to_string()),
            None => frame,
        };
        match frame.json_data(data) {
            Ok(frame) => self.pending.push_back(frame),
            Err(error) => {
                tracing::error!(session = %self.meta.id, %error, "an event cannot be sent");
                self.end("error");
            }
        }
    }
}

/// The next previews; never returns for a client that did not ask for any.
async fn next_previews(
    previews: &mut Option<broadcast::Receiver<Frames>>,
) -> Result<Frames, broadcast::error::RecvError> {
    match previews {
        Some(previews) => previews.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::EventId;
    use longhand_protocol::event::{Delta, DeltaContent, Event, EventBody, Preview, PreviewEvent};

    use super::Shown;

    fn start(id: &EventId) -> Preview {
        Preview::EventStart { event: PreviewEvent { kind: "agent.message".to_owned(), id: id.clone() } }
    }

    fn delta(id: &EventId) -> Preview {
        let content = DeltaContent::Text { text: "a".to_owned() };
        Preview::EventDelta { event_id: id.clone(), delta: Delta::ContentDelta { index: 0, content } }
    }

    fn message(id: &EventId) -> Event {
        Event { id: id.clone(), body: EventBody::AgentMessage { content: Vec::new() }, processed_at: None }
    }

    #[test]
    fn a_message_is_previewed_from_its_start_to_its_end_or_not_at_all() {
        let mut shown = Shown::default();
        let (a, b) = (EventId::generate(), EventId::generate());
        assert!(!shown.admits(&delta(&a)), "its start was not seen");
        assert!(shown.admits(&start(&a)));
        assert!(!shown.admits(&start(&a)));
        assert!(shown.admits(&delta(&a)));
        assert!(!shown.admits(&delta(&b)));
        shown.recorded(&message(&a));
        assert!(!shown.admits(&delta(&a)), "the message was sent");
        assert!(!shown.admits(&start(&a)));
        assert!(shown.admits(&start(&b)));
        let woken = EventBody::SessionWoken { epoch: 2, harness: "h".to_owned() };
        shown.recorded(&Event { id: EventId::generate(), body: woken, processed_at: None });
        assert!(!shown.admits(&delta(&b)), "its brain is gone");
    }
}
