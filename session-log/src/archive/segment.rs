//! One segment: records to bytes and back, and whether it is what the manifest says.

use std::io::{Read as _, Write as _};

use longhand_protocol::event::Record;

use crate::record::hash;
use crate::store::{Result, StoreError};

const LEVEL: i32 = 3;

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) record: Record,
    pub(crate) bytes: Vec<u8>,
}

impl Line {
    /// The record under `key`.
    pub(crate) fn parse(key: &str, bytes: Vec<u8>) -> Result<Self> {
        let record = serde_json::from_slice(&bytes)
            .map_err(|error| StoreError::Corrupt { key: key.to_owned(), reason: error.to_string() })?;
        Ok(Self { record, bytes })
    }
}

/// What a manifest says of a segment's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first record's number.
    pub(crate) first: u64,
    /// The last record's number.
    pub(crate) last: u64,
    /// Size of the lines.
    pub(crate) raw_bytes: u64,
    /// Hash of the record before the first; empty if it is the log's first.
    pub(crate) before: String,
    /// Hash of the last record.
    pub(crate) hash: String,
}

/// Checks that lines follow each other in number and hash, from number `first` after the hash `before`; returns their
/// extent. `key` names them in an error.
pub(crate) fn extent(key: &str, first: u64, before: &str, lines: &[Line]) -> Result<Extent> {
    let corrupt = |reason: String| StoreError::Corrupt { key: key.to_owned(), reason };
    let (mut due, mut last_hash, mut raw_bytes) = (first, before.to_owned(), 0_u64);
    for line in lines {
        let record = &line.record;
        if record.seq != due {
            return Err(corrupt(format!("record {due} is missing: {} stands in its place", record.seq)));
        }
        if record.prev_hash != last_hash {
            return Err(corrupt(format!("the hash chain is broken before record {due}")));
        }
        due = due.saturating_add(1);
        last_hash = hash(&line.bytes);
        raw_bytes = raw_bytes.saturating_add(size(line));
    }
    match lines.last() {
        Some(last) => {
            Ok(Extent { first, last: last.record.seq, raw_bytes, before: before.to_owned(), hash: last_hash })
        }
        None => Err(corrupt("it has no records".to_owned())),
    }
}

/// What a line takes in a segment before compression.
pub(crate) fn size(line: &Line) -> u64 {
    u64::try_from(line.bytes.len()).unwrap_or(u64::MAX).saturating_add(1)
}

/// The segment's bytes.
pub(crate) fn encode(lines: &[Line]) -> Result<Vec<u8>> {
    let written = || -> std::io::Result<Vec<u8>> {
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
        encoder.include_checksum(true)?;
        for line in lines {
            encoder.write_all(&line.bytes)?;
            encoder.write_all(b"\n")?;
        }
        encoder.finish()
    };
    written().map_err(|error| StoreError::TooLarge(format!("a segment cannot be compressed: {error}")))
}

/// The records of a segment, if they are all that `expected` says.
pub(crate) fn decode(key: &str, bytes: &[u8], expected: &Extent) -> Result<Vec<Line>> {
    let corrupt = |reason: String| StoreError::Corrupt { key: key.to_owned(), reason };
    let mut text = Vec::new();
    let decoder = zstd::Decoder::new(bytes).map_err(|error| corrupt(error.to_string()))?;
    let limit = expected.raw_bytes.saturating_add(1);
    decoder.take(limit).read_to_end(&mut text).map_err(|error| corrupt(error.to_string()))?;
    let lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| Line::parse(key, line.strip_suffix(b"\n").unwrap_or(line).to_vec()))
        .collect::<Result<Vec<_>>>()?;
    let found = extent(key, expected.first, &expected.before, &lines)?;
    if found == *expected {
        Ok(lines)
    } else {
        Err(corrupt(format!("it holds {found:?}, and {expected:?} is expected")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use jiff::Timestamp;
    use longhand_protocol::event::{EventBody, NewEvent};

    use super::{Line, decode, encode, extent};
    use crate::record::Head;

    /// So many records, chained from the first.
    pub(crate) fn lines(count: usize) -> Vec<Line> {
        let mut head = Head::empty(Timestamp::UNIX_EPOCH);
        let events = (0..count).map(|_| NewEvent::new(EventBody::SessionStatusRunning {})).collect();
        let stored = head.extend(1, events, Timestamp::UNIX_EPOCH).unwrap();
        stored.into_iter().map(|stored| Line { record: stored.record, bytes: stored.bytes }).collect()
    }

    #[test]
    fn a_segment_comes_back() {
        let all = lines(20);
        let before = extent("k", 1, "", &all[..5]).unwrap().hash;
        let expected = extent("k", 6, &before, &all[5..]).unwrap();
        let bytes = encode(&all[5..]).unwrap();
        assert_eq!(decode("k", &bytes, &expected).unwrap(), all[5..]);
        assert!(u64::try_from(bytes.len()).unwrap() < expected.raw_bytes);
    }

    fn forge(lines: &mut [Line], index: usize) {
        lines[index].record.epoch = 9;
        lines[index].bytes = serde_json::to_vec(&lines[index].record).unwrap();
    }

    #[test]
    fn what_is_not_what_the_manifest_says_is_found() {
        let whole = lines(10);
        let expected = extent("k", 1, "", &whole).unwrap();
        type Change = (&'static str, fn(&mut Vec<Line>));
        let changes: [Change; 7] = [
            ("missing", |lines| drop(lines.remove(3))),
            ("swapped", |lines| lines.swap(3, 4)),
            ("cut", |lines| drop(lines.pop())),
            ("forged", |lines| forge(lines, 3)),
            ("forged at the end", |lines| forge(lines, 9)),
            ("longer", |all| *all = lines(11)),
            ("empty", Vec::clear),
        ];
        for (name, change) in changes {
            let mut changed = whole.clone();
            change(&mut changed);
            assert!(decode("k", &encode(&changed).unwrap(), &expected).is_err(), "{name}");
        }
    }

    #[test]
    fn a_damaged_object_is_found() {
        let lines = lines(10);
        let (expected, bytes) = (extent("k", 1, "", &lines).unwrap(), encode(&lines).unwrap());
        for cut in 0..bytes.len() {
            assert!(decode("k", &bytes[..cut], &expected).is_err(), "{cut}");
            let mut flipped = bytes.clone();
            flipped[cut] ^= 0x40;
            // A bit of the frame's header that means nothing may be flipped without harm.
            assert!(decode("k", &flipped, &expected).map_or(true, |found| found == lines), "{cut}");
        }
    }
}
