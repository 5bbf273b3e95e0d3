//! The manifest: which segments there are, and which events go into the next.

use serde::{Deserialize, Serialize};

use super::segment::{Extent, Line, size};
use super::{ArchivePolicy, Reach};

/// The value of a session's `archived` key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// In order and without a gap; the first begins with the session's own first record.
    pub(crate) segments: Vec<Segment>,
    /// The identifiers of events up to this one are no longer known.
    #[serde(default)]
    pub(crate) forgotten: u64,
}

/// A segment in the object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Segment {
    /// The first record's number.
    pub(crate) first: u64,
    /// The last record's number.
    pub(crate) last: u64,
    /// The last part of the object's name.
    pub(crate) object: String,
    /// The object's size.
    pub(crate) bytes: u64,
    /// The object's hex SHA-256.
    pub(crate) sha256: String,
    /// Size of the records, each with a line end.
    pub(crate) raw_bytes: u64,
    /// Hash of the record before the first.
    pub(crate) before: String,
    /// Hash of the last record.
    pub(crate) hash: String,
}

impl Segment {
    pub(crate) fn new(extent: Extent, object: String, bytes: u64, sha256: String) -> Self {
        let Extent { first, last, raw_bytes, before, hash } = extent;
        Self { first, last, object, bytes, sha256, raw_bytes, before, hash }
    }

    pub(crate) fn extent(&self) -> Extent {
        Extent {
            first: self.first,
            last: self.last,
            raw_bytes: self.raw_bytes,
            before: self.before.clone(),
            hash: self.hash.clone(),
        }
    }

    fn events(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// Whether it is so small that it had better be written again together with what follows.
    pub(crate) fn is_small(&self, policy: &ArchivePolicy) -> bool {
        self.events() < policy.segment_events / 2 && self.raw_bytes < policy.segment_bytes / 2
    }
}

impl Manifest {
    /// The last record that is archived, of a log whose own records come after `base`.
    pub(crate) fn through(&self, base: u64) -> u64 {
        self.segments.last().map_or(base, |segment| segment.last)
    }

    /// The segment that holds this record.
    pub(crate) fn find(&self, seq: u64) -> Option<&Segment> {
        let index = self.segments.partition_point(|segment| segment.last < seq);
        self.segments.get(index).filter(|segment| segment.first <= seq)
    }
}

/// The last record that may leave etcd now; `None` if it is not worth a segment.
pub(crate) fn reach(policy: &ArchivePolicy, reach: Reach, through: u64, head: u64) -> Option<u64> {
    match reach {
        Reach::All => (head > through).then_some(head),
        Reach::Old => {
            let last = head.saturating_sub(policy.hot_events);
            (last.saturating_sub(through) >= policy.segment_events).then_some(last)
        }
    }
}

/// How many of `lines`, which come after `taken` bytes and `events` events, still go into a segment.
pub(crate) fn fitting(policy: &ArchivePolicy, events: u64, taken: u64, lines: &[Line]) -> usize {
    let (mut events, mut bytes) = (events, taken);
    lines
        .iter()
        .take_while(|line| {
            let fits = events < policy.segment_events && bytes < policy.segment_bytes;
            events = events.saturating_add(1);
            bytes = bytes.saturating_add(size(line));
            fits
        })
        .count()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{ArchivePolicy, Manifest, Reach, Segment, fitting, reach};
    use crate::archive::segment::tests::lines;

    const POLICY: ArchivePolicy = ArchivePolicy { hot_events: 10, segment_events: 5, segment_bytes: 1_000_000 };

    fn segment(first: u64, last: u64) -> Segment {
        Segment {
            first,
            last,
            object: String::new(),
            bytes: 0,
            sha256: String::new(),
            raw_bytes: 100,
            before: String::new(),
            hash: String::new(),
        }
    }

    #[test]
    fn a_record_is_in_one_segment() {
        let manifest = Manifest { segments: vec![segment(1, 4), segment(5, 5), segment(6, 9)], forgotten: 0 };
        let found: Vec<_> = (0..=10).map(|seq| manifest.find(seq).map(|segment| segment.first)).collect();
        let (one, two, three) = (Some(1), Some(5), Some(6));
        assert_eq!(found, [None, one, one, one, one, two, three, three, three, three, None]);
        assert_eq!(manifest.through(0), 9);
        assert_eq!((Manifest::default().through(7), Manifest::default().find(1)), (7, None));
    }

    #[rstest]
    #[case(Reach::Old, 0, 0, None)]
    #[case(Reach::Old, 0, 14, None)]
    #[case(Reach::Old, 0, 15, Some(5))]
    #[case(Reach::Old, 5, 19, None)]
    #[case(Reach::Old, 5, 20, Some(10))]
    #[case(Reach::All, 0, 0, None)]
    #[case(Reach::All, 0, 1, Some(1))]
    #[case(Reach::All, 7, 7, None)]
    #[case(Reach::All, 7, 9, Some(9))]
    fn the_tail_stays_hot(#[case] wanted: Reach, #[case] through: u64, #[case] head: u64, #[case] last: Option<u64>) {
        assert_eq!(reach(&POLICY, wanted, through, head), last);
    }

    #[test]
    fn a_segment_is_bounded() {
        let lines = lines(8);
        assert_eq!(fitting(&POLICY, 0, 0, &lines), 5);
        assert_eq!(fitting(&POLICY, 4, 0, &lines), 1);
        assert_eq!(fitting(&POLICY, 0, 0, &lines[..3]), 3);
        let tight = ArchivePolicy { segment_bytes: 1, ..POLICY };
        assert_eq!(fitting(&tight, 0, 0, &lines), 1);
        assert_eq!(fitting(&tight, 1, 200, &lines), 0);
    }
}
