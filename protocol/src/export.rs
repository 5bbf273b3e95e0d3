//! A session's log as a file that proves itself.
//!
//! Newline-delimited JSON, one object with one field a line: first `header`, then one `event` for each record, last
//! `end`:
//!
//! ```json
//! {"header": {"format": "longhand.dev/session-export", "version": 1, "session": {...}, "epoch": 3, "head": 2, "hash": "..."}}
//! {"event": {"seq": 1, "record": "{\"seq\":1,\"epoch\":0,\"prev_hash\":\"\",\"event\":{...}}"}}
//! {"event": {"seq": 2, "record": "...", "payloads": {"<hex SHA-256>": "<base64>"}}}
//! {"end": {"events": 2, "sha256": "<hex SHA-256 of every byte before this line>"}}
//! ```
//!
//! `record` is the record as it is stored, byte for byte, since the next record's `prev_hash` is its SHA-256. The last
//! one's is `hash` of the header. What a record keeps elsewhere, and names in `x_payload` of its event ([`Reference`]),
//! comes with it in `payloads`. So whoever knows the hash of a session's last record can prove every event of a file
//! with nothing but this module.

mod chain;
mod reference;
mod verify;
mod write;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use self::chain::{BrokenChain, Chain};
pub use self::reference::{REFERENCE_FIELD, Reference};
pub use self::verify::{Broken, Flaw, Reader, Step, Verified};
pub use self::write::Writer;

/// What every export is.
pub const FORMAT: &str = "longhand.dev/session-export";
/// The version that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// No line is longer.
pub const LONGEST_LINE: usize = 64 * 1024 * 1024;

/// A line of an export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first.
    Header(Header),
    /// A record.
    Event(Entry),
    /// The last.
    End(Footer),
}

/// What is exported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// What the log knows of the session besides its events.
    pub session: Value,
    /// The epoch of the last claim.
    pub epoch: u64,
    /// The last sequence number; 0 for a log without events.
    pub head: u64,
    /// Hex SHA-256 of the last record; empty for a log without events.
    pub hash: String,
    /// When the session was archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived_at: Option<Timestamp>,
    /// The `spec` of the session's resource, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Value>,
}

/// A record and what it refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its sequence number.
    pub seq: u64,
    /// The record as it is stored.
    pub record: String,
    /// Contents that the record names by their hex SHA-256, in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub payloads: BTreeMap<String, String>,
}

/// What closes an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    /// How many records there are.
    pub events: u64,
    /// Hex SHA-256 of every byte before this line.
    pub sha256: String,
}

/// Hex SHA-256.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(|digit| char::from(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 })).collect()
}

#[cfg(test)]
mod tests;
