//! Reading an export, line by line, and proving it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::{
    BrokenChain, Chain, Entry, FORMAT, Footer, Header, LONGEST_LINE, Line, Reference, VERSION, hex, sha256_hex,
};

/// Why an export is not whole, and where that was noticed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {flaw}")]
pub struct Broken {
    /// Counted from 1; the one after the last if something is missing at the end.
    pub line: u64,
    /// What is wrong.
    pub flaw: Flaw,
}

/// What is wrong with an export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// There is nothing.
    #[error("the file is empty")]
    Empty,
    /// The line is not what this format has.
    #[error("it cannot be read: {reason}")]
    Line {
        /// What is wrong.
        reason: String,
    },
    /// It does not begin as an export does.
    #[error("it is not the header of a session export of {FORMAT}")]
    NoHeader,
    /// A later build wrote it.
    #[error("the file has version {found} of the format and this build reads up to {VERSION}: use a newer one")]
    Version {
        /// The version.
        found: u32,
    },
    /// The line says that it holds another event than it does.
    #[error("event {seq} is broken: its line says that it is event {said}")]
    Number {
        /// The event.
        seq: u64,
        /// What its line says.
        said: u64,
    },
    /// The records do not follow one another.
    #[error(transparent)]
    Chain(#[from] BrokenChain),
    /// A content that the record names is not there or another one.
    #[error("event {seq} is broken: {reason}")]
    Payload {
        /// The event.
        seq: u64,
        /// What is wrong.
        reason: String,
    },
    /// The last line is missing.
    #[error("the file ends after event {last} and without its last line: its end is missing")]
    NoEnd {
        /// The last event that is there.
        last: u64,
    },
    /// Something follows the last line.
    #[error("it follows the last line of the export")]
    Trailing,
    /// The events are whole, and something around them was changed.
    #[error(
        "the file was changed: every event is as it was appended, and its header or another part around them is not"
    )]
    Digest,
}

/// What a line was.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The header.
    Header(Box<Header>),
    /// A record that follows the one before, and the contents that it names.
    Event {
        /// Its sequence number.
        seq: u64,
        /// Its stored bytes.
        record: Vec<u8>,
        /// The contents, by their hex SHA-256.
        payloads: BTreeMap<String, Vec<u8>>,
    },
    /// The last line.
    End,
}

/// What a whole export is.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// Its header.
    pub header: Header,
    /// How many events it has.
    pub events: u64,
}

/// Takes the lines of an export from the first on.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    line: u64,
    digest: Sha256,
    header: Option<Header>,
    chain: Chain,
    ended: bool,
}

impl Reader {
    /// Takes the next line, with its line feed.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn line(&mut self, bytes: &[u8]) -> Result<Step, Broken> {
        self.line += 1;
        self.take(bytes).map_err(|flaw| Broken { line: self.line, flaw })
    }

    /// What was read, if that was all.
    ///
    /// # Errors
    /// When something is missing.
    pub fn finish(self) -> Result<Verified, Broken> {
        let missing = |flaw| Broken { line: self.line + 1, flaw };
        let Some(header) = self.header else { return Err(missing(Flaw::Empty)) };
        if !self.ended {
            return Err(missing(Flaw::NoEnd { last: self.chain.seq() }));
        }
        Ok(Verified { header, events: self.chain.seq() })
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Step, Flaw> {
        if self.ended {
            return Err(Flaw::Trailing);
        }
        match (self.parse(bytes), self.header.is_some()) {
            (Ok(Line::Header(header)), false) => self.header(header, bytes),
            (_, false) => Err(Flaw::NoHeader),
            (Ok(Line::Event(entry)), true) => self.event(entry, bytes),
            (Ok(Line::End(footer)), true) => self.end(&footer),
            (Ok(Line::Header(_)), true) => Err(unreadable("it is a second header")),
            (Err(flaw), true) => Err(flaw),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Line, Flaw> {
        if bytes.len() > LONGEST_LINE {
            return Err(unreadable(&format!("it is longer than {LONGEST_LINE} bytes")));
        }
        let Some(line) = bytes.strip_suffix(b"\n") else {
            return Err(Flaw::NoEnd { last: self.chain.seq() });
        };
        serde_json::from_slice(line).map_err(|error| {
            let due = self.chain.seq().saturating_add(1);
            unreadable(&format!("{error}; event {due} is due here"))
        })
    }

    fn header(&mut self, header: Header, bytes: &[u8]) -> Result<Step, Flaw> {
        if header.format != FORMAT {
            return Err(Flaw::NoHeader);
        }
        if header.version > VERSION {
            return Err(Flaw::Version { found: header.version });
        }
        self.digest.update(bytes);
        self.header = Some(header.clone());
        Ok(Step::Header(Box::new(header)))
    }

    fn event(&mut self, entry: Entry, bytes: &[u8]) -> Result<Step, Flaw> {
        let Entry { seq: said, record, payloads } = entry;
        let record = record.into_bytes();
        let named = self.chain.push_named(&record)?;
        let seq = self.chain.seq();
        if said != seq {
            return Err(Flaw::Number { seq, said });
        }
        if let Some(header) = &self.header
            && seq > header.head
        {
            return Err(BrokenChain::Beyond { found: seq, head: header.head }.into());
        }
        let payloads = contents(named, payloads).map_err(|reason| Flaw::Payload { seq, reason })?;
        self.digest.update(bytes);
        Ok(Step::Event { seq, record, payloads })
    }

    fn end(&mut self, footer: &Footer) -> Result<Step, Flaw> {
        if let Some(header) = &self.header {
            self.chain.end(header.head, &header.hash)?;
        }
        if footer.events != self.chain.seq() || footer.sha256 != hex(&self.digest.clone().finalize()) {
            return Err(Flaw::Digest);
        }
        self.ended = true;
        Ok(Step::End)
    }
}

fn unreadable(reason: &str) -> Flaw {
    Flaw::Line { reason: reason.to_owned() }
}

/// The contents that came with a record, if they are what it names.
fn contents(named: Option<Reference>, given: BTreeMap<String, String>) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let named = named.map(|reference| reference.sha256);
    if let Some(named) = named.as_ref().filter(|named| !given.contains_key(*named)) {
        return Err(format!("it names the content {named}, which is not there"));
    }
    let check = |(hash, content): (String, String)| {
        if named.as_ref() != Some(&hash) {
            return Err(format!("the content {hash} is there, which it does not name"));
        }
        match STANDARD.decode(content) {
            Ok(content) if sha256_hex(&content) == hash => Ok((hash, content)),
            Ok(_) => Err(format!("the content that it names as {hash} is another one")),
            Err(error) => Err(format!("the content that it names as {hash} is not base64: {error}")),
        }
    };
    given.into_iter().map(check).collect()
}
