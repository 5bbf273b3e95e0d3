//! Whether records follow one another.

use serde::Deserialize;
use serde_json::Value;

use super::{Reference, sha256_hex};

/// Why a record does not follow the one before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// It is another one's turn.
    #[error("event {expected} is missing: event {found} stands in its place")]
    Missing {
        /// The number that is due.
        expected: u64,
        /// The number that is there.
        found: u64,
    },
    /// The record is not one.
    #[error("event {seq} is not a record: {reason}")]
    Unreadable {
        /// The number that is due.
        seq: u64,
        /// What is wrong.
        reason: String,
    },
    /// The record before is not the one that this one was made after.
    #[error("event {} is not what event {seq} was appended to: one of the two was changed", .seq - 1)]
    Unchained {
        /// The record that says so.
        seq: u64,
    },
    /// The log ends elsewhere.
    #[error("event {} is missing: the log has {head} events and the last one here is {last}", .last + 1)]
    CutShort {
        /// The last record that is there.
        last: u64,
        /// The last that should be.
        head: u64,
    },
    /// There is more than there should be.
    #[error("event {found} is there and the log has {head} events")]
    Beyond {
        /// The record that is too much.
        found: u64,
        /// The last that should be.
        head: u64,
    },
    /// The last record is not the one that the head stands for.
    #[error("event {seq}, the last, was changed: its hash is not that of the header")]
    OtherEnd {
        /// The last record.
        seq: u64,
    },
}

impl BrokenChain {
    /// The first event that is not as it was appended, as far as that can be known.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        match self {
            Self::Missing { expected: seq, .. }
            | Self::Unreadable { seq, .. }
            | Self::Beyond { found: seq, .. }
            | Self::OtherEnd { seq } => *seq,
            Self::Unchained { seq } => seq.saturating_sub(1),
            Self::CutShort { last, .. } => last.saturating_add(1),
        }
    }
}

/// The links of a record, without what it says.
#[derive(Deserialize)]
struct Links {
    seq: u64,
    prev_hash: String,
    #[serde(default)]
    event: Elsewhere,
}

/// What an event keeps elsewhere.
#[derive(Default, Deserialize)]
struct Elsewhere {
    #[serde(default, rename = "x_payload")]
    reference: Option<Value>,
}

/// The records of one log, from the first on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    seq: u64,
    hash: String,
}

impl Chain {
    /// The number of the last record; 0 before the first.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// The hash of the last record; empty before the first.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Takes the stored bytes of the next record.
    ///
    /// # Errors
    /// When it is not the next one.
    pub fn push(&mut self, record: &[u8]) -> Result<(), BrokenChain> {
        self.push_named(record).map(drop)
    }

    /// The same; what the record keeps elsewhere.
    pub(super) fn push_named(&mut self, record: &[u8]) -> Result<Option<Reference>, BrokenChain> {
        let due = self.seq.saturating_add(1);
        let links: Links = serde_json::from_slice(record)
            .map_err(|error| BrokenChain::Unreadable { seq: due, reason: error.to_string() })?;
        if links.seq != due {
            return Err(BrokenChain::Missing { expected: due, found: links.seq });
        }
        if links.prev_hash != self.hash {
            return Err(match self.seq {
                0 => BrokenChain::Unreadable { seq: due, reason: "the first event follows no other".to_owned() },
                _ => BrokenChain::Unchained { seq: due },
            });
        }
        self.seq = due;
        self.hash = sha256_hex(record);
        Ok(links.event.reference.as_ref().and_then(Reference::read))
    }

    /// Checks that the log ends here.
    ///
    /// # Errors
    /// When it does not.
    pub fn end(&self, head: u64, hash: &str) -> Result<(), BrokenChain> {
        if self.seq < head {
            return Err(BrokenChain::CutShort { last: self.seq, head });
        }
        if self.seq > head {
            return Err(BrokenChain::Beyond { found: head.saturating_add(1), head });
        }
        if self.hash != hash {
            return Err(BrokenChain::OtherEnd { seq: self.seq });
        }
        Ok(())
    }
}
