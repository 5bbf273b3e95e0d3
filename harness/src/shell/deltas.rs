//! Shows a message while it is being written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longhand_protocol::EventId;
use longhand_protocol::event::{Delta, DeltaContent, Preview, PreviewEvent};
use longhand_protocol::harness::DeltasRequest;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::service::Service;
use crate::model::TextDelta;

/// Text is gathered for so long, or until there is so much of it.
const GATHER: Duration = Duration::from_millis(20);
const GATHER_BYTES: usize = 2 * 1024;
/// How long the end of a message waits for its last previews.
const FLUSH: Duration = Duration::from_secs(1);

/// The previews of one message, which a task of their own posts in order.
///
/// What is not posted yet is gathered, so that a slow connection sees fewer and larger previews and the model's stream
/// never waits. After a failure there are no more: a text with a hole is worse than none.
pub(super) struct Previews {
    shared: Arc<Shared>,
    task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Shared {
    gathered: Mutex<Gathered>,
    some: Notify,
    enough: Notify,
}

#[derive(Default)]
struct Gathered {
    deltas: Vec<TextDelta>,
    bytes: usize,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Previews {
    /// Previews of the message that will have this identifier.
    pub(super) fn of(service: Service, message: EventId) -> Self {
        let shared = Arc::new(Shared::default());
        let task = AbortOnDropHandle::new(tokio::spawn(post(service, message, Arc::clone(&shared))));
        Self { shared, task }
    }

    /// Shows more text, soon.
    pub(super) fn show(&self, delta: TextDelta) {
        let mut gathered = self.shared.lock();
        gathered.bytes += delta.text.len();
        match gathered.deltas.last_mut() {
            Some(last) if last.index == delta.index => last.text.push_str(&delta.text),
            _ => gathered.deltas.push(delta),
        }
        if gathered.bytes >= GATHER_BYTES {
            self.shared.enough.notify_one();
        }
        self.shared.some.notify_one();
    }

    /// Posts what is left.
    pub(super) async fn finish(self) {
        self.shared.lock().closed = true;
        self.shared.enough.notify_one();
        self.shared.some.notify_one();
        if tokio::time::timeout(FLUSH, self.task).await.is_err() {
            tracing::debug!("the last previews of a message were not posted in time");
        }
    }
}

async fn post(service: Service, message: EventId, shared: Arc<Shared>) {
    let mut begun = false;
    loop {
        shared.some.notified().await;
        if begun {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = shared.enough.notified() => {}
            }
        }
        let (deltas, closed) = {
            let mut gathered = shared.lock();
            gathered.bytes = 0;
            (std::mem::take(&mut gathered.deltas), gathered.closed)
        };
        if !deltas.is_empty() {
            let start = (!begun).then(|| Preview::EventStart {
                event: PreviewEvent { kind: "agent.message".to_owned(), id: message.clone() },
            });
            begun = true;
            let frames = start.into_iter().chain(deltas.into_iter().map(|delta| preview(&message, delta))).collect();
            let request = DeltasRequest { epoch: service.epoch, frames };
            if let Err(error) = service.client.deltas(&request).await {
                tracing::debug!(%error, "a preview was not posted; the message is shown when it is complete");
                return;
            }
        }
        if closed {
            return;
        }
    }
}

fn preview(message: &EventId, delta: TextDelta) -> Preview {
    Preview::EventDelta {
        event_id: message.clone(),
        delta: Delta::ContentDelta { index: delta.index, content: DeltaContent::Text { text: delta.text } },
    }
}
