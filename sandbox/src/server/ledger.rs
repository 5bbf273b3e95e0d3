//! The journal on disk, so that a restarted `sandboxd` knows what its predecessor has done and runs nothing twice.
//!
//! The index has a slot of fixed size for each call, in a file whose room is taken when it is made: a full disk hinders no
//! entry. A call is entered before it starts. Results are files of their own, put in place whole before the slot says that the
//! call has finished; one that cannot be written is lost, which the slot then says. Nothing is synced: what must be survived is
//! the end of the process, and with a node its sandboxes go as well. The directory is no secret from commands, which run as
//! the same user.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::journal::{Fingerprint, key};
use crate::wire::{CallId, ToolOutput};

const SLOT: usize = 64;
const MAGIC: &[u8; 8] = b"lhjrnl1\n";

/// The bounds of a ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Calls that are remembered; the oldest that do not run make room.
    pub(super) calls: usize,
    /// Results that are kept.
    pub(super) results: usize,
    /// Bytes of all of them.
    pub(super) result_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { calls: 16 * 1024 - 1, results: 256, result_bytes: 32 * 1024 * 1024 }
    }
}

/// Where a call of a predecessor has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// It has finished, and this is its result.
    Finished { call_id: CallId, fingerprint: Fingerprint, output: ToolOutput },
    /// It has finished, and its result is not kept.
    Evicted { key: u128 },
    /// It was running when the process ended.
    Unknown { key: u128, fingerprint: Fingerprint },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Finished,
    Evicted,
    Unknown,
}

impl State {
    const ALL: [(Self, u8); 4] =
        [(Self::Running, b'R'), (Self::Finished, b'F'), (Self::Evicted, b'E'), (Self::Unknown, b'U')];

    fn byte(self) -> u8 {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or(0, |(_, byte)| *byte)
    }

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == byte).map(|(state, _)| *state)
    }
}

/// `key (16) fingerprint (32) check (8) state (1) zeros`. Only the state changes, which is one byte and so is never torn.
fn encode(key: u128, fingerprint: Fingerprint, state: State) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..16].copy_from_slice(&key.to_be_bytes());
    slot[16..48].copy_from_slice(fingerprint.bytes());
    let check = Sha256::digest(&slot[..48]);
    slot[48..56].copy_from_slice(&check[..8]);
    slot[STATE_AT] = state.byte();
    slot
}

const STATE_AT: usize = 56;

/// A slot that was written to its end.
fn decode(slot: &[u8; SLOT]) -> Option<(u128, Fingerprint, State)> {
    let state = State::of(slot[STATE_AT])?;
    let whole = Sha256::digest(&slot[..48])[..8] == slot[48..56];
    let key = u128::from_be_bytes(slot[..16].try_into().ok()?);
    let fingerprint = Fingerprint::from_bytes(slot[16..48].try_into().ok()?);
    whole.then_some((key, fingerprint, state))
}

#[derive(Serialize, Deserialize)]
struct Kept {
    call_id: CallId,
    output: ToolOutput,
}

/// The ledger of one sandbox; another process cannot open it at the same time.
#[derive(Debug)]
pub(super) struct Ledger {
    dir: PathBuf,
    index: File,
    limits: Limits,
    slots: Vec<Option<(u128, State)>>,
    by_key: HashMap<u128, usize>,
    /// Where to look for a slot when all of them are taken.
    next: usize,
    /// The kept results, the oldest first, with their sizes.
    kept: VecDeque<(u128, u64)>,
    kept_bytes: u64,
}

