//! What is imported, checked as it comes. Pure.

use jiff::Timestamp;
use longhand_protocol::Record;
use longhand_protocol::event::EventBody;
use longhand_protocol::export::{BrokenChain, Chain};

use crate::active::Active;
use crate::caps::Size;
use crate::cut::Cut;
use crate::record::{Head, stored_bytes};
use crate::store::{End, Exported, Result, StoreError};

/// A log that is coming in.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    chain: Chain,
    cut: Cut,
    active: Active,
    epoch: u64,
    bytes: u64,
    warned: bool,
    last: Option<(Record, Vec<u8>)>,
}

/// A whole log that has come in.
#[derive(Debug)]
pub(crate) struct Complete {
    /// Above every epoch that was ever given in it.
    pub(crate) epoch: u64,
    /// Its end.
    pub(crate) head: Head,
    /// What it leaves open.
    pub(crate) cut: Cut,
}

impl Incoming {
    /// The next record, if it is the next one.
    pub(crate) fn take(&mut self, exported: &Exported) -> Result<Record> {
        self.chain.push(&exported.bytes).map_err(|error| broken(&error))?;
        let seq = self.chain.seq();
        let record: Record = serde_json::from_slice(&exported.bytes).map_err(|error| unreadable(seq, &error))?;
        if exported.seq != seq {
            return Err(StoreError::BadImport(format!("event {seq} is given as event {}", exported.seq)));
        }
        self.cut.take_next(&record);
        self.active.take(&record);
        self.epoch = self.epoch.max(record.epoch);
        self.bytes = self.bytes.saturating_add(stored_bytes(&record, &exported.bytes));
        self.warned |= matches!(record.event.body, EventBody::SessionNearLimit { .. });
        self.last = Some((record.clone(), exported.bytes.clone()));
        Ok(record)
    }

    /// What has come in. All of it is the session's own.
    pub(crate) fn size(&self) -> Size {
        Size { events: self.chain.seq(), bytes: self.bytes }
    }

    /// The log, if it ends as it should.
    pub(crate) fn finish(self, end: &End, created_at: Timestamp) -> Result<Complete> {
        self.chain.end(end.head, &end.hash).map_err(|error| broken(&error))?;
        let head = match self.last {
            Some((record, bytes)) => Head::at(&record, &bytes, &self.cut),
            None => Head::empty(created_at),
        };
        let (bytes, warned, active) = (self.bytes, self.warned, self.active);
        let head = Head { archived_at: end.archived_at, inherited: 0, bytes, warned, active, ..head };
        Ok(Complete { epoch: self.epoch.max(end.epoch).saturating_add(1), head, cut: self.cut })
    }
}

fn broken(error: &BrokenChain) -> StoreError {
    StoreError::BadImport(error.to_string())
}

fn unreadable(seq: u64, error: &serde_json::Error) -> StoreError {
    StoreError::BadImport(format!("event {seq} cannot be read: {error}"))
}
