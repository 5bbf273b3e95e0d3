//! Which calls this process has seen: the reason why none of them runs twice. Pure; time comes from outside.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::ledger::Past;
use crate::wire::{Activity, CallId, ToolOutput};

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
    /// Terminals that are open at the same time.
    pub(super) terminals: usize,
    /// Files and archives that are sent or received at the same time.
    pub(super) transfers: usize,
    /// Connections to ports that are open at the same time.
    pub(super) tunnels: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            running: 32,
            results: 256,
            result_bytes: 32 * 1024 * 1024,
            evicted: 100_000,
            terminals: 8,
            transfers: 16,
            tunnels: 128,
        }
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

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
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
    /// The call was running when an earlier process ended.
    OutcomeUnknown,
    /// Only known calls were asked for.
    Unknown,
    /// Too many calls run, or too many transfers, terminals or connections to ports are open.
    Busy,
    /// The sandbox is being reclaimed.
    Draining,
    /// The process is ending.
    Terminating,
    /// Something has begun here before.
    Used,
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

/// A short name of a call.
pub(super) fn key(id: &CallId) -> u128 {
    let digest: [u8; 32] = Sha256::digest(id.as_str()).into();
    digest.iter().take(16).fold(0, |key, byte| (key << 8) | u128::from(*byte))
}

impl Evicted {
    fn insert(&mut self, key: u128, limit: usize) {
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
        !self.ids.is_empty() && self.ids.contains(&key(id))
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
    unknown: HashMap<u128, Fingerprint>,
    terminals: usize,
    transfers: usize,
    tunnels: usize,
    last_end: Instant,
    /// Whether anything has ever begun here.
    used: bool,
    filling: Filling,
}

/// Whether the workspace is one that another sandbox has handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filling {
    /// No, or a part of it at the most.
    No,
    /// It is on its way.
    Now,
    /// All of it is here.
    Done,
}

/// What keeps a sandbox busy besides calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Terminal,
    Transfer,
    Tunnel,
}