impl Ledger {
    /// Opens the ledger in `dir`, or makes it. What is there of another pod is thrown away.
    pub(super) fn open(dir: &Path, pod_uid: &str, limits: Limits) -> io::Result<(Self, Vec<Past>)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut options = File::options();
        let index = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join("index"))?;
        flock(&index, FlockOperation::NonBlockingLockExclusive)?;
        let mut header = [0; SLOT];
        header[..8].copy_from_slice(MAGIC);
        header[8..40].copy_from_slice(&Sha256::digest(pod_uid));
        let mut found = [0; SLOT];
        let ours = index.read_exact_at(&mut found, 0).is_ok() && found == header;
        let size = ((limits.calls + 1) * SLOT) as u64;
        if !ours {
            index.set_len(0)?;
            remove_results(dir)?;
        }
        // A file system that cannot take room in advance is used as it is.
        match fallocate(&index, FallocateFlags::empty(), 0, size) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => index.set_len(size)?,
            other => other?,
        }
        index.write_all_at(&header, 0)?;
        let mut ledger = Self {
            dir: dir.to_owned(),
            index,
            limits,
            slots: Vec::new(),
            by_key: HashMap::new(),
            next: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
        };
        let past = if ours { ledger.load()? } else { Vec::new() };
        Ok((ledger, past))
    }

    fn load(&mut self) -> io::Result<Vec<Past>> {
        let mut bytes = Vec::new();
        (&self.index).read_to_end(&mut bytes)?;
        let mut past = Vec::new();
        let slots: Vec<_> =
            bytes.chunks_exact(SLOT).skip(1).take(self.limits.calls).map(<[u8; SLOT]>::try_from).collect();
        for (at, slot) in slots.into_iter().enumerate() {
            // A slot that was not written to its end is that of a call that was not started.
            let Some((key, fingerprint, state)) = slot.ok().and_then(|slot| decode(&slot)) else { continue };
            self.slots.resize(at + 1, None);
            self.slots[at] = Some((key, state));
            self.by_key.insert(key, at);
            let kept = self.read(key);
            let (state, entry) = match (state, kept) {
                // The result is put in place before the slot says so.
                (State::Running | State::Finished, Some((kept, size))) => {
                    self.kept.push_back((key, size));
                    self.kept_bytes += size;
                    let Kept { call_id, output } = kept;
                    (State::Finished, Past::Finished { call_id, fingerprint, output })
                }
                (State::Finished | State::Evicted, _) => (State::Evicted, Past::Evicted { key }),
                (State::Running | State::Unknown, _) => (State::Unknown, Past::Unknown { key, fingerprint }),
            };
            self.set(at, state)?;
            past.push(entry);
        }
        Ok(past)
    }

    /// Enters a call that is about to start.
    pub(super) fn begin(&mut self, id: &CallId, fingerprint: Fingerprint) -> io::Result<()> {
        let at = self.free().ok_or_else(|| io::Error::other("every entry is that of a running call"))?;
        let key = key(id);
        self.index.write_all_at(&encode(key, fingerprint, State::Running), offset(at))?;
        if let Some((old, _)) = self.slots[at].replace((key, State::Running)) {
            self.by_key.remove(&old);
        }
        self.by_key.insert(key, at);
        Ok(())
    }

    /// A new slot, or the next one after the last whose call does not run.
    fn free(&mut self) -> Option<usize> {
        let count = self.slots.len();
        if count < self.limits.calls {
            self.slots.push(None);
            return Some(count);
        }
        let free = |at: &usize| !matches!(self.slots[*at], Some((_, State::Running)));
        let at = (0..count).map(|step| (self.next + step) % count).find(free)?;
        self.next = at + 1;
        Some(at)
    }

    /// Keeps the result of a call that was entered. An error means that it is remembered without its result.
    pub(super) fn finish(&mut self, call_id: &CallId, output: &ToolOutput) -> io::Result<()> {
        let key = key(call_id);
        let Some(at) = self.by_key.get(&key).copied() else { return Ok(()) };
        let written = self.write(key, call_id, output);
        self.set(at, if written.is_ok() { State::Finished } else { State::Evicted })?;
        let size = written?;
        self.kept.push_back((key, size));
        self.kept_bytes += size;
        while self.kept.len() > self.limits.results || self.kept_bytes > self.limits.result_bytes {
            let Some((oldest, size)) = self.kept.pop_front() else { break };
            self.kept_bytes -= size;
            if let Some(at) = self.by_key.get(&oldest).copied() {
                self.set(at, State::Evicted)?;
            }
            fs::remove_file(self.path(oldest))?;
        }
        Ok(())
    }

    fn set(&mut self, at: usize, state: State) -> io::Result<()> {
        let Some((_, known)) = &mut self.slots[at] else { return Ok(()) };
        if *known != state {
            *known = state;
            self.index.write_all_at(&[state.byte()], offset(at) + STATE_AT as u64)?;
        }
        Ok(())
    }

    fn path(&self, key: u128) -> PathBuf {
        self.dir.join(format!("{key:032x}.json"))
    }

    fn read(&self, key: u128) -> Option<(Kept, u64)> {
        let bytes = fs::read(self.path(key)).ok()?;
        Some((serde_json::from_slice(&bytes).ok()?, bytes.len() as u64))
    }

    fn write(&self, key: u128, call_id: &CallId, output: &ToolOutput) -> io::Result<u64> {
        let bytes = serde_json::to_vec(&Kept { call_id: call_id.clone(), output: output.clone() })?;
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&bytes)?;
        file.persist(self.path(key)).map_err(|error| error.error)?;
        Ok(bytes.len() as u64)
    }
}

fn offset(at: usize) -> u64 {
    ((at + 1) * SLOT) as u64
}

fn remove_results(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() != "index" && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
