//! Which records are wanted, and a bounded scan for them. Pure.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use longhand_protocol::Record;
use longhand_protocol::wire::Order;

use crate::store::Slice;

/// Records that are read at once.
pub(crate) const PAGE: u64 = 128;
/// A slice ends, with a place to go on from, when what was read for it has grown beyond this.
const SLICE_BYTES: usize = 8 * 1024 * 1024;
/// A slice ends, with a place to go on from, when so many records were passed over.
const PASSED_OVER: usize = 8_192;

/// Which records a slice has.
///
/// A slice is bounded in what is read for it, not only in what it holds: see [`Slice::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Only records with a sequence number above this.
    pub after: u64,
    /// Only records with a sequence number below this.
    pub before: Option<u64>,
    /// Oldest or newest first.
    pub order: Order,
    /// At most so many.
    pub limit: usize,
    /// Only these types: a type by its name, all types of a family as `agent.*` or `x.*`, and `*` for every type that
    /// is not `x.*`. None given: every type.
    pub types: Vec<String>,
    /// Only records that entered the log at this time or later.
    pub since: Option<Timestamp>,
    /// Only records that entered the log before this time.
    pub until: Option<Timestamp>,
}

impl Query {
    /// At most `limit` records above `after`, oldest first.
    #[must_use]
    pub fn after(after: u64, limit: usize) -> Self {
        Self { after, before: None, order: Order::Asc, limit, types: Vec::new(), since: None, until: None }
    }

    /// The last `limit` records, newest first.
    #[must_use]
    pub fn last(limit: usize) -> Self {
        Self { order: Order::Desc, ..Self::after(0, limit) }
    }

    /// Up to `radius` records before the one with this number, that one, and up to `radius` after it, oldest first.
    #[must_use]
    pub fn around(seq: u64, radius: usize) -> Self {
        let reach = u64::try_from(radius).unwrap_or(u64::MAX);
        Self {
            before: Some(seq.saturating_add(reach).saturating_add(1)),
            ..Self::after(seq.saturating_sub(reach).saturating_sub(1), radius.saturating_mul(2).saturating_add(1))
        }
    }

    /// The query for what follows a slice of this one, whose [`Slice::next`] is `next`.
    #[must_use]
    pub fn from(mut self, next: u64) -> Self {
        match self.order {
            Order::Asc => self.after = self.after.max(next),
            Order::Desc => self.before = Some(self.before.map_or(next, |before| before.min(next))),
        }
        self
    }

    /// Whether the query wants this type.
    #[must_use]
    pub fn admits_type(&self, kind: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|wanted| type_matches(wanted, kind))
    }

    /// Whether the record is wanted, whatever its place.
    pub(crate) fn admits(&self, record: &Record) -> bool {
        let time = record.event.processed_at;
        self.since.is_none_or(|since| time.is_none_or(|time| time >= since))
            && self.until.is_none_or(|until| time.is_none_or(|time| time < until))
            && self.admits_type(record.event.body.kind())
    }

    /// The sequence numbers that may be wanted of a log that ends at `head`, whatever their times.
    pub(crate) fn range(&self, head: u64) -> Option<RangeInclusive<u64>> {
        let first = self.after.checked_add(1)?;
        let last = self.before.map_or(head, |before| before.saturating_sub(1).min(head));
        (first <= last && self.limit > 0).then_some(first..=last)
    }
}

/// Whether a type is wanted, if this one is: see [`Query::types`].
#[must_use]
pub fn type_matches(wanted: &str, kind: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some("") => !kind.starts_with("x."),
        Some(family) if family.ends_with('.') => kind.starts_with(family),
        _ => wanted == kind,
    }
}

/// A scan of one log for a query: says what to read next, and takes what was read.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    query: &'a Query,
    head: u64,
    /// What has not been looked at.
    rest: Option<RangeInclusive<u64>>,
    records: Vec<Record>,
    passed_over: usize,
    bytes: usize,
    /// The last record that was looked at.
    at: Option<u64>,
}

