//! What has happened, as far as laws are about it; etcd knows less.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longhand_protocol::event::{EventBody, Record};

use crate::etcd::plan::StoredHead;

/// What an entry of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    Message,
    Answer,
    ToolUse,
    Result,
    Idle,
    Other,
}

/// What was promised, and what the world outside etcd is like.
#[derive(Clone, Default)]
pub(super) struct Past {
    /// Name, kind and epoch of each entry.
    pub(super) log: Vec<Arc<(String, Entry, u64)>>,
    /// Hash of the last entry.
    pub(super) hash: String,
    /// Each head as it was stored, which a replica may still know.
    pub(super) heads: BTreeMap<u64, Arc<StoredHead>>,
    /// Events that somebody was told are safe.
    pub(super) acknowledged: BTreeSet<String>,
    /// Who was told that an epoch is its own.
    pub(super) owners: BTreeMap<u64, usize>,
    /// The sandbox's pod now, those that are gone, that take nothing any more, and that have begun the call.
    pub(super) pod: u8,
    pub(super) lost: BTreeSet<u8>,
    pub(super) draining: BTreeSet<u8>,
    pub(super) began: BTreeSet<u8>,
    /// How often the session was made, and whether it was archived.
    pub(super) life: u8,
    pub(super) ended: bool,
}

/// What one who has read the log makes of it.
pub(super) struct Reading {
    /// The last message without an answer.
    pub(super) unanswered: Option<usize>,
    /// The call without a result.
    pub(super) open: Option<String>,
    /// Whether a tool was ever used.
    pub(super) used: bool,
    /// The epoch of the last entry, if it is that of a brain that went idle.
    pub(super) idle: Option<u64>,
}

impl Past {
    pub(super) fn head(&self) -> u64 {
        u64::try_from(self.log.len()).unwrap()
    }

    pub(super) fn has_call(&self) -> bool {
        self.log.iter().any(|entry| entry.1 == Entry::ToolUse)
    }

    pub(super) fn reading(&self, to: u64) -> Reading {
        let mut reading = Reading { unanswered: None, open: None, used: false, idle: None };
        for (number, entry) in self.log.iter().take(usize::try_from(to).unwrap()).enumerate() {
            reading.idle = None;
            match entry.1 {
                Entry::Message => reading.unanswered = Some(number),
                // What the service says has epoch 0 and answers nobody.
                Entry::Answer if entry.2 > 0 => reading.unanswered = None,
                Entry::ToolUse => (reading.open, reading.used) = (Some(entry.0.clone()), true),
                Entry::Result => reading.open = None,
                Entry::Idle => reading.idle = Some(entry.2),
                Entry::Answer | Entry::Other => {}
            }
        }
        reading
    }

    /// A session is made, or one is removed.
    pub(super) fn begin_life(&mut self, life: u8) {
        let Self { pod, lost, draining, began, .. } = std::mem::take(self);
        *self = Self { pod, lost, draining, began, life, ..Self::default() };
    }

    pub(super) fn push(&mut self, record: &Record, hash: String) {
        let entry = match record.event.body {
            EventBody::UserMessage { .. } => Entry::Message,
            EventBody::AgentMessage { .. } => Entry::Answer,
            EventBody::AgentToolUse { .. } => Entry::ToolUse,
            EventBody::AgentToolResult { .. } => Entry::Result,
            EventBody::SessionStatusIdle { .. } => Entry::Idle,
            _ => Entry::Other,
        };
        let name = record.event.id.as_str().trim_start_matches("sevt_").to_owned();
        self.log.push(Arc::new((name, entry, record.epoch)));
        self.hash = hash;
    }
}
