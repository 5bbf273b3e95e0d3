//! Making an export, line by line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::{Entry, Footer, Header, Line, hex, sha256_hex};

/// Writes the lines of one export.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    digest: Sha256,
    events: u64,
}

impl Writer {
    /// The first line.
    ///
    /// # Errors
    /// When the header cannot be written as JSON.
    pub fn header(&mut self, header: Header) -> serde_json::Result<Vec<u8>> {
        self.line(&Line::Header(header))
    }

    /// The line of the next record, of which `payloads` are the contents that it names by their hashes.
    ///
    /// # Errors
    /// When the record is not text.
    pub fn event(&mut self, seq: u64, record: Vec<u8>, payloads: &[Vec<u8>]) -> serde_json::Result<Vec<u8>> {
        let record = String::from_utf8(record).map_err(serde::ser::Error::custom)?;
        let payloads = payloads.iter().map(|bytes| (sha256_hex(bytes), STANDARD.encode(bytes))).collect();
        self.events += 1;
        self.line(&Line::Event(Entry { seq, record, payloads }))
    }

    /// The last line.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub fn end(&mut self) -> serde_json::Result<Vec<u8>> {
        let sha256 = hex(&self.digest.clone().finalize());
        self.line(&Line::End(Footer { events: self.events, sha256 }))
    }

    fn line(&mut self, line: &Line) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.digest.update(&bytes);
        Ok(bytes)
    }
}
