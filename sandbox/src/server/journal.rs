//! Which calls this process has seen: the reason why none of them runs twice. Pure; time comes from outside.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::wire::{Activity, CallId, DrainResponse, ToolOutput};

/// The bounds of a journal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Calls that run at the same time.
    pub(super) running: usize,
    /// Finished calls whose results are kept.
    pub(super) results: usize,
    /// The size of all kept results.
    pub(super) result_bytes: usize,
    /// Calls whose ids are kept after their results are not.
    pub(super) evicted: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { running: 32, results: 256, result_bytes: 32 * 1024 * 1024, evicted: 100_000 }
    }
}

/// What a call does, for comparison with a later one of the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(name: &str, input: &Value) -> Self {
        let mut hash = Sha256::new();
        feed(&mut hash, b'n', name.as_bytes());
        feed_value(&mut hash, input);
        Self(hash.finalize().into())
    }
}

fn feed(hash: &mut Sha256, tag: u8, bytes: &[u8]) {
    hash.update([tag]);
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

// Objects are equal whatever the order of their keys, as they are in JSON.
fn feed_value(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            feed(hash, b'{', &(entries.len() as u64).to_be_bytes());
            for (key, value) in entries {
                feed(hash, b'k', key.as_bytes());
                feed_value(hash, value);
            }
        }
        Value::Array(items) => {
            feed(hash, b'[', &(items.len() as u64).to_be_bytes());
            for item in items {
                feed_value(hash, item);
            }
        }
        Value::String(text) => feed(hash, b's', text.as_bytes()),
        scalar => feed(hash, b'v', scalar.to_string().as_bytes()),
    }
}

/// Whether new calls are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Accepting,
    Draining,
    Terminating,
}

/// What became of a request to run a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun<R> {
    /// The call is new and is now running.
    Started(R),
    /// The call runs already.
    Running(R),
    /// The call has finished.
    Finished(Arc<ToolOutput>),
}

/// Why a call was neither started nor found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The id belongs to another call.
    Mismatch,
    /// The call has finished and its result is gone.
    Evicted,
    /// Only known calls were asked for.
    Unknown,
    /// Too many calls run.
    Busy,
    /// The sandbox is being reclaimed.
    Draining,
    /// The process is ending.
    Terminating,
}

enum State<R> {
    Running(R),
    Finished(Arc<ToolOutput>),
}

struct Entry<R> {
    fingerprint: Fingerprint,
    state: State<R>,
}

/// The ids of calls whose results are gone, as hashes: 100,000 of them take 5 MB at most.
#[derive(Default)]
struct Evicted {
    order: VecDeque<u128>,
    ids: HashSet<u128>,
}

impl Evicted {
    fn key(id: &CallId) -> u128 {
        let digest: [u8; 32] = Sha256::digest(id.as_str()).into();
        digest.iter().take(16).fold(0, |key, byte| (key << 8) | u128::from(*byte))
    }

    fn insert(&mut self, id: &CallId, limit: usize) {
        let key = Self::key(id);
        if self.ids.insert(key) {
            self.order.push_back(key);
        }
        while self.order.len() > limit {
            if let Some(oldest) = self.order.pop_front() {
                self.ids.remove(&oldest);
            }
        }
    }

    fn contains(&self, id: &CallId) -> bool {
        !self.ids.is_empty() && self.ids.contains(&Self::key(id))
    }
}

/// The calls of this process. `R` is the handle of a running one.
pub(super) struct Journal<R> {
    limits: Limits,
    mode: Mode,
    calls: HashMap<CallId, Entry<R>>,
    running: usize,
    finished: VecDeque<CallId>,
    finished_bytes: usize,
    evicted: Evicted,
    last_end: Instant,
}

impl<R: Clone> Journal<R> {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            mode: Mode::Accepting,
            calls: HashMap::new(),
            running: 0,
            finished: VecDeque::new(),
            finished_bytes: 0,
            evicted: Evicted::default(),
            last_end: now,
        }
    }

    /// Finds the call, or starts it with the handle that `start` makes unless `attach_only` is set.
    pub(super) fn begin(
        &mut self,
        id: &CallId,
        fingerprint: Fingerprint,
        attach_only: bool,
        start: impl FnOnce() -> R,
    ) -> Result<Begun<R>, Refused> {
        if let Some(entry) = self.calls.get(id) {
            if entry.fingerprint != fingerprint {
                return Err(Refused::Mismatch);
            }
            return Ok(match &entry.state {
                State::Running(handle) => Begun::Running(handle.clone()),
                State::Finished(output) => Begun::Finished(Arc::clone(output)),
            });
        }
        if self.evicted.contains(id) {
            return Err(Refused::Evicted);
        }
        match self.mode {
            _ if attach_only => Err(Refused::Unknown),
            Mode::Draining => Err(Refused::Draining),
            Mode::Terminating => Err(Refused::Terminating),
            Mode::Accepting if self.running >= self.limits.running => Err(Refused::Busy),
            Mode::Accepting => {
                let handle = start();
                self.running += 1;
                self.calls.insert(id.clone(), Entry { fingerprint, state: State::Running(handle.clone()) });
                Ok(Begun::Started(handle))
            }
        }
    }

    /// Records the result of a running call. Anything else is left as it is.
    pub(super) fn finish(&mut self, id: &CallId, output: &Arc<ToolOutput>, now: Instant) {
        let Some(entry) = self.calls.get_mut(id) else { return };
        if matches!(entry.state, State::Finished(_)) {
            return;
        }
        entry.state = State::Finished(Arc::clone(output));
        self.running -= 1;
        self.last_end = now;
        self.finished.push_back(id.clone());
        self.finished_bytes += output.content.len();
        while self.finished.len() > self.limits.results || self.finished_bytes > self.limits.result_bytes {
            let Some(oldest) = self.finished.pop_front() else { return };
            if let Some(Entry { state: State::Finished(output), .. }) = self.calls.remove(&oldest) {
                self.finished_bytes -= output.content.len();
            }
            self.evicted.insert(&oldest, self.limits.evicted);
        }
    }

    /// The handle of a running call.
    pub(super) fn running(&self, id: &CallId) -> Option<R> {
        match self.calls.get(id)?.state {
            State::Running(ref handle) => Some(handle.clone()),
            State::Finished(_) => None,
        }
    }

    /// The handles of all running calls.
    pub(super) fn all_running(&self) -> Vec<R> {
        let running = |entry: &Entry<R>| match &entry.state {
            State::Running(handle) => Some(handle.clone()),
            State::Finished(_) => None,
        };
        self.calls.values().filter_map(running).collect()
    }

    pub(super) fn activity(&self, now: Instant) -> Activity {
        Activity {
            running_calls: self.running,
            idle_seconds: self.idle(now).as_secs(),
            draining: self.mode == Mode::Draining,
        }
    }

    fn idle(&self, now: Instant) -> Duration {
        if self.running > 0 { Duration::ZERO } else { now.saturating_duration_since(self.last_end) }
    }

    /// Refuses new calls for good, if none runs and none has run for `idle`.
    pub(super) fn drain(&mut self, idle: Duration, now: Instant) -> DrainResponse {
        if self.mode == Mode::Accepting && self.running == 0 && self.idle(now) >= idle {
            self.mode = Mode::Draining;
        }
        DrainResponse { drained: self.mode == Mode::Draining, activity: self.activity(now) }
    }

    /// Refuses new calls because the process is ending.
    pub(super) fn terminate(&mut self) {
        self.mode = Mode::Terminating;
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.mode == Mode::Terminating
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
