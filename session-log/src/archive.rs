//! Old events: which of them leave etcd, in what form, and how that form is checked. Pure; the IO is the store's.
//!
//! A segment is an object with consecutive records, as they were stored, one a line, compressed. The manifest, the value
//! of the session's `archived` key, lists the segments without a gap from the session's first record on. A record is in
//! a segment of the manifest or under its own key, never in both and never in neither: the transaction that writes the
//! manifest removes the keys.

pub(crate) mod manifest;
pub(crate) mod segment;

/// How much of a log stays in etcd, and how large a segment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivePolicy {
    /// So many of the last events stay in etcd while the session lives.
    pub hot_events: u64,
    /// A segment takes at most so many events.
    pub segment_events: u64,
    /// A segment takes no further event once it has so many bytes, before compression.
    pub segment_bytes: u64,
}

impl Default for ArchivePolicy {
    fn default() -> Self {
        Self { hot_events: 256, segment_events: 1_024, segment_bytes: 4 * 1024 * 1024 }
    }
}

/// Which events of a session are to leave etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those beyond the hot tail, as soon as they fill a segment.
    Old,
    /// All: nobody is expected to read them soon.
    All,
}