impl<'a> Scan<'a> {
    /// Over this range of a log that ends at `head`.
    pub(crate) fn new(query: &'a Query, head: u64, range: Option<RangeInclusive<u64>>) -> Self {
        Self { query, head, rest: range, records: Vec::new(), passed_over: 0, bytes: 0, at: None }
    }

    /// What to read next, in ascending order; nothing when the slice is done.
    pub(crate) fn window(&self) -> Option<RangeInclusive<u64>> {
        let rest = self.rest.as_ref()?;
        let missing = self.query.limit.saturating_sub(self.records.len());
        if missing == 0 || self.bytes >= SLICE_BYTES || self.passed_over >= PASSED_OVER {
            return None;
        }
        // What filters reads whole pages: most of them may be passed over.
        let wanted = if self.query.types.is_empty() { u64::try_from(missing).unwrap_or(PAGE).min(PAGE) } else { PAGE };
        let (first, last) = (*rest.start(), *rest.end());
        Some(match self.query.order {
            Order::Asc => first..=last.min(first.saturating_add(wanted - 1)),
            Order::Desc => first.max(last.saturating_sub(wanted - 1))..=last,
        })
    }

    /// Takes the records of the window, in ascending order, with the sizes that they are stored in.
    pub(crate) fn take(&mut self, window: Vec<(Record, usize)>) {
        match self.query.order {
            Order::Asc => window.into_iter().for_each(|(record, size)| self.look_at(record, size)),
            Order::Desc => window.into_iter().rev().for_each(|(record, size)| self.look_at(record, size)),
        }
    }

    fn look_at(&mut self, record: Record, size: usize) {
        if self.records.len() >= self.query.limit || self.bytes >= SLICE_BYTES {
            return;
        }
        let Some(rest) = self.rest.take() else { return };
        let (first, last) = (*rest.start(), *rest.end());
        self.rest = match self.query.order {
            Order::Asc => (record.seq < last).then(|| record.seq.saturating_add(1)..=last),
            Order::Desc => (record.seq > first).then(|| first..=record.seq.saturating_sub(1)),
        };
        self.at = Some(record.seq);
        self.bytes = self.bytes.saturating_add(size);
        if self.query.admits(&record) {
            self.records.push(record);
        } else {
            self.passed_over += 1;
        }
    }

    /// What was found.
    pub(crate) fn finish(self) -> Slice {
        Slice { records: self.records, head: self.head, next: self.rest.and(self.at) }
    }
}

/// A search for the first record that entered the log at `time` or later. Times never fall along a log.
#[derive(Debug)]
pub(crate) struct TimeSearch {
    time: Timestamp,
    /// Every record before this one is too old.
    low: u64,
    /// Every record from this one on is not.
    high: u64,
}

impl TimeSearch {
    /// So many records are looked at in one step.
    const PROBES: u64 = 7;

    /// In a log that ends at `head`.
    pub(crate) fn new(time: Timestamp, head: u64) -> Self {
        Self { time, low: 1, high: head.saturating_add(1) }
    }

    /// Which records to look at next; none when [`TimeSearch::found`] is known.
    pub(crate) fn probes(&self) -> Vec<u64> {
        let open = self.high - self.low;
        if open <= Self::PROBES {
            return (self.low..self.high).collect();
        }
        let step = open / (Self::PROBES + 1);
        (1..=Self::PROBES).map(|number| self.low + step * number).collect()
    }

    /// Takes the times of records that were looked at.
    pub(crate) fn take(&mut self, seq: u64, time: Option<Timestamp>) {
        if time.is_some_and(|time| time >= self.time) {
            self.high = self.high.min(seq);
        } else {
            self.low = self.low.max(seq.saturating_add(1));
        }
    }

    /// The first record that is not too old; one above the head when there is none.
    pub(crate) fn found(&self) -> u64 {
        self.high
    }
}

#[cfg(test)]
mod tests;
