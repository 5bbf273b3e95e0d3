//! What a brain writes down of what it knows, so that the next one need not read the log from its beginning.
//!
//! A checkpoint holds the whole transcript as it was just before it. Whoever reads the log applies it like every other
//! record and has what it has without it, but where the conversation was made shorter: that is what it says.

use longhand_protocol::Record;
use longhand_protocol::event::{EventBody, NewEvent};

use super::conversation::json_weight;
use super::transcript::Transcript;

/// The type of these records.
pub const KIND: &str = "x.context.checkpoint";
/// Of the form in which a transcript is written.
const VERSION: u32 = 1;
/// A checkpoint is due after so many records: a wake reads about as many.
pub const INTERVAL: u64 = 500;
/// A larger one is due when the log has grown by its size, taken that a record has so many bytes, so that checkpoints take
/// no more room than the log.
const RECORD_BYTES: u64 = 1_024;
/// A larger transcript is not written down: it is read from the log.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

impl Transcript {
    /// The body of a record that holds all of this; nothing if it cannot be written.
    pub(super) fn checkpoint(&self) -> Option<EventBody> {
        let state = serde_json::to_value(self).ok()?;
        Some(EventBody::ContextCheckpoint { version: VERSION, state })
    }

    /// A checkpoint, if one is due every `interval` records.
    pub(super) fn due_checkpoint(&self, interval: u64) -> Option<NewEvent> {
        if !self.is_checkpoint_due(interval) {
            return None;
        }
        let body = self.checkpoint()?;
        let EventBody::ContextCheckpoint { state, .. } = &body else { return None };
        (json_weight(state) <= MAX_BYTES).then(|| NewEvent::new(body))
    }

    /// Whether one is due, by a size that is known without writing anything down: this is asked at each request.
    fn is_checkpoint_due(&self, interval: u64) -> bool {
        let (since, bytes) = (self.since_checkpoint(), self.bytes());
        since >= interval && bytes <= MAX_BYTES && since >= bytes / RECORD_BYTES
    }

    /// Takes all that a checkpoint holds in the place of what is known; false if the record is none that can be read.
    pub(super) fn restore(&mut self, record: &Record) -> bool {
        let EventBody::ContextCheckpoint { version: VERSION, state } = &record.event.body else { return false };
        let Ok(mut known) = serde_json::from_value::<Self>(state.clone()) else { return false };
        (known.head, known.checkpoint) = (record.seq, record.seq);
        known.weigh();
        *self = known;
        true
    }

    /// What a checkpoint holds; nothing if the record is none that can be read.
    #[must_use]
    pub fn restored(record: &Record) -> Option<Self> {
        let mut restored = Self::default();
        restored.restore(record).then_some(restored)
    }
}