/// What commands have left running.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Background {
    /// Commands of which something runs.
    pub(super) commands: usize,
    /// When the last one that ended did so.
    pub(super) last_end: Option<Instant>,
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
            unknown: HashMap::new(),
            terminals: 0,
            transfers: 0,
            tunnels: 0,
            last_end: now,
            used: false,
            filling: Filling::No,
        }
    }

    /// Takes over what an earlier process has done.
    pub(super) fn restore(&mut self, past: Vec<Past>) {
        self.used |= !past.is_empty();
        for call in past {
            match call {
                Past::Finished { call_id, fingerprint, output } => {
                    let state = State::Finished(Arc::new(output.clone()));
                    self.calls.insert(call_id.clone(), Entry { fingerprint, state });
                    self.keep(call_id, output.content.len());
                }
                Past::Evicted { key } => self.evicted.insert(key, self.limits.evicted),
                Past::Unknown { key, fingerprint } => _ = self.unknown.insert(key, fingerprint),
            }
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
        if !self.unknown.is_empty()
            && let Some(known) = self.unknown.get(&key(id))
        {
            return Err(if *known == fingerprint { Refused::OutcomeUnknown } else { Refused::Mismatch });
        }
        match self.mode {
            _ if attach_only => Err(Refused::Unknown),
            Mode::Draining => Err(Refused::Draining),
            Mode::Terminating => Err(Refused::Terminating),
            Mode::Accepting if self.running >= self.limits.running => Err(Refused::Busy),
            Mode::Accepting => {
                let handle = start();
                self.running += 1;
                self.used = true;
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
        self.keep(id.clone(), output.content.len());
    }

    fn keep(&mut self, id: CallId, bytes: usize) {
        self.finished.push_back(id);
        self.finished_bytes += bytes;
        while self.finished.len() > self.limits.results || self.finished_bytes > self.limits.result_bytes {
            let Some(oldest) = self.finished.pop_front() else { return };
            if let Some(Entry { state: State::Finished(output), .. }) = self.calls.remove(&oldest) {
                self.finished_bytes -= output.content.len();
            }
            self.evicted.insert(key(&oldest), self.limits.evicted);
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

    /// Begins something other than a call.
    pub(super) fn open(&mut self, what: Use) -> Result<(), Refused> {
        let (open, limit) = match what {
            Use::Terminal => (&mut self.terminals, self.limits.terminals),
            Use::Transfer => (&mut self.transfers, self.limits.transfers),
            Use::Tunnel => (&mut self.tunnels, self.limits.tunnels),
        };
        match self.mode {
            Mode::Draining => Err(Refused::Draining),
            Mode::Terminating => Err(Refused::Terminating),
            Mode::Accepting if *open >= limit => Err(Refused::Busy),
            Mode::Accepting => {
                *open += 1;
                self.used = true;
                Ok(())
            }
        }
    }

    /// Begins to fill the workspace with another sandbox's, which counts as a transfer; `false` if that was done before. Who asks twice,
    /// not knowing what became of the first time, finds that all of it is here and changes nothing.
    pub(super) fn fill(&mut self) -> Result<bool, Refused> {
        match (self.mode, self.filling) {
            (Mode::Draining, _) => Err(Refused::Draining),
            (Mode::Terminating, _) => Err(Refused::Terminating),
            (Mode::Accepting, Filling::Done) => Ok(false),
            (Mode::Accepting, Filling::Now) => Err(Refused::Busy),
            (Mode::Accepting, Filling::No) if self.used => Err(Refused::Used),
            (Mode::Accepting, Filling::No) => {
                self.filling = Filling::Now;
                self.transfers += 1;
                Ok(true)
            }
        }
    }

    /// Ends what [`Journal::fill`] began. What is here in part only is begun again.
    pub(super) fn filled(&mut self, whole: bool, now: Instant) {
        self.filling = if whole { Filling::Done } else { Filling::No };
        self.close(Use::Transfer, now);
    }

    /// Ends what [`Journal::open`] began.
    pub(super) fn close(&mut self, what: Use, now: Instant) {
        let open = match what {
            Use::Terminal => &mut self.terminals,
            Use::Transfer => &mut self.transfers,
            Use::Tunnel => &mut self.tunnels,
        };
        *open = open.saturating_sub(1);
        self.last_end = now;
    }

    pub(super) fn activity(&self, background: Background, now: Instant) -> Activity {
        Activity {
            running_calls: self.running,
            terminals: self.terminals,
            transfers: self.transfers,
            tunnels: self.tunnels,
            background: background.commands,
            idle_seconds: self.idle(now).as_secs(),
            draining: self.mode == Mode::Draining,
        }
    }

    fn is_busy(&self) -> bool {
        self.running > 0 || self.terminals > 0 || self.transfers > 0 || self.tunnels > 0
    }

    fn idle(&self, now: Instant) -> Duration {
        if self.is_busy() { Duration::ZERO } else { now.saturating_duration_since(self.last_end) }
    }

    /// Refuses everything new until it is resumed, if nothing is going on and nothing has been for `idle`. What commands have left
    /// running counts if `background` holds it.
    pub(super) fn drain(&mut self, idle: Duration, background: Option<Background>, now: Instant) -> bool {
        let quiet = background.is_none_or(|background| {
            let quiet_for = |end: Instant| now.saturating_duration_since(end) >= idle;
            background.commands == 0 && background.last_end.is_none_or(quiet_for)
        });
        if self.mode == Mode::Accepting && !self.is_busy() && quiet && self.idle(now) >= idle {
            self.mode = Mode::Draining;
        }
        self.mode == Mode::Draining
    }

    /// Takes calls again after it was drained. What has been idle until now is idle from now on.
    pub(super) fn resume(&mut self, now: Instant) {
        if self.mode == Mode::Draining {
            self.mode = Mode::Accepting;
            self.last_end = now;
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.mode == Mode::Draining
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
